"""`bench history`: since when a cell is slower, over stored runs."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import FOLDER, FORMS, refusing, show, show_markdown
from benchbench.cli.gating import conclude, fail_on
from benchbench.safe_text import printable

if TYPE_CHECKING:
    from benchbench.history.nights import Measured
    from benchbench.history.series import Outcome

_GATE = re.compile(r"\s*step\s*(?:>\s*(.+?)\s*)?")
_NOTHING: tuple[str, Outcome, str] = ("all cells", "not judged", "cannot be judged: none has ever had a valid number")


def limit_of(gate: str) -> float:
    """The share that a gate `step` or `step>2%` allows. Raises ValueError."""
    from benchbench.gates.rules import percent_of

    if not (match := _GATE.fullmatch(gate)):
        raise ValueError(f"--fail-on {gate}: unknown (allowed: step, 'step>2%')")
    return percent_of(match[1], "--fail-on step>") if match[1] else 0.0


def since_of(text: str | None) -> int:
    """The first ns of a day, as 2026-01-31 (UTC). Raises ValueError."""
    from datetime import UTC, datetime

    if text is None:
        return 0
    try:
        return int(datetime.strptime(text, "%Y-%m-%d").replace(tzinfo=UTC).timestamp()) * 10**9
    except ValueError:
        raise ValueError(f"--since {text}: must be a day (allowed: as 2026-01-31)") from None


def _never(measured: Measured) -> tuple[str, Outcome, str]:
    from benchbench.spec.cell import cell_name

    why = f"cannot be judged: has never had a valid number ({measured.why})"
    return cell_name(dict(measured.cell)), "not judged", why


@click.command()
@click.argument("runs", type=FOLDER, nargs=-1, required=True, metavar="RUN|DIR...")
@click.option("--metric", "metrics", multiple=True, help="Show this only: sys_tok_s, ttft, tpot, e2el, goodput_req_s.")
@click.option("--only", metavar="SELECTION", help="Only the cells that match.")
@click.option(
    "--join", multiple=True, metavar="CONDITION", help="Runs may differ in it: host, tool, drivers, flags ..."
)
@fail_on("a step for the worse that still stands: step, 'step>2%'")
@click.option("--since", metavar="DAY", help="For --fail-on: older steps are known. As 2026-01-31.")
@click.option("--plots", type=FOLDER, metavar="DIR", help="Draw the series into DIR.")
@click.option("--format", "form", type=click.Choice([*FORMS, "junit"]), default="md")
@click.option("--json", "form", flag_value="json", help="As --format json.")
def history(
    runs: tuple[Path, ...],
    gates: tuple[str, ...],
    since: str | None,
    plots: Path | None,
    form: Any,  # noqa: ANN401 - click's
    **wanted: Any,  # noqa: ANN401 - click's
) -> None:
    """Since when is a cell slower? Steps of stored runs, by the dates of their commits.

    RUNs, and those in each DIR, at any depth. Runs of unlike hardware, drivers, models, flags or versions of this tool
    are segments, never joined. csv and json have every night of each series.

    Exit: 0, 2 bad input, 4 a gate did not pass, or could not be judged.
    """
    from benchbench.api.historical import history_of
    from benchbench.gates.gate_checks import Check
    from benchbench.gates.texts import junit
    from benchbench.history.series import judge

    with refusing():
        rules = [(gate, limit_of(gate)) for gate in gates]
        since_ns = since_of(since)
        listed = history_of(runs, strict=bool(gates), **wanted)
        never = [_never(measured) for measured in listed.never]
        judged = [(gate, [*judge(listed.series, limit, since_ns), *never] or [_NOTHING]) for gate, limit in rules]
        checks = [Check(gate, what, outcome, text) for gate, of in judged for what, outcome, text in of]
        text = junit(checks, "bench history") if form == "junit" else listed.table(form)
        (show_markdown if form == "md" else show)(text.rstrip("\n"))
        if plots is not None:
            for path in listed.draw(plots):
                print(printable(f"drawn: {path}"), file=sys.stderr)
        conclude("bench history", checks, [], listed.table("github") if rules else "")
