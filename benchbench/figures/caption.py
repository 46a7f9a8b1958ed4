"""The small print of a run's figures: with what, on what, when; a picture that is copied out of its page keeps it."""

from __future__ import annotations

from datetime import UTC, datetime

from benchbench.analysis.runs import Run
from benchbench.provenance.labels import setting

PROBES = (  # what tables and other figures of such a run say
    "Each row is a probe of a search, with as many rounds as its question needs; bench capacity has the answer. "
    "too_few_rounds is about Sys tok/s, which no probe needs."
)
_SIMULATED = "no measurement of hardware"


def run_title(run: Run) -> str:
    """Name, model, hardware and engine, date, and the caption: that it was simulated, where numbers are from.

    Of a capacity search that its rows are probes; the answers, which follow in the caption, are in its own figure.
    """
    created = run.manifest.get("created_ns")
    date = f"{datetime.fromtimestamp(created // 10**9, UTC):%Y-%m-%d} UTC" if created else ""
    model = str(run.manifest["spec"].get("model") or "")
    place = setting(run)
    lines = [line.rstrip(".") for line in run.manifest.get("caption") or []]
    probed = PROBES.partition(". ")[0]
    at = next((place for place, line in enumerate(lines) if line.startswith(probed)), None)
    lines = lines if at is None else [*lines[:at], probed]
    more = [line for line in lines if not (_SIMULATED in place and _SIMULATED in line)]  # said once
    return " · ".join(filter(None, [run.name, model, place, date, *more]))
