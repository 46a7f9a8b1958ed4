"""Noise, over HTTP: how many rounds a cell takes, whether its printed interval holds the truth, and a starved client.

The simulator's rounds vary by a seeded share of their length, so what is asserted follows from the seed, but for what
the machine adds: some tenths of a ms to rounds of 100 ms and more.
"""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, Self

import psutil
import pytest
from scipy import stats

import benchbench
from benchbench.runner import Outcome, Silent
from benchbench.spec import spec_from_mapping

TTFT_S, ITL_S, OUTPUT, BATCH = 0.05, 0.01, 6, 2
E2EL_S = TTFT_S + ITL_S * (OUTPUT - 1)
LOOSE = {"shared_suspect": 1.0, "shared_invalid": 1.0, "send_skew": 1.0, "late_send": 1.0, "client_lag": 1.0}


def sweep(out: Path, noise: float, rounds: dict[str, Any], inputs: list[int]) -> Outcome:
    law = {"kind": "fixed", "ttft_s": TTFT_S, "itl_s": ITL_S}
    options = {"law": law, "faults": {"noise": noise}}
    spec = spec_from_mapping(
        {
            "name": "steady",
            "model": "sim",
            "engine": {"kind": "simulator", "profile": "fixed", "options": options},
            "grid": {"input": inputs, "output": OUTPUT, "batch": BATCH},
            "rounds": {"warmup": 0, **rounds},
            "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
            "order": "as_written",
            "validity": LOOSE,
        }
    )
    return benchbench.sweep(spec, out=out, plots=False)


def steins(rates: list[float], pilot: int, rel_ci: float) -> int:
    """Rounds by Stein's rule, from the rounds that were measured."""
    width = stats.t.ppf(0.975, pilot - 1) * stdev(rates[:pilot]) / fmean(rates[:pilot])
    return max(pilot, math.ceil((width / rel_ci) ** 2))


@pytest.mark.parametrize("most", [20, 6])
def test_rounds_end_where_steins_rule_says(most: int, tmp_path: Path) -> None:
    outcome = sweep(tmp_path / "run", 0.02, {"min": 5, "max": most, "rel_ci": 0.02}, [16])
    (row,) = outcome.rows
    (summary,) = benchbench.open_run(outcome.path).summaries
    rates = [one.sys_tok_s or 0.0 for one in summary.rounds]
    needed = steins(rates, 5, 0.02)
    assert row["rounds_needed"] == needed > 6
    assert row["rounds"] == min(needed, most)
    cut = needed > most
    assert (row["status"], row["reasons"]) == (("suspect", "too_few_rounds") if cut else ("valid", ""))
    half = stats.t.ppf(0.975, 4) * stdev(rates[:5]) / math.sqrt(row["rounds"])
    assert row["sys_tok_s_high"] - row["sys_tok_s"] == pytest.approx(half)
    assert cut or half <= 1.1 * 0.02 * row["sys_tok_s"]  # 2 % of the pilot's mean


def test_a_dozen_printed_intervals_hold_the_truth(tmp_path: Path) -> None:
    noise = 0.04
    outcome = sweep(tmp_path / "run", noise, {"min": 5, "max": 12, "rel_ci": 0.05}, list(range(16, 28)))
    # Times vary around the law; rates, their inverse, are larger in the mean by the square of the noise.
    truth = {"e2el_ms": E2EL_S * 1e3, "ttft_ms": TTFT_S * 1e3, "sys_tok_s": BATCH * OUTPUT / E2EL_S * (1 + noise**2)}
    assert len(outcome.rows) == 12
    assert len({row["rounds"] for row in outcome.rows}) > 2, "no cell went on after its pilot"
    for name, value in truth.items():
        held = sum(row[f"{name}_low"] <= value <= row[f"{name}_high"] for row in outcome.rows)
        print(name, held, [row["rounds"] for row in outcome.rows])
        assert held >= 10, name


class Starver(Silent):
    """Pins the load generator to one core once it is there, and lets busy loops have that core too."""

    def __init__(self, hogs: int) -> None:
        self.hogs, self.started = hogs, list[subprocess.Popen[bytes]]()

    def round(self, cell: object, phase: str, number: int, left_s: float | None) -> None:  # noqa: ARG002 - an observer
        if self.started:
            return
        children = psutil.Process().children()
        (worker,) = (child for child in children if "benchbench.loadgen.worker" in child.cmdline())
        core = worker.cpu_affinity()[-1]
        worker.cpu_affinity([core])
        for _ in range(self.hogs):
            hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
            self.started.append(hog)
            psutil.Process(hog.pid).cpu_affinity([core])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for hog in self.started:
            hog.kill()
            hog.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="processes cannot be pinned")
def test_a_starved_client_is_caught(tmp_path: Path) -> None:
    spec = spec_from_mapping(
        {
            "name": "starved",
            "model": "sim",
            "engine": {
                "kind": "simulator",
                "profile": "fixed",
                "options": {"law": {"kind": "fixed", "ttft_s": 0.05, "itl_s": 0.001}},
            },
            "grid": {"input": 16, "output": 200, "batch": 64},
            "rounds": {"warmup": 0, "min": 1, "max": 1},
            "prompts": {"kind": "token_ids", "vocab": [1000, 30000]},
        }
    )
    with Starver(hogs=3) as starver:
        (row,) = benchbench.sweep(spec, out=tmp_path / "run", plots=False, observer=starver).rows
        assert all(hog.poll() is None for hog in starver.started)
        assert len(starver.started) == 3
    print(row["status"], row["reasons"], row["shared_share"], row["lag_ms_p99"], row["turn_ms_max"])
    assert row["status"] != "valid"
    assert set(row["reasons"].split(";")) & {"shared_reads", "first_token_shared", "client_lag"}
