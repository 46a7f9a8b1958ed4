"""What `--dry-run` prints: the ordered plan, the tokens it will generate, and how long that takes if known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchbench.cli.progress import duration_text
from benchbench.rounds import WARMUP_TOKENS
from benchbench.spec import SimulatorEngine

if TYPE_CHECKING:
    from benchbench.spec import Cell, Plan


def plan_text(plan: Plan) -> str:
    """One line a cell in the order of execution, then the totals."""
    lines = []
    requests = tokens = prompts = 0
    seconds: float | None = 0.0
    for number, cell in enumerate(plan.cells, 1):
        auto = cell.rounds.warmup == "auto"
        warmups = 2 if auto else int(cell.rounds.warmup)  # two short ones at least, until they agree
        steps = cell.rounds.min * cell.output + warmups * (min(cell.output, WARMUP_TOKENS) if auto else cell.output)
        requests += (warmups + cell.rounds.min) * cell.requests
        tokens += steps * cell.requests
        prompts += (warmups + cell.rounds.min) * cell.requests * cell.input
        one = round_seconds(cell)
        seconds = None if one is None or seconds is None else seconds + steps / cell.output * one
        took = "" if one is None else f", about {one:.1f} s a round"
        lines.append(
            f"{number:4} {cell.label} {cell.load.kind}: {warmups}{'+' * auto} warm-up, {_rounds(cell)} rounds "
            f"of {cell.requests} requests{took}  [{cell.key}]"
        )
    estimate = "unknown for this engine" if seconds is None else f"about {duration_text(seconds)}"
    open_ended = any(cell.rounds.max > cell.rounds.min or cell.rounds.warmup == "auto" for cell in plan.cells)
    least = "at least " if open_ended else ""
    lines.append(
        f"{len(plan.cells)} cells, {least}{requests} requests, {prompts} input tokens, {tokens} output tokens; "
        f"time: {estimate}"
    )
    return "\n".join(lines)


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
