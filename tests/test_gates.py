"""Gates for CI: a baseline that is kept, what may pass, and what a gate says where nobody looks at the table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
from driving import bench
from runs_made import BRANCHES, Tell, made_run

from benchbench.analysis.runs import open_run
from benchbench.comparison.pairs import pair, sides_of
from benchbench.comparison.tables import notes
from benchbench.spec import Cell, Session

DAY_NS = 86_400 * 10**9
SINGLE = {name: value for name, value in BRANCHES.items() if name != "variants"}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def build(speed: float = 1.0, noise: float = 0.003, seed: object = "") -> Tell:
    """A build so many times as fast, whose starts and rounds have luck of their own."""

    def tell(cell: Cell, start: Session, k: int) -> tuple[float, float]:
        own = random.Random(f"{seed} {speed} {start.block}").gauss(1, noise)
        own *= random.Random(f"{seed} {speed} {cell.key} {start.block} {k}").gauss(1, noise / 3)
        return (40 + cell.input / 50) * own / speed, (10 + (cell.batch or 0)) * own / speed

    return tell


def single(name: str, tell: Tell, day: int = 0, **more: Any) -> Path:
    """A run of one build, started `blocks` times."""
    data = {**SINGLE, **more}
    starts = [{"block": b, "variant": "", "time_ns": day * DAY_NS + b} for b in range(data["blocks"] or 1)]
    return made_run(Path(name), data, tell, starts=starts)


# ---- A baseline of another day ---------------------------------------------------------------------------


def test_runs_of_a_single_build_are_compared_start_by_start_and_days_are_told() -> None:
    base, new = single("base", build(seed=1)), single("new", build(0.95, seed=2), day=1, blocks=4)
    compared = pair(sides_of(open_run(base))[0], sides_of(open_run(new))[0])
    overall = compared.compared.overall[0]
    assert (overall.verdict, overall.ratio.n, overall.ratio.method) == ("slower", 4, "Welch's t over starts, logs")
    assert not any("4 of 6 starts" in note for note in notes(compared))  # four were asked for
    assert any("different days (1970-01-01 and 1970-01-02)" in note for note in notes(compared))
    same = pair(sides_of(open_run(base))[0], sides_of(open_run(single("again", build(seed=3))))[0])
    assert not any("days" in note for note in notes(same))


def test_a_sweep_of_one_build_starts_it_as_often_as_asked() -> None:
    Path("s.yaml").write_text(
        "{name: s, model: sim, engine: {kind: simulator, scale: 0.2}, blocks: 3, telemetry: {enabled: false},\n"
        " grid: {input: 8, output: 4, batch: [1, 2]}, rounds: {warmup: 0, min: 2}}"
    )
    planned = bench("sweep", "s.yaml", "--dry-run")
    assert "2 rounds in each of 3 starts of 2 requests" in planned.stdout
    assert "3 starts, 12 measured rounds" in planned.stdout
    assert "with 3 starts against 3 of another run" in planned.stdout
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots")
    assert result.exit_code == 0, result.stderr
    run = open_run(Path("run"))
    assert [start["block"] for start in run.manifest["starts"]] == [0, 1, 2]
    assert [(row["variant"], row["rounds"], row["starts"]) for row in run.rows] == [("", 6, 3)] * 2
