"""The sampler beside a sweep: what it writes, what it survives, and what a run makes of it."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from driving import CARRIED_OUT, bench, run_well, summary, write_sweep
from hypothesis import given
from hypothesis import strategies as st

import benchbench
from benchbench.engines.simulator import SimulatorProcess
from benchbench.host import gpus as devices
from benchbench.host import sampler as telemetry
from benchbench.host.devices import Device, Read
from benchbench.host.sampler import Sampler, Scope, next_due, scope_of
from benchbench.host.samples import read_telemetry
from benchbench.spec import spec_from_mapping
from benchbench.spec.schema import Telemetry
from benchbench.store.run_directory import RunDirectory

QUICK = Telemetry(hz=100)
ALL = Scope(host=True, gpus=True)


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "open_devices", lambda: ([], []))


def device(label: str, ask: Callable[[], dict[str, Any]]) -> Device:
    facts = {"device": label, "name": "Fake", "vendor": "AMD"}
    return Device(label, facts, [Read(("power_w",), ask)], lambda _: False)


def with_gpus(monkeypatch: pytest.MonkeyPatch, *asks: Callable[[], dict[str, Any]]) -> None:
    found = [device(f"gpu{place}", ask) for place, ask in enumerate(asks)]
    monkeypatch.setattr(devices, "open_devices", lambda: (found, ["a note of a library"]))


def steady() -> dict[str, Any]:
    return {"power_w": 250.0, "core_clock_mhz": 1700.0, "throttle": "power_cap", "utilisation": 1.0}


@pytest.fixture
def sampler() -> Iterator[Sampler]:
    with Sampler(Path(), QUICK, ALL) as running:
        running.ready()
        yield running


def rows() -> list[dict[str, Any]]:
    samples = read_telemetry(RunDirectory(Path()))
    return [] if samples is None else samples.to_pylist()


def test_rows_are_devices_at_times(monkeypatch: pytest.MonkeyPatch) -> None:
    with_gpus(monkeypatch, steady, steady)
    with Sampler(Path(), Telemetry(hz=100, gpus=(1,)), ALL) as running:
        running.ready()
        assert running.notes() == ["a note of a library"]
        assert running.facts() == [{"device": "gpu1", "name": "Fake", "vendor": "AMD"}]
        for _ in range(3):
            running.flush()
        assert running.notes() == []
    found = rows()
    assert {row["device"] for row in found} == {"gpu1", "host"}
    gpu, host = (next(row for row in found if row["device"] == name) for name in ("gpu1", "host"))
    assert {key: value for key, value in gpu.items() if value is not None and key != "time_ns"} == {
        "device": "gpu1", "name": "Fake", **steady(),
    }  # fmt: skip
    assert {key for key, value in host.items() if value is not None} == {
        *("time_ns", "device", "cpu_share", "memory_used_bytes"),
    }  # fmt: skip
    assert 0 <= host["cpu_share"] <= 1
    for name in ("gpu1", "host"):
        times = [row["time_ns"] for row in found if row["device"] == name]
        assert times == sorted(set(times)), "no sample lost, none twice, files in order"
        assert len(times) >= 3
    assert [path.name for path in sorted(Path("telemetry").iterdir())][:3] == [f"000{k}.parquet" for k in range(3)]


def test_a_flush_samples_after_what_it_must_cover(sampler: Sampler) -> None:
    import time

    for _ in range(5):
        now = time.time_ns()
        sampler.flush()
        assert max(row["time_ns"] for row in rows()) >= now


def test_only_the_files_of_a_time_are_read(sampler: Sampler) -> None:
    sampler.flush()
    first = rows()
    sampler.flush()
    edge = max(row["time_ns"] for row in first)
    run = RunDirectory(Path())
    early, late = read_telemetry(run, [(0, edge)]), read_telemetry(run, [(1, 2), (edge + 1, 2 * edge)])
    assert early is not None
    assert late is not None
    assert early.to_pylist() == first
    assert early.num_rows + late.num_rows == len(rows())
    assert read_telemetry(run, [(0, first[0]["time_ns"] - 1)]) is None
    assert read_telemetry(run, []) is None


@given(st.floats(0, 1e6), st.floats(0, 1e3), st.sampled_from([0.01, 0.1, 0.5]))
def test_ticks_keep_to_a_grid_and_never_catch_up(due: float, late: float, period: float) -> None:
    after, missed = next_due(due, due + late, period)
    assert after > due + late - 1e-6
    assert after - (due + late) <= period + 1e-6
    assert (after - due) / period == pytest.approx(missed + 1)


def test_how_late_and_how_dear_it_was_is_noted(sampler: Sampler) -> None:
    sampler.flush()
    (path,) = Path("telemetry").iterdir()
    facts = json.loads(pq.read_schema(path).metadata[b"benchbench"])
    assert set(facts) == {*("hz", "ticks", "skipped", "late_ns_max", "cpu_ns", "first_ns", "last_ns", "notes")}
    assert facts["hz"] == 100
    assert facts["ticks"] >= 1
    assert facts["cpu_ns"] > 0


def test_a_gpu_that_raises_is_noted_once_and_the_others_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> dict[str, Any]:
        raise OSError("GPU is lost")

    with_gpus(monkeypatch, lost, steady)
    with Sampler(Path(), QUICK, ALL) as running:
        running.ready()
        for _ in range(3):
            running.flush()
    assert running.notes() == ["a note of a library", "gpu0: power_w: OSError: GPU is lost"]
    assert {row["power_w"] for row in rows() if row["device"] == "gpu1"} == {250.0}
    assert {row["power_w"] for row in rows() if row["device"] == "gpu0"} == {None}


def test_a_library_that_hangs_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "ANSWER_S", 0.05)
    free, times = threading.Event(), iter(range(1000))

    def hangs() -> dict[str, Any]:
        if next(times) == 2:
            free.wait()
        return steady()

    with_gpus(monkeypatch, steady, hangs)
    try:
        with Sampler(Path(), QUICK, ALL) as running:
            running.ready()
            for _ in range(4):
                running.flush()
        assert "a device library hung: its samples are late or missing" in running.notes()
        assert len([row for row in rows() if row["device"] == "gpu0"]) > 1
    finally:
        free.set()


def test_a_sample_wanted_just_as_the_next_is_due_is_taken_and_a_busy_host_is_no_library(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    due, wanted = threading.Event(), threading.Event()

    class Wake(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            if not (requested := super().wait(timeout)):
                due.set()
                wanted.wait()
            return requested

        def set(self) -> None:
            super().set()
            wanted.set()

    monkeypatch.setattr(telemetry, "ANSWER_S", 5.0)
    running = Sampler(Path(), QUICK, ALL)
    running._wake = Wake()
    with running:
        due.wait()
        running.flush()
        assert running._answered.is_set()
        monkeypatch.setattr(telemetry, "ANSWER_S", 0.0)
        running.flush()
    assert running.notes() == []


def test_libraries_that_do_not_open_are_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(telemetry, "OPEN_S", 0.05)
    monkeypatch.setattr(telemetry, "ANSWER_S", 0.05)
    free = threading.Event()
    monkeypatch.setattr(devices, "open_devices", lambda: (free.wait(), []))
    try:
        with Sampler(Path(), QUICK, ALL) as running:
            running.ready()
            running.flush()
            assert running.notes() == ["no telemetry: the device libraries did not open within 0.05 s"]
    finally:
        free.set()
    assert rows() == []


def test_a_library_that_breaks_while_it_opens_leaves_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> Any:
        raise RuntimeError("no")

    monkeypatch.setattr(devices, "open_devices", broken)
    with Sampler(Path(), QUICK, ALL) as running:
        running.ready()
        running.flush()
    assert running.notes() == ["no telemetry of GPUs: RuntimeError: no"]
    assert {row["device"] for row in rows()} == {"host"}


def spec(engine: dict[str, Any], **more: Any) -> Any:
    data = {"name": "t", "model": "m", "engine": engine, "grid": {"input": 8, "output": 4, "batch": 1}, **more}
    return spec_from_mapping(data)


@pytest.mark.parametrize(
    ("engine", "host", "gpus"),
    [
        ({"kind": "simulator"}, True, False),
        ({"kind": "endpoint", "url": "http://127.0.0.2:8000/v1"}, True, True),
        ({"kind": "endpoint", "url": "http://[::1]:8000"}, True, True),
        ({"kind": "endpoint", "url": "http://localhost:8000"}, True, True),
        ({"kind": "endpoint", "url": "http://10.0.0.7:8000"}, False, False),
        ({"kind": "endpoint", "url": "https://gpu.example"}, False, False),
        ({"kind": "vllm_serve", "env": {"HIP_VISIBLE_DEVICES": 3}}, True, True),
        ({"kind": "vllm_inprocess"}, True, True),
    ],
)
def test_what_is_on_this_host(engine: dict[str, Any], host: bool, gpus: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5")
    found = scope_of(spec(engine).engine, Telemetry())
    assert (found.host, found.gpus) == (host, gpus)
    assert found.note == ("" if host else "no telemetry: the server is not on this host")
    launched = engine["kind"].startswith("vllm")
    assert found.environment.get("CUDA_VISIBLE_DEVICES") == ("5" if launched else None)
    assert found.environment.get("HIP_VISIBLE_DEVICES") == ("3" if engine.get("env") else None)
    off = scope_of(spec(engine).engine, Telemetry(enabled=False))
    assert off == Scope(host=False, gpus=False, note="telemetry is off (telemetry.enabled)")


SIMULATED = {
    "name": "t",
    "model": "sim",
    "engine": {"kind": "simulator", "profile": "tiny", "scale": 2},
    "grid": {"input": 64, "output": [40, 60], "batch": 2},
    "rounds": {"warmup": 0, "min": 2, "max": 2},
    "telemetry": {"hz": 50},
}


def test_a_simulated_sweep_has_its_hosts_telemetry_also_when_resumed() -> None:
    Path("s.yaml").write_text(yaml.safe_dump(SIMULATED))
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots").exit_code in CARRIED_OUT
    more = ("--set", "rounds={warmup: 0, min: 3, max: 3}")
    before = {path.name: path.read_bytes() for path in Path("run/telemetry").iterdir()}
    assert bench("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume", *more).exit_code in CARRIED_OUT
    after = {path.name: path.read_bytes() for path in Path("run/telemetry").iterdir()}
    assert {name: after[name] for name in before} == before
    assert len(after) > len(before) >= 2
    run = benchbench.open_run("run")
    frame = run.telemetry()
    assert set(frame["device"]) == {"host"}
    assert frame["time_ns"].is_unique
    assert run.manifest["devices"] == []
    for found in run.summaries:
        assert found.usage is not None
        assert found.usage.host is not None
        assert found.usage.host.cpu_share is not None
        assert (found.usage.gpus, len(found.rounds)) == ((), 3)
    assert summary(Path("run")) == run.rows
    assert bench("explain", "run").stdout.count("host:            CPU") == 2


def test_a_sweep_of_a_local_server_knows_what_its_gpus_took(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rows that the sweep writes right after each cell are those that are made again from its files."""
    with_gpus(monkeypatch, steady, lambda: steady() | {"core_clock_mhz": 1400.0, "throttle": "thermal"})
    law = {"kind": "fixed", "ttft_s": 0.05, "itl_s": 0.05}
    with SimulatorProcess("fixed", options={"law": law}) as simulator:
        run_well(simulator.url, telemetry={"hz": 50}, grid={"input": 8, "output": [6, 8], "batch": 2})
    made = summary(Path("run"))
    for row in made:
        assert row["power_w"] == pytest.approx(500)
        assert row["energy_j"] == pytest.approx(500 * row["round_s"])
        assert row["tok_per_j"] == pytest.approx(row["run_tok_s"] / 500)
        assert (row["gpu_clock_mhz"], row["gpu_clock_mhz_min"], row["throttle"]) == (1550, 1400, "power_cap;thermal")
        assert {"throttled", "straggler"} <= set(row["reasons"].split(";"))
    run = benchbench.open_run("run")
    assert run.rows == made
    assert [entry["device"] for entry in run.manifest["devices"]] == ["gpu0", "gpu1"]
    assert "a note of a library" in run.manifest["notes"]


def test_a_gpu_that_somebody_else_uses_makes_cells_suspect(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not one whose last engine has just ended: utilisation is a mean of some time."""
    falling = iter([0.9, 0.9, 0.9, 0.6])
    in_use, ended = (
        Device(
            f"gpu{place}", {"device": f"gpu{place}", "vendor": "AMD"}, [Read(("utilisation",), ask)], lambda _: False
        )
        for place, ask in enumerate([lambda: {"utilisation": 0.93}, lambda: {"utilisation": next(falling, 0.0)}])
    )
    monkeypatch.setattr(devices, "open_devices", lambda: ([in_use, ended], []))
    standin = [sys.executable, str(Path(__file__).with_name("standin_vllm.py"))]
    path = write_sweep(Path("s.yaml"), "", engine={"kind": "vllm_serve", "command": standin}, telemetry={"hz": 2})
    result = bench("sweep", path, "--out", "run", "--no-plots")
    assert result.exit_code in CARRIED_OUT, result.stderr
    assert "in use before the engine was started (gpu0: 93%)" in result.stderr
    (row,) = summary(Path("run"))
    assert "gpu_in_use" in row["reasons"].split(";")
    assert "gpu0: 93%" in bench("explain", "run").stdout


@pytest.mark.parametrize(("section", "note"), [
    ({"enabled": False}, "telemetry is off (telemetry.enabled)"),
    ({"enabled": True, "gpus": [3]}, "telemetry.gpus: there is no GPU 3 among 0"),
])  # fmt: skip
def test_why_nothing_was_sampled_is_told(section: dict[str, Any], note: str) -> None:
    with SimulatorProcess("fixed") as simulator:
        result = run_well(simulator.url, telemetry=section)
    assert note in result.stderr
    assert note in benchbench.open_run("run").manifest["notes"]
    assert Path("run/telemetry").exists() is section["enabled"]
    assert summary(Path("run"))[0]["power_w"] is None
