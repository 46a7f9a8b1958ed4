"""What host and accelerators did while a sweep ran: sampled by a thread of the main process, beside the load's own.

A row is one device at one time; files are `RUN/telemetry/NNNN.parquet`, one a cell and one at the end.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, Self
from urllib.parse import urlsplit

import numpy as np
import orjson
import pyarrow as pa

from benchbench.host.devices import Device
from benchbench.host.engine_provenance import is_loopback
from benchbench.spec import EndpointEngine, Engine, SimulatorEngine
from benchbench.spec.schema import Telemetry
from benchbench.store import arrow as make
from benchbench.store.parquet_files import parquet_bytes
from benchbench.store.run_directory import replace_file

NUMBERS = (
    *("power_w", "energy_j", "core_clock_mhz", "memory_clock_mhz", "temperature_c", "hotspot_c"),
    *("memory_used_bytes", "utilisation", "cpu_share"),
)
HOST = "host"
OPEN_S = 30.0  # how long the device libraries may take to open,
ANSWER_S = 1.0  # and to give one sample that is waited for


class Scope(NamedTuple):
    """What is sampled: `host`, `gpus` (narrowed by `environment`); `note` says why nothing is."""

    host: bool
    gpus: bool
    environment: Mapping[str, str] = {}
    note: str = ""


def scope_of(engine: Engine, wanted: Telemetry) -> Scope:
    """What of this host serves an engine: nothing where the engine is elsewhere, no GPU for the simulator."""
    if not wanted.enabled:
        return Scope(host=False, gpus=False, note="telemetry is off (telemetry.enabled)")
    if isinstance(engine, SimulatorEngine):
        return Scope(host=True, gpus=False)
    if isinstance(engine, EndpointEngine):
        local = all(is_loopback(urlsplit(url).hostname or "") for url in engine.urls)
        who = "the server is" if len(engine.urls) == 1 else "all servers are"
        note = "" if local else f"no telemetry: {who} not on this host"
        return Scope(host=local, gpus=local, note=note)
    return Scope(host=True, gpus=True, environment={**os.environ, **{k: str(v) for k, v in engine.env.items()}})


@dataclass(slots=True)
class _Rows:
    """Samples not yet written, by columns: 100 bytes a row."""

    times: array[int] = field(default_factory=lambda: array("q"))
    labels: list[str] = field(default_factory=list)
    throttle: list[str | None] = field(default_factory=list)
    numbers: array[float] = field(default_factory=lambda: array("d"))

    def add(self, time_ns: int, label: str, row: Mapping[str, Any]) -> None:
        self.times.append(time_ns)
        self.labels.append(label)
        self.throttle.append(row.get("throttle"))
        self.numbers.extend(float("nan") if (value := row.get(name)) is None else value for name in NUMBERS)


class Sampler:
    """Samples `wanted.hz` times a second for as long as the block runs; with an empty scope it does nothing.

    Library imports happen in the thread, from the start on: wait for `ready` before the first round. No error of a
    library gets out: it becomes a note and missing values.
    """

    def __init__(self, run: Path, wanted: Telemetry, scope: Scope) -> None:
        self.directory = run / "telemetry"
        self.devices: list[Device] = []  # those that are sampled, once `ready`
        self._wanted, self._scope = wanted, scope
        self._rows, self._lock = _Rows(), threading.Lock()
        self._notes = dict.fromkeys([scope.note] if scope.note else [])  # in order, each once
        self._told = 0
        self._number: int | None = None  # of the next file
        self._facts = {"hz": wanted.hz, "ticks": 0, "skipped": 0, "late_ns_max": 0, "cpu_ns": 0}
        self._opened, self._wake, self._answered = threading.Event(), threading.Event(), threading.Event()
        self._stopping = False
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def __enter__(self) -> Self:
        if self._scope.host:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping = True
        self._wake.set()
        if self._thread.is_alive():
            self._thread.join(ANSWER_S)
        with contextlib.suppress(OSError):  # what stopped the sweep says so; the tail is lost
            self._write()

    # -- by the main thread, between rounds

    def ready(self) -> None:
        """Wait until the libraries are imported and asked once; a library that takes too long is done without."""
        if self._thread.is_alive() and not self._opened.wait(OPEN_S):
            self._stopping = True
            self._note(f"no telemetry: the device libraries did not open within {OPEN_S:g} s")

    def facts(self) -> list[dict[str, Any]]:
        """What does not change of each device sampled: name, driver, limits, memory (`devices.device_facts`)."""
        return [device.facts for device in self.devices]

    def notes(self) -> list[str]:
        """What went wrong since the last call, each thing once."""
        new = list(self._notes)[self._told :]
        self._told += len(new)
        return new

    def flush(self) -> None:
        """Sample once more, so that the time until now lies between samples, and write what is there.

        Raises OSError.
        """
        if self._thread.is_alive() and not self._stopping:
            self._answered.clear()
            self._wake.set()
            if not self._answered.wait(ANSWER_S) and self.devices:  # without any, the machine is busy
                self._note("a device library hung: its samples are late or missing")
        self._write()

    def read(self, column: str) -> dict[str, float]:
        """One column of each GPU sampled, read now, by its label (gpu0 ...); without those that do not tell."""
        from benchbench.host.gpus import read_now

        return read_now(self.devices, column)

    def _write(self) -> None:
        with self._lock:
            rows, self._rows = self._rows, _Rows()
        if not rows.times:
            return
        names = {device.label: device.facts.get("name") for device in self.devices}
        facts = {**self._facts, "first_ns": rows.times[0], "last_ns": rows.times[-1], "notes": list(self._notes)}
        self.directory.mkdir(exist_ok=True)
        if self._number is None:  # listed once: a long sweep has thousands of files
            numbers = [int(path.stem) for path in self.directory.glob("*.parquet") if path.stem.isdecimal()]
            self._number = max(numbers, default=-1) + 1
        data = parquet_bytes(_table(rows, names, facts), compression="snappy")
        replace_file(self.directory / f"{self._number:04d}.parquet", data)
        self._number += 1

    # -- in the thread

    def _note(self, text: str) -> None:
        self._notes.setdefault(text)

    def _work(self) -> None:
        try:
            import psutil

            psutil.cpu_percent()  # the first call has nothing to compare with
            if self._scope.gpus:
                from benchbench.host.gpus import open_devices, visible

                available, notes = open_devices()
                chosen, doubts = visible(available, self._wanted.gpus, self._scope.environment)
                for note in notes + doubts:
                    self._note(note)
                for device in chosen:  # questions without an answer are dropped here, not while a round runs
                    device.sample(self._note)
                self.devices = chosen
        except Exception as error:  # noqa: BLE001 - telemetry ends no sweep
            self._note(f"no telemetry of GPUs: {type(error).__name__}: {error}")
        self._opened.set()
        period, due = 1 / self._wanted.hz, time.monotonic()
        while not self._stopping:
            requested = self._wake.wait(max(0.0, due - time.monotonic()))
            if requested:  # a request that comes just after the time was up is met in the next turn
                self._wake.clear()
            else:
                now = time.monotonic()
                self._facts["late_ns_max"] = max(self._facts["late_ns_max"], int((now - due) * 1e9))
                due, skipped = next_due(due, now, period)
                self._facts["skipped"] += skipped
            self._tick()
            if requested:
                self._answered.set()

    def _tick(self) -> None:
        cpu = time.thread_time_ns()
        try:
            self._sample()
        except Exception as error:  # noqa: BLE001 - telemetry ends no sweep
            self._note(f"telemetry: {type(error).__name__}: {error}")
        self._facts["ticks"] += 1
        self._facts["cpu_ns"] += time.thread_time_ns() - cpu

    def _sample(self) -> None:
        import psutil

        for device in self.devices:
            time_ns, row = time.time_ns(), device.sample(self._note)
            with self._lock:
                self._rows.add(time_ns, device.label, row)
        time_ns = time.time_ns()
        row = {"cpu_share": psutil.cpu_percent() / 100, "memory_used_bytes": psutil.virtual_memory().used}
        with self._lock:
            self._rows.add(time_ns, HOST, row)


def next_due(due: float, now: float, period: float) -> tuple[float, int]:
    """When to sample after a tick that was due at `due` and came at `now`, s: the next place on the same grid that is
    still to come, and how many were missed. No drift, and no catching up.
    """
    missed = max(0, int((now - due) / period))
    return due + period * (1 + missed), missed


def _table(rows: _Rows, names: Mapping[str, str | None], facts: Mapping[str, Any]) -> pa.Table:
    """Columns time_ns (wall clock), device, name, throttle, and NUMBERS as floats; what is not known is null."""
    numbers = np.frombuffer(rows.numbers, np.float64).reshape(-1, len(NUMBERS))
    arrays = {
        "time_ns": make.numbers(np.frombuffer(rows.times, np.int64)),
        "device": make.texts(rows.labels),
        "name": make.texts([names.get(label) for label in rows.labels]),
        "throttle": make.texts(rows.throttle),
    }
    for place, name in enumerate(NUMBERS):
        arrays[name] = make.numbers(numbers[:, place], ~np.isnan(numbers[:, place]))
    return pa.table(arrays).replace_schema_metadata({"benchbench": orjson.dumps(facts)})
