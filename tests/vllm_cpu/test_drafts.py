"""Speculative decoding by n-grams on running text: vLLM's counters of drafts, beside the tokens of our events.

Weights are random, and greedy answers of such a model go round in circles, which n-grams foresee.
"""

from __future__ import annotations

from pathlib import Path

from launching import assert_exact, carry_out, measured, show, write_sweep

from benchbench import open_run
from benchbench.store.requests import round_facts

TOKENS = 3
GRID = {"input": [128], "output": [96], "batch": [1, 4]}
NGRAM = {
    "method": "ngram",
    "num_speculative_tokens": TOKENS,
    "prompt_lookup_max": 3,
    "prompt_lookup_min": 1,
}


def test_ngram_drafts_on_text(models: Path, tmp_path: Path) -> None:
    flags = {"speculative-config": NGRAM}
    sweep = write_sweep(tmp_path / "s.yaml", models / "tiny-llama", flags=flags, grid=GRID, prompts={"kind": "corpus"})
    swept = carry_out(sweep, tmp_path / "run")
    assert swept.code in (0, 3), swept.said
    assert_exact(swept.run, GRID)
    run = open_run(swept.run)
    assert run.manifest["speculative"] == {"method": "ngram", "tokens": TOKENS}
    sizes = [n for row in measured(swept.run) for n in row["event_tokens"]]
    assert max(sizes) > 1
    for row in run.rows:
        views = [round_facts(table)["server"] for table in run.directory.read_cell(row["key"])]
        drafts, drafted, accepted = (
            sum(view[f"spec_{name}"] for view in views if view)
            for name in ("drafts", "draft_tokens", "accepted_tokens")
        )
        assert 0 < drafts <= drafted <= TOKENS * drafts
        assert (row["acceptance_rate"], row["acceptance_length"]) == (accepted / drafted, 1 + accepted / drafts)
        assert row["tokens_per_step"] >= 1
        (words,) = [line for line in run.explain(row["key"]).splitlines() if "tokens a step by our events" in line]
        show(words.strip())
        # Where this machine was late vLLM's front end joins steps to one event, and the cell says so.
        assert ("which agree" in words) == ("acceptance_unclear" not in row["reasons"]), words
