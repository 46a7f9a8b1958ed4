"""How much of TTFT's scatter is the host's: TTFT beside the speed of the CPU that the engine is on, request by request.

    python benchmarks/host_speed.py --url http://127.0.0.1:8000 --model MODEL --pid PID --csv host.csv
    python benchmarks/host_speed.py --read host.csv --plot host.svg

Per request, one at a time: the main thread of process PID (vLLM: the one named VLLM::EngineCore) is put on a CPU taken
at random, a loop of 60,000 additions is timed on that CPU, the request is sent (--input random tokens, 8 out), and the
loop is timed there once more. Prints the median and the scatter of both (standard deviation of logs) and Spearman's
rank correlation of TTFT with the mean of the two loops: near 0 if the scatter is the GPU's or the server's own, towards
1 if it is the host's. Needs the right to set another process's affinity, which is as before at the end.
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import numpy as np
import pandas as pd
from scipy import stats

from benchbench.figures import choose, sheet
from benchbench.figures.plots import write_figures

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ADDITIONS = 60_000
PAUSE_S = 0.05  # between requests, as between rounds
OUTPUT_TOKENS = 8


def loop_s(cpu: int, free: set[int]) -> float:
    """Of the additions on CPU `cpu`; this process is on the others of `free` afterwards."""
    os.sched_setaffinity(0, {cpu})
    begun_s = time.perf_counter()
    total = 0
    for number in range(ADDITIONS):
        total += number
    spent_s = time.perf_counter() - begun_s
    os.sched_setaffinity(0, free - {cpu} or free)
    return spent_s


def ttft_s(connection: http.client.HTTPConnection, model: str, prompt: list[int]) -> float:
    wishes = {"max_tokens": OUTPUT_TOKENS, "ignore_eos": True, "temperature": 0, "stream": True}
    body = json.dumps({"model": model, "prompt": prompt, **wishes})
    begun_s = time.perf_counter()
    connection.request("POST", "/v1/completions", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.readline()
    first_s = time.perf_counter() - begun_s
    if answer.status != http.HTTPStatus.OK:
        raise SystemExit(f"{answer.status}: {answer.read().decode(errors='replace')[:300]}")
    answer.read()
    return first_s


def measured(options: argparse.Namespace) -> pd.DataFrame:
    """A row a request: cpu, loop_before_ms, ttft_ms, loop_after_ms."""
    rng, rows = random.Random(0), []
    before, free = os.sched_getaffinity(options.pid), os.sched_getaffinity(0)
    connection = http.client.HTTPConnection(urlsplit(options.url).netloc, timeout=60)
    try:
        for _ in range(options.requests):
            cpu = rng.choice(sorted(free))
            os.sched_setaffinity(options.pid, {cpu})
            time.sleep(PAUSE_S)
            first_loop_s = loop_s(cpu, free)
            request_s = ttft_s(connection, options.model, [rng.randrange(1000, 30_000) for _ in range(options.input)])
            rows.append((cpu, *(round(1e3 * part_s, 3) for part_s in (first_loop_s, request_s, loop_s(cpu, free)))))
    finally:
        os.sched_setaffinity(options.pid, before)
        connection.close()
    return pd.DataFrame(rows, columns=["cpu", "loop_before_ms", "ttft_ms", "loop_after_ms"])


def table(rows: pd.DataFrame) -> str:
    lines = ["| series | requests | TTFT, median (ms) | scatter | loop, median (ms) | scatter | rank correlation |"]
    lines.append("|---|---|---|---|---|---|---|")
    for name, part in rows.groupby("series", sort=False) if "series" in rows else [("", rows)]:
        loop = (part.loop_before_ms + part.loop_after_ms) / 2
        scatters = (100 * np.log(values).std() for values in (part.ttft_ms, loop))
        ttft_text, loop_text = (f"{scatter:.0f} %" for scatter in scatters)
        rank = stats.spearmanr(part.ttft_ms, loop).statistic
        lines.append(
            f"| {name} | {len(part)} | {part.ttft_ms.median():.1f} | {ttft_text} "
            f"| {loop.median():.2f} | {loop_text} | {rank:.2f} |"
        )
    return "\n".join(lines)


def draw(rows: pd.DataFrame, path: Path) -> None:
    """A panel a series, in the style of the other figures."""
    write_figures(drawn(rows, path.stem), path.parent, [path.suffix[1:]])


def drawn(rows: pd.DataFrame, name: str) -> Iterator[tuple[str, Figure]]:
    """The figure with its name, to be made in `sheet.STYLE`."""
    series = list(rows.groupby("series", sort=False)) if "series" in rows else [("", rows)]
    across = min(2, len(series))
    down = math.ceil(len(series) / across)
    figure, panels = sheet.make_frame(
        "TTFT against the speed of the engine's CPU, a dot a request",
        f"the loop: {ADDITIONS:,} additions on that CPU, before and after the request, mean",
        height=2.1 * down, rows=down, columns=across, sharex=True, sharey=True,
    )  # fmt: skip
    for axes in panels[len(series) :]:
        axes.set_visible(False)
    for axes, (title, part) in zip(panels, series, strict=False):
        loop = (part.loop_before_ms + part.loop_after_ms) / 2
        axes.plot(loop, part.ttft_ms, linestyle="", marker="o", markersize=3, alpha=0.6, color=choose.COLOURS[0])
        axes.set_title(title)
    panels[0].set_xlim(0, 1.05 * rows[["loop_before_ms", "loop_after_ms"]].max(axis=None))
    panels[0].set_ylim(0, 1.05 * rows.ttft_ms.max())
    sheet.outer_labels(panels, "Loop on the engine's CPU (ms)", "TTFT (ms)")
    yield name, figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000")
    parser.add_argument("--model", help="as the server names it")
    parser.add_argument("--pid", type=int, help="the process whose main thread launches the kernels")
    parser.add_argument("--requests", type=int, default=160)
    parser.add_argument("--input", type=int, default=128, help="tokens of a prompt")
    parser.add_argument("--csv", type=Path, help="keep the rows there")
    parser.add_argument("--read", type=Path, help="rows that were kept, instead of measuring")
    parser.add_argument("--plot", type=Path)
    options = parser.parse_args()
    if options.read is None and (options.model is None or options.pid is None):
        parser.error("--model and --pid are needed, or --read")
    rows = pd.read_csv(options.read) if options.read else measured(options)
    if options.csv:
        rows.to_csv(options.csv, index=False)
    if options.plot:
        draw(rows, options.plot)
    print(table(rows))


if __name__ == "__main__":
    main()
