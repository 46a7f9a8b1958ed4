"""Where the time of a step went: kernels in a trace of torch's profiler. Pure.

A trace is Chrome's JSON: complete events (`ph` "X") with `cat`, `name`, `ts` and `dur` in us. A GPU's work, also
ROCm's, is `kernel`, `gpu_memcpy` and `gpu_memset`. A CPU has operators (`cpu_op`) that call each other: of those the
time counts that they spend themselves.
"""

from __future__ import annotations

import gzip
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from benchbench.errors import RunError

GPU = {"kernel", "gpu_memcpy", "gpu_memset"}
STEP = "execute_"  # vLLM's workers annotate each step so


@dataclass(frozen=True, slots=True)
class Profile:
    """Kernels by name: (seconds, calls) a step, means over `ranks` traces of `steps` steps each; else CPU operators."""

    kernels: Mapping[str, tuple[float, float]]
    steps: int
    ranks: int
    on_gpu: bool

    @property
    def step_s(self) -> float:
        """Seconds that all kernels of a step take, one after the other."""
        return sum(seconds for seconds, _ in self.kernels.values())


def read_profile(folder: Path) -> Profile:
    """The traces of one start's ranks in a folder, `*.json` or `*.json.gz`. Raises RunError that names the file."""
    files = sorted([*folder.glob("*.json"), *folder.glob("*.json.gz")])
    profiles = [_read(file) for file in files]
    if not profiles:
        raise RunError(f"{folder}: no trace of torch's profiler (*.json, *.json.gz)")
    return _mean(profiles)


def _read(file: Path) -> Profile:
    try:
        data = file.read_bytes()
        events = orjson.loads(gzip.decompress(data) if file.suffix == ".gz" else data)["traceEvents"]
        return profile_of(events)
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RunError(f"{file}: not a trace of torch's profiler ({type(error).__name__}: {error})") from None


def profile_of(events: Iterable[Mapping[str, Any]]) -> Profile:
    """One rank's profile. Without annotated steps the whole trace counts as one."""
    complete = [event for event in events if event.get("ph") == "X" and "dur" in event]
    gpu = [event for event in complete if event.get("cat") in GPU]
    # A GPU's own copies of the annotations would count each step twice.
    steps = sum(
        event["name"].startswith(STEP) and event.get("cat") in {"user_annotation", "cpu_op"} for event in complete
    )
    spent = [(event["name"], float(event["dur"])) for event in gpu] or _own_times(
        [event for event in complete if event.get("cat") == "cpu_op" and not event["name"].startswith(STEP)]
    )
    sums: dict[str, list[float]] = defaultdict(lambda: [0.0, 0.0])
    for name, microseconds in spent:
        sums[name][0] += microseconds / 1e6
        sums[name][1] += 1
    many = max(steps, 1)
    return Profile({name: (s / many, n / many) for name, (s, n) in sums.items()}, many, 1, on_gpu=bool(gpu))


def _own_times(events: Sequence[Mapping[str, Any]]) -> list[tuple[str, float]]:
    """(name, us) of operators without what those called by them took, thread by thread."""
    threads: dict[tuple[Any, Any], list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        threads[event.get("pid"), event.get("tid")].append(event)
    spent: list[tuple[str, float]] = []
    for thread in threads.values():
        open_calls: list[tuple[float, int]] = []  # end, place in `spent`
        for event in sorted(thread, key=lambda e: (float(e["ts"]), -float(e["dur"]))):
            begin, duration = float(event["ts"]), float(event["dur"])
            while open_calls and open_calls[-1][0] <= begin:
                open_calls.pop()
            if open_calls:
                caller, so_far = spent[open_calls[-1][1]]
                spent[open_calls[-1][1]] = caller, so_far - duration
            open_calls.append((begin + duration, len(spent)))
            spent.append((event["name"], duration))
    return [(name, max(duration, 0.0)) for name, duration in spent]


def _mean(profiles: Sequence[Profile]) -> Profile:
    ranks = len(profiles)
    names = dict.fromkeys(name for profile in profiles for name in profile.kernels)
    parts = {name: [profile.kernels.get(name, (0.0, 0.0)) for profile in profiles] for name in names}
    kernels = {name: (sum(s for s, _ in of) / ranks, sum(n for _, n in of) / ranks) for name, of in parts.items()}
    return Profile(kernels, min(p.steps for p in profiles), ranks, on_gpu=any(p.on_gpu for p in profiles))
