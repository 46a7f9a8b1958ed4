"""What a sweep prints when it ends: the table, what its reasons mean, and where the files are."""

from __future__ import annotations

import click

from benchbench.cli.text import remedies, rounds_text
from benchbench.measure.run import Outcome
from benchbench.spec import SweepSpec


def show(spec: SweepSpec, outcome: Outcome) -> None:
    """Print an outcome to stdout."""
    if any(row["rounds"] for row in outcome.rows):
        click.echo(outcome.table)
        for remedy in remedies(outcome.rows):
            click.echo(remedy)
        if spec.rounds.max > spec.rounds.min and not spec.variants:
            click.echo(rounds_text(outcome.rows))
    if outcome.plots:
        click.echo("Plots:\n" + "\n".join(f"  {path}" for path in outcome.plots if path.suffix == ".png"))
    if outcome.verdicts:
        click.echo("\n".join(outcome.verdicts))
        click.echo(f"Comparison: {outcome.path / 'compare.md'}, or: bench compare {outcome.path}")
    if outcome.state == "complete":
        click.echo(f"Run: {outcome.path}" + (f" ({outcome.message})" if outcome.message else ""))
