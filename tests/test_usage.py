"""Telemetry joined to rounds: energy, clocks, heat, stragglers, and what is not known."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rounds_made import MS, T0, table_of
from test_summary import FACTS, cell, static_rounds, stream

from benchbench.analysis.reasons import Reason
from benchbench.analysis.summary import COLUMNS, summarise, summary_row
from benchbench.events.round_events import gathered
from benchbench.explain.explanation import explain
from benchbench.host.energy import DeviceUse, Usage, Window, stragglers, throttled, usage, window_of
from benchbench.host.sampler import NUMBERS
from benchbench.spec import Validity

S = 1_000_000_000
_NAMES = list(COLUMNS)
USAGE_COLUMNS = _NAMES[_NAMES.index("power_w") : _NAMES.index("throttle") + 1]


def samples(device: str, seconds: Sequence[float], name: str | None = "GPU", **values: Any) -> pa.Table:
    """A device's samples at these times after T0; values are one for all, or one each; None is unknown."""

    def column(value: Any) -> list[Any]:
        return list(value) if isinstance(value, list | np.ndarray) else [value] * len(seconds)

    numbers = {key: pa.array(column(values.get(key)), pa.float64()) for key in NUMBERS}
    return pa.table(
        {
            "time_ns": pa.array([T0 + round(s * S) for s in seconds], pa.int64()),
            "device": pa.array([device] * len(seconds), pa.string()),
            "name": pa.array([name] * len(seconds), pa.string()),
            "throttle": pa.array(column(values.get("throttle")), pa.string()),
            **numbers,
        }
    )


def window(begin_s: float, end_s: float, tokens: int = 100) -> Window:
    return Window(T0 + round(begin_s * S), T0 + round(end_s * S), tokens)


def of_one(windows: Sequence[Window], table: pa.Table) -> DeviceUse:
    found = usage(windows, table)
    assert found is not None
    (gpu,) = found.gpus
    return gpu


@st.composite
def schedules(draw: st.DrawFn) -> tuple[list[float], float, float]:
    """Times with gaps of less than a second, and a window of at least three of them that they cover."""
    gaps = draw(st.lists(st.floats(0.01, 0.99), min_size=8, max_size=40))
    times = np.cumsum([0.0, *gaps])
    begin = draw(st.floats(0, float(times[2])))
    end = draw(st.floats(float(times[6]), float(times[-1])))
    return times.tolist(), begin, end


@given(schedules(), st.floats(1, 1000), st.sampled_from(["counter", "power"]), st.randoms())
def test_a_constant_power_takes_power_times_time(plan: Any, watts: float, source: str, chance: Any) -> None:
    times, begin, end = plan
    counter = [5000 + watts * t for t in times] if source == "counter" else None
    table = samples("gpu0", times, power_w=watts, energy_j=counter)
    order = list(range(len(times)))
    chance.shuffle(order)  # files of a resumed run come in any order
    gpu = of_one([window(begin, end)], table.take(order))
    assert gpu.source == source
    assert gpu.energy_j == (pytest.approx(watts * (end - begin), rel=1e-6),)
    assert gpu.power_w == pytest.approx(watts)


@given(schedules(), st.floats(1, 1000), st.integers(1, 30), st.floats(0, 1e6))
def test_a_counter_that_goes_back_is_bridged_by_the_power(plan: Any, watts: float, at: int, to: float) -> None:
    """It wraps, or the driver starts it again."""
    times, begin, end = plan
    at = min(at, len(times) - 1)
    high = 1e7
    counter = [high + watts * t if k < at else to + watts * (t - times[at]) for k, t in enumerate(times)]
    gpu = of_one([window(begin, end)], samples("gpu0", times, power_w=watts, energy_j=counter))
    assert gpu.energy_j == (pytest.approx(watts * (end - begin), rel=1e-5),)
    blind = of_one([window(begin, end)], samples("gpu0", times, energy_j=counter))
    inside = times[at - 1] < end and times[at] > begin
    assert blind.energy_j == (None if inside else pytest.approx(watts * (end - begin), rel=1e-5),)


TENTHS = [round(k * 0.1, 1) for k in range(201)]


def test_a_varying_power_is_integrated_between_samples() -> None:
    """100 W that rise by 10 W a second, from 2 s to 8.05 s: 150 W in the mean."""
    ramp = of_one([window(2, 8.0)], samples("gpu0", TENTHS, power_w=[100 + 10 * t for t in TENTHS]))
    assert ramp.energy_j == (pytest.approx(6 * 150),)


@pytest.mark.parametrize(
    ("times", "why"),
    [
        ([0.9, 1.2, 1.7, 2.1], "two inside"),
        ([1.1, 1.3, 1.5, 1.7, 1.9, 2.1], "none before"),
        ([0.9, 1.1, 1.3, 1.5, 1.7, 1.9], "none after"),
        ([], "none"),
    ],
)
def test_too_few_samples_are_no_measurement(times: list[float], why: str) -> None:
    far = [-50.0, *times, 70.0]  # of the same file
    gpu = of_one([window(1, 2)], samples("gpu0", far, power_w=100.0, core_clock_mhz=2000.0, throttle="thermal"))
    assert gpu.energy_j == (None,), why
    assert (gpu.power_w, gpu.core_clock_mhz, gpu.throttle) == (None, None, None)
    assert usage([window(1, 2)], None) is None
    assert usage([], samples("gpu0", far)) is None


def test_a_gap_spoils_its_own_window_only() -> None:
    times = [t for t in TENTHS if not 4 < t < 5.2]
    table = samples("gpu0", times, power_w=100.0, core_clock_mhz=[1500.0 if 3 < t < 6 else 2000.0 for t in times])
    found = usage([window(1, 3, 10), window(3.5, 6, 1000), window(7, 8, 20)], table)
    assert found is not None
    assert found.gpus[0].energy_j == (pytest.approx(200), None, pytest.approx(100))
    assert found.gpus[0].core_clock_mhz_min == 2000
    assert (found.rounds, found.energy_j, found.power_w) == (2, pytest.approx(150), pytest.approx(100))
    assert found.tok_per_j == pytest.approx(30 / 300)


def test_a_column_that_is_missing_for_a_while_is_a_gap_of_that_column() -> None:
    power = [None if 4 < t < 5.2 else 100.0 for t in TENTHS]
    gpu = of_one([window(3, 7)], samples("gpu0", TENTHS, power_w=power, core_clock_mhz=2000.0))
    assert (gpu.energy_j, gpu.core_clock_mhz) == ((None,), 2000)
    counted = of_one([window(3, 7)], samples("gpu0", TENTHS, energy_j=[90 * t for t in TENTHS]))
    assert counted.energy_j == (pytest.approx(360),)


def test_between_its_readings_a_counter_follows_the_power() -> None:
    """100 W to 5.25 s, then 300 W; the counter, read once a second, says 4 % more. The window ends after its last."""
    power = [100.0 if t < 5.25 else 300.0 for t in TENTHS]
    true = np.interp(TENTHS, [0, 5.2, 5.3, 20], [0, 520, 540, 540 + 14.7 * 300])
    counter = [1.04 * joules if k % 10 == 3 else None for k, joules in enumerate(true.tolist())]
    gpu = of_one(
        [window(5.3, 6), window(5.2, 8.3), window(18, 19.8)], samples("gpu0", TENTHS, power_w=power, energy_j=counter)
    )
    assert gpu.source == "counter"
    assert gpu.energy_j == (pytest.approx(1.04 * 210), pytest.approx(1.04 * 920), pytest.approx(1.04 * 390 + 150))


@pytest.mark.parametrize(
    ("counter", "source"),
    [
        ([7.0] * 201, "power"),  # stands still, as an MI100's
        ([1000 * t for t in TENTHS], "power"),  # ten times the power
        ([20 * t for t in TENTHS], "power"),
        ([160 * t for t in TENTHS], "counter"),  # the power is an average over the last second: not that exact
        ([None] * 201, "power"),
    ],
)
def test_a_counter_that_contradicts_the_power_is_not_believed(counter: list[float], source: str) -> None:
    gpu = of_one([window(1, 9)], samples("gpu0", TENTHS, power_w=100.0, energy_j=counter))
    assert gpu.source == source
    assert gpu.energy_j == (pytest.approx(800 if source == "power" else 1280),)


def test_energy_is_known_when_every_gpu_tells_its_own() -> None:
    two = [samples("gpu0", TENTHS, power_w=100.0), samples("gpu10", TENTHS, power_w=50.0)]
    host = samples("host", TENTHS, None, cpu_share=0.25, memory_used_bytes=2.0**34)
    found = usage([window(1, 3)], pa.concat_tables([host, *two]))
    assert found is not None
    assert [gpu.device for gpu in found.gpus] == ["gpu0", "gpu10"]
    assert (found.energy_j, found.tok_per_j) == (pytest.approx(300), pytest.approx(1 / 3))
    assert found.host is not None
    assert (found.host.cpu_share, found.host.memory_bytes_max) == (0.25, 2**34)
    mute = usage([window(1, 3)], pa.concat_tables([*two, samples("gpu2", TENTHS, core_clock_mhz=1.0)]))
    assert mute is not None
    assert (mute.energy_j, mute.power_w, mute.tok_per_j, mute.rounds) == (None, None, None, 0)
    alone = usage([window(1, 3)], host)
    assert alone is not None
    assert (alone.gpus, alone.energy_j) == ((), None)


def gpu(device: str, mhz: float | None = 2000.0, **more: Any) -> DeviceUse:
    base: dict[str, Any] = {
        "name": "GPU", "energy_j": (None,), "source": None, "power_w": 300.0, "core_clock_mhz_min": mhz,
        "temperature_c_max": None, "memory_bytes_max": None, "utilisation": 0.99, "cpu_share": None, "throttle": (),
    }  # fmt: skip
    return DeviceUse(device=device, core_clock_mhz=mhz, **base | more)


def test_a_straggler_is_below_its_peers() -> None:
    peers = [gpu("gpu0"), gpu("gpu1", 2010), gpu("gpu2", 1990)]
    assert stragglers([*peers, gpu("gpu3", 1801)], 0.10) == ()
    assert stragglers([*peers, gpu("gpu3", 1799)], 0.10) == ("gpu3: 1799 MHz, the others 2000 MHz",)
    assert stragglers([*peers, gpu("gpu3", 1799)], 0.11) == ()
    assert stragglers([*peers, gpu("gpu3", 900, name="another")], 0.10) == ()
    assert stragglers([*peers, gpu("gpu3", 210, utilisation=0.0)], 0.10) == ()  # the engine does not use it
    assert stragglers([gpu("gpu0"), gpu("gpu1", 200, utilisation=None)], 0.10) != ()
    assert stragglers([gpu("gpu0"), gpu("gpu1", power_w=100.0)], 0.10) == ()  # clocks decide where there are any
    silent = [gpu("gpu0", None), gpu("gpu1", None, power_w=250.0)]
    assert stragglers(silent, 0.10) == ("gpu1: 250 W, the others 300 W",)
    assert stragglers([gpu("gpu0", None)], 0.10) == ()


def test_heat_and_brakes_are_throttling_and_a_power_cap_is_not() -> None:
    gpus = [
        gpu("gpu0", throttle=("power_cap", "clock_setting", "current_limit")),
        gpu("gpu1", throttle=("power_cap", "thermal")),
        gpu("gpu2", throttle=None),
        gpu("gpu3", throttle=("hw_slowdown", "power_brake")),
    ]
    assert throttled(gpus) == ("gpu1: thermal", "gpu3: hw_slowdown, power_brake")


def test_a_window_is_from_the_first_send_to_the_last_token() -> None:
    assert window_of(gathered(static_rounds()[0])) == Window(T0, T0 + 42 * MS, 6)
    nothing = stream(20, 10)
    nothing.events = []
    assert window_of(gathered(table_of([nothing], FACTS))) is None


def long_rounds() -> list[pa.Table]:
    """Two rounds of a request each: 1 to 3 s and 4 to 6 s after T0, 3 tokens each."""
    return [table_of([stream(1000, 500, sent_ms=1000 * begin)], FACTS) for begin in (1, 4)]


def two_gpus(**slow: Any) -> pa.Table:
    fast = {"power_w": 200.0, "core_clock_mhz": 2000.0, "hotspot_c": 80.0, "temperature_c": 60.0, "throttle": ""}
    return pa.concat_tables(
        [samples("gpu0", TENTHS, energy_j=[200 * t for t in TENTHS], **fast), samples("gpu1", TENTHS, **fast | slow)]
    )


def test_the_row_and_the_reasons_name_what_was_seen() -> None:
    slow = {"power_w": 100.0, "core_clock_mhz": [1500.0 + t for t in TENTHS], "hotspot_c": None, "throttle": "thermal"}
    summary = summarise(cell(rounds_min=2), long_rounds(), (), two_gpus(**slow))
    assert summary.reasons == (Reason.THROTTLED, Reason.STRAGGLER)
    row = summary_row(summary)
    assert {name: row[name] for name in USAGE_COLUMNS} == {
        "power_w": pytest.approx(300),
        "energy_j": pytest.approx(600),
        "tok_per_j": pytest.approx(6 / 1200),
        "j_per_tok": pytest.approx(200),
        "gpu_temp_c_max": 80,
        "gpu_clock_mhz": pytest.approx((2000 + 1503.5) / 2),
        "gpu_clock_mhz_min": pytest.approx(1501),
        "throttle": "thermal",
    }
    text = explain(summary)
    assert "600.0 J a round at 300 W, by the GPUs' counters and by the integral of their power" in text
    assert "2 of 2 rounds" in text
    assert "gpu1:            GPU: 100 W, 1504 MHz (lowest 1501), 60 °C at most, throttle: thermal" in text
    assert "suspect: throttled:" in text
    assert "(gpu1: thermal)" in text
    assert "(gpu1: 1504 MHz, the others 2000 MHz)" in text
    tolerant = cell(rounds_min=2, validity=Validity(straggler=0.5))
    assert summarise(tolerant, long_rounds(), (), two_gpus(core_clock_mhz=1500.0)).reasons == ()


def test_a_gpu_that_serves_nothing_is_named_since_its_power_counts() -> None:
    busy = samples("gpu0", TENTHS, power_w=200.0, utilisation=0.9)
    idle = samples("gpu1", TENTHS, power_w=20.0, utilisation=0.0)
    summary = summarise(cell(rounds_min=2), long_rounds(), (), pa.concat_tables([busy, idle]))
    assert summary_row(summary)["power_w"] == pytest.approx(220)
    assert "rounds; gpu1 idle, and counted: telemetry.gpus names those of the engine" in explain(summary)
    assert "idle, and counted" not in explain(summarise(cell(rounds_min=2), long_rounds(), (), busy))


def test_without_telemetry_nothing_is_claimed() -> None:
    summary = summarise(cell(rounds_min=2), long_rounds())
    row = summary_row(summary)
    assert [row[name] for name in USAGE_COLUMNS] == [None] * 8
    assert "telemetry:       none of these times" in explain(summary)
    early = summarise(cell(rounds_min=2), long_rounds(), (), samples("gpu0", [0.0, 0.1], power_w=1.0))
    assert isinstance(early.usage, Usage)
    assert "energy:          not known" in explain(early)
    assert "gpu0:            GPU: too few samples in every round" in explain(early)
    assert summary_row(early)["energy_j"] is None
