"""What `bench audit` says: the claims that it took, and each finding with its arithmetic."""

from __future__ import annotations

from collections.abc import Sequence

from benchbench.audit.claims import Claims
from benchbench.audit.findings import EXPLANATIONS, Finding, shape_for_bounds
from benchbench.model.accelerators import Accelerator
from benchbench.model.config import ModelFacts, billions
from benchbench.report.markdown import escape_markdown


def audit_markdown(claims: Claims, findings: Sequence[Finding], name: str) -> str:
    """Markdown: verdict, what the bounds rest on, and a section a finding."""
    counts = {word: sum(finding.severity == word for finding in findings) for word in ("impossible", "suspicious")}
    verdict = ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "nothing found"
    rows = f"{len(claims.rows)} row{'s'[: len(claims.rows) != 1]}"
    lines = [f"# Audit of {escape_markdown(name)}", "", f"**{verdict.capitalize()}** ({rows}).", ""]
    lines += [escape_markdown(line) + "  " for line in (*_basis(claims), *claims.notes)]
    for number, finding in enumerate(findings, 1):
        lines += ["", f"## {number}. {finding.severity.capitalize()}: {finding.what}", ""]
        lines += [f"- {escape_markdown(line)}" for line in finding.arithmetic]
        if causes := [EXPLANATIONS[key] for key in finding.explanations]:
            lines += ["", f"Would be explained if {'; or if '.join(causes)}."]
    return "\n".join(line.rstrip() for line in lines).rstrip("\n") + "\n"


def _basis(claims: Claims) -> list[str]:
    if claims.platforms:
        known = [(f"Variant {name}", platform) for name, platform in claims.platforms.items() if platform]
        return [f"{name}: {' '.join(_served(p.model, p.device, p.count))}" for name, p in known]
    model, device, count = shape_for_bounds(claims), claims.device, claims.count
    if model is None or device is None or not count:
        facts = {"active parameters": model, "a known accelerator": device, "their number": count}
        unknown = ", ".join(name for name, fact in facts.items() if not fact)
        return [f"Not compared with the hardware's bounds; unknown: {unknown}."]
    return _served(model, device, count)


def _served(model: ModelFacts, device: Accelerator, count: int) -> list[str]:
    active = model.active_parameters or model.parameters or 0
    peak, dtype = device.peak(model.compute_dtype) / 1e12, model.compute_dtype or "fastest dtype"
    each = f"{peak:.1f} TFLOP/s ({dtype}) and {device.bandwidth_bytes_s / 1e9:.0f} GB/s"
    return [
        f"Model: {billions(model.parameters or active)} parameters, {billions(active)} active.",
        f"Hardware: {count} x {device.name}, each {each} ({device.source}).",
    ]
