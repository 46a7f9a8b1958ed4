"""The accelerators of this host, as AMD's (`amdsmi`) and NVIDIA's (`pynvml`) management libraries tell of them.

Indices are those of `amd-smi list` and `nvidia-smi -L`. The libraries are never shut down again: a call of ours may
hang in one.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from benchbench.host.amd import amd_devices
from benchbench.host.amd_files import file_devices
from benchbench.host.devices import Device, text_of
from benchbench.host.nvidia import nvidia_devices

_FEWER = "without reasons of throttling and counters of energy"


def open_devices() -> tuple[list[Device], list[str]]:
    """All accelerators of this host, NVIDIA's first, and why some could not be asked. Imports their libraries; AMD's
    GPUs are found by the kernel's files, too.
    """
    devices: list[Device] = []
    notes = []
    for vendor, (nodes, package, find, instead) in _VENDORS.items():
        if not any(Path(node).exists() for node in nodes):
            continue
        try:
            devices += find(len(devices))
        except Exception as error:  # noqa: BLE001 - whatever a vendor's library raises ends no sweep
            missing = f"no package {package} (pip install {package})"
            why = missing if isinstance(error, ImportError) else text_of(error)
            others = instead(len(devices))
            devices += others
            how = f"sampled by the kernel's files, {_FEWER}" if others else "not sampled"
            notes.append(f"{vendor} GPUs are {how}: {why}")
    return devices, notes


def device_facts() -> tuple[list[dict[str, Any]], list[str]]:
    """`facts` of every accelerator, and why some could not be asked."""
    devices, notes = open_devices()
    return [device.facts for device in devices], notes


def read_now(devices: Sequence[Device], column: str) -> dict[str, float]:
    """One column of each device now, by its label, from what answers first; without those that do not tell."""
    readings: dict[str, float] = {}
    for device in devices:
        for read in (read for read in device.reads if column in read.columns and device.label not in readings):
            with contextlib.suppress(Exception):
                if (value := read.ask()[column]) is not None:
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
    names = [name for name in ("CUDA_VISIBLE_DEVICES",) if name in environment]
    if any(device.facts["vendor"] == "AMD" for device in devices):  # to HIP an empty text is none, to ROCr no GPU
        hip = [name for name in ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES") if environment.get(name)][:1]
        names = [name for name in ("ROCR_VISIBLE_DEVICES",) if name in environment] + hip
    if not names:
        return list(devices), []
    left = list(devices)
    if all("hip_id" in device.facts for device in devices):
        left.sort(key=lambda device: int(device.facts["hip_id"]))
    for name in names:  # on ROCm the second counts within what the first leaves
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


def _nobody(_: int) -> list[Device]:
    return []


_Find = Callable[[int], list[Device]]
_VENDORS: Final[dict[str, tuple[tuple[str, ...], str, _Find, _Find]]] = {
    # device nodes that a driver makes, package, who finds them, and who finds them without the package
    "NVIDIA": (("/dev/nvidiactl", "/dev/dxg"), "nvidia-ml-py", nvidia_devices, _nobody),
    "AMD": (("/dev/kfd",), "amdsmi", amd_devices, file_devices),
}
