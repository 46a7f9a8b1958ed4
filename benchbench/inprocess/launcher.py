"""Main's side of the in-process engine: its process started, its rounds handed over, its end noticed."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing.connection import Connection as Pipe
from multiprocessing.connection import wait
from pathlib import Path
from socket import socketpair
from typing import Any

from benchbench.engines.log_diagnosis import diagnose
from benchbench.engines.open import Opened, start_facts
from benchbench.engines.process import Hooks
from benchbench.engines.token_lengths import LOWEST_ID
from benchbench.engines.vllm import failure, flags, next_log, python_of, start_process
from benchbench.errors import EngineError, LaunchStoppedError, WorkerDiedError
from benchbench.fidelity.answers import AnswerJob, GreedyAnswer
from benchbench.linux import renice
from benchbench.loadgen.job import Job
from benchbench.openai.client import Capabilities
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.secrets import mask_text
from benchbench.senders.piped_worker import PipedWorker
from benchbench.spec import Plan, VllmInprocessEngine
from benchbench.store.requests import RoundColumns
from benchbench.version import __version__

CANCEL_S = 15.0  # for the answer to a cancel; the loop itself takes up to 5 s when the engine hangs
DIED_S = 10.0  # once something has died: for the process to notice, fail the requests and hand the round over
SAID_S = 3.0  # from a sign of the end to the supervisor's word
UNKNOWN = "the in-process engine does not answer"


class InprocessWorker(PipedWorker):
    """Handle of one engine in its process, which watches the engine's processes by itself.

    `facts`, once ready: `version` of vLLM, `vocab_size`, `max_model_len`, `kv_tokens` (the KV cache's capacity, None if
    not told), `config` (what the engine resolved its flags to), `notes`, `start_s`. The engine's output goes to `log`.
    Raises EngineError when the interpreter cannot be started, OSError when the log cannot be written.
    """

    reply_s, died_s = CANCEL_S, DIED_S

    def __init__(self, engine: VllmInprocessEngine, model: str, log: Path) -> None:
        self.facts: dict[str, Any] = {}
        self._engine = engine
        ours, theirs = socketpair()
        super().__init__(Pipe(ours.detach()))
        argv = [python_of(engine), "-m", "benchbench.inprocess.engine_process", str(theirs.fileno())]
        try:
            self.process = start_process(engine, argv, log, [theirs.fileno()])
        except BaseException:
            self.pipe.close()
            raise
        finally:
            theirs.close()
        self.watch = (self.process.events_fd, self.process.died)
        self.send(flags({"model": model} | engine.args))

    def ready(self, stop: int | None = None, progress: Callable[[float, str], None] | None = None) -> None:
        """Wait until the engine has generated a token. `progress(seconds, last line of the log)` once a second.

        Raises EngineError, and LaunchStoppedError when `stop` (a descriptor) becomes readable.
        """
        begun, limit_s = time.monotonic(), self._engine.ready.timeout_s

        def tick() -> None:
            if progress:
                progress(time.monotonic() - begun, self.process.last_line())

        try:
            reply = self._receive(stop, _stopped, begun + limit_s, tick)
        except TimeoutError:
            raise failure(self._engine, self.process, f"start: not ready within {limit_s:g} s") from None
        except WorkerDiedError as error:
            raise failure(self._engine, self.process, f"start: {error}") from None
        if isinstance(reply, tuple):
            message, key = reply
            if key:
                raise EngineError(message, key)
            self._word()  # once it has ended, the log is whole
            reason = diagnose(self.process.text()).reason or message[:250]
            raise failure(self._engine, self.process, f"start: {reason}")
        if reply["benchbench"] != __version__:
            message = f"{python_of(self._engine)} has benchbench {reply['benchbench']}, this is {__version__}"
            raise EngineError(message, "engine.python")
        self.facts = reply
        self.process.ready()
        for pid in self.process.ranks if self._engine.nice else ():
            renice(pid, self._engine.nice)  # not its front end, which stamps the tokens

    def run(self, job: Job, stop: int | None = None) -> tuple[RoundColumns, dict[str, Any]]:
        """As `Worker.run`. Where a part of the engine died, its requests have failed with the reason, which is also the
        fact `engine_died`: then this worker is of no more use.
        """
        columns, facts = super().run(job, stop)
        if died := facts["engine_died"]:
            died = mask_text(died)  # as it stands in the details
            facts["engine_died"] = reason = self._word() or f"{died} {diagnose(self.process.text()).reason}".strip()
            if columns is not None:
                details = columns["error_detail"]
                details[:] = [reason if detail and detail in died else detail for detail in details]
        return columns, facts

    def answer(self, job: AnswerJob, deadline: float, stop: int | None = None) -> list[GreedyAnswer]:
        """The answers to a job's prompts, in order, by `deadline` (monotonic).

        Raises WorkerDiedError, and LaunchStoppedError when `stop` becomes readable; the worker is of no more use then.
        """
        answers: list[GreedyAnswer] = self._ask(job, stop, _stopped, deadline)
        return answers

    def close(self) -> None:
        """End the engine and wait until all its processes are gone; may be called again."""
        self.pipe.close()
        self.process.close()

    def end(self, error: Exception | None = None) -> str:
        return self._word() or (f"the in-process engine's worker failed: {error}" if error else UNKNOWN)

    def _word(self) -> str | None:
        """What the supervisor knows of the engine's end; waits for it a little, None if nothing has ended."""
        deadline = time.monotonic() + SAID_S
        while (died := self.process.died()) is None and (left := deadline - time.monotonic()) > 0:
            wait([self.process.events_fd], left)
        return died


def _stopped() -> float:
    raise LaunchStoppedError


@contextlib.contextmanager
def open_inprocess(engine: VllmInprocessEngine, plan: Plan, hooks: Hooks) -> Iterator[tuple[Opened, InprocessWorker]]:
    """The in-process engine, once it has generated a token, and its worker, for as long as the block runs.

    Raises EngineError, LaunchStoppedError, WorkerDiedError and, when no log can be written, OSError.
    """
    with InprocessWorker(engine, plan.spec.model, next_log(hooks.logs)) as worker:
        yield _opened(engine, worker, plan, hooks), worker


def _opened(engine: VllmInprocessEngine, worker: InprocessWorker, plan: Plan, hooks: Hooks) -> Opened:
    worker.ready(hooks.stop, partial(hooks.progress, "starting the engine"))
    facts = worker.facts
    start = start_facts(engine.env, worker.process, facts["start_s"])
    vocab = next((cell.prompts.vocab for cell in plan.cells if cell.prompts.vocab), None)
    return Opened(
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
        dealer=Dealer(plan.spec),
        watch=worker.watch,
        start=start | {name: facts[name] for name in ("config", "kv_tokens")},
    )
