"""How evenly a mixture of experts was loaded, as far as the engine tells. Pure.

vLLM (0.33) tells it in its log alone, a line a step, with --enable-expert-parallel, --enable-eplb and
--eplb-config.log_balancedness: tokens of the busiest rank and of the mean one, summed over layers. Its /metrics have
nothing of it. A round's imbalance is the sum of the former over that of the latter, 1 when all ranks did the same, over
the steps of the seconds that lie whole within the round: the log's times have no more.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

_TIME = re.compile(r"\b(\d\d)-(\d\d) (\d\d):(\d\d):(\d\d) ")
_STEP = re.compile(r"EPLB step: \d+.*?avg_tokens=([\d.]+), max_tokens=(\d+)")
_ZONE = timedelta(minutes=15)  # all time zones are whole multiples of it
RANDOM = "prompts are random: the routing of random tokens is not that of text"
UNTOLD = (
    "load of the experts not told (vLLM: in its log, with --enable-expert-parallel, --enable-eplb and "
    "--eplb-config.log_balancedness)"
)


@dataclass(frozen=True, slots=True)
class ExpertLoad:
    """`rounds`: the imbalance of each round in which the engine told it; `steps`: how many it told in them."""

    rounds: tuple[float, ...]
    steps: int

    @property
    def words(self) -> str:
        """One sentence."""
        mean = sum(self.rounds) / len(self.rounds)
        ends = f"{min(self.rounds):.2f} to {max(self.rounds):.2f}"
        return f"the busiest rank's experts had {mean:.2f} times the mean's tokens (rounds {ends}; {self.steps} steps)"


def expert_load(log: str, started_ns: int, rounds_ns: Sequence[tuple[int, int]]) -> ExpertLoad | None:
    """From a start's log, its time (ns since 1970), and the begins and ends of rounds; None where it tells nothing."""
    steps = _steps(log, started_ns)
    imbalances, count = [], 0
    for begin_ns, end_ns in rounds_ns:
        first, last = -(-begin_ns // 10**9), end_ns // 10**9  # the whole seconds
        inside = [(mean, most) for second, mean, most in steps if first <= second < last]
        if inside:
            imbalances.append(sum(most for _, most in inside) / sum(mean for mean, _ in inside))
            count += len(inside)
    return ExpertLoad(tuple(imbalances), count) if imbalances else None


def _steps(log: str, started_ns: int) -> list[tuple[int, float, float]]:
    """(second since 1970, tokens of the mean rank, of the busiest) of each step that had tokens.

    The log's times have no year and are of an unknown zone: its first one is taken to be within minutes of the start.
    """
    start = datetime.fromtimestamp(started_ns // 10**9, UTC)
    zone: timedelta | None = None
    steps = []
    for line in log.splitlines():
        at = _TIME.search(line)
        time = _time(at.groups(), start) if at else None
        if time is None:
            continue
        zone = round((time - start) / _ZONE) * _ZONE if zone is None else zone
        if (step := _STEP.search(line)) and float(step[1]) > 0:
            steps.append((int((time - zone).timestamp()), float(step[1]), float(step[2])))
    return steps


def _time(fields: Sequence[str], near: datetime) -> datetime | None:
    """The time of this month, day, hour, minute and second that is nearest to another; None for none."""
    month, day, hour, minute, second = map(int, fields)
    times = []
    for year in (near.year - 1, near.year, near.year + 1):
        try:
            times.append(datetime(year, month, day, hour, minute, second, tzinfo=UTC))
        except ValueError:
            continue
    return min(times, key=lambda time: abs(time - near), default=None)
