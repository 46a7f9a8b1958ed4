"""Which facts make a cell suspect or invalid. `python tests/test_validity.py` writes the page that lists them."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.analysis.validity import Budgets, Reason, Seen, Status, judge, worst

PAGE = Path(__file__).parents[1] / "docs" / "validity.md"
GOOD = Seen(
    rounds=5, rounds_asked=5, requests=160, failed=0, events=1000, shared_events=10, first_shared=0, buffered=80,
    cached_tokens=0, input_wrong=0, input_unknown=0, output_unknown=0, token_ids=True, clock_step_ns=1_000_000,
    kernel_stamps=True, windowed=True,
)  # fmt: skip
CHANGES: dict[Reason, dict[str, Any]] = {
    Reason.NO_DATA: {"rounds": 0},
    Reason.REQUEST_FAILED: {"failed": 1, "requests": 161},
    Reason.INPUT_LENGTH: {"input_wrong": 1},
    Reason.INPUT_INEXACT: {"input_wrong": 1, "token_ids": False},
    Reason.INPUT_UNVERIFIED: {"input_unknown": 1},
    Reason.OUTPUT_UNVERIFIED: {"output_unknown": 1},
    Reason.CACHED_PREFIX: {"cached_tokens": 1},
    Reason.SHARED_READS_SOME: {"shared_events": 11},
    Reason.SHARED_READS: {"shared_events": 101},
    Reason.FIRST_TOKEN_SHARED: {"first_shared": 1},
    Reason.BUFFERED_STREAM: {"buffered": 81},
    Reason.CLOCK_STEP: {"clock_step_ns": 1_000_001},
    Reason.USER_STAMPS: {"kernel_stamps": False},
    Reason.SHORT_WINDOW: {"windowed": False},
    Reason.TOO_FEW_ROUNDS: {"rounds": 4},
}
# Two reasons about one number: the later change takes the earlier's place.
RIVALS = [
    {Reason.NO_DATA, Reason.TOO_FEW_ROUNDS},
    {Reason.INPUT_LENGTH, Reason.INPUT_INEXACT},
    {Reason.SHARED_READS, Reason.SHARED_READS_SOME},
]


def test_at_its_budgets_a_cell_is_valid() -> None:
    assert judge(GOOD, Budgets()) == ("valid", ())
    assert judge(replace(GOOD, shared_events=100), Budgets())[0] == "suspect"
    assert judge(replace(GOOD, shared_events=0, events=0), Budgets()) == ("valid", ())


@pytest.mark.parametrize("reason", Reason, ids=lambda reason: reason.name)
def test_each_reason_by_its_smallest_cause_alone(reason: Reason) -> None:
    assert judge(replace(GOOD, **CHANGES[reason]), Budgets()) == (reason.status, (reason,))


@given(st.sets(st.sampled_from(list(Reason))))
def test_reasons_add_up_and_the_worst_decides(reasons: set[Reason]) -> None:
    for rivals in RIVALS:
        if rivals <= reasons:
            reasons -= {max(rivals, key=lambda reason: reason.name)}
    changes: dict[str, Any] = {}
    for reason in reasons:
        changes |= CHANGES[reason]
    status, found = judge(replace(GOOD, **changes), Budgets())
    assert found == tuple(reason for reason in Reason if reason in reasons)
    assert status == worst(reason.status for reason in reasons)


def test_budgets_are_the_callers() -> None:
    seen = replace(GOOD, shared_events=300, cached_tokens=64, clock_step_ns=5_000_000)
    loose = Budgets(shared_suspect=0.3, shared_invalid=0.5, cached_tokens=64, clock_step_ns=5_000_000)
    assert judge(seen, loose) == ("valid", ())


@given(st.lists(st.sampled_from(["valid", "suspect", "invalid"])))
def test_the_worst_status(statuses: list[Status]) -> None:
    order: list[Status] = ["valid", "suspect", "invalid"]
    assert worst(statuses) == max(statuses, key=order.index, default="valid")


def test_the_words_of_every_reason() -> None:
    for reason in Reason:
        assert re.fullmatch(r"[a-z]+(_[a-z]+)*", reason.code)
        assert reason.status in {"suspect", "invalid"}
        for text in (reason.meaning, reason.remedy):
            assert text == text.strip()
            assert len(text.split()) > 1
            assert not re.search(r"[|\n]", text), "would break the table"
    assert len({(reason.code, reason.status) for reason in Reason}) == len(Reason)


def page() -> str:
    intro = (
        "A cell is `valid`, `suspect` (shown in tables and plots with a mark) or `invalid` (left out of both); "
        "`summary.csv` keeps all three with their codes in `reasons`. This is the closed list of the reasons: "
        "a cell's status is the worst of those that apply, and `valid` when none does."
    )
    rows = [f"| `{r.code}` | {r.status} | {r.meaning} | {r.remedy} |" for r in Reason]
    note = "<!-- Made from benchbench/analysis/validity.py by `python tests/test_validity.py`; don't edit. -->"
    table = ["| code | status | meaning | remedy |", "|---|---|---|---|", *rows]
    return "\n".join(["# When a number is not to be trusted", "", intro, "", *table, "", note, ""])


def test_the_page_lists_every_reason() -> None:
    assert PAGE.read_text(encoding="utf-8") == page()


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
