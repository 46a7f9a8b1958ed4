"""What `--dry-run` prints: the ordered plan, the tokens it will generate, how long that takes, and what it can show."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchbench.cli.progress import duration_text
from benchbench.engines.git_checkout import built_alike
from benchbench.forecast.durations import LEAST_WARMUPS, sweep_span
from benchbench.measure.sessions import LAUNCHED
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.spec.schema import WARMUP_TOKENS

if TYPE_CHECKING:
    from benchbench.forecast.durations import Speed
    from benchbench.spec import Cell, Plan, SweepSpec

# Noise per start in one cell and in the mean of all, where no A/A run tells: docs/comparing.md's, as is the H200's.
ASSUMED = {"cell": 0.011, "mean": 0.007}
ON_A_GPU = {"cell": 0.012, "mean": 0.0042}  # the widest cell and the mean of plots/h200/attention, 15 starts
EFFECTS = (0.01, 0.02, 0.05)


def plan_text(plan: Plan, speed: Speed | None = None) -> str:
    """One line a cell in the order of execution, the starts of variants, then the totals. `speed`: of the engine."""
    lines, blocks = [], plan.spec.block_count
    requests = tokens = prompts = 0
    count = Counter(cell.key for start in plan.sessions for cell in start.cells)
    for number, cell in enumerate(plan.cells, 1):
        auto = cell.rounds.warmup == "auto"
        warmups = LEAST_WARMUPS if auto else int(cell.rounds.warmup)  # short ones, until they agree
        steps = cell.rounds.min * cell.output + warmups * (min(cell.output, WARMUP_TOKENS) if auto else cell.output)
        starts = count[cell.key]
        requests += (warmups + cell.rounds.min) * cell.requests * starts
        tokens += steps * cell.requests * starts
        prompts += (warmups + cell.rounds.min) * cell.requests * (cell.input or 0) * starts
        round_s = speed.round_s(cell, cell.output) if speed else None
        took = "" if round_s is None else f", about {round_s:.1f} s a round"
        rounds = f"{cell.rounds.min if blocks else _rounds(cell)} rounds of {_count(cell.requests, 'request')}"
        rounds += f" in each of {starts} starts" if blocks else ""
        lines.append(
            f"{number:4} {cell.label} {cell.load.kind}: {warmups}{'+' * auto} warm-up, {rounds}{took}  [{cell.key}]"
        )
    open_ended = any(cell.rounds.max > cell.rounds.min and not blocks for cell in plan.cells)
    least = "at least " if open_ended or any(cell.rounds.warmup == "auto" for cell in plan.cells) else ""
    if blocks:
        lines += [*_starts(plan), *(f"warning: {warning}" for warning in built_alike(plan.spec.variants))]
    inputs = prompts if all(cell.input is not None for cell in plan.cells) else "an unknown number of"
    lines.append(
        f"{_count(len(plan.cells), 'cell')}, {least}{_count(requests, 'request')}, {inputs} input tokens, "
        f"{tokens} output tokens; time: {time_text(plan, speed)}"
    )
    lines += Dealer(plan.spec).check()
    return "\n".join(lines + (_power(plan.spec, len(plan.sessions[0].cells), blocks) if blocks else []))


def time_text(plan: Plan, speed: Speed | None) -> str:
    """`about 1:51:03 to 7:15:20 (rounds.min to rounds.max), ...`, and what is not in it."""
    span = sweep_span(plan, speed) if speed else None
    if span is None or speed is None:
        return "unknown for this engine: bench check FILE measures it, or give --assume-tok-s"
    texts = [duration_text(seconds) for seconds in span]
    text = f"about {texts[0]}" + (f" to {texts[1]} (fewest to most rounds)" * (texts[0] != texts[1]))
    text += f", {speed.source}"
    starts = len(plan.sessions)
    if isinstance(plan.spec.engine, LAUNCHED) or plan.spec.block_count:
        took = "" if speed.start_s is None else f" of about {duration_text(speed.start_s)}"
        text += f"; and {starts} start{'s' * (starts > 1)} of a server{took}" + " with their rest" * (
            plan.spec.cool_to is not None
        )
    return text


def _starts(plan: Plan) -> list[str]:
    """The order of the starts, a line a block, and how many rounds they measure."""
    blocks: dict[int | None, list[str]] = {}
    for start in plan.sessions if plan.spec.variants else ():
        blocks.setdefault(start.block, []).append(start.variant)
    rounds = sum(cell.rounds.min for start in plan.sessions for cell in start.cells)
    between = "; " if any("," in name for name in plan.spec.variants) else ", "
    lines = [f"block {block}: {between.join(variants)}" for block, variants in blocks.items()]
    return [*lines, f"{len(plan.sessions)} starts, {rounds} measured rounds"]


def _power(spec: SweepSpec, cells: int, blocks: int) -> list[str]:
    """How probably effects are found, at the noise of the last A/A run of this sweep on this host."""
    from benchbench.comparison.verdicts import PRIMARY, power
    from benchbench.host.local_results import NOISE, stored

    measured = stored(NOISE, name=spec.name)
    noise = measured or (ON_A_GPU if spec.hardware else ASSUMED)
    source = "as on an H200" if spec.hardware else "assumed"
    source += "; bench noise measures this host's"
    if measured:
        source = f"as measured over {measured['blocks']} blocks of A against A"
    single, mean = (f"{100 * noise[name]:.2g} %" for name in ("cell", "mean"))
    where = f"noise per start {single} in a cell and {mean} in the mean ({source})"
    paired = len(spec.variants) > 1
    design = f"{blocks} blocks" if paired else f"{blocks} starts against {blocks} of another run"
    lines = [f"Power to find a change in Sys tok/s with {design}, {where}:"]
    for effect in EFFECTS:
        chances = [
            power(effect, noise["cell"], blocks, cells * len(PRIMARY), paired=paired),
            power(effect, noise["mean"], blocks, len(PRIMARY), paired=paired),
        ]
        cell, whole = (f"{100 * chance:.0f} %" for chance in chances)
        lines.append(f"  {100 * effect:g} %: {cell} in one cell of {cells}, {whole} in the geometric mean")
    return lines


def _count(number: int, of: str) -> str:
    return f"{number} {of}{'s'[: number != 1]}"


def _rounds(cell: Cell) -> str:
    """`5` or `5 to 20`: how many the asked interval needs, the first ones tell."""
    low, high = cell.rounds.min, cell.rounds.max
    return str(low) if low == high else f"{low} to {high}"
