"""What cannot be in a run, a model card or a table: `audit_file` and `Run.audit`."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack

from benchbench.analysis.runs import Run
from benchbench.api.notebook import html_table, paragraphs
from benchbench.audit.claims import Claims, claims_of_card, claims_of_csv, claims_of_run, count_of
from benchbench.audit.findings import Finding, audit
from benchbench.audit.findings_text import audit_markdown
from benchbench.safe_text import printable

if TYPE_CHECKING:
    import pandas as pd


class Corrections(TypedDict, total=False):
    """What holds instead of what the source says.

    `model`: a folder or config.json. `hardware`: the accelerator, as W7900D, and `count` of them. `parameters`, of the
    model, and `active`, those that one token passes through, as 456B. `weights`, `compute`: dtypes, as int8.
    """

    model: str | Path | None
    hardware: str | None
    count: int | None
    parameters: str | None
    active: str | None
    weights: str | None
    compute: str | None


@dataclass(frozen=True, repr=False)
class Audit:
    """What a source claims, and what is impossible or suspicious about it."""

    name: str
    claims: Claims
    findings: tuple[Finding, ...]

    @property
    def impossible(self) -> bool:
        """Whether anything in it cannot be true."""
        return any(finding.severity == "impossible" for finding in self.findings)

    def __repr__(self) -> str:
        return f"<Audit of {printable(self.name)}: {self._counts()}>"

    def _counts(self) -> str:
        severities = [finding.severity for finding in self.findings]
        counts = {word: severities.count(word) for word in dict.fromkeys(severities)}
        return ", ".join(f"{count} {word}" for word, count in counts.items()) or "nothing to say against it"

    def _repr_html_(self) -> str:
        rows = [[finding.severity, finding.what, " ".join(finding.arithmetic)] for finding in self.findings]
        return paragraphs([f"{self.name}: {self._counts()}"]) + html_table(["Severity", "What", "Arithmetic"], rows)

    def summary(self) -> pd.DataFrame:
        """One row a finding: code, severity, what, arithmetic (lines), explanations."""
        import pandas as pd

        columns = ["code", "severity", "what", "arithmetic", "explanations"]
        rows = [asdict(finding) for finding in self.findings]
        lines = {name: ["\n".join(row[name]) for row in rows] for name in ("arithmetic", "explanations")}
        return pd.DataFrame(rows, columns=columns).assign(**lines)

    def report(self, format: Literal["md", "json"] = "md") -> str:
        """As `bench audit` prints it: each finding with its arithmetic. Raises ValueError for an unknown format."""
        if format == "md":
            return audit_markdown(self.claims, self.findings, self.name)
        if format != "json":
            raise ValueError(f"format {format!r}: unknown (allowed: md, json)")
        findings = [asdict(finding) for finding in self.findings]
        return json.dumps({"claims": asdict(self.claims), "findings": findings}, indent=2) + "\n"


def audit_file(source: str | Path, **corrections: Unpack[Corrections]) -> Audit:
    """Look for what is impossible or suspicious in a model card, a CSV table, or a run's folder.

    Raises ValueError for what cannot be read, has no table, or no cell that can be audited, and RunError for a folder
    that is no run.
    """
    path = Path(source)
    claims = claims_of_run(Run(path)) if path.is_dir() else _claims_of_file(path)
    return _audited(path.name, claims, corrections)


def audit_run(run: Run, corrections: Corrections) -> Audit:
    """The same of an opened run: `Run.audit`."""
    return _audited(run.path.name, claims_of_run(run), corrections)


def _audited(name: str, claims: Claims, corrections: Corrections) -> Audit:
    corrected = _corrected(claims, corrections)
    findings = tuple(audit(corrected))
    measured = any(row.get("status") != "invalid" for row in claims.rows)
    left_out = not claims.rows and claims.notes  # of lengths by a law: the notes say so
    if not (measured or left_out) and all(
        finding.code == "invalid" and finding.severity == "suspicious" for finding in findings
    ):
        raise ValueError(f"{name}: no cell is valid: there is nothing to audit")
    return Audit(name, corrected, findings)


def _claims_of_file(source: Path) -> Claims:
    try:
        text = source.read_text(encoding="utf-8")
        return claims_of_csv(text) if source.suffix.lower() == ".csv" else claims_of_card(text)
    except OSError as error:
        raise ValueError(f"{source}: cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ValueError(f"{source}: is not UTF-8 text") from None
    except ValueError as error:
        raise ValueError(f"{source}: {error}") from None


def _corrected(claims: Claims, given: Corrections) -> Claims:
    """The claims with what is given instead. Raises ValueError."""
    from benchbench.model.accelerators import accelerator, known
    from benchbench.model.config import read_model

    if path := given.get("model"):
        model = read_model(Path(path))
        exact = (float(model.weight_bytes), float(model.weight_bytes)) if model.weight_bytes else claims.size
        claims = replace(claims, model=model, size=exact)
    if name := given.get("hardware"):
        device = accelerator(name)
        if device is None:
            allowed = ", ".join(dict.fromkeys(model.upper() for model, _, _ in known()))
            raise ValueError(f"--hardware {name}: unknown (allowed: names with {allowed})")
        claims = replace(claims, device=device, device_memory=None)
    model = replace(claims.model, **_model_changes(given))
    platforms = {} if any(given.values()) else claims.platforms  # what is given holds for all rows
    return replace(claims, model=model, count=given.get("count") or claims.count, platforms=platforms)


def _model_changes(given: Corrections) -> dict[str, Any]:
    from benchbench.model.quantization import BITS

    dtypes = {"weights": given.get("weights"), "compute": given.get("compute")}
    for option, dtype in dtypes.items():
        if dtype is not None and dtype not in BITS:
            raise ValueError(f"--{option} {dtype}: unknown (allowed: {', '.join(BITS)})")
    parameters, active = given.get("parameters"), given.get("active")
    changes = {
        "parameters": parameters and count_of(str(parameters)),
        "active_parameters": active and count_of(str(active)),
        "weight_dtype": dtypes["weights"],
        "compute_dtype": dtypes["compute"],
    }
    return {key: value for key, value in changes.items() if value}
