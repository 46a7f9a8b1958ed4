"""Energy, clocks and heat of a cell: telemetry's samples joined to the measured rounds by time. Pure.

A round's window goes from its first send to its last token, as in `metrics` for an open load. A device's samples
cover it when at least MIN_SAMPLES lie inside, some lie on both sides, and no two neighbours are more than MAX_GAP_S
apart; windows that are not covered have no numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from benchbench.events.round_events import Round
from benchbench.store.arrow import Floats, Ints, array_of

MIN_SAMPLES, MAX_GAP_S = 3, 1.0
MAX_PAUSE_S = 3.0  # between readings of a counter
HEALTH_S, HEALTH_FACTOR = 5.0, 2.0  # a counter that contradicts the power by this factor over so long is not believed
IDLE_SHARE = 0.05  # a GPU less busy than this serves nothing here, and is nobody's peer
SLOWDOWNS = frozenset({"thermal", "hw_slowdown", "power_brake"})
_COLUMNS = (
    *("power_w", "energy_j", "core_clock_mhz", "temperature_c", "hotspot_c"),
    *("memory_used_bytes", "utilisation", "cpu_share"),
)
Source = Literal["counter", "power"]


@dataclass(frozen=True, slots=True)
class Window:
    """A measured round: first send, last token (ns of the wall clock), output tokens received."""

    begin_ns: int
    end_ns: int
    tokens: int

    @property
    def seconds(self) -> float:
        return (self.end_ns - self.begin_ns) / 1e9


@dataclass(frozen=True, slots=True)
class DeviceUse:
    """One device over the covered windows of a cell; None where it does not tell.

    `energy_j` has one entry a window. Clocks, power and shares are means of samples (`_min`, `_max`: the extremes);
    the temperature is the hotspot's where there is one.
    """

    device: str
    name: str | None
    energy_j: tuple[float | None, ...]
    source: Source | None
    power_w: float | None
    core_clock_mhz: float | None
    core_clock_mhz_min: float | None
    temperature_c_max: float | None
    memory_bytes_max: float | None
    utilisation: float | None
    cpu_share: float | None
    throttle: tuple[str, ...] | None


@dataclass(frozen=True, slots=True)
class Usage:
    """A cell's devices, and the sums over its GPUs: `rounds` of the measured ones have the energy of all of them.

    energy_j: mean of these rounds; power_w: their energy / their time; tok_per_j: their output tokens / their energy.
    """

    gpus: tuple[DeviceUse, ...]
    host: DeviceUse | None
    rounds: int
    energy_j: float | None
    power_w: float | None
    tok_per_j: float | None

    @property
    def j_per_tok(self) -> float | None:
        return 1 / self.tok_per_j if self.tok_per_j else None

    @property
    def temperature_c_max(self) -> float | None:
        """Of the hottest GPU."""
        return max(self._known("temperature_c_max"), default=None)

    @property
    def core_clock_mhz(self) -> float | None:
        """Mean over the GPUs."""
        clocks = self._known("core_clock_mhz")
        return sum(clocks) / len(clocks) if clocks else None

    @property
    def core_clock_mhz_min(self) -> float | None:
        """Of the slowest GPU."""
        return min(self._known("core_clock_mhz_min"), default=None)

    @property
    def throttle(self) -> str | None:
        """The throttle reasons of all GPUs, joined by `;`; None where none reports any."""
        reports = self._known("throttle")
        return ";".join(sorted({word for words in reports for word in words})) if reports else None

    def _known(self, name: str) -> list[Any]:
        return [value for gpu in self.gpus if (value := getattr(gpu, name)) is not None]


def window_of(taken: Round) -> Window | None:
    """The window of one round; None when nothing was sent or nothing received."""
    sent = array_of(taken.requests["sent_ns"])
    sent = sent[sent > 0]
    if not len(sent) or not taken.events.counts.any():
        return None
    return Window(int(sent.min()), taken.events.latest_ns, int(taken.events.tokens.sum()))


def usage(windows: Sequence[Window], samples: pa.Table | None) -> Usage | None:
    """What the samples (`host.sampler`) say of a cell's rounds; None when there are none of these times."""
    if samples is None or not windows:
        return None
    uses = [_use(track, windows) for track in _tracks(samples)]
    gpus = tuple(use for use in uses if use.device != "host")
    host = next((use for use in uses if use.device == "host"), None)
    energies = zip(windows, *(gpu.energy_j for gpu in gpus), strict=True) if gpus else ()
    known = [(window, sum(parts)) for window, *parts in energies if None not in parts]
    joules = sum(joule for _, joule in known)
    seconds = sum(window.seconds for window, _ in known)
    return Usage(
        gpus=gpus,
        host=host,
        rounds=len(known),
        energy_j=joules / len(known) if known else None,
        power_w=joules / seconds if seconds else None,
        tok_per_j=sum(window.tokens for window, _ in known) / joules if joules else None,
    )


@dataclass(frozen=True, slots=True)
class _Track:
    """One device's samples, in order of time."""

    device: str
    name: str | None
    time_ns: Ints
    values: Mapping[str, Floats]
    throttle: list[str | None]


def _tracks(samples: pa.Table) -> list[_Track]:
    times = array_of(samples["time_ns"]).astype(np.int64)
    labels = np.array(samples["device"].to_pylist())
    names, words = samples["name"].to_pylist(), samples["throttle"].to_pylist()
    values = {name: array_of(samples[name], np.nan) for name in _COLUMNS}
    order = np.argsort(times, kind="stable")
    tracks = []
    for device in sorted(set(labels.tolist()), key=lambda label: (len(label), label)):  # gpu2 before gpu10
        at = order[labels[order] == device]
        reasons = [words[place] for place in at.tolist()]
        ours = {name: column[at] for name, column in values.items()}
        tracks.append(_Track(device, names[int(at[-1])], times[at], ours, reasons))
    return tracks


def _use(track: _Track, windows: Sequence[Window]) -> DeviceUse:
    origin, values = windows[0].begin_ns, track.values
    t = (track.time_ns - origin) / 1e9  # from a near origin: floats of 1970's ns are 200 ns apart
    spans = [((window.begin_ns - origin) / 1e9, (window.end_ns - origin) / 1e9) for window in windows]
    inside = np.zeros(len(t), np.bool_)
    for span in spans:
        if _covering(t, *span) is not None:
            inside |= (t >= span[0]) & (t <= span[1])
    source, at, steps = _steps(t, values)
    within = {name: column[inside] for name, column in values.items()}
    hottest = _reduced(within["hotspot_c"], np.max)
    words = [text for text, covered in zip(track.throttle, inside, strict=True) if covered and text is not None]
    return DeviceUse(
        device=track.device,
        name=track.name,
        energy_j=tuple(_energy(at, steps, span) for span in spans),
        source=source,
        power_w=_reduced(within["power_w"], np.mean),
        core_clock_mhz=_reduced(within["core_clock_mhz"], np.mean),
        core_clock_mhz_min=_reduced(within["core_clock_mhz"], np.min),
        temperature_c_max=hottest if hottest is not None else _reduced(within["temperature_c"], np.max),
        memory_bytes_max=_reduced(within["memory_used_bytes"], np.max),
        utilisation=_reduced(within["utilisation"], np.mean),
        cpu_share=_reduced(within["cpu_share"], np.mean),
        throttle=tuple(sorted({word for text in words for word in text.split(";") if word})) if words else None,
    )


def _reduced(values: Floats, statistic: Callable[[Floats], Any]) -> float | None:
    """A statistic of those that are known; None when none is."""
    known = values[~np.isnan(values)]
    return float(statistic(known)) if len(known) else None


def _covering(t: Floats, begin: float, end: float) -> slice | None:
    """The samples from the last before a window to the first after it; None when they don't cover it."""
    first, last = int(np.searchsorted(t, begin, "right")) - 1, int(np.searchsorted(t, end, "left"))
    if first < 0 or last >= len(t) or last - first - 1 < MIN_SAMPLES:
        return None
    near = slice(first, last + 1)
    return near if np.diff(t[near]).max() <= MAX_GAP_S else None


def _energy(t: Floats, steps: Floats, span: tuple[float, float]) -> float | None:
    """J in a window, from those between neighbouring samples: between two samples the power counts as even."""
    near = _covering(t, *span)
    if near is None:
        return None
    total = np.concatenate([[0.0], np.cumsum(steps[near.start : near.stop - 1])])
    low, high = np.interp(span, t[near], total)
    return None if np.isnan(high - low) else float(high - low)


def _steps(t: Floats, values: Mapping[str, Floats]) -> tuple[Source | None, Floats, Floats]:
    """(source, times, J between neighbouring times).

    power: the trapezoids under its samples. counter: these, scaled so that they add up to what was counted from one
    reading of the counter to the next, which are further apart. Not scaled is where it goes back (wrap, reset), nor
    anything when it stands still or contradicts the power. Without samples of power, the counter's own differences.
    """
    power, counter = values["power_w"], values["energy_j"]
    if np.isnan(power).all():
        known = ~np.isnan(counter)
        counted = np.diff(counter[known])
        source: Source | None = "counter" if (counted > 0).any() else None
        return source, t[known], np.where(counted >= 0, counted, np.nan)
    known = ~np.isnan(power)
    at, counter = t[known], counter[known]
    steps = np.diff(at) * (power[known][1:] + power[known][:-1]) / 2
    readings = np.flatnonzero(~np.isnan(counter))
    if len(readings) < 2:
        return "power", at, steps
    counted, drawn = np.diff(counter[readings]), np.diff(np.concatenate([[0.0], np.cumsum(steps)])[readings])
    good = (counted >= 0) & (drawn > 0) & (np.diff(at[readings]) <= MAX_PAUSE_S)
    joules, expected, seconds = (column[good].sum() for column in (counted, drawn, np.diff(at[readings])))
    # A short one may differ from the power, as some powers lag by a second.
    contradicts = seconds >= HEALTH_S and not 1 / HEALTH_FACTOR <= joules / expected <= HEALTH_FACTOR
    if not joules or contradicts:
        return "power", at, steps
    scale = np.where(good, counted / np.where(good, drawn, 1.0), 1.0)
    steps[readings[0] : readings[-1]] *= np.repeat(scale, np.diff(readings))
    return "counter", at, steps


def throttled(gpus: Sequence[DeviceUse]) -> tuple[str, ...]:
    """GPUs that were slowed by heat, hardware or a power brake, as `gpu3: thermal`. A power cap is no reason: at full
    load it is what sets the clock of many a healthy GPU.
    """
    slowed = {gpu.device: SLOWDOWNS & set(gpu.throttle or ()) for gpu in gpus}
    return tuple(f"{device}: {', '.join(sorted(words))}" for device, words in slowed.items() if words)


def stragglers(gpus: Sequence[DeviceUse], share: float) -> tuple[str, ...]:
    """GPUs whose mean core clock (where none tells its clock, power) is more than `share` below the median of the
    other busy GPUs of the same name, as `gpu3: 1500 MHz, the others 2100 MHz`.
    """
    slower = []
    busy = [gpu for gpu in gpus if gpu.utilisation is None or gpu.utilisation >= IDLE_SHARE]
    for gpu in busy:
        peers = [peer for peer in busy if peer.name == gpu.name and peer is not gpu]
        for column, unit in (("core_clock_mhz", "MHz"), ("power_w", "W")):
            mine, theirs = getattr(gpu, column), [getattr(peer, column) for peer in peers]
            known = [value for value in theirs if value is not None]
            if mine is None or not known:
                continue
            if mine < (1 - share) * median(known):
                slower.append(f"{gpu.device}: {mine:.0f} {unit}, the others {median(known):.0f} {unit}")
            break
    return tuple(slower)
