"""The small print of a run's figures: with what, on what, when; a picture that is copied out of its page keeps it."""

from __future__ import annotations

from datetime import UTC, datetime

from benchbench.analysis.runs import Run
from benchbench.provenance.labels import setting

_SIMULATED = "no measurement of hardware"


def run_title(run: Run) -> str:
    """Name, model, hardware and engine, date, and the caption: that it was simulated, where numbers are from."""
    created = run.manifest.get("created_ns")
    date = f"{datetime.fromtimestamp(created // 10**9, UTC):%Y-%m-%d} UTC" if created else ""
    model = str(run.manifest["spec"].get("model") or "")
    place = setting(run)
    lines = [line.rstrip(".") for line in run.manifest.get("caption") or []]
    more = [line for line in lines if not (_SIMULATED in place and _SIMULATED in line)]  # said once
    return " · ".join(filter(None, [run.name, model, place, date, *more]))
