"""Other hosts' clocks: the true offset is never outside of what is said, and times come back on ours."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchbench.hosts.actor import joined, parted
from benchbench.hosts.clock_offsets import Offset, Trip, offset_between, offset_of, window_uncertainty_ns
from benchbench.hosts.host_group import on_our_clock
from benchbench.loadgen.job import RoundJob
from benchbench.openai.target import Access, make_target
from benchbench.spec import SpecError, spec_from_mapping

NOW_NS = 1_800_000_000_000_000_000
ways = st.lists(st.tuples(st.integers(0, 10**7), st.integers(0, 10**7)), min_size=1, max_size=20)


def trips(at_ns: int, shift_ns: int, both_ways: list[tuple[int, int]]) -> list[Trip]:
    return [Trip(at_ns, at_ns + there + shift_ns, at_ns + there + back) for there, back in both_ways]


@given(shift_ns=st.integers(-(10**12), 10**12), drift_ns=st.integers(-(10**7), 10**7), first=ways, second=ways)
def test_the_true_offset_is_within_its_uncertainty(
    shift_ns: int, drift_ns: int, first: list[tuple[int, int]], second: list[tuple[int, int]]
) -> None:
    before = offset_of(trips(NOW_NS, shift_ns, first))
    after = offset_of(trips(NOW_NS + 10**10, shift_ns + drift_ns, second))
    assert abs(before.offset_ns - shift_ns) <= before.uncertainty_ns
    assert before.uncertainty_ns <= min(there + back for there, back in first) // 2 + 1
    round_ = offset_between(before, after)
    for part in range(5):
        assert abs(round_.offset_ns - (shift_ns + drift_ns * part / 4)) <= round_.uncertainty_ns


def test_times_between_hosts_have_both_uncertainties_those_of_one_host_none() -> None:
    assert window_uncertainty_ns([]) == window_uncertainty_ns([Offset(5, 100)]) == 0
    assert window_uncertainty_ns([Offset(5, 100), Offset(0, 7), Offset(0, 50)]) == 150


def test_times_come_back_on_our_clock_and_unknown_ones_stay_unknown() -> None:
    names = ("scheduled_ns", "connect_ns", "connected_ns", "sent_ns", "headers_ns", "end_ns", "event_ns")
    theirs = {name: np.array([NOW_NS + 500, 0]) for name in names} | {"lag_ns": np.array([500, 0])}
    columns, facts = on_our_clock((theirs, {"started_ns": NOW_NS + 500}), Offset(500, 9))  # type: ignore[arg-type]
    assert columns is not None
    for name in names:
        assert columns[name].tolist() == [NOW_NS, 0]  # type: ignore[literal-required]
    assert columns["lag_ns"].tolist() == [500, 0]
    assert facts == {"started_ns": NOW_NS}


@given(key=st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=20))
def test_a_job_leaves_without_its_secrets_and_has_them_again(key: str) -> None:
    target = make_target("http://127.0.0.1:1", "completions", Access(headers={"Authorization": f"Bearer {key}"}))
    lists = {"due_ns": [0], "asked_input": [1], "asked_output": [1]}
    payloads = [target.request(b'{"prompt": [0, 1, 10]}')]
    job = RoundJob(payloads=payloads, in_flight=1, first_token_s=1, stall_s=1, targets=(target,), connect_s=1, **lists)  # type: ignore[arg-type]
    bare, aside, secrets = parted(job)
    assert f"Bearer {key}".encode() not in bare.payloads[0]
    assert not bare.targets
    assert joined(bare, aside, secrets) == job


@pytest.mark.parametrize("loadgen", [{"ray": "auto", "cpus": "0"}])
def test_cpus_of_other_hosts_cannot_be_named(loadgen: dict[str, str]) -> None:
    base = {"name": "s", "model": "sim", "engine": {"kind": "simulator"}, "grid": {"input": 8, "output": 6, "batch": 7}}
    with pytest.raises(SpecError, match="CPUs of this host"):
        spec_from_mapping(base | {"loadgen": loadgen})
