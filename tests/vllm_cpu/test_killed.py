"""An engine that dies in mid-cell: that cell is given up with the reason, the engine started again for the others."""

from __future__ import annotations

from pathlib import Path

import pytest
from driving import Sweeping, summary
from launching import carry_out, measured, read_journal, write_sweep

SHORT, LONG = {"input": 32, "output": 8, "batch": 2}, {"input": 32, "output": 3500, "batch": 2}
AFTER = {"input": 64, "output": 8, "batch": 2}
CORE = "VLLM::EngineCore"


def _kill(sweep: Sweeping, run: Path, what: str) -> bool:
    """Kill the engine's process that has `what` in its command line, once the second cell is being measured."""
    begun = [line for line in read_journal(run) if line["event"] == "round_begun" and line["phase"] == "measured"]
    if len({line["cell"] for line in begun}) < 2:
        return False
    found = [process for process in sweep.descendants() if what in " ".join(process.cmdline())]
    for process in found:
        process.kill()
    return bool(found)


@pytest.mark.parametrize(
    ("kind", "what"),
    [("vllm_serve", "vllm.entrypoints"), ("vllm_serve", CORE), ("vllm_inprocess", CORE)],
    ids=["server", "its engine core", "engine core in process"],
)
def test_killed_in_mid_cell(kind: str, what: str, models: Path, tmp_path: Path) -> None:
    run, model = tmp_path / "run", models / "tiny-llama"
    cells = {"grid": [SHORT, LONG, AFTER], "order": "as_written", "prompts": {"vocab": [100, 700]}}
    sweep = write_sweep(tmp_path / "s.yaml", model, flags={"skip-tokenizer-init": True}, **cells)
    swept = carry_out(sweep, run, "--set", f"engine.kind={kind}", during=lambda sweeping: _kill(sweeping, run, what))
    assert swept.code in (0, 3), swept.said
    died, given_up = swept.journal("engine_died"), swept.journal("cell_given_up")
    assert (len(died), len(given_up)) == (1, 1), swept.said
    assert died[0]["reason"]
    assert died[0]["reason"] in swept.err
    rows = {(row["input"], row["output"]): row for row in summary(run)}
    assert (rows[32, 3500]["status"], rows[32, 3500]["key"]) == ("invalid", given_up[0]["cell"])
    failed = [row for row in measured(run) if row["status"] == "failed"]
    assert len(failed) == 2
    assert all(died[0]["reason"] in row["error_detail"] and row["output"] == 3500 for row in failed)
    for input_tokens in (32, 64):
        assert rows[input_tokens, 8]["failed"] == 0
    assert [row["output_tokens"] for row in measured(run) if row["output"] == 8] == [8] * 8
