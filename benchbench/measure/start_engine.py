"""One start of a sweep's engine: a server to reach or a process of ours, and the worker that loads it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from functools import partial

from benchbench.engines.open import Hooks, Opened, open_engine, start_facts
from benchbench.engines.vllm import next_log
from benchbench.inprocess.launcher import InprocessWorker
from benchbench.loadgen.worker import HttpWorker, Worker
from benchbench.openai.client import Capabilities
from benchbench.openai.token_lengths import LOWEST_ID
from benchbench.spec import Plan, VllmInprocessEngine


@contextlib.contextmanager
def start_engine(plan: Plan, hooks: Hooks) -> Iterator[tuple[Opened, Worker]]:
    """The plan's engine and a ready worker, for as long as the block runs.

    Raises EngineError, LaunchStoppedError, WorkerDiedError and, when no log can be written, OSError.
    """
    if isinstance(plan.spec.engine, VllmInprocessEngine):
        with _inprocess(plan.spec.engine, plan, hooks) as pair:
            yield pair
        return
    with HttpWorker() as worker, open_engine(plan, hooks) as opened:
        worker.watch = opened.watch
        worker.ready()
        yield opened, worker


@contextlib.contextmanager
def _inprocess(engine: VllmInprocessEngine, plan: Plan, hooks: Hooks) -> Iterator[tuple[Opened, Worker]]:
    with InprocessWorker(engine, plan.spec.model, next_log(hooks.logs)) as worker:
        hooks.meanwhile()
        worker.ready(hooks.stop, partial(hooks.progress, "starting the engine"))
        facts, owned = worker.facts, worker.owned
        start = start_facts(engine.env, owned, facts["start_s"]) | {
            name: facts[name] for name in ("config", "kv_tokens")
        }
        vocab = next((cell.prompts.vocab for cell in plan.cells if cell.prompts.vocab), None)
        yield (
            Opened(
                url="",
                vocab=vocab or (min(LOWEST_ID, facts["vocab_size"] // 4), facts["vocab_size"]),
                capabilities=Capabilities(
                    kind="vllm",
                    models=(plan.spec.model,),
                    max_model_len=facts["max_model_len"],
                    version=facts["version"],
                    metrics=True,
                ),
                notes=tuple(facts["notes"]),
                watch=worker.watch,
                start=start,
            ),
            worker,
        )
