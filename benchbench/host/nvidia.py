"""NVIDIA's GPUs, as `pynvml` (nvidia-ml-py) tells of them."""

from __future__ import annotations

from typing import Any, Final

from benchbench.host.devices import Device, facts_of, number, share, single, words_of

COUNTER_PAUSE_S = 0.95  # an H100 (driver 580, in a guest) took 4 ms of CPU for its counter, 0.1 ms for all the rest

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


def nvidia_devices(before: int) -> list[Device]:
    """The GPUs that `pynvml` shows, in its order, numbered from `before` on. Raises what it raises."""
    import pynvml as nvml

    nvml.nvmlInit()
    return [_nvidia(nvml, index, before + index) for index in range(nvml.nvmlDeviceGetCount())]


def _nvidia(nvml: Any, index: int, place: int) -> Device:  # noqa: ANN401 - a module
    handle = nvml.nvmlDeviceGetHandleByIndex(index)

    def power_now() -> float | None:
        (reply,) = nvml.nvmlDeviceGetFieldValues(handle, [nvml.NVML_FI_DEV_POWER_INSTANT])
        if reply.nvmlReturn:
            raise nvml.NVMLError(reply.nvmlReturn)
        return number(reply.value.uiVal, 1e-3)

    gpu, sm, mem = nvml.NVML_TEMPERATURE_GPU, nvml.NVML_CLOCK_SM, nvml.NVML_CLOCK_MEM
    reads = [
        single("energy_j", lambda: number(nvml.nvmlDeviceGetTotalEnergyConsumption(handle), 1e-3), COUNTER_PAUSE_S),
        single("power_w", power_now),
        # The mean of the last second, on most since Ampere.
        single("power_w", lambda: number(nvml.nvmlDeviceGetPowerUsage(handle), 1e-3)),
        single("core_clock_mhz", lambda: number(nvml.nvmlDeviceGetClockInfo(handle, sm))),
        single("memory_clock_mhz", lambda: number(nvml.nvmlDeviceGetClockInfo(handle, mem))),
        single("temperature_c", lambda: number(nvml.nvmlDeviceGetTemperature(handle, gpu))),
        single("temperature_c", lambda: number(nvml.nvmlDeviceGetTemperatureV(handle, gpu))),  # from CUDA 14 on
        single("utilisation", lambda: share(nvml.nvmlDeviceGetUtilizationRates(handle).gpu)),
        single("memory_used_bytes", lambda: float(nvml.nvmlDeviceGetMemoryInfo(handle).used)),
        single("throttle", lambda: words_of(nvml.nvmlDeviceGetCurrentClocksEventReasons(handle), _NVIDIA_WORDS)),
        # Its name before driver 535.
        single("throttle", lambda: words_of(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(handle), _NVIDIA_WORDS)),
    ]
    facts = facts_of(
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
