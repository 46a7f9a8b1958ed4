"""What is read from the device libraries: units, what devices lack, what is asked how often, which devices count."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from device_libraries import (
    FUNCTION_NOT_FOUND,
    GIB,
    GPU_IS_LOST,
    NOT_SUPPORTED,
    FakeAmdsmi,
    FakeNvml,
    Metrics,
    OldMetrics,
    capture,
    table,
)
from driving import bench

from benchbench.host import amd, devices
from benchbench.host import gpus as module
from benchbench.host.amd_files import file_devices, kernel_facts
from benchbench.host.devices import Device
from benchbench.host.environment import drivers
from benchbench.host.gpus import device_facts, open_devices, read_now, visible


@pytest.fixture(autouse=True)
def _no_drivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host without drivers, whatever this one has."""
    vendors = {name: ((), *rest) for name, (_, *rest) in module._VENDORS.items()}
    monkeypatch.setattr(module, "_VENDORS", vendors)


def install(monkeypatch: pytest.MonkeyPatch, **libraries: Any) -> list[Device]:
    """The devices that these libraries show, where a driver's node exists for each (`pynvml`, `amdsmi`)."""
    for name, library in libraries.items():
        monkeypatch.setitem(sys.modules, name, library)
        vendor = {"pynvml": "NVIDIA", "amdsmi": "AMD"}[name]
        monkeypatch.setitem(module._VENDORS, vendor, (("/",), *module._VENDORS[vendor][1:]))
    found, notes = open_devices()
    assert notes == []
    return found


def test_nvidia_in_our_units(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml()
    first, second = install(monkeypatch, pynvml=nvml)
    assert second.facts == {
        "device": "gpu1", "vendor": "NVIDIA", "index": 1, "name": "NVIDIA H100", "uuid": "GPU-1aaa-bbb",
        "bus_id": "00000000:01:00.0", "driver": "580.82", "power_limit_w": 700.0, "memory_total_bytes": 80 * GIB,
        "core_clock_mhz_max": 1980, "memory_clock_mhz_max": 2619,
    }  # fmt: skip
    assert device_facts() == ([first.facts, second.facts], [])
    assert first.sample() == {
        "energy_j": pytest.approx(123.456), "power_w": 700.25, "core_clock_mhz": 1755, "memory_clock_mhz": 2600,
        "temperature_c": 61, "utilisation": 0.97, "memory_used_bytes": 60 * GIB, "throttle": "power_cap",
    }  # fmt: skip
    assert nvml.calls["nvmlDeviceGetTemperatureV"] == nvml.calls["nvmlDeviceGetCurrentClocksThrottleReasons"] == 0
    assert read_now([first, second], "memory_used_bytes") == {"gpu0": 60 * GIB, "gpu1": 60 * GIB}


@pytest.mark.parametrize(
    ("bits", "words"),
    [(0, ""), (1, ""), (0x4, "power_cap"), (0x68, "hw_slowdown;thermal"), (0x20, "thermal"), (0x80, "power_brake")],
)
def test_nvidias_reasons_in_words(monkeypatch: pytest.MonkeyPatch, bits: int, words: str) -> None:
    nvml = FakeNvml()
    nvml.reasons = bits
    assert install(monkeypatch, pynvml=nvml)[0].sample()["throttle"] == words


def test_what_is_not_supported_is_asked_once_and_what_fails_is_asked_again(monkeypatch: pytest.MonkeyPatch) -> None:
    energy, power, now = (f"nvmlDeviceGet{name}" for name in ("TotalEnergyConsumption", "PowerUsage", "FieldValues"))
    nvml = FakeNvml(1, failing={energy: NOT_SUPPORTED, power: GPU_IS_LOST})
    nvml.instant = NOT_SUPPORTED
    (device,) = install(monkeypatch, pynvml=nvml)
    said: list[str] = []
    for _ in range(3):
        row = device.sample(said.append)
        assert "energy_j" not in row
        assert "power_w" not in row
    assert (nvml.calls[energy], nvml.calls[now], nvml.calls[power]) == (1, 1, 3)
    assert said == ["gpu0: power_w: NVMLError: NVML error 15"] * 3
    nvml.failing.clear()
    assert device.sample()["power_w"] == 650.5


def test_a_dear_counter_is_read_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = FakeNvml(1)
    (device,) = install(monkeypatch, pynvml=nvml)
    now = [1000.0]
    monkeypatch.setattr(devices.time, "monotonic", lambda: now[0])
    told = []
    for _ in range(31):
        told.append("energy_j" in device.sample())
        now[0] += 0.1
    assert told == [tick % 10 == 0 for tick in range(31)]
    assert nvml.calls["nvmlDeviceGetFieldValues"] == 31


def test_an_older_and_a_newer_nvml_are_asked_by_other_names(monkeypatch: pytest.MonkeyPatch) -> None:
    reasons = "nvmlDeviceGetCurrentClocksEventReasons"
    old = FakeNvml(1, failing={reasons: FUNCTION_NOT_FOUND})  # the binding knows it, the driver does not
    assert install(monkeypatch, pynvml=old)[0].sample()["throttle"] == "power_cap"
    older = FakeNvml(1, gone=(reasons,))
    assert install(monkeypatch, pynvml=older)[0].sample()["throttle"] == "power_cap"
    newer = FakeNvml(1, gone=("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"))
    row = install(monkeypatch, pynvml=newer)[0].sample()
    assert (row["temperature_c"], row["throttle"]) == (62, "power_cap")


def test_navi31_has_no_energy_counter_and_its_hotspot_bit_means_nothing_when_cool(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    amdsmi = FakeAmdsmi(table("navi31-load"))
    device = install(monkeypatch, amdsmi=amdsmi)[0]
    assert device.facts == {
        "device": "gpu0", "vendor": "AMD", "index": 0, "name": "AMD Radeon PRO W7900D",
        "uuid": "07ff744b-0000-1000-800d-e4f9d3a0f1b2", "bus_id": "0000:00:00.0", "driver": "6.12.12",
        "power_field": "average_socket_power", "power_limit_w": 241.0, "memory_total_bytes": 48 * GIB,
        "core_clock_mhz_max": 1850.0, "memory_clock_mhz_max": 1324.0, "hotspot_limit_c": 110.0,
    }  # fmt: skip
    assert device.sample() == {
        "power_w": 241, "energy_j": None, "core_clock_mhz": 1702, "memory_clock_mhz": 1124, "temperature_c": 61,
        "hotspot_c": 79, "utilisation": 0.99, "throttle": "", "memory_used_bytes": 45 * GIB,
    }  # fmt: skip
    assert amdsmi.calls["power"] == 2, "once for the facts of each"
    assert amdsmi.metrics
    for bits, hotspot, words in [
        (1 << 36 | 1, 79, "power_cap"),
        (1 << 36 | 1 << 17, 105, "current_limit;thermal"),
        (1 << 38, 79, "thermal"),  # a voltage regulator's
        (1 << 47, 79, "hw_slowdown"),
    ]:
        amdsmi.metrics |= {"indep_throttle_status": bits, "temperature_hotspot": hotspot}
        assert device.sample()["throttle"] == words
    amdsmi.critical = -1  # unknown, so the bit cannot be checked
    unlimited = install(monkeypatch, amdsmi=amdsmi)[0]
    amdsmi.metrics["indep_throttle_status"] = 1 << 36
    assert unlimited.sample()["throttle"] == ""


@pytest.mark.parametrize(
    ("name", "limit_c", "watts", "hotspot", "throttle"),
    [
        ("navi31-idle", 110.0, 10, 41, ""),
        ("navi31-load", 110.0, 241, 79, ""),
        ("navi31-load", 84.0, 241, 79, "thermal"),
        ("navi48-idle", 110.0, 20, 43, ""),
        ("r9700-idle", 110.0, 1, 37, ""),  # amd-smi says THROTTLED
        ("r9700-idle", None, 1, 37, ""),
        ("r9700-capped", 110.0, 225, 75, "power_cap"),
        ("mi300x", None, 720, 58, ""),
    ],
)
def test_what_a_gpu_metrics_table_tells(
    name: str, limit_c: float | None, watts: int, hotspot: int, throttle: str
) -> None:
    said = dict.fromkeys(field for field, _ in Metrics._fields_) | {"current_gfxclks": []} | table(name)
    row = amd.readings(SimpleNamespace(**said), {}, limit_c)
    assert (row["power_w"], row["hotspot_c"], row["throttle"]) == (watts, hotspot, throttle)
    assert (row["energy_j"] is None) == (name != "mi300x")
    assert row["temperature_c"] == {"navi31-idle": 38, "navi31-load": 61, "navi48-idle": 41}.get(name)
    texts = capture(name)["gpu_metrics"]  # amdsmi's dictionary says "N/A" where the table has all ones
    assert amd.readings(SimpleNamespace(**said | texts), {}, limit_c) == row


def test_an_idle_navi31_as_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    row = install(monkeypatch, amdsmi=FakeAmdsmi(table("navi31-idle")))[0].sample()
    del row["memory_used_bytes"]
    assert row == {
        "power_w": 10, "energy_j": None, "core_clock_mhz": 5, "memory_clock_mhz": 29, "temperature_c": 38,
        "hotspot_c": 41, "utilisation": 0.0, "throttle": "",
    }  # fmt: skip


@pytest.mark.parametrize(("power", "watts"), capture("power-info")["power_info"])
def test_which_power_field_there_is(monkeypatch: pytest.MonkeyPatch, power: dict[str, Any], watts: int | None) -> None:
    amdsmi = FakeAmdsmi(None)
    amdsmi.power = power
    assert install(monkeypatch, amdsmi=amdsmi)[0].sample().get("power_w") == watts
    field = amd.power_field(power)
    assert (power[field] if field else None) == watts


@pytest.mark.parametrize(
    ("text", "gfx"),
    [("gfx1100", "gfx1100"), ("gfx90a", "gfx90a"), ("gfx0", None), ("gfxffffffffffffffff", None), ("N/A", None)],
)
def test_gfx_targets_by_amdsmis_text(text: str, gfx: str | None) -> None:
    assert amd.gfx_target(text) == gfx


def test_rocms_variables_count_in_hips_order(monkeypatch: pytest.MonkeyPatch) -> None:
    amdsmi = FakeAmdsmi(table("mi300x"))  # two of an MI325X host, where amd-smi's order is the reverse of HIP's
    amdsmi.enumeration = [
        ("9fff74b9-0000-1000-8044-4a2fb30adeb0", 7, "GPU-9f444a2fb30adeb0"),
        ("b7ff74b9-0000-1000-80d1-81671a192e45", 6, "GPU-b7d181671a192e45"),
    ]
    devices = install(monkeypatch, amdsmi=amdsmi)
    assert [device.facts["hip_id"] for device in devices] == [7, 6]
    for environment, left in [
        ({}, [0, 1]),
        ({"HIP_VISIBLE_DEVICES": "0"}, [1]),
        ({"ROCR_VISIBLE_DEVICES": "1"}, [0]),
        ({"ROCR_VISIBLE_DEVICES": "1,GPU-b7d181671a192e45", "HIP_VISIBLE_DEVICES": "1"}, [1]),
        ({"HIP_VISIBLE_DEVICES": "7"}, None),
    ]:
        found, notes = visible(devices, None, environment)
        assert bool(notes) == (left is None)
        assert [device.facts["index"] for device in found] == ([0, 1] if left is None else left)
    assert visible(devices, (0,), {})[0] == devices[:1]


def test_mi300_counts_energy_and_throttling_by_what_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    amdsmi = FakeAmdsmi(table("mi300x"))
    device = install(monkeypatch, amdsmi=amdsmi)[0]
    assert amdsmi.metrics
    row = device.sample()
    assert (row["energy_j"], row["power_w"], row["core_clock_mhz"], row["throttle"]) == (3.0, 720, 2102, "")
    assert amdsmi.calls["edge"] == 1
    amdsmi.metrics |= {"ppt_residency_acc": 101}
    assert device.sample()["throttle"] == "power_cap"
    amdsmi.metrics |= {"socket_thm_residency_acc": 8}
    assert device.sample()["throttle"] == "thermal"
    assert device.sample()["throttle"] == ""
    assert amdsmi.calls["edge"] == 1
    before = install(monkeypatch, amdsmi=FakeAmdsmi(table("mi300x"), structure=OldMetrics))[0]
    assert before.sample()["throttle"] is None  # ROCm 6.2 does not tell


def test_an_amd_guest_without_gpu_metrics(monkeypatch: pytest.MonkeyPatch) -> None:
    amdsmi = FakeAmdsmi(None)
    device = install(monkeypatch, amdsmi=amdsmi)[0]
    told = {
        "memory_used_bytes": 45 * GIB, "power_w": 230, "core_clock_mhz": 1650, "memory_clock_mhz": 1124,
        "hotspot_c": 77,
    }  # fmt: skip
    assert device.sample() == told | {"utilisation": None}
    assert device.sample() == told
    assert amdsmi.calls["metrics"] == 1


def test_without_a_driver_no_library_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("pynvml", "amdsmi"):
        monkeypatch.setitem(sys.modules, name, None)
    assert open_devices() == ([], [])
    monkeypatch.setitem(module._VENDORS, "NVIDIA", (("/",), *module._VENDORS["NVIDIA"][1:]))
    assert open_devices() == (
        [],
        ["NVIDIA GPUs are not sampled: no package nvidia-ml-py (pip install nvidia-ml-py)"],
    )
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(failing={"nvmlInit": 9}))
    assert open_devices() == ([], ["NVIDIA GPUs are not sampled: NVMLError: NVML error 9"])


@pytest.fixture
def rocm_only(tmp_path: Path) -> Path:
    """A root with what ROCm's drivers write, for a host without amdsmi."""
    for name, text in capture("kfd-host")["files"].items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_host_with_rocms_files_only(monkeypatch: pytest.MonkeyPatch, rocm_only: Path) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    instead = partial(file_devices, root=rocm_only)
    monkeypatch.setitem(module._VENDORS, "AMD", (("/",), *module._VENDORS["AMD"][1:-1], instead))
    (first, second), notes = open_devices()
    fewer = "AMD GPUs are sampled by the kernel's files, without reasons of throttling and counters of energy"
    assert notes == [f"{fewer}: no package amdsmi (pip install amdsmi)"]
    assert first.facts == {
        "device": "gpu0", "vendor": "AMD", "index": 0, "hip_id": 1, "gfx": "gfx1100", "bus_id": "0000:03:00.0",
        "core_clock_mhz_max": 1760, "hip_uuid": "GPU-7cf529dea4b33bad", "name": "AMD Radeon Pro W7900D",
        "driver": "6.12.12", "power_field": "power1_average", "power_limit_w": 241.0, "memory_total_bytes": 51522830336,
        "hotspot_limit_c": 110.0,
    }  # fmt: skip
    assert first.sample() == {
        "power_w": 241.0, "core_clock_mhz": 1702.0, "memory_clock_mhz": 1124.0, "temperature_c": 61.0,
        "hotspot_c": 79.0, "utilisation": 0.99, "memory_used_bytes": 48318382080.0,
    }  # fmt: skip
    said: list[str] = []
    assert (second.facts["name"], second.facts["hip_id"]) == ("AMD Radeon RX 7900 XTX", 0)
    assert (second.sample(said.append), second.reads, said) == ({}, [], []), "what has no file is asked once"
    assert visible([first, second], None, {"HIP_VISIBLE_DEVICES": "1"})[0] == [first]
    assert visible([first, second], None, {"ROCR_VISIBLE_DEVICES": "GPU-7cf529dea4b33bad"})[0] == [first]
    (rocm_only / "sys/class/drm/renderD128/device/hwmon/hwmon4/power1_input").write_text("250000000\n")
    both = file_devices(0, rocm_only)[0]
    assert both.sample()["power_w"] == read_now([both], "power_w")["gpu0"] == 250.0, "that of now, where there is one"
    shown = bench("env").stdout
    assert "gpu0:\n  vendor: AMD\n  index: 0\n  hip id: 1\n  gfx: gfx1100\n" in shown
    assert drivers(rocm_only) == {"amdgpu": "6.12.12", "rocm": "6.3.1-48"}


def test_an_older_amdsmi_is_completed_by_the_kernels_files(rocm_only: Path) -> None:
    known = kernel_facts(rocm_only)
    assert [facts["hip_id"] for facts in known] == [0, 1], "neither the CPU nor what cannot be read counts"
    facts: list[dict[str, Any]] = [{"bus_id": "0000:03:00.0"}, {"bus_id": "0000:86:00.0", "gfx": "gfx1100"}]
    amd.complete(facts, known)
    assert [(told["hip_id"], told["gfx"]) for told in facts] == [(1, "gfx1100"), (0, "gfx1100")]
    assert facts[1]["hip_uuid"] == "GPU-a1ffc9d1799c317f"
    newer: list[dict[str, Any]] = [{"bus_id": "0000:03:00.0", "hip_id": 0}, {"bus_id": "0000:99:00.0"}]
    amd.complete(newer, known)
    assert (newer[0]["hip_id"], "hip_id" in newer[1]) == (0, False), "HIP's order for all or none"


@pytest.mark.parametrize(
    ("version", "gfx"), [(90402, "gfx942"), (90010, "gfx90a"), (120001, "gfx1201"), (110501, "gfx1151")]
)
def test_gfx_targets_by_kfds_number(tmp_path: Path, version: int, gfx: str) -> None:
    node = tmp_path / "sys/class/kfd/kfd/topology/nodes/1"
    node.mkdir(parents=True)
    (node / "properties").write_text(f"gfx_target_version {version}\nlocation_id 768\n")
    assert kernel_facts(tmp_path)[0]["gfx"] == gfx
    (node.parent / "2").mkdir()
    (node.parent / "2/properties").write_text(f"gfx_target_version {version}\nlocation_id 768\n")
    assert kernel_facts(tmp_path) == [], "partitions of one GPU"


def test_rocms_own_binding_is_preferred_and_says_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for place in ("rocm/share/amd_smi", "installed"):
        (tmp_path / place).mkdir(parents=True)
        (tmp_path / place / "amdsmi.py").write_text(f"place = {place!r}\nprint('Unable to find amdsmi library')\n")
    monkeypatch.syspath_prepend(str(tmp_path / "installed"))
    monkeypatch.setenv("ROCM_PATH", str(tmp_path / "rocm"))
    monkeypatch.delitem(sys.modules, "amdsmi", raising=False)
    before = list(sys.path)
    assert amd._import_amdsmi().place == "rocm/share/amd_smi"
    monkeypatch.delitem(sys.modules, "amdsmi")
    monkeypatch.setenv("ROCM_PATH", str(tmp_path / "none"))
    assert amd._import_amdsmi().place == "installed"
    monkeypatch.delitem(sys.modules, "amdsmi")
    assert sys.path == before
    assert capsys.readouterr().out == ""


def fleet(vendor: str, count: int = 4) -> list[Device]:
    names = [f"GPU-{index}abc-{index}" for index in range(count)]
    return [Device(f"gpu{k}", {"vendor": vendor, "uuid": name}, [], lambda _: True) for k, name in enumerate(names)]


@pytest.mark.parametrize(
    ("vendor", "gpus", "environment", "left"),
    [
        ("NVIDIA", None, {}, [0, 1, 2, 3]),
        ("NVIDIA", (2, 0), {"CUDA_VISIBLE_DEVICES": "1"}, [2, 0]),
        ("NVIDIA", None, {"CUDA_VISIBLE_DEVICES": "3,1", "HIP_VISIBLE_DEVICES": "0"}, [3, 1]),
        ("NVIDIA", None, {"CUDA_VISIBLE_DEVICES": "GPU-2abc-2, gpu-1"}, [2, 1]),
        ("NVIDIA", None, {"CUDA_VISIBLE_DEVICES": ""}, []),
        ("NVIDIA", None, {"CUDA_VISIBLE_DEVICES": "-1"}, []),
        ("AMD", None, {"HIP_VISIBLE_DEVICES": "2", "CUDA_VISIBLE_DEVICES": "0"}, [2]),
        ("AMD", None, {"CUDA_VISIBLE_DEVICES": "1"}, [1]),
        ("AMD", None, {"ROCR_VISIBLE_DEVICES": "1,3", "HIP_VISIBLE_DEVICES": "1"}, [3]),
        # To HIP (and vLLM) an empty text is none, and CUDA's counts in its stead; to ROCr it leaves no GPU.
        ("AMD", None, {"HIP_VISIBLE_DEVICES": ""}, [0, 1, 2, 3]),
        ("AMD", None, {"HIP_VISIBLE_DEVICES": "", "CUDA_VISIBLE_DEVICES": "2"}, [2]),
        ("AMD", None, {"ROCR_VISIBLE_DEVICES": ""}, []),
        ("AMD", None, {"HIP_VISIBLE_DEVICES": "-1"}, []),
        ("AMD", None, {"HIP_VISIBLE_DEVICES": "GPU-2abc-2"}, [2]),
    ],
)
def test_which_gpus_count(
    vendor: str, gpus: tuple[int, ...] | None, environment: dict[str, str], left: list[int]
) -> None:
    found, notes = visible(fleet(vendor), gpus, environment)
    assert ([device.label for device in found], notes) == ([f"gpu{k}" for k in left], [])


def test_gpus_that_are_not_there_are_told() -> None:
    assert visible(fleet("AMD", 2), (1, 5), {})[1] == ["telemetry.gpus: there is no GPU 5 among 2"]
    found, notes = visible(fleet("AMD", 2), None, {"HIP_VISIBLE_DEVICES": "7"})
    assert (len(found), notes) == (2, ["HIP_VISIBLE_DEVICES=7 names no GPU of this host: all are sampled"])
