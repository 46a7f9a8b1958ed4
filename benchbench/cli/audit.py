"""`bench audit`: what cannot be in a published table."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from benchbench.cli.console import FOLDER, NOT_MET, refusing, show, show_markdown

if TYPE_CHECKING:
    from benchbench.audit.claims import Claims


@click.command()
@click.argument("source", type=FOLDER, metavar="RUN|CARD.md|TABLE.csv")
@click.option("--format", "form", type=click.Choice(["md", "json"]), default="md")
@click.option(
    "--model", type=FOLDER, metavar="PATH", help="The model's folder or config.json, instead of what the source says."
)
@click.option("--hardware", metavar="NAME", help="The accelerator, as W7900D or 'NVIDIA H200'.")
@click.option("--count", type=click.IntRange(1), help="How many of them.")
@click.option("--parameters", metavar="456B", help="Parameters of the model.")
@click.option("--active", metavar="45.9B", help="Parameters that one token passes through.")
@click.option("--weights", metavar="DTYPE", help="Dtype of the weights: bf16, fp16, fp8, int8, fp4, int4.")
@click.option("--compute", metavar="DTYPE", help="Dtype of the matrix products.")
def audit(source: Path, form: str, **options: Any) -> None:  # noqa: ANN401 - click's
    """Look for what is impossible or suspicious in a RUN, a model card, or a table.

    Compared with the hardware's bounds, with the model's size, and the rows with each other. Options replace what the
    source says. Exit: 0, 2 bad input, 4 something impossible was found.
    """
    from benchbench.audit.findings import audit as find
    from benchbench.audit.findings_text import audit_markdown

    with refusing():
        claims = _corrected(_claims(source), **options)
    findings = find(claims)
    if form == "json":
        show(json.dumps({"claims": asdict(claims), "findings": [asdict(finding) for finding in findings]}, indent=2))
    else:
        show_markdown(audit_markdown(claims, findings, source.name).rstrip("\n"))
    if any(finding.severity == "impossible" for finding in findings):
        raise SystemExit(NOT_MET)


def _claims(source: Path) -> Claims:
    from benchbench.audit.claims import claims_of_card, claims_of_csv, claims_of_run

    if source.is_dir():
        from benchbench.analysis.runs import open_run

        return claims_of_run(open_run(source))
    try:
        text = source.read_text(encoding="utf-8")
        return claims_of_csv(text) if source.suffix.lower() == ".csv" else claims_of_card(text)
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _corrected(claims: Claims, **options: Any) -> Claims:  # noqa: ANN401 - click's
    """The claims with what the options say instead. Raises ValueError."""
    from dataclasses import replace

    from benchbench.audit.claims import count_of
    from benchbench.model.accelerators import accelerator, known
    from benchbench.model.config import read_model
    from benchbench.model.quantization import BITS

    if path := options["model"]:
        model = read_model(path)
        exact = (float(model.weight_bytes), float(model.weight_bytes)) if model.weight_bytes else claims.size
        claims = replace(claims, model=model, size=exact)
    for option in ("weights", "compute"):
        if options[option] is not None and options[option] not in BITS:
            raise ValueError(f"--{option} {options[option]}: unknown (allowed: {', '.join(BITS)})")
    changes = {
        "parameters": options["parameters"] and count_of(options["parameters"]),
        "active_parameters": options["active"] and count_of(options["active"]),
        "weight_dtype": options["weights"],
        "compute_dtype": options["compute"],
    }
    model = replace(claims.model, **{key: value for key, value in changes.items() if value})
    if name := options["hardware"]:
        device = accelerator(name)
        if device is None:
            allowed = ", ".join(dict.fromkeys(model.upper() for model, _, _ in known()))
            raise ValueError(f"--hardware {name}: unknown (allowed: names with {allowed})")
        claims = replace(claims, device=device, device_memory=None)
    given = [options["model"], options["hardware"], options["count"], *changes.values()]
    platforms = {} if any(given) else claims.platforms  # what is given holds for all rows
    return replace(claims, model=model, count=options["count"] or claims.count, platforms=platforms)
