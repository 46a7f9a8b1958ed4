"""`bench bisect --axis`: good and bad code crosswise with a component."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
from driving import bench
from runs_made import write_starts
from test_bisect import _surroundings, git, sweep_file  # noqa: F401 - a fixture

import benchbench
from benchbench.api import crossing
from benchbench.bisect.crosswise import CONTRASTS, Crosswise, contrasts, edges, verdict
from benchbench.engines.git_checkout import checkout
from benchbench.engines.process import Hooks
from benchbench.measure.run import Outcome
from benchbench.spec import Cell, Session, SweepSpec, make_plan
from benchbench.store.run_directory import RunDirectory

NAMES = ("good-1", "good-2", "bad-1", "bad-2")


def blocks(effects: tuple[float, ...], seed: int, noise: float = 0.01) -> list[list[float]]:
    """Ten blocks of four, which differ by 5 %, with the noise of starts."""
    luck = random.Random(seed)
    return [
        [at + effect + luck.gauss(0, noise) for effect in effects] for at in [luck.gauss(0, 0.05) for _ in range(10)]
    ]


def test_no_effect_is_called_in_at_most_5_percent_of_families() -> None:
    families = [contrasts(blocks((0, 0, 0, 0), seed), CONTRASTS) for seed in range(1000)]
    assert sum(any(one.shown for one in family.values()) for family in families) <= 64  # 50 + 2 s


@pytest.mark.parametrize(
    ("effects", "shown", "words"),
    [
        ((0, 0, -0.05, -0.05), {"code"}, "It is the code, and"),
        ((0, -0.05, 0, -0.05), {"component"}, "It is the component, and"),
        ((0, 0, 0, -0.05), {"code", "component", "interaction"}, "Only together: bad-2 differs"),
        ((0, -0.05, -0.05, 0), {"interaction"}, "Both matter together"),
    ],
)
def test_what_makes_the_difference_is_said(effects: tuple[float, ...], shown: set[str], words: str) -> None:
    made = blocks(effects, 5, noise=0.003)
    main = contrasts(made, CONTRASTS)
    assert {name for name, one in main.items() if one.shown} == shown
    assert main["code"].low <= (effects[2] + effects[3] - effects[0] - effects[1]) / 2 <= main["code"].high
    assert verdict(NAMES, main, edges(made)).startswith(words)


def test_the_command_builds_and_measures_the_four(monkeypatch: pytest.MonkeyPatch) -> None:
    def swept(spec: SweepSpec, out: Path, *, only: str | None, **_given: Any) -> Outcome:
        """Builds are made; what a start would give is written down: bad code is slow with component 2 alone."""
        run = RunDirectory(out)
        run.open_for_writing(resume=False)
        plan = make_plan(spec, only)

        def tell(_cell: Cell, start: Session, _k: int) -> tuple[float, ...]:
            source = spec.variants[start.variant].git
            assert source is not None
            built = checkout(source, start.variant, Hooks(run.path / "logs")).path
            assert spec.variants[start.variant].engine["env"]["PART"] == (built / "part").read_text().strip()
            slow = (built / "speed").read_text() == "bad" and (built / "part").read_text() == "2\n"
            return 30.0, (12.0 if slow else 10.0) * random.Random(f"{start.variant} {start.block}").gauss(1, 0.01)

        starts = write_starts(run, list(plan.sessions), tell)
        facts = {"devices": [], "host": {"name": "here"}, "caption": [], "instrument": None, "sets": []}
        entries = [cell.info.to_entry() for cell in plan.cells]
        run.write_manifest({"spec": spec.model_dump(mode="json"), "plan": entries, "starts": starts, **facts})
        run.close()
        return Outcome(run.path, "complete", "", [])

    monkeypatch.setattr(crossing, "sweep", swept)
    repo = Path("kernels").absolute()
    repo.mkdir()
    git(repo, "init", "-q")
    for speed in ("good", "bad"):
        (repo / "speed").write_text(speed)
        (repo / "serve.py").write_text("")
        git(repo, "add", ".")
        git(repo, "commit", "-qm", speed)
    file = sweep_file(repo, "echo $PART > part")
    words = (file, "--good", "HEAD~1", "--bad", "HEAD", "--metric", "tpot", "--axis", "PART=1,2", "--starts", "20")
    result = bench("bisect", *words, "--out", Path("run").absolute())
    assert result.exit_code == 0, result.stderr
    assert "Only together: bad-2 differs from its neighbours" in result.stdout
    assert "- code with B: +1" in result.stdout or "- code with B: +2" in result.stdout
    assert "| bad-2 |" in bench("table", "run").stdout
    other = bench("bisect", *words[:-3], "PART=1,3", "--out", Path("run").absolute(), "--resume")
    assert other.exit_code == 2
    assert "has other builds than good-1, good-3, bad-1, bad-3 of these refs: use another --out" in other.stderr
    in_file = Path("axis.yaml")
    in_file.write_text(file.read_text() + 'axis: {PART: ["1", "2"]}\n')
    same = (in_file, *words[1:7], *words[9:])
    facts = json.loads(bench("bisect", *same, "--out", Path("again").absolute(), "--format", "json").stdout)
    assert facts["variants"] == [*NAMES]
    assert facts["blocks"] == 5
    assert facts["contrasts"]["interaction"]["high"] < 0


def test_an_axis_in_the_file_is_checked_there_and_other_commands_say_that_they_do_not_use_it() -> None:
    Path("kernels").mkdir()
    file = sweep_file(Path("kernels"))
    text = file.read_text()
    for axis, words in (
        ("{P: [3.10, 3.9]}", "axis.P.0"),
        ('{P: ["1"]}', "axis.P"),
        ('{P: ["1", "2"], Q: ["1", "2"]}', "axis"),
        ('{"P-Q": ["1", "2"]}', "must be the name of an environment variable"),
    ):
        file.write_text(f"{text}axis: {axis}\n")
        result = bench("bisect", file, "--good", "a", "--bad", "b")
        assert (result.exit_code, words in result.stderr) == (2, True), result.stderr
    file.write_text(f'{text}axis: {{P: ["3.10", "3.9"]}}\n')
    spec = benchbench.load_spec(file)
    assert spec.axis == {"P": ("3.10", "3.9")}
    assert spec.notes == ["axis is for bench bisect: kept, not used"]
    with pytest.raises(ValueError, match="the two values must differ"):
        benchbench.cross(spec, "a", "b", "P=1,1")


def test_a_block_that_a_stop_cut_and_blocks_added_later_are_told() -> None:
    def sat(blocks: int, *starts: tuple[int, str]) -> list[dict[str, Any]]:
        made = [{"event": "crosswise_start", "block": block, "variant": name} for block, name in starts]
        return [{"event": "crosswise_begun", "blocks": blocks}, *made]

    first = sat(2, (0, "good-1"), (0, "bad-2"), (1, "good-1"))
    assert crossing.sittings_of(first) == ((2,), ())
    planned, cut = crossing.sittings_of([*first, *sat(3, (1, "bad-2"), (2, "good-1"))])
    assert (planned, cut) == ((2, 3), (1,))
    made = tuple(map(tuple, blocks((0.0, 0.0, 0.0, 0.0), 5)))
    crossed = Crosswise(NAMES, "tpot", made, "", Outcome(Path(), "complete", "", []), planned, cut)
    text = crossed.table("md")
    assert "Left out: block 1, cut by a stop" in text
    assert "Blocks planned: 2 -> 3." in text
    assert crossed.record()["planned"] == (2, 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--axis", "PART"), "must be NAME=A,B"),
        (("--axis", "PART=1,1"), "the two values must differ"),
        (("--axis", "PART=1,2", "--starts", "7"), "an axis needs at least 8"),
        (("--axis", "PART=1,2", "--paired"), "do not go with it"),
    ],
)
def test_what_cannot_be_crossed_is_said(more: tuple[str, ...], message: str) -> None:
    Path("kernels").mkdir()
    result = bench("bisect", sweep_file(Path("kernels")), "--good", "a", "--bad", "b", *more)
    assert result.exit_code == 2
    assert message in result.stderr
