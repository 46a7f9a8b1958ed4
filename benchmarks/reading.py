"""What `bench table` costs against the token events of a run; Markdown on stdout.

Runs are made, not measured: cells of --rounds rounds with --requests requests of 1,000 tokens, gaps drawn from a seed.
Of each: CPU and wall of `bench table`, and the most memory that it had (VmHWM), the least of --repeats. Files go to
where TMPDIR points.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from command_cost import call

from benchbench.spec import make_plan, spec_from_mapping
from benchbench.store.requests import RoundColumns, round_table
from benchbench.store.run_directory import RunDirectory

OUTPUT = 1000
T0 = 1_764_000_000_000_000_000


def columns(requests: int, rng: np.random.Generator) -> RoundColumns:
    """A static round in which all requests are sent at once."""
    gaps = rng.normal(10e6, 0.3e6, (requests, OUTPUT)).astype(np.int64).clip(1)
    gaps[:, 0] += 100_000_000
    events = T0 + np.cumsum(gaps, axis=1)
    counts: dict[str, Any] = dict.fromkeys(
        ("connect_ns", "connected_ns", "tls_ns", "headers_ns", "cached_tokens", "resent"),
    )
    whole = dict.fromkeys(("scheduled_ns", "sent_ns"), T0) | {"asked_input_tokens": 128, "input_tokens": 128}
    whole |= {"asked_output_tokens": OUTPUT, "output_tokens": OUTPUT, "http_status": 200} | dict.fromkeys(counts, -1)
    texts = {"tokens_from": "ids", "finish_reason": "length", "response_id": "cmpl", "status": "ok"}
    texts |= dict.fromkeys(("answered_by", "error_kind", "error_phase", "error_detail", "server_metrics"), "")
    kinds = {name: np.int64 if name.endswith("_ns") else np.int32 for name in whole}
    made: dict[str, Any] = {name: np.full(requests, value, kinds[name]) for name, value in whole.items()}
    made |= {name: [value] * requests for name, value in texts.items()}
    made |= {
        "index": np.arange(requests, dtype=np.int32),
        "end_ns": events[:, -1] + 1,
        "reused": np.zeros(requests, np.bool_),
        "event_offsets": np.arange(0, requests * OUTPUT + 1, OUTPUT, dtype=np.int32),
        "event_ns": events.ravel(),
        "event_tokens": np.ones(requests * OUTPUT, np.int32),
        "lag_ns": rng.exponential(20e3, requests * OUTPUT).astype(np.int64),
    }
    return made  # type: ignore[return-value]


def made_run(path: Path, cells: int, rounds: int, requests: int) -> None:
    spec = spec_from_mapping(
        {
            "name": "reading",
            "model": "m",
            "engine": {"kind": "simulator"},
            "grid": {"input": [128 + k for k in range(cells)], "output": OUTPUT, "batch": requests},
            "rounds": {"warmup": 0, "min": 2},
            "prompts": {"vocab": [1000, 30000]},
        }
    )
    plan, run, rng = make_plan(spec), RunDirectory(path), np.random.default_rng(1)
    run.open_for_writing(resume=False)
    for cell in plan.cells:
        for number in range(rounds):
            labels = {"cell": cell.key, "variant": cell.variant, "phase": "measured", "round": number, "block": None}
            table = round_table(columns(requests, rng), labels, {})
            run.write_round(table, cell.key, "measured", number)
    facts: dict[str, Any] = {"starts": [], "devices": [], "host": {"name": "here"}, "caption": [], "instrument": None}
    entries = [cell.info.to_entry() for cell in plan.cells]
    run.write_manifest({"spec": spec.model_dump(mode="json"), "plan": entries, **facts})
    run.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--requests", type=int, default=125)
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    print("| events | CPU s | wall s | MB |\n|---|---|---|---|")
    for cells in asked.cells:
        with tempfile.TemporaryDirectory() as place:
            made_run(Path(place) / "run", cells, asked.rounds, asked.requests)
            costs = [call(("table", "run"), Path(place)) for _ in range(asked.repeats)]
        least = [min(values) for values in zip(*costs, strict=True)]
        events = cells * asked.rounds * asked.requests * OUTPUT
        print(f"| {events:,} | {least[0]:.2f} | {least[1]:.2f} | {least[2]:.0f} |", flush=True)


if __name__ == "__main__":
    main()
