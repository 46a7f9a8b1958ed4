"""Other ways to serve: tokens in groups, chat, MiniMax-M2's architecture, W8A8 INT8; and a server that crashes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from launching import GRID, assert_exact, carry_out, measured, write_sweep

SMALL = {"input": [32], "output": [8, 32], "batch": [2]}


def test_chat_in_groups_of_five_tokens(models: Path, tmp_path: Path) -> None:
    texts = {"engine": {"api": "chat"}, "prompts": {"kind": "text"}}
    sweep = write_sweep(tmp_path / "s.yaml", models / "tiny-llama", flags={"stream-interval": 5}, **texts)
    swept = carry_out(sweep, tmp_path / "run")
    assert swept.code in (0, 3), swept.said
    assert_exact(swept.run)
    grouped = [row["event_tokens"] for row in measured(swept.run) if row["output"] == max(GRID["output"])]
    # The first token comes at once; what else was waiting when an event was sent goes with it.
    assert all(events[0] == 1 and len(events) <= 1 + 31 // 5 + 1 and max(events) >= 5 for events in grouped), grouped


@pytest.mark.parametrize(
    ("model", "flags"),
    [
        ("tiny-m2", {"hf-overrides": {"scoring_func": "softmax"}}),  # vLLM's CPU build has no other router
        ("tiny-llama-compressed-tensors", {}),
        ("tiny-llama-quark", {}),
    ],
)
def test_architectures_and_formats(model: str, flags: dict[str, Any], models: Path, tmp_path: Path) -> None:
    sweep = write_sweep(tmp_path / "s.yaml", models / model, flags=flags, grid=SMALL)
    swept = carry_out(sweep, tmp_path / "run")
    assert swept.code in (0, 3), swept.said
    assert_exact(swept.run, SMALL)


def test_a_crash_at_the_first_request_is_told_in_a_sentence(models: Path, tmp_path: Path) -> None:
    swept = carry_out(write_sweep(tmp_path / "s.yaml", models / "tiny-m2", grid=SMALL), tmp_path / "run")
    assert swept.code == 2, swept.said  # it names engine.args, which is to be mended
    assert "scoring_func" in swept.err
    assert "Traceback" not in swept.out + swept.err
