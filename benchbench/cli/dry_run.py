"""What `--dry-run` prints: the ordered plan, the tokens it will generate, how long that takes, and what it can show."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from benchbench.cli.progress import duration_text
from benchbench.engines.git_checkout import built_alike
from benchbench.spec import SimulatorEngine
from benchbench.spec.schema import WARMUP_TOKENS

if TYPE_CHECKING:
    from benchbench.spec import Cell, Plan, SweepSpec

# Noise per start in one cell and in the mean of all, where no A/A run tells: docs/comparing.md's, as is the H200's.
ASSUMED = {"cell": 0.011, "mean": 0.007}
EFFECTS = (0.01, 0.02, 0.05)


def plan_text(plan: Plan) -> str:
    """One line a cell in the order of execution, the starts of variants, then the totals."""
    lines = []
    requests = tokens = prompts = 0
    seconds: float | None = 0.0
    count = Counter(cell.key for start in plan.sessions for cell in start.cells)
    for number, cell in enumerate(plan.cells, 1):
        auto = cell.rounds.warmup == "auto"
        warmups = 2 if auto else int(cell.rounds.warmup)  # two short ones at least, until they agree
        steps = cell.rounds.min * cell.output + warmups * (min(cell.output, WARMUP_TOKENS) if auto else cell.output)
        starts = count[cell.key]
        requests += (warmups + cell.rounds.min) * cell.requests * starts
        tokens += steps * cell.requests * starts
        prompts += (warmups + cell.rounds.min) * cell.requests * cell.input * starts
        round_s = round_seconds(cell)
        seconds = None if round_s is None or seconds is None else seconds + steps / cell.output * round_s * starts
        took = "" if round_s is None else f", about {round_s:.1f} s a round"
        rounds = (
            f"{cell.rounds.min} rounds in each of {starts} starts"
            if plan.spec.block_count
            else f"{_rounds(cell)} rounds"
        )
        lines.append(
            f"{number:4} {cell.label} {cell.load.kind}: {warmups}{'+' * auto} warm-up, {rounds} "
            f"of {cell.requests} requests{took}  [{cell.key}]"
        )
    estimate = "unknown for this engine" if seconds is None else f"about {duration_text(seconds)}"
    blocks = plan.spec.block_count
    open_ended = any(cell.rounds.max > cell.rounds.min and not blocks for cell in plan.cells)
    least = "at least " if open_ended or any(cell.rounds.warmup == "auto" for cell in plan.cells) else ""
    if blocks:
        lines += [*_starts(plan), *(f"warning: {warning}" for warning in built_alike(plan.spec.variants))]
        estimate += f", and {len(plan.sessions)} starts of a server" + " with their rest" * (
            plan.spec.cool_to is not None
        )
    lines.append(
        f"{len(plan.cells)} cells, {least}{requests} requests, {prompts} input tokens, {tokens} output tokens; "
        f"time: {estimate}"
    )
    return "\n".join(lines + (_power(plan.spec, len(plan.sessions[0].cells), blocks) if blocks else []))


def _starts(plan: Plan) -> list[str]:
    """The order of the starts, a line a block, and how many rounds they measure."""
    blocks: dict[int | None, list[str]] = {}
    for start in plan.sessions if plan.spec.variants else ():
        blocks.setdefault(start.block, []).append(start.variant)
    rounds = sum(cell.rounds.min for start in plan.sessions for cell in start.cells)
    lines = [f"block {block}: {', '.join(variants)}" for block, variants in blocks.items()]
    return [*lines, f"{len(plan.sessions)} starts, {rounds} measured rounds"]


def _power(spec: SweepSpec, cells: int, blocks: int) -> list[str]:
    """How probably effects are found, at the noise of the last A/A run of this sweep on this host."""
    from benchbench.comparison.verdicts import PRIMARY, power
    from benchbench.host.local_results import NOISE, stored

    measured = stored(NOISE, name=spec.name)
    noise = measured or ASSUMED
    source = "assumed; an H200 had 0.1 to 1.5 % and 0.3 %, bench noise measures this host's"
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


def _rounds(cell: Cell) -> str:
    """`5` or `5 to 20`: how many the asked interval needs, the first ones tell."""
    low, high = cell.rounds.min, cell.rounds.max
    return str(low) if low == high else f"{low} to {high}"


def round_seconds(cell: Cell) -> float | None:
    """Length of one round in seconds, where the engine's speed is known beforehand: the simulator's."""
    if not isinstance(cell.engine, SimulatorEngine):
        return None
    if cell.rate is not None:
        return cell.requests / cell.rate
    from benchbench.engines.simulator import load_profile, scaled
    from benchbench.engines.simulator.model import static_rate

    profile = scaled(load_profile(cell.engine.profile, cell.engine.options), cell.engine.scale)
    return cell.tokens / static_rate(profile, cell.input, cell.output, cell.batch or 1)
