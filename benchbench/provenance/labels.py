"""What a published table must carry: with what, on what and how its numbers were made. Pure, from manifests alone."""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from benchbench.analysis.runs import Run
from benchbench.host.local_results import sentence
from benchbench.slo.attainment import slo_sentence
from benchbench.store.run_directory import EDITED

UNKNOWN = "unknown"
_PARALLEL = {
    "TP": ("--tensor-parallel-size", "-tp"),
    "PP": ("--pipeline-parallel-size", "-pp"),
    "DP": ("--data-parallel-size", "-dp"),
}
_ROUNDS = ("rounds_min", "rounds_max", "rel_ci", "warmup")
_PYTHON = ("-m", "-u")  # of the interpreter, before the engine's own
_LEFT_OUT = ("--host", "--port")  # they move no number, and a port is another one at each start
# Set by container images: what they hold, and what they need; they steer nothing.
_OF_THE_IMAGE = r"^(CUDA|NCCL|ROCM)_VERSION$|^NVIDIA_(REQUIRE|PRODUCT|DRIVER_CAP)"
_LOADS = {
    "static": "static (a batch sent at once and awaited)",
    "closed": "closed (a batch kept in flight)",
    "open": "open (requests sent at a rate)",
}


def provenance(run: Run) -> list[tuple[str, str]]:
    """(label, text) pairs: model, engine, flags, hardware, host, load, rounds, SLO, instrument error, date, tool,
    seed.

    Where the variants of a run differ, a label is theirs ("Engine (main)"); what they share stands once. What nobody
    told is "unknown". Flags are as launched, secrets masked, without host and port. An imported run has its files
    instead. Texts are plain, not Markdown.
    """
    manifest = run.manifest
    spec = manifest["spec"]
    notes = [("Note", note.rstrip(".")) for note in manifest.get("caption") or []]
    notes += [("Note", EDITED)] if run.directory.is_edited() else []
    if run.imported:
        files = [("File", _file(file)) for file in run.imported["files"]]
        return [("Model", str(spec["model"])), *files, ("Tool", _tool(manifest.get("tool") or {})), *notes]
    parts = [("Model", str(spec["model"])), *_of_each(manifest, [*spec.get("variants", {})])]
    parts += [("Hardware", _hardware(manifest)), ("Host", _host(manifest))]
    parts += [("Load", _load(manifest)), ("Rounds", _rounds(manifest))]
    parts += [("SLO", line.removeprefix("SLO: ").rstrip(".")) for line in slo_sentence(manifest.get("plan", []))]
    if spec["engine"]["kind"] != "vllm_inprocess":
        measured = sentence(manifest.get("instrument"), run.rows, run.name)
        parts.append(("Instrument error", measured.partition(": ")[2].rstrip(".")))
    created = datetime.fromtimestamp(manifest["created_ns"] // 10**9, UTC) if manifest.get("created_ns") else None
    parts += [("Date", f"{created:%Y-%m-%d} UTC" if created else UNKNOWN), ("Tool", _tool(manifest.get("tool") or {}))]
    parts.append(("Seed", str(spec.get("seed", UNKNOWN))))
    return [*parts, *notes, *([] if run.has_records else [("Records", "not kept beside the summary")])]


def provenance_text(run: Run) -> str:
    """`provenance` in one line."""
    return "; ".join(f"{label}: {text}" for label, text in provenance(run))


def setting(run: Run) -> str:
    """On what a run was made: `8x AMD Radeon PRO W7900D (48 GiB each), vLLM 0.32.0 with TP=8`.

    Parallelism is named where flags tell it. A simulated run is no hardware, and says so.
    """
    manifest = run.manifest
    if run.imported:
        tools = dict.fromkeys(f"{file['tool']} {file.get('version') or ''}".strip() for file in run.imported["files"])
        return f"unknown hardware, imported from {' and '.join(tools)}"
    starts = [_start(manifest, name) for name in manifest["spec"].get("variants", {})] or [_start(manifest, "")]
    engine = " and ".join(dict.fromkeys(_engine(manifest, start, commit=False) for start in starts))
    if _simulated(manifest):
        hardware = manifest["spec"].get("hardware")
        like = f", which imitates {hardware['count']}x {hardware['name']}" if hardware else ""
        return f"{engine}{like}, no measurement of hardware"
    degrees = {_parallel(_flags(manifest, start)) for start in starts}
    split = f" with {degrees.pop()}" if len(degrees) == 1 and degrees != {""} else ""
    return f"{_accelerators(manifest) or 'unknown hardware'}, {engine}{split}"


def _file(file: Mapping[str, Any]) -> str:
    about = [file["tool"], file.get("version") or f"version {UNKNOWN}", file.get("date") and f"of {file['date']}"]
    return f"{file['name']} ({', '.join(filter(None, about))}; sha256 {str(file['sha256'])[:12]})"


def _of_each(manifest: Mapping[str, Any], variants: Sequence[str]) -> list[tuple[str, str]]:
    """Engine, source, flags, kernels and weights: once where all variants have the same."""
    labels: dict[str, dict[str, str]] = {}
    for name in variants or [""]:
        start = _start(manifest, name)
        flags = _flags(manifest, start)
        source = (manifest.get("variants") or {}).get(name) or {}
        of_one = {
            "Engine": _engine(manifest, start),
            "Source": f"{source['ref']} at commit {str(source['commit'])[:12]}" if source.get("commit") else "",
            "Flags": _flag_text(manifest, start, flags),
            "Kernels": ", ".join(
                f"{kind} {' and '.join(names)}" for kind, names in (start.get("backends") or {}).items()
            ),
            "Weights": "dummy (random): no real model" if "dummy" in _values(flags, ("--load-format",)) else "",
        }
        for label, text in of_one.items():
            labels.setdefault(label, {})[name] = text
    parts = []
    for label, texts in labels.items():
        alike = len(set(texts.values())) == 1
        parts += [
            (label if alike else f"{label} ({name})", text or UNKNOWN)
            for name, text in ([*texts.items()][:1] if alike else texts.items())
            if text or not alike
        ]
    return parts


def _start(manifest: Mapping[str, Any], variant: str) -> dict[str, Any]:
    """The last start of a variant, with what its engine said; without variants, what the manifest says of the one."""
    starts = [start for start in manifest.get("starts") or [] if start.get("variant", "") == variant]
    start: dict[str, Any] = dict(starts[-1]) if starts else {}
    if not variant:
        start |= {"engine": manifest.get("engine"), "environment": manifest.get("engine_environment")}
    engine = manifest["spec"]["engine"]
    changed = (manifest["spec"].get("variants", {}).get(variant) or {}).get("engine") or {}
    return start | {"spec": {**engine, **changed}}


def _simulated(manifest: Mapping[str, Any]) -> bool:
    return bool(manifest["spec"]["engine"]["kind"] == "simulator")


def _engine(manifest: Mapping[str, Any], start: Mapping[str, Any], *, commit: bool = True) -> str:
    """Its name and version; with `commit` also the build, or what of the simulator's profile was changed."""
    kind, spec = manifest["spec"]["engine"]["kind"], start["spec"]
    if kind == "simulator":
        scale = "" if spec.get("scale", 1) == 1 else f", every duration x {spec['scale']:g}"
        options = ", ".join(f"{name}={value}" for name, value in (spec.get("options") or {}).items()) if commit else ""
        return f"embedded simulator (profile {spec.get('profile')}{scale}{options and f', {options}'})"
    server, side = start.get("engine") or {}, start.get("environment") or {}
    build = side.get("vllm") or {}
    is_vllm = kind.startswith("vllm") or server.get("kind") == "vllm" or bool(build)
    version = server.get("version") or build.get("version")
    name = "vLLM" if is_vllm else (server.get("kind") or f"engine of kind {kind}").replace("openai", "OpenAI endpoint")
    text = f"{name} {version}" if version else f"{name}, version {UNKNOWN}"
    if commit:
        source = (side.get("sources") or {}).get("vllm") or {}
        known = source.get("commit") or build.get("commit")
        more = [f"commit {str(known)[:12]}" if known else f"commit {UNKNOWN}"]
        more += ["with changes that are not committed"] if source.get("dirty") else []
        torch = side.get("torch") or {}
        more += [f"torch {torch['version']}"] if torch.get("version") else []
        text += f" ({', '.join(more)})"
    return text + (", in-process, without HTTP" if kind == "vllm_inprocess" else "")


def _flags(manifest: Mapping[str, Any], start: Mapping[str, Any]) -> list[str] | None:
    """The engine's flags as words; None where nobody tells them."""
    words = start.get("argv") or (start.get("environment") or {}).get("command")
    kind = manifest["spec"]["engine"]["kind"]
    if kind == "vllm_inprocess":
        return [word for flag in (start["spec"].get("args") or {}).items() for word in _flag(*flag)]
    if not words or kind == "simulator":
        return [] if kind == "simulator" else None
    words = [str(word) for word in words]
    first = next((k for k, word in enumerate(words) if word.startswith("-") and word not in _PYTHON), len(words))
    kept, skip = [], False
    for word in words[first:]:
        if skip or word.partition("=")[0] in _LEFT_OUT:
            skip = not skip and "=" not in word
            continue
        kept.append(word)
    return kept


def _flag(name: str, value: Any) -> list[str]:  # noqa: ANN401 - JSON
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", *(map(str, value) if isinstance(value, list) else [str(value)])]


def _flag_text(manifest: Mapping[str, Any], start: Mapping[str, Any], flags: Sequence[str] | None) -> str:
    """Flags, and the variables that steer the engine; those with paths or of the container stay in the manifest."""
    if _simulated(manifest):
        return ""
    steering = (start.get("environment") or {}).get("env") or {}
    env = {
        name: value for name, value in steering.items() if "/" not in str(value) and not re.search(_OF_THE_IMAGE, name)
    } | dict(start.get("env") or {})
    words = [f"{name}={value}" for name, value in env.items()]
    text = shlex.join(flags) if flags else "none" if flags is not None else UNKNOWN
    return text + (f", with {' '.join(words)}" if words else "")


def _values(flags: Sequence[str] | None, names: Sequence[str]) -> list[str]:
    """The values given to a flag, as `--flag value` or `--flag=value`."""
    words = list(flags or [])
    after = [words[k + 1] for k, word in enumerate(words[:-1]) if word.replace("_", "-") in names]
    return after + [word.partition("=")[2] for word in words if word.partition("=")[0].replace("_", "-") in names]


def _parallel(flags: Sequence[str] | None) -> str:
    degrees = {short: [value for value in _values(flags, names) if value] for short, names in _PARALLEL.items()}
    return ", ".join(f"{short}={values[-1]}" for short, values in degrees.items() if values)


def _accelerators(manifest: Mapping[str, Any]) -> str:
    """As the sweep states them, else as sampled; memory from the samples, where the names agree."""
    hardware, devices = manifest["spec"].get("hardware"), manifest.get("devices") or []
    counts = Counter(str(gpu.get("name") or gpu.get("vendor") or gpu.get("device")) for gpu in devices)
    stated = [(hardware["name"], hardware["count"])] if hardware else list(counts.items())
    texts = []
    for name, count in stated:
        sizes = {gpu["memory_total_bytes"] for gpu in devices if gpu.get("memory_total_bytes") and gpu["name"] == name}
        each = f" ({max(sizes) / 2**30:.0f} GiB{' each' if count > 1 else ''})" if sizes else ""
        texts.append(f"{count}x {name}{each}")
    return " and ".join(texts)


def _hardware(manifest: Mapping[str, Any]) -> str:
    if _simulated(manifest):
        return "none: simulated"
    accelerators = _accelerators(manifest)
    if not accelerators:
        side = manifest.get("engine_environment") or {}
        return "no accelerator found" if side.get("command") else UNKNOWN
    drivers = dict.fromkeys(str(gpu["driver"]) for gpu in manifest.get("devices") or [] if gpu.get("driver"))
    host = (manifest.get("host") or {}).get("drivers") or {}
    driver = " / ".join(drivers) or ", ".join(f"{name} {version}" for name, version in host.items())
    targets = dict.fromkeys(str(gpu["gfx"]) for gpu in manifest.get("devices") or [] if gpu.get("gfx"))
    rocm = [f"ROCm {host['rocm']}"] if drivers and "rocm" in host else []
    return ", ".join([accelerators, *targets, f"driver {driver or UNKNOWN}", *rocm])


def _host(manifest: Mapping[str, Any]) -> str:
    host = manifest.get("host") or {}
    cpus = f"{host['cpus']} CPUs" if host.get("cpus") else ""
    about = [host.get("cpu"), cpus, f"{host.get('system', '')} {host.get('kernel', '')}".strip()]
    return ", ".join(filter(None, about)) or UNKNOWN


def _load(manifest: Mapping[str, Any]) -> str:
    plan = manifest.get("plan", [])
    loads = [_LOADS.get(load, str(load)) for load in dict.fromkeys(entry["load"] for entry in plan)]
    kinds = [str(kind) for kind in dict.fromkeys(entry.get("prompts", "") for entry in plan) if kind]
    words = [f"random {kind.replace('_', ' ')}" if kind in {"token_ids", "text"} else kind for kind in kinds]
    sha256 = ((manifest.get("spec") or {}).get("prompts") or {}).get("sha256")
    words = [f"{' and '.join(words)} (SHA-256 {sha256})"] if sha256 else words
    lengths = dict.fromkeys(entry["lengths"] for entry in plan if entry.get("lengths"))
    spread = f", lengths of {' and of '.join(lengths)}" if lengths else ""
    return (" and ".join(loads) or UNKNOWN) + (f", prompts of {' and '.join(words)}" if words else "") + spread


def _rounds(manifest: Mapping[str, Any]) -> str:
    """With blocks each start has just `rounds.min` of a cell: there the interval is over starts."""
    entries = [entry for entry in manifest.get("plan", []) if entry.get("rounds_min") is not None]
    in_starts = manifest["spec"].get("blocks") or manifest["spec"].get("variants")
    texts = []
    for low, high, share, warmup in sorted({tuple(map(e.get, _ROUNDS)) for e in entries}, key=str):
        before = "warm-up until two agree" if warmup == "auto" else f"{warmup} for warm-up"
        count = f"{low} per cell" + " in each start" * bool(in_starts)
        if low != high and not in_starts:
            count = f"{low} to {high} per cell, until the 95 % interval is within ±{100 * share:g} %"
        texts.append(f"{count}, {before}")
    return " / ".join(texts) or UNKNOWN


def _tool(tool: Mapping[str, Any]) -> str:
    git = tool.get("git") or {}
    changes = ", with changes" if git.get("dirty") else ""
    commit = f" (commit {git['commit'][:12]}{changes})" if git.get("commit") else ""
    return f"{tool.get('name', 'benchbench')} {tool.get('version', UNKNOWN)}{commit}"
