"""What one response says of its request: a decoder's result, or what an engine in our own process told."""

from __future__ import annotations

from dataclasses import dataclass, field

from benchbench.store.requests import ErrorKind


@dataclass(slots=True)
class Response:
    """What one response said.

    `event_read[k]`: number of the read that completed token event k. `event_tokens[k]`: its tokens.
    `tokens_from`: how they are known (`token_counts.count_hidden`). `answered_by`: the model and the system fingerprint
    that the server named at its end. `served_by`: which of several servers a gateway chose, where it names it;
    `retried`: how often it asked again before. `done`: [DONE] has come. `problem`: (kind, sentence) when the stream
    itself reports or shows a failure.
    """

    event_read: list[int] = field(default_factory=list)
    event_tokens: list[int] = field(default_factory=list)
    tokens_from: str = ""
    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str = ""
    response_id: str = ""
    answered_by: str = ""
    served_by: str = ""
    retried: int = 0
    server_metrics: dict[str, float] = field(default_factory=dict)
    done: bool = False
    problem: tuple[ErrorKind, str] | None = None

    @property
    def is_whole(self) -> bool:
        """Whether the server said all that it had to say, though its connection may have broken afterwards."""
        return self.done and bool(self.finish_reason) and self.problem is None
