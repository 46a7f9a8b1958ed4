"""The accelerators of this host, as AMD's (`amdsmi`) and NVIDIA's (`pynvml`) management libraries tell of them.

What a device, its driver or a version of the library lacks is absent, never 0, and is asked for once. Indices are
those of `amd-smi list` and `nvidia-smi -L`. The libraries are never shut down again: a call of ours may hang in one.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

Value = float | str | None
HOTSPOT_MARGIN_C = 5.0
COUNTER_PAUSE_S = 0.95  # an H100 (driver 580, in a guest) took 4 ms of CPU for its counter, 0.1 ms for all the rest
_AMD_ENERGY_J = 2.0**-16  # kernel's kgd_pp_interface.h; amdsmi's counter_resolution rounds it to 15.3 uJ
_SPARE_BYTES = 16384  # for a gpu_metrics that a newer library writes longer than the binding knows it
_ALL_ONES = {0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF}  # "not here", by the width of the field

# Bits of NVML's clocks event reasons; idle (1) is none, and 0x20 and 0x40 are slowdowns by software and hardware.
_NVIDIA_WORDS: Final = {
    0x2: "clock_setting",
    0x4: "power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20 | 0x40: "thermal",
    0x80: "power_brake",
    0x100: "clock_setting",
}
# Bits of the kernel's indep_throttle_status (SMU_THROTTLER_* in amdgpu_smu.h).
_AMD_HOTSPOT = 1 << 36
_AMD_WORDS: Final = {
    0xFF: "power_cap",
    0xFF << 16: "current_limit",
    0x3FFF << 32: "thermal",
    0x3 << 46: "hw_slowdown",  # PROCHOT
    0x3 << 56: "other",
}
# MI300 and later: counters that grow while the limit acts.
_AMD_RESIDENCIES: Final = {
    "ppt_residency_acc": "power_cap",
    "socket_thm_residency_acc": "thermal",
    "vr_thm_residency_acc": "thermal",
    "hbm_thm_residency_acc": "thermal",
    "prochot_residency_acc": "hw_slowdown",
}


_AMD_COLUMNS = (  # of gpu_metrics
    *("power_w", "energy_j", "core_clock_mhz", "memory_clock_mhz"),
    *("temperature_c", "hotspot_c", "utilisation", "throttle"),
)


@dataclass(slots=True)
class Read:
    """One question to a library, and the columns that its answer may fill."""

    columns: tuple[str, ...]
    ask: Callable[[], Mapping[str, Value]]
    pause_s: float = 0.0  # at least, between two answers
    answered: bool = False  # once, so that a later silence is not for good
    due_s: float = 0.0


@dataclass(slots=True)
class Device:
    """An accelerator. `reads` are tried in order, a later one only for columns that are still lacking."""

    label: str  # gpu0, gpu1 ...
    facts: dict[str, Any]
    reads: list[Read]
    lasting: Callable[[Exception], bool]  # whether an error means that the answer will never come

    def sample(self, tell: Callable[[str], None] = lambda _: None) -> dict[str, Value]:
        """The columns known now: power_w, energy_j (counter), core_clock_mhz, memory_clock_mhz, temperature_c (edge),
        hotspot_c, memory_used_bytes, utilisation (share), throttle (words joined by ";", empty: none).

        A library's error becomes a missing column and, unless it only says "not supported", a sentence for `tell`.
        """
        row: dict[str, Value] = {}
        for read in tuple(self.reads):
            if all(row.get(column) is not None for column in read.columns) or time.monotonic() < read.due_s:
                continue
            read.due_s = time.monotonic() + read.pause_s
            try:
                readings = read.ask()
            except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises ends no sweep
                if _absent(error) or self.lasting(error):
                    self.reads.remove(read)
                else:
                    tell(f"{self.label}: {', '.join(read.columns)}: {_told(error)}")
                continue
            read.answered |= any(value is not None for value in readings.values())
            if not read.answered:
                self.reads.remove(read)
            row |= {column: value for column, value in readings.items() if row.get(column) is None}
        return row


def open_devices() -> tuple[list[Device], list[str]]:
    """All accelerators of this host, NVIDIA's first, and why some could not be asked. Imports their libraries."""
    devices: list[Device] = []
    notes = []
    for vendor, (nodes, package, find) in _VENDORS.items():
        if not any(Path(node).exists() for node in nodes):
            continue
        try:
            devices += find(len(devices))
        except ImportError:
            notes.append(f"{vendor} GPUs are not sampled: no package {package} (pip install {package})")
        except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises ends no sweep
            notes.append(f"{vendor} GPUs are not sampled: {_told(error)}")
    return devices, notes


def device_facts() -> tuple[list[dict[str, Any]], list[str]]:
    """`facts` of every accelerator, and why some could not be asked."""
    devices, notes = open_devices()
    return [device.facts for device in devices], notes


def read_now(devices: Sequence[Device], column: str) -> dict[str, float]:
    """One column of each device now, by its label; without those that do not tell."""
    readings = {}
    for device in devices:
        for read in device.reads:
            with contextlib.suppress(Exception):
                if column in read.columns and (value := read.ask()[column]) is not None:
                    readings[device.label] = float(value)
    return readings


def visible(
    devices: Sequence[Device], gpus: Sequence[int] | None, environment: Mapping[str, str]
) -> tuple[list[Device], list[str]]:
    """The devices that count, and what could not be understood: by index in `gpus`, else those that `environment`
    leaves an engine by ROCR_, HIP_ and CUDA_VISIBLE_DEVICES, else all. ROCm's variables count in HIP's order, which
    may be another than `amd-smi list`'s (the reverse, on an MI325X).
    """
    if gpus is not None:
        return [devices[k] for k in gpus if k < len(devices)], [
            f"telemetry.gpus: there is no GPU {k} among {len(devices)}" for k in gpus if k >= len(devices)
        ]
    amd = any(device.facts["vendor"] == "AMD" for device in devices)
    names = ["ROCR_VISIBLE_DEVICES"] if amd else []
    names += ["HIP_VISIBLE_DEVICES" if amd and "HIP_VISIBLE_DEVICES" in environment else "CUDA_VISIBLE_DEVICES"]
    if not any(name in environment for name in names):
        return list(devices), []
    left = list(devices)
    if all("hip_id" in device.facts for device in devices):
        left.sort(key=lambda device: int(device.facts["hip_id"]))
    for name in names:  # on ROCm the second counts within what the first leaves
        if name in environment:
            picked = [_pick(left, word.strip()) for word in environment[name].split(",") if word.strip()]
            if None in picked and environment[name].strip() != "-1":
                return list(devices), [f"{name}={environment[name]} names no GPU of this host: all are sampled"]
            left = [device for device in picked if device is not None]
    return left, []


def _pick(devices: Sequence[Device], word: str) -> Device | None:
    if word.isdigit():
        return devices[int(word)] if int(word) < len(devices) else None
    ids = [(device, str(device.facts.get(name, ""))) for device in devices for name in ("uuid", "hip_uuid")]
    same = [device for device, text in ids if text.lower().startswith(word.lower())]
    return same[0] if len(same) == 1 else None


def _told(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _absent(error: Exception) -> bool:
    return isinstance(error, AttributeError | TypeError | KeyError)  # another version of the library


def _number(value: Any, unit: float = 1.0) -> float | None:  # noqa: ANN401 - anything that a library says
    """A measured quantity in units of `unit`; None for what stands for "none": N/A, all ones, and 0, which no living
    device has.
    """
    good = isinstance(value, int | float) and value > 0 and value not in _ALL_ONES
    return value * unit if good else None


def _single(column: str, ask: Callable[[], Value], pause_s: float = 0.0) -> Read:
    """A question for one column."""
    return Read((column,), lambda: {column: ask()}, pause_s)


def _first(*values: Any) -> float | None:  # noqa: ANN401 - anything that a library says
    return next((number for value in values if (number := _number(value)) is not None), None)


def _share(percent: Any) -> float | None:  # noqa: ANN401 - anything that a library says
    return percent / 100 if isinstance(percent, int | float) and percent <= 100 else None


def _words(bits: int, words: Mapping[int, str]) -> str:
    return ";".join(sorted({word for mask, word in words.items() if bits & mask}))


def _facts(device: dict[str, Any], **asks: Callable[[], Any]) -> dict[str, Any]:
    """`device` and the answers that come: what raises or says N/A is left out."""
    for name, ask in asks.items():
        with contextlib.suppress(Exception):
            value = ask()
            if value not in {None, "", "N/A"}:
                device[name] = value.decode() if isinstance(value, bytes) else value
    return device


# -- NVIDIA


def _nvidia_devices(before: int) -> list[Device]:
    import pynvml as nvml

    nvml.nvmlInit()
    return [_nvidia(nvml, index, before + index) for index in range(nvml.nvmlDeviceGetCount())]


def _nvidia(nvml: Any, index: int, place: int) -> Device:  # noqa: ANN401 - a module
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def power_now() -> float | None:
        (reply,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if reply.nvmlReturn:
            raise nvml.NVMLError(reply.nvmlReturn)
        return _number(reply.value.uiVal, 1e-3)

    gpu, sm, mem = nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    reads = [
        _single("energy_j", lambda: _number(nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1e-3), COUNTER_PAUSE_S),
        _single("power_w", power_now),
        # The mean of the last second, on most since Ampere.
        _single("power_w", lambda: _number(nvml.nvmlDeviceGetPowerUsage(handle), 1e-3)),
        _single("core_clock_mhz", lambda: _number(nvml.nvmlDeviceGetClockInfo(handle, sm))),
        _single("memory_clock_mhz", lambda: _number(nvml.nvmlDeviceGetClockInfo(handle, mem))),
        _single("temperature_c", lambda: _number(nvml.nvmlDeviceGetTemperature(handle, gpu))),
        _single("temperature_c", lambda: _number(nvml.nvmlDeviceGetTemperatureV(handle, gpu))),  # from CUDA 14 on
        _single("utilisation", lambda: _share(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        _single("memory_used_bytes", lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
        _single("throttle", lambda: _words(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle), _NVIDIA_WORDS)),
        # Its name before driver 535.
        _single("throttle", lambda: _words(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle), _NVIDIA_WORDS)),
    ]
    facts = _facts(
        {"device": f"gpu{place}", "vendor": "NVIDIA", "index": index},
        name=lambda: nvml.nvmlDeviceGetName(handle),
        uuid=lambda: nvml.nvmlDeviceGetUUID(handle),
        bus_id=lambda: nvml.nvmlDeviceGetPciInfo(handle).busId,
        driver=nvml.nvmlSystemGetDriverVersion,
        power_limit_w=lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(handle) / 1e3,
        memory_total_bytes=lambda: nvml.nvmlDeviceGetMemoryInfo(handle).total,
        core_clock_mhz_max=lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, sm),
        memory_clock_mhz_max=lambda: nvml.nvmlDeviceGetMaxClockInfo(handle, mem),
    )
    never = {nvml.NVML_ERROR_NOT_SUPPORTED, nvml.NVML_ERROR_NO_PERMISSION, nvml.NVML_ERROR_FUNCTION_NOT_FOUND}
    return Device(f"gpu{place}", facts, reads, lambda error: getattr(error, "value", None) in never)


# -- AMD


def _import_amdsmi() -> Any:  # noqa: ANN401 - a module
    """ROCm's own binding, else an installed one: only the first is sure to fit ROCm's library."""
    own = str(Path(os.environ.get("ROCM_PATH", "/opt/rocm")) / "share" / "amd_smi")
    sys.path.insert(0, own)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it finds no library
            return importlib.import_module("amdsmi")
    finally:
        sys.path.remove(own)


def _amd_devices(before: int) -> list[Device]:
    amdsmi = _import_amdsmi()
    amdsmi.amdsmi_init()
    handles = amdsmi.amdsmi_get_processor_handles()
    return [_amd(amdsmi, handle, index, before + index) for index, handle in enumerate(handles)]


def _amd(amdsmi: Any, handle: Any, index: int, place: int) -> Device:  # noqa: ANN401 - a module and its handle
    gfx, mem = amdsmi.AmdSmiClkType.GFX, amdsmi.AmdSmiClkType.MEM
    now, vram = amdsmi.AmdSmiTemperatureMetric.CURRENT, amdsmi.AmdSmiMemoryType.VRAM
    edge, hotspot = amdsmi.AmdSmiTemperatureType.EDGE, amdsmi.AmdSmiTemperatureType.HOTSPOT

    def clock(kind: Any, name: str) -> float | None:  # noqa: ANN401 - an enum of amdsmi
        reply = amdsmi.amdsmi_get_clock_info(handle, kind)
        return _first(reply.get(name), reply.get("cur_clk") if name == "clk" else None)  # before ROCm 6.2

    def temperature(kind: Any, metric: Any) -> float | None:  # noqa: ANN401 - enums of amdsmi
        reply = _number(amdsmi.amdsmi_get_temp_metric(handle, kind, metric))
        return reply / 1e3 if reply is not None and reply > 1000 else reply  # some versions tell millidegrees

    def power() -> float | None:
        reply = amdsmi.amdsmi_get_power_info(handle)
        return _first(*(reply.get(f"{kind}socket_power") for kind in ("current_", "average_", "")))

    def power_limit() -> float | None:
        reply = _number(amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"])
        return reply / 1e6 if reply is not None and reply > 1e5 else reply  # microwatts, watts in old versions

    facts = _facts(
        {"device": f"gpu{place}", "vendor": "AMD", "index": index},
        name=lambda: amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"],
        uuid=lambda: amdsmi.amdsmi_get_gpu_device_uuid(handle),
        hip_id=lambda: amdsmi.amdsmi_get_gpu_enumeration_info(handle)["hip_id"],  # from ROCm 6.4 on
        hip_uuid=lambda: amdsmi.amdsmi_get_gpu_enumeration_info(handle)["hip_uuid"],
        bus_id=lambda: amdsmi.amdsmi_get_gpu_device_bdf(handle),
        driver=lambda: amdsmi.amdsmi_get_gpu_driver_info(handle)["driver_version"],
        power_limit_w=power_limit,
        memory_total_bytes=lambda: amdsmi.amdsmi_get_gpu_memory_total(handle, vram),
        core_clock_mhz_max=lambda: clock(gfx, "max_clk"),
        memory_clock_mhz_max=lambda: clock(mem, "max_clk"),
        hotspot_limit_c=lambda: temperature(hotspot, amdsmi.AmdSmiTemperatureMetric.CRITICAL),
    )
    reads = [
        Read(_AMD_COLUMNS, _amd_metrics(amdsmi, handle, facts.get("hotspot_limit_c"))),
        _single("memory_used_bytes", lambda: amdsmi.amdsmi_get_gpu_memory_usage(handle, vram)),
        # For devices without gpu_metrics (guests), and what it leaves out.
        _single("power_w", power),
        _single("core_clock_mhz", lambda: clock(gfx, "clk")),
        _single("memory_clock_mhz", lambda: clock(mem, "clk")),
        _single("hotspot_c", lambda: temperature(hotspot, now)),
        _single("temperature_c", lambda: temperature(edge, now)),
        _single("utilisation", lambda: _share(amdsmi.amdsmi_get_gpu_activity(handle)["gfx_activity"])),
    ]
    statuses = ("NOT_SUPPORTED", "NOT_YET_IMPLEMENTED", "NO_PERM")
    never = {getattr(amdsmi.amdsmi_wrapper, f"AMDSMI_STATUS_{status}") for status in statuses}
    return Device(f"gpu{place}", facts, reads, lambda error: getattr(error, "err_code", None) in never)


def _amd_metrics(amdsmi: Any, handle: Any, limit_c: float | None) -> Callable[[], dict[str, Value]]:  # noqa: ANN401
    """Reads gpu_metrics, the one table that holds nearly all, below `amdsmi_get_gpu_metrics_info`: that function
    turns the throttle bits into one bool, and takes 0.3 ms for lists that nobody wants.
    """
    wrapper = amdsmi.amdsmi_wrapper
    kind = wrapper.amdsmi_gpu_metrics_t
    metrics = kind.from_buffer(bytearray(ctypes.sizeof(kind) + _SPARE_BYTES))
    before: dict[str, int] = {}

    def ask() -> dict[str, Value]:
        status = wrapper.amdsmi_get_gpu_metrics_info(handle, ctypes.byref(metrics))
        if status:
            raise amdsmi.AmdSmiLibraryException(status)
        clocks = [clock for clock in map(_number, metrics.current_gfxclks) if clock is not None]
        mean_clock = sum(clocks) / len(clocks) if clocks else None
        return {
            "power_w": _first(metrics.current_socket_power, metrics.average_socket_power),
            "energy_j": _number(metrics.energy_accumulator, _AMD_ENERGY_J),  # RDNA3's stands at 0
            "core_clock_mhz": mean_clock or _first(metrics.current_gfxclk, metrics.average_gfxclk_frequency),
            "memory_clock_mhz": _first(metrics.current_uclk, metrics.average_uclk_frequency),
            "temperature_c": _number(metrics.temperature_edge),
            "hotspot_c": _number(metrics.temperature_hotspot),
            "utilisation": _share(metrics.average_gfx_activity),
            "throttle": _amd_throttle(metrics, before, limit_c),
        }

    return ask


def _amd_throttle(metrics: Any, before: dict[str, int], limit_c: float | None) -> str | None:  # noqa: ANN401
    """Reasons by the throttler's bits, else by what grew since `before`; None where the device tells neither.

    `amdsmi_get_violation_status` would tell the second too, but sleeps 100 ms for it. RDNA3 and RDNA4 set
    TEMP_HOTSPOT at idle already: it counts from HOTSPOT_MARGIN_C below the sensor's critical temperature on.
    """
    bits = metrics.indep_throttle_status
    if bits not in _ALL_ONES:
        if limit_c is None or (_number(metrics.temperature_hotspot) or 0.0) < limit_c - HOTSPOT_MARGIN_C:
            bits &= ~_AMD_HOTSPOT
        return _words(bits, _AMD_WORDS)
    now = {name: value for name in _AMD_RESIDENCIES if (value := getattr(metrics, name, -1)) not in {-1, *_ALL_ONES}}
    grown = {_AMD_RESIDENCIES[name] for name, value in now.items() if value > before.get(name, value)}
    before |= now
    return ";".join(sorted(grown)) if now else None


_VENDORS: Final = {  # device nodes that a driver makes, package, who finds them
    "NVIDIA": (("/dev/nvidiactl", "/dev/dxg"), "nvidia-ml-py", _nvidia_devices),
    "AMD": (("/dev/kfd",), "amdsmi", _amd_devices),
}
