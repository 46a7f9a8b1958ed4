"""The prompts of a conversation: each is the one before it, an answer, and what is new. Pure."""

from __future__ import annotations

from typing import Protocol, TypeVar

from benchbench.datasets.laws import Law, Lengths

KIND = "turns"  # of the law that the lengths of such prompts have


class _Shape(Protocol):
    """A point of a grid."""

    @property
    def input(self) -> int | None: ...
    @property
    def output(self) -> int: ...
    @property
    def lengths(self) -> Lengths: ...


class _Shared(Protocol):
    @property
    def turns(self) -> int | None: ...


S = TypeVar("S", bound=_Shape)


def turn_tokens(turns: int, new: int, answer: int) -> list[int]:
    """Tokens of the prompt of each turn: (k + 1) x new + k x answer, k from 0."""
    return [(k + 1) * new + k * answer for k in range(turns)]


def batches(shared: _Shared | None, usual: int) -> int:
    """Requests of a closed load, in batches, where the sweep says none: of conversations as many as leave each place in
    flight one steady request of each turn (`analysis.metrics`: N - 3B are steady).
    """
    return 3 + shared.turns if shared and shared.turns else usual


def grown(shape: S, shared: _Shared | None) -> S:
    """The shape of conversations whose turns each bring `shape.input` new tokens: its input is the mean prompt's.

    Itself where there are none, and where its lengths have laws of their own (which is refused elsewhere).
    """
    if shared is None or shared.turns is None or shape.lengths or shape.input is None:
        return shape
    tokens = turn_tokens(shared.turns, shape.input, shape.output)
    mean = sum(tokens) / len(tokens)
    law = Law(KIND, mean, least=tokens[0], most=tokens[-1])
    return shape._replace(input=round(mean), lengths=Lengths(input=law))  # type: ignore[attr-defined,no-any-return] # a NamedTuple
