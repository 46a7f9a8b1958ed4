"""AMD's GPUs by the files of the kernel's drivers (amdgpu, KFD), where there is no `amdsmi`, or one that tells less.

Figures are the same firmware's as amdsmi's; reasons of throttling and the energy counter are not among them.
"""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any, Final

from benchbench.host.devices import Device, Read, facts_of, number, share, single

ROOT: Final = Path("/")
_NAMES = ("usr/share/libdrm/amdgpu.ids", "opt/amdgpu/share/libdrm/amdgpu.ids")  # "744B,\t00,\tAMD Radeon Pro W7900D"
_POWERS = ("power1_input", "power1_average")  # of now (MI300 and later), and the firmware's running mean
_NEVER = {errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL}


def kernel_facts(root: Path) -> list[dict[str, Any]]:
    """The GPUs that ROCm may use, in the order of KFD's nodes, which is HIP's: hip_id, hip_uuid, gfx, bus_id, `render`
    (the number of its device node) and core_clock_mhz_max. A node that a container masks cannot be read, and does not
    count for HIP either. Of partitions of one GPU (one bus_id) nothing is told.
    """
    nodes = sorted(root.glob("sys/class/kfd/kfd/topology/nodes/[0-9]*"), key=lambda node: int(node.name))
    properties = [_numbers(node / "properties") for node in nodes]
    gpus = [_node(*gpu) for gpu in enumerate(node for node in properties if node.get("gfx_target_version"))]
    buses = [facts["bus_id"] for facts in gpus]
    return [facts for facts in gpus if buses.count(facts["bus_id"]) == 1]


def _node(place: int, node: dict[str, int]) -> dict[str, Any]:
    version, location = node["gfx_target_version"], node.get("location_id", 0)
    bus = f"{location >> 8 & 0xFF:02x}:{location >> 3 & 0x1F:02x}.{location & 7}"
    facts: dict[str, Any] = {
        "hip_id": place,
        "gfx": f"gfx{version // 10000}{version // 100 % 100:x}{version % 100:x}",  # 110000: gfx1100, 90010: gfx90a
        "bus_id": f"{node.get('domain', 0):04x}:{bus}",
        "render": node.get("drm_render_minor", 0),
        "core_clock_mhz_max": node.get("max_engine_clk_fcompute") or None,
    }
    if node.get("unique_id"):
        facts["hip_uuid"] = f"GPU-{node['unique_id']:016x}"
    return {name: value for name, value in facts.items() if value is not None}


def file_devices(before: int, root: Path = ROOT) -> list[Device]:
    """The GPUs that the kernel's files show, in the order of their buses as `amd-smi list`, numbered from `before`."""
    known = sorted(kernel_facts(root), key=lambda facts: str(facts["bus_id"]))
    return [_device(facts, index, before + index, root) for index, facts in enumerate(known)]


def _device(known: dict[str, Any], index: int, place: int, root: Path) -> Device:
    folder = root / f"sys/class/drm/renderD{known.pop('render')}/device"
    sensors = next(iter(sorted(folder.glob("hwmon/hwmon*"))), folder / "hwmon")
    names = {_text(path): path.name.removesuffix("_label") for path in sensors.glob("*_label")}

    def sensor(label: str, ending: str) -> Path:
        return sensors / f"{names.get(label, label)}_{ending}"

    facts = facts_of(
        {"device": f"gpu{place}", "vendor": "AMD", "index": index, **known},
        name=lambda: _text(folder / "product_name") or _name(folder, root),
        driver=lambda: _text(root / "sys/module/amdgpu/version"),
        power_field=lambda: next((name for name in _POWERS if (sensors / name).exists()), None),
        power_limit_w=lambda: _value(sensors / "power1_cap", 1e-6),
        memory_total_bytes=lambda: int(_text(folder / "mem_info_vram_total")),
        hotspot_limit_c=lambda: _value(sensor("junction", "crit"), 1e-3),
    )
    reads = [
        *(_asking("power_w", sensors / name, 1e-6) for name in _POWERS),
        _asking("core_clock_mhz", sensor("sclk", "input"), 1e-6),
        _asking("memory_clock_mhz", sensor("mclk", "input"), 1e-6),
        _asking("temperature_c", sensor("edge", "input"), 1e-3),
        _asking("hotspot_c", sensor("junction", "input"), 1e-3),
        single("utilisation", lambda: share(int(_read(folder / "gpu_busy_percent")))),
        _asking("memory_used_bytes", folder / "mem_info_vram_used", 1.0),
    ]
    return Device(f"gpu{place}", facts, reads, lambda error: getattr(error, "errno", None) in _NEVER)


def _asking(column: str, path: Path, unit: float) -> Read:
    return single(column, lambda: _value(path, unit))


def _name(folder: Path, root: Path) -> str | None:
    """The product's name by its PCI device and revision, as libdrm's list has it."""
    start = [_text(folder / name).removeprefix("0x").upper() for name in ("device", "revision")]
    for listed in (line.split(",\t") for path in _NAMES for line in _text(root / path).splitlines()):
        if listed[:2] == start:
            return listed[2].strip()
    return None


def _read(path: Path) -> str:
    """Raises OSError."""
    return path.read_text(encoding="utf-8", errors="replace").strip()


def _text(path: Path) -> str:
    try:
        return _read(path)
    except OSError:
        return ""


def _value(path: Path, unit: float) -> float | None:
    return number(int(_read(path)), unit)


def _numbers(path: Path) -> dict[str, int]:
    words = (line.split() for line in _text(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in words if len(pair) == 2 and pair[1].isdecimal()}
