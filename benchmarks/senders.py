"""How far apart a batch is sent, and how wrong its TTFT is, against streams and workers; Markdown on stdout.

    .venv/bin/python benchmarks/senders.py                      # some minutes
    .venv/bin/python benchmarks/senders.py --streams 1024 4096 --workers 1 2 --repeats 1

Static batches against the simulator, which knows the truth. All streams together have TOK_S tokens a second, so that
the simulator, one process, keeps up. The numbers of workers take turns, since the machine's other load changes; a
figure is the median of the repeats, and ratios are to one worker of the same run. The server needs CPU too: with as
many busy workers as CPUs, what more of them win is theirs to lose again.
"""

from __future__ import annotations

import argparse
import os
import statistics
from typing import Any

from benchbench.selftest.instrument_check import TTFT_S, measure_instrument
from benchbench.spec.schema import Validity

STREAMS, WORKERS = [256, 512, 1024, 2048, 4096, 8192], [1, 2, 4]
TOK_S = 20_000.0
SECONDS = 2.0


def measured(streams: int, workers: list[int], repeats: int) -> dict[int, dict[str, float]]:
    """Medians over the repeats, by number of workers."""
    results: dict[int, list[dict[str, Any]]] = {count: [] for count in workers}
    for _ in range(repeats):
        for count in workers:
            results[count].append(measure_instrument(streams, TOK_S / streams, SECONDS, count))
    names = ("send_skew_ms", "ttft_error_ms_mean", "ttft_error_ms_p99", "itl_error_ms_p99", "lag_ms_p99")
    return {
        count: {name: statistics.median(float(result[name]) for result in found) for name in names}
        for count, found in results.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, nargs="+", default=STREAMS)
    parser.add_argument("--workers", type=int, nargs="+", default=WORKERS)
    parser.add_argument("--repeats", type=int, default=3)
    given = parser.parse_args()
    budget_ms = Validity().send_skew * TTFT_S * 1e3
    print(f"{os.cpu_count()} CPUs, load average {os.getloadavg()[0]:.1f} at the start\n")
    print("| streams | workers | send skew (ms) | of one's | us a request | TTFT error mean, p99 (ms) | lag p99 (ms) |")
    print("|--:|--:|--:|--:|--:|--:|--:|")
    for streams in given.streams:
        rows = measured(streams, given.workers, given.repeats)
        first = next(iter(rows.values()))["send_skew_ms"]
        for count, row in rows.items():
            skew = row["send_skew_ms"]
            over = " over" if skew > budget_ms else ""
            errors = f"{row['ttft_error_ms_mean']:+.3f}, {row['ttft_error_ms_p99']:+.3f}"
            skews = f"{skew:.1f}{over} | {skew / first:.2f} | {1e3 * skew / streams:.1f}"
            print(f"| {streams:,} | {count} | {skews} | {errors} | {row['lag_ms_p99']:.2f} |", flush=True)
    print(f"\nover: beyond validity.send_skew at a TTFT of {TTFT_S * 1e3:g} ms, {budget_ms:g} ms")
    print(f"load average {os.getloadavg()[0]:.1f} at the end")


if __name__ == "__main__":
    main()
