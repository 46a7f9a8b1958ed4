"""What a cell costs against the number of cells in the plan; Markdown on stdout.

A sweep of one round of one request a cell is measured at each of --sizes, against the simulator on this host at a
thousandth of its durations; then the run is resumed (there is nothing to do), printed, explained, published and made a
page of.

- ms: CPU of the command's own process for each cell, the cost of the same command for a plan of one cell taken off
- loop: wall of the sweep less its rounds, for each cell, likewise
- MB: the most memory that the process had (VmHWM)

The last line has each column's last figure by its first: 1.0 is a cost in proportion to the cells (of MB: no growth).
Every figure is of one call: on a busy machine look at the ratios only. Files go to where TMPDIR points.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from pathlib import Path

from command_cost import Cost, call

from benchbench.engines.simulator import SimulatorProcess
from benchbench.store.requests import round_facts
from benchbench.store.run_directory import RunDirectory

SWEEP = """
name: plans
model: sim
engine: {{kind: endpoint, url: "{url}"}}
grid: {{input: {inputs}, output: {outputs}, batch: 1}}
rounds: {{warmup: 0, min: 1, max: 1}}
prompts: {{kind: token_ids, vocab: [1000, 60000]}}
"""


COMMANDS = {  # what is done with a run of `s.yaml` in the folder `run`
    "plan": ("sweep", "s.yaml", "--dry-run"),
    "sweep": ("sweep", "s.yaml", "--out", "run", "--no-plots"),
    "resume": ("sweep", "s.yaml", "--out", "run", "--no-plots", "--resume"),
    "table": ("table", "run"),
    "explain": ("explain", "run"),
    "publish": ("publish", "run", "--card", "card.md", "--allow-empty"),
    "page": ("report", "run", "-o", "page.html"),
}


def costs(cells: int, url: str, commands: Sequence[str]) -> dict[str, Cost]:
    """What each command costs at a plan of so many cells; `load` is what the rounds themselves took."""
    measured = {}
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        outputs = min(cells, 10)
        axes = {"inputs": [*range(8, 8 + cells // outputs)], "outputs": [*range(4, 4 + outputs)]}
        (folder / "s.yaml").write_text(SWEEP.format(url=url, **axes))
        (folder / "card.md").write_text("<!-- bench:performance -->\n<!-- /bench:performance -->\n")
        for name in commands:
            measured[name] = call(COMMANDS[name], folder)
        measured["load"] = Cost(0.0, _load_s(RunDirectory(folder / "run")), 0.0)
    return measured


def _load_s(run: RunDirectory) -> float:
    keys = [entry["key"] for entry in run.manifest()["plan"]]
    return sum(round_facts(table)["wall_ns"] for key in keys for table in run.read_cell(key)) / 1e9


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[100, 1000, 4000, 10_000], help="multiples of 10")
    parser.add_argument("--commands", nargs="+", choices=COMMANDS, default=[*COMMANDS], help="sweep among them")
    chosen = parser.parse_args()
    names = chosen.commands
    heads = [*(f"{name}, ms" for name in names), "loop, ms", *(f"{name}, MB" for name in names)]
    print(f"| Cells | {' | '.join(heads)} |\n|{'---|' * (len(heads) + 1)}", flush=True)
    lines: list[list[float]] = []
    with SimulatorProcess("fixed", scale=0.001) as server:
        one = costs(1, server.url, names)
        for cells in chosen.sizes:
            measured = costs(cells, server.url, names)
            line = [1e3 * (measured[name].cpu_s - one[name].cpu_s) / cells for name in names]
            loops = [of["sweep"].wall_s - of["load"].wall_s for of in (one, measured)]
            line += [1e3 * (loops[1] - loops[0]) / cells, *(measured[name].peak_mb for name in names)]
            lines.append(line)
            print(f"| {cells:,} | {' | '.join(f'{value:.3g}' for value in line)} |", flush=True)
    print(f"| ratio | {' | '.join(f'{last / first:.2f}' for first, last in zip(lines[0], lines[-1], strict=True))} |")


if __name__ == "__main__":
    main()
