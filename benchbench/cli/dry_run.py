"""What `--dry-run` prints: the ordered plan, the tokens it will generate, and how long that takes if known."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchbench.cli.progress import duration_text
from benchbench.spec import SimulatorEngine

if TYPE_CHECKING:
    from benchbench.spec import Cell, Plan


def plan_text(plan: Plan) -> str:
    """One line a cell in the order of execution, then the totals."""
    lines = []
    requests = tokens = prompts = 0
    seconds: float | None = 0.0
    for number, cell in enumerate(plan.cells, 1):
        warmup = 1 if cell.rounds.warmup == "auto" else int(cell.rounds.warmup)
        rounds = warmup + cell.rounds.min
        requests += rounds * cell.requests
        tokens += rounds * cell.tokens
        prompts += rounds * cell.requests * cell.input
        one = round_seconds(cell)
        seconds = None if one is None or seconds is None else seconds + rounds * one
        took = "" if one is None else f", about {one:.1f} s a round"
        lines.append(
            f"{number:4} {cell.label} {cell.load.kind}: {warmup} warm-up + {cell.rounds.min} rounds "
            f"of {cell.requests} requests{took}  [{cell.key}]"
        )
    estimate = "unknown for this engine" if seconds is None else f"about {duration_text(seconds)}"
    lines.append(
        f"{len(plan.cells)} cells, {requests} requests, {prompts} input tokens, {tokens} output tokens; "
        f"time: {estimate}"
    )
    return "\n".join(lines)


def round_seconds(cell: Cell) -> float | None:
    """Length of one round in seconds, where the engine's speed is known beforehand: the simulator's."""
    if not isinstance(cell.engine, SimulatorEngine):
        return None
    if cell.rate is not None:
        return cell.requests / cell.rate
    from benchbench.engines.simulator import load_profile, scaled
    from benchbench.engines.simulator.predict import static_rate

    profile = scaled(load_profile(cell.engine.profile, cell.engine.options), cell.engine.scale)
    return cell.tokens / static_rate(profile, cell.input, cell.output, cell.batch or 1)
