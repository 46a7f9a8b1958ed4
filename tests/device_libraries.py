"""Device libraries that stand in for the real ones: names, units, "N/A" values and errors as in theirs.

`pynvml` after nvidia-ml-py 12 and 13, `amdsmi` after the bindings of ROCm 6.2 to 7.0 (gpu_metrics 1.3 and 1.6).
"""

from __future__ import annotations

import ctypes
import json
from collections import Counter
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

GIB = 2**30


class NVMLError(Exception):
    def __init__(self, value: int) -> None:
        super().__init__(f"NVML error {value}")
        self.value = value


NOT_SUPPORTED, NO_PERMISSION, FUNCTION_NOT_FOUND, GPU_IS_LOST = 3, 4, 13, 15


class FakeNvml(ModuleType):
    """GPUs that all say the same. `failing`: function name -> NVML error; `gone`: functions that this version lacks;
    `calls` counts.
    """

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0
    NVML_ERROR_NOT_SUPPORTED, NVML_ERROR_NO_PERMISSION = NOT_SUPPORTED, NO_PERMISSION
    NVML_ERROR_FUNCTION_NOT_FOUND, NVML_FI_DEV_POWER_INSTANT = FUNCTION_NOT_FOUND, 186
    NVMLError = NVMLError

    def __init__(self, count: int = 2, *, failing: dict[str, int] | None = None, gone: tuple[str, ...] = ()) -> None:
        super().__init__("pynvml")
        self.failing, self.calls = failing or {}, Counter[str]()
        self.reasons, self.instant = 0x4, 0
        told = {
            "Init": lambda: None,
            "SystemGetDriverVersion": lambda: b"580.82",
            "DeviceGetCount": lambda: count,
            "DeviceGetHandleByIndex": lambda index: index,
            "DeviceGetName": lambda _: b"NVIDIA H100",
            "DeviceGetUUID": lambda handle: f"GPU-{handle}aaa-bbb",
            "DeviceGetPciInfo": lambda handle: SimpleNamespace(busId=f"00000000:0{handle}:00.0"),
            "DeviceGetEnforcedPowerLimit": lambda _: 700_000,
            "DeviceGetMaxClockInfo": lambda _, kind: {1: 1980, 2: 2619}[kind],
            "DeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80 * GIB, used=60 * GIB, free=20 * GIB),
            "DeviceGetTotalEnergyConsumption": lambda _: 123_456,
            "DeviceGetPowerUsage": lambda _: 650_500,
            "DeviceGetFieldValues": lambda _, fields: [
                SimpleNamespace(nvmlReturn=self.instant, value=SimpleNamespace(uiVal=700_250)) for _ in fields
            ],
            "DeviceGetClockInfo": lambda _, kind: {1: 1755, 2: 2600}[kind],
            "DeviceGetTemperature": lambda _, __: 61,
            "DeviceGetTemperatureV": lambda _, __: 62,
            "DeviceGetUtilizationRates": lambda _: SimpleNamespace(gpu=97, memory=40),
            "DeviceGetCurrentClocksEventReasons": lambda _: self.reasons,
            "DeviceGetCurrentClocksThrottleReasons": lambda _: self.reasons,
        }
        for name, answer in told.items():
            if f"nvml{name}" not in gone:
                setattr(self, f"nvml{name}", self._function(f"nvml{name}", answer))

    def _function(self, name: str, answer: Any) -> Any:
        def function(*arguments: Any) -> Any:
            self.calls[name] += 1
            if name in self.failing:
                raise NVMLError(self.failing[name])
            return answer(*arguments)

        return function


class AmdSmiLibraryException(Exception):  # noqa: N818 - its name there
    def __init__(self, err_code: int) -> None:
        super().__init__(err_code)
        self.err_code = err_code

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported"


_U16, _U32, _U64 = ctypes.c_uint16, ctypes.c_uint32, ctypes.c_uint64
_FIELDS: list[tuple[str, Any]] = [
    ("temperature_edge", _U16),
    ("temperature_hotspot", _U16),
    ("average_gfx_activity", _U16),
    ("average_socket_power", _U16),
    ("energy_accumulator", _U64),
    ("average_gfxclk_frequency", _U16),
    ("average_uclk_frequency", _U16),
    ("current_gfxclk", _U16),
    ("current_uclk", _U16),
    ("throttle_status", _U32),
    ("indep_throttle_status", _U64),
    ("current_socket_power", _U16),
    ("current_gfxclks", _U16 * 8),
]
_NEW_FIELDS = [
    (f"{name}_residency_acc", _U64) for name in ("prochot", "ppt", "socket_thm", "vr_thm", "hbm_thm")
]  # from ROCm 6.3 on


class OldMetrics(ctypes.Structure):
    _fields_ = _FIELDS


class Metrics(ctypes.Structure):
    _fields_ = _FIELDS + _NEW_FIELDS


AMD = Path(__file__).parent / "data" / "amd"


def capture(name: str) -> dict[str, Any]:
    """What a device, a library or a host said; each file tells of what and whence (`of`)."""
    return dict(json.loads((AMD / f"{name}.json").read_text()))


def table(name: str) -> dict[str, Any]:
    """A captured gpu_metrics, without what is "N/A" in a text: all ones in the table."""
    return {field: value for field, value in capture(name)["gpu_metrics"].items() if value != "N/A"}


class FakeAmdsmi(ModuleType):
    """GPUs that all say `metrics`; None: no gpu_metrics, as in a guest. What is not in it is all ones."""

    AmdSmiClkType = SimpleNamespace(GFX="gfx", MEM="mem")
    AmdSmiTemperatureMetric = SimpleNamespace(CURRENT="current", CRITICAL="critical")
    AmdSmiTemperatureType = SimpleNamespace(EDGE="edge", HOTSPOT="hotspot")
    AmdSmiMemoryType = SimpleNamespace(VRAM="vram")
    AmdSmiLibraryException = AmdSmiLibraryException

    def __init__(self, metrics: dict[str, Any] | None, *, count: int = 2, structure: Any = Metrics) -> None:
        super().__init__("amdsmi")
        self.metrics, self.calls, self.count, self.critical = metrics, Counter[str](), count, 110
        self.enumeration: list[tuple[str, int, str]] = []  # UUID, HIP's index, HIP's UUID; ROCm before 6.4 has none
        self.power: dict[str, Any] = {"current_socket_power": "N/A", "average_socket_power": 230}
        self.amdsmi_wrapper = SimpleNamespace(
            amdsmi_gpu_metrics_t=structure,
            amdsmi_get_gpu_metrics_info=self._metrics,
            AMDSMI_STATUS_NOT_SUPPORTED=2,
            AMDSMI_STATUS_NOT_YET_IMPLEMENTED=3,
            AMDSMI_STATUS_NO_PERM=10,
        )

    def _metrics(self, _: int, pointer: Any) -> int:
        self.calls["metrics"] += 1
        if self.metrics is None:
            return 2
        table = pointer._obj
        ctypes.memset(ctypes.addressof(table), 0xFF, ctypes.sizeof(table))
        for name, value in self.metrics.items():
            if isinstance(value, list):
                getattr(table, name)[: len(value)] = value
            elif hasattr(table, name):
                setattr(table, name, value)
        return 0

    def amdsmi_init(self) -> None:
        pass

    def amdsmi_get_processor_handles(self) -> list[int]:
        return list(range(self.count))

    def amdsmi_get_gpu_asic_info(self, _: int) -> dict[str, Any]:
        return {"market_name": "AMD Radeon PRO W7900D", "oam_id": "N/A"}

    def amdsmi_get_gpu_device_uuid(self, handle: int) -> str:
        return (
            self.enumeration[handle][0] if self.enumeration else f"{handle}7ff744b-0000-1000-80{handle}d-e4f9d3a0f1b2"
        )

    def amdsmi_get_gpu_enumeration_info(self, handle: int) -> dict[str, Any]:
        if not self.enumeration:
            raise AttributeError
        _, hip_id, hip_uuid = self.enumeration[handle]
        return {"drm_render": 128 + handle, "drm_card": handle, "hsa_id": 2 + hip_id} | {
            "hip_id": hip_id, "hip_uuid": hip_uuid,
        }  # fmt: skip

    def amdsmi_get_gpu_device_bdf(self, handle: int) -> str:
        return f"0000:0{handle}:00.0"

    def amdsmi_get_gpu_driver_info(self, _: int) -> dict[str, str]:
        return {"driver_name": "amdgpu", "driver_version": "6.12.12", "driver_date": "N/A"}

    def amdsmi_get_power_cap_info(self, _: int) -> dict[str, int]:
        return {"power_cap": 241_000_000}

    def amdsmi_get_gpu_memory_total(self, _: int, kind: str) -> int:
        return {"vram": 48 * GIB}[kind]

    def amdsmi_get_gpu_memory_usage(self, _: int, kind: str) -> int:
        return {"vram": 45 * GIB}[kind]

    def amdsmi_get_power_info(self, _: int) -> dict[str, Any]:
        self.calls["power"] += 1
        return self.power | {"power_limit": 0xFFFF_FFFF}

    def amdsmi_get_clock_info(self, _: int, kind: str) -> dict[str, Any]:
        clk = {"gfx": 1650, "mem": 1124}[kind]
        return {"clk": clk, "min_clk": 500, "max_clk": clk + 200, "clk_locked": "N/A", "clk_deep_sleep": "N/A"}

    def amdsmi_get_temp_metric(self, _: int, kind: str, metric: str) -> int:
        self.calls[kind] += 1
        if metric == "critical":
            return self.critical
        if kind == "edge":
            raise AmdSmiLibraryException(2)
        return 77

    def amdsmi_get_gpu_activity(self, _: int) -> dict[str, Any]:
        return {"gfx_activity": "N/A", "umc_activity": 12, "mm_activity": "N/A"}
