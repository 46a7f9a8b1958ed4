"""AMD's GPUs, as `amdsmi` tells of them; without it, `amd_files`."""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import io
import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchbench.host.amd_files import ROOT, kernel_facts
from benchbench.host.devices import ALL_ONES, Device, Read, Value, facts_of, first, number, share, single, words_of

HOTSPOT_MARGIN_C = 5.0
_ENERGY_J = 2.0**-16  # kernel's kgd_pp_interface.h; amdsmi's counter_resolution rounds it to 15.3 uJ
_SPARE_BYTES = 16384  # for a gpu_metrics that a newer library writes longer than the binding knows it

# Bits of the kernel's indep_throttle_status (SMU_THROTTLER_* in amdgpu_smu.h).
_HOTSPOT = 1 << 36
_WORDS: Final = {
    0xFF: "power_cap",
    0xFF << 16: "current_limit",
    0x3FFF << 32: "thermal",
    0x3 << 46: "hw_slowdown",  # PROCHOT
    0x3 << 56: "other",
}
# MI300 and later: counters that grow while the limit acts.
_RESIDENCIES: Final = {
    "ppt_residency_acc": "power_cap",
    "socket_thm_residency_acc": "thermal",
    "vr_thm_residency_acc": "thermal",
    "hbm_thm_residency_acc": "thermal",
    "prochot_residency_acc": "hw_slowdown",
}
_POWERS = ("current_socket_power", "average_socket_power", "socket_power")
_COLUMNS = (  # of gpu_metrics
    *("power_w", "energy_j", "core_clock_mhz", "memory_clock_mhz"),
    *("temperature_c", "hotspot_c", "utilisation", "throttle"),
)


def _import_amdsmi() -> Any:  # noqa: ANN401 - a module
    """ROCm's own binding, else an installed one: only the first is sure to fit ROCm's library."""
    own = str(Path(os.environ.get("ROCM_PATH", "/opt/rocm")) / "share" / "amd_smi")
    sys.path.insert(0, own)
    try:
        with contextlib.redirect_stdout(io.StringIO()):  # it prints when it finds no library
            return importlib.import_module("amdsmi")
    finally:
        sys.path.remove(own)


def amd_devices(before: int) -> list[Device]:
    """The GPUs that `amdsmi` shows, in its order, numbered from `before` on. Raises what it raises."""
    amdsmi = _import_amdsmi()
    amdsmi.amdsmi_init()
    handles = amdsmi.amdsmi_get_processor_handles()
    devices = [_amd(amdsmi, handle, index, before + index) for index, handle in enumerate(handles)]
    complete([device.facts for device in devices], kernel_facts(ROOT))
    return devices


def complete(devices: Sequence[dict[str, Any]], known: Sequence[Mapping[str, Any]]) -> None:
    """Add to facts from amdsmi what its older versions lack, from the kernel's, by bus: gfx, and HIP's order and UUIDs
    (ROCm 6.4 on). HIP's order only for all or none.
    """
    by_bus = {facts["bus_id"]: facts for facts in known}
    ordered = all("hip_id" not in facts and facts.get("bus_id") in by_bus for facts in devices)
    for facts in devices:
        for name in ("gfx", "hip_uuid", *(["hip_id"] if ordered else [])):
            if name not in facts and (value := by_bus.get(facts.get("bus_id", ""), {}).get(name)) is not None:
                facts[name] = value


def _amd(amdsmi: Any, handle: Any, index: int, place: int) -> Device:  # noqa: ANN401 - a module and its handle
    gfx, mem = amdsmi.AmdSmiClkType.GFX, amdsmi.AmdSmiClkType.MEM
    now, vram = amdsmi.AmdSmiTemperatureMetric.CURRENT, amdsmi.AmdSmiMemoryType.VRAM
    edge, hotspot = amdsmi.AmdSmiTemperatureType.EDGE, amdsmi.AmdSmiTemperatureType.HOTSPOT

    def clock(kind: Any, name: str) -> float | None:  # noqa: ANN401 - an enum of amdsmi
        reply = amdsmi.amdsmi_get_clock_info(handle, kind)
        return first(reply.get(name), reply.get("cur_clk") if name == "clk" else None)  # before ROCm 6.2

    def temperature(kind: Any, metric: Any) -> float | None:  # noqa: ANN401 - enums of amdsmi
        reply = number(amdsmi.amdsmi_get_temp_metric(handle, kind, metric))
        return reply / 1e3 if reply is not None and reply > 1000 else reply  # some versions tell millidegrees

    def power() -> float | None:
        reply = amdsmi.amdsmi_get_power_info(handle)
        return first(*(reply.get(name) for name in _POWERS))

    def power_limit() -> float | None:
        reply = number(amdsmi.amdsmi_get_power_cap_info(handle)["power_cap"])
        return reply / 1e6 if reply is not None and reply > 1e5 else reply  # microwatts, watts in old versions

    facts = facts_of(
        {"device": f"gpu{place}", "vendor": "AMD", "index": index},
        name=lambda: amdsmi.amdsmi_get_gpu_asic_info(handle)["market_name"],
        gfx=lambda: gfx_target(amdsmi.amdsmi_get_gpu_asic_info(handle)["target_graphics_version"]),
        uuid=lambda: amdsmi.amdsmi_get_gpu_device_uuid(handle),
        hip_id=lambda: amdsmi.amdsmi_get_gpu_enumeration_info(handle)["hip_id"],  # from ROCm 6.4 on
        hip_uuid=lambda: amdsmi.amdsmi_get_gpu_enumeration_info(handle)["hip_uuid"],
        bus_id=lambda: amdsmi.amdsmi_get_gpu_device_bdf(handle),
        driver=lambda: amdsmi.amdsmi_get_gpu_driver_info(handle)["driver_version"],
        power_field=lambda: power_field(amdsmi.amdsmi_get_power_info(handle)),
        power_limit_w=power_limit,
        memory_total_bytes=lambda: amdsmi.amdsmi_get_gpu_memory_total(handle, vram),
        core_clock_mhz_max=lambda: clock(gfx, "max_clk"),
        memory_clock_mhz_max=lambda: clock(mem, "max_clk"),
        hotspot_limit_c=lambda: temperature(hotspot, amdsmi.AmdSmiTemperatureMetric.CRITICAL),
    )
    reads = [
        Read(_COLUMNS, _amd_metrics(amdsmi, handle, facts.get("hotspot_limit_c"))),
        single("memory_used_bytes", lambda: amdsmi.amdsmi_get_gpu_memory_usage(handle, vram)),
        # For devices without gpu_metrics (guests), and what it leaves out.
        single("power_w", power),
        single("core_clock_mhz", lambda: clock(gfx, "clk")),
        single("memory_clock_mhz", lambda: clock(mem, "clk")),
        single("hotspot_c", lambda: temperature(hotspot, now)),
        single("temperature_c", lambda: temperature(edge, now)),
        single("utilisation", lambda: share(amdsmi.amdsmi_get_gpu_activity(handle)["gfx_activity"])),
    ]
    statuses = ("NOT_SUPPORTED", "NOT_YET_IMPLEMENTED", "NO_PERM")
    never = {getattr(amdsmi.amdsmi_wrapper, f"AMDSMI_STATUS_{status}") for status in statuses}
    return Device(f"gpu{place}", facts, reads, lambda error: getattr(error, "err_code", None) in never)


def power_field(reply: Mapping[str, Any]) -> str | None:
    """Which field of `amdsmi_get_power_info` holds the power: that of now, else the firmware's running mean."""
    return next((name for name in _POWERS if number(reply.get(name)) is not None), None)


def gfx_target(text: str) -> str | None:
    """The target that amdsmi names (gfx1100); None for what it makes of an unknown (gfx0, gfxffffffffffffffff)."""
    return text if re.fullmatch(r"gfx[0-9a-f]{3,4}", text) else None


def _amd_metrics(amdsmi: Any, handle: Any, limit_c: float | None) -> Callable[[], dict[str, Value]]:  # noqa: ANN401
    """Reads gpu_metrics, the one table that holds nearly all, below `amdsmi_get_gpu_metrics_info`: that function
    turns the throttle bits into one bool, and takes 0.3 ms for lists that nobody wants.
    """
    wrapper = amdsmi.amdsmi_wrapper
    kind = wrapper.amdsmi_gpu_metrics_t
    table = kind.from_buffer(bytearray(ctypes.sizeof(kind) + _SPARE_BYTES))
    before: dict[str, int] = {}

    def ask() -> dict[str, Value]:
        status = wrapper.amdsmi_get_gpu_metrics_info(handle, ctypes.byref(table))
        if status:
            raise amdsmi.AmdSmiLibraryException(status)
        row = readings(table, before, limit_c)
        before.update(residencies(table))
        return row

    return ask


def readings(table: Any, before: Mapping[str, int], limit_c: float | None) -> dict[str, Value]:  # noqa: ANN401
    """The columns that a gpu_metrics table tells. What a device lacks is all ones or "N/A" there, and becomes None."""
    clocks = [clock for clock in map(number, table.current_gfxclks) if clock is not None]
    mean_clock = sum(clocks) / len(clocks) if clocks else None
    return {
        "power_w": first(table.current_socket_power, table.average_socket_power),
        "energy_j": number(table.energy_accumulator, _ENERGY_J),  # RDNA3's and RDNA4's stands at 0
        "core_clock_mhz": mean_clock or first(table.current_gfxclk, table.average_gfxclk_frequency),
        "memory_clock_mhz": first(table.current_uclk, table.average_uclk_frequency),
        "temperature_c": number(table.temperature_edge),
        "hotspot_c": number(table.temperature_hotspot),
        "utilisation": share(table.average_gfx_activity),
        "throttle": throttle_words(table, before, limit_c),
    }


def residencies(table: Any) -> dict[str, int]:  # noqa: ANN401 - a ctypes structure
    """The counters of time that MI300 and later spent at each limit; empty where there are none."""
    counters = {name: getattr(table, name, "N/A") for name in _RESIDENCIES}
    return {name: value for name, value in counters.items() if isinstance(value, int) and value not in ALL_ONES}


def throttle_words(table: Any, before: Mapping[str, int], limit_c: float | None) -> str | None:  # noqa: ANN401
    """Reasons by the throttler's bits, else by what grew since `before`; None where the device tells neither.

    `amdsmi_get_violation_status` would tell the second too, but sleeps 100 ms for it. RDNA3 and RDNA4 set
    TEMP_HOTSPOT at idle already, for which `amd-smi` says THROTTLED: it counts from HOTSPOT_MARGIN_C below the
    sensor's critical temperature on.
    """
    bits = table.indep_throttle_status
    if isinstance(bits, int) and bits not in ALL_ONES:
        if limit_c is None or (number(table.temperature_hotspot) or 0.0) < limit_c - HOTSPOT_MARGIN_C:
            bits &= ~_HOTSPOT
        return words_of(bits, _WORDS)
    now = residencies(table)
    grown = {_RESIDENCIES[name] for name, value in now.items() if value > before.get(name, value)}
    return ";".join(sorted(grown)) if now else None
