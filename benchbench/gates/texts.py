"""What gates found, for a terminal, a job's summary, GitHub's annotations, and programs that read JUnit's XML. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from xml.etree import ElementTree as ET

from benchbench.gates.gate_checks import Check
from benchbench.report.markdown import escape_markdown, write_table
from benchbench.safe_text import printable

_MARKS = {"passed": "passed", "failed": "**failed**", "not judged": "**not judged**"}


def sentences(checks: Iterable[Check]) -> list[str]:
    """What did not pass: a line each that failed, and one for all that a gate cannot judge for the same reason."""
    findings: dict[tuple[str, ...], list[str]] = {}
    for gate, what, outcome, sentence in checks:
        if outcome != "passed":
            findings.setdefault((gate, sentence, what if outcome == "failed" else ""), []).append(what)
    return [
        f"{gate}: {what[0]}{f' and {len(what) - 1} more' if len(what) > 1 else ''}: {sentence}"
        for (gate, sentence, _), what in findings.items()
    ]


def gates_markdown(checks: Sequence[Check], warnings: Sequence[str]) -> str:
    """A line a gate, then what did not pass."""
    rows = []
    for gate in dict.fromkeys(check.gate for check in checks):
        own = [check for check in checks if check.gate == gate]
        counts = {outcome: sum(check.outcome == outcome for check in own) for outcome in _MARKS}
        outcome = next((name for name in ("failed", "not judged") if counts[name]), "passed")
        rows.append([f"`{gate}`", _MARKS[outcome], *map(str, counts.values())])
    table = write_table(["Gate", "", "Passed", "Failed", "Not judged"], rows)
    lines = [f"- {escape_markdown(text)}" for text in (*sentences(checks), *warnings)]
    return "\n".join([*table, *([""] if lines else []), *lines]) + "\n"


def junit(checks: Sequence[Check], name: str) -> str:
    """JUnit's XML: a suite a gate, a case a check; what cannot be judged is an error. Raises ValueError without any."""
    if not checks:
        raise ValueError("--format junit: shows gates, give one with --fail-on")
    root = ET.Element("testsuites", name=name)
    for gate in dict.fromkeys(check.gate for check in checks):
        own = [check for check in checks if check.gate == gate]
        failed, unjudged = (sum(check.outcome == kind for check in own) for kind in ("failed", "not judged"))
        counts = {"tests": str(len(own)), "failures": str(failed), "errors": str(unjudged)}
        suite = ET.SubElement(root, "testsuite", {"name": printable(gate), **counts})
        for check in own:
            case = ET.SubElement(suite, "testcase", classname=f"bench.{printable(gate)}", name=printable(check.what))
            if check.outcome == "passed":
                ET.SubElement(case, "system-out").text = printable(check.sentence)
            else:
                ET.SubElement(
                    case, "failure" if check.outcome == "failed" else "error", message=printable(check.sentence)
                )
    ET.indent(root)
    return ET.tostring(root, encoding="unicode", xml_declaration=True) + "\n"
