"""The in-process engine in a process of its own, run by the interpreter that has vLLM.

Run as `python -m benchbench.inprocess.engine_process FD`.

It builds the engine, then takes rounds over a pipe, drives them and hands back arrays, as `loadgen.worker` does for
HTTP: main stays free of vLLM, and its death or ours ends everything (`engines.process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import signal
import sys
import time
import traceback
from dataclasses import asdict
from multiprocessing.connection import Connection as Pipe
from typing import Any

from benchbench.counters.server_counters import PAUSE_S, counted, settled
from benchbench.counters.server_metrics import Counts
from benchbench.errors import EngineError
from benchbench.fidelity.answers import AnswerJob, GreedyAnswer
from benchbench.inprocess.async_llm import InprocessEngine, start
from benchbench.inprocess.engine_round import DirectRound, StallSelector, why
from benchbench.loadgen.job import DirectJob
from benchbench.store.requests import RoundColumns
from benchbench.version import __version__

RESET_S = 30.0  # an engine that hangs does not answer to a reset either


class EngineProcess:
    """The process's life after the engine's start: job in, result out, until the pipe ends or SIGTERM comes."""

    def __init__(self, pipe: Pipe[Any, Any], engine: InprocessEngine, turns: StallSelector) -> None:
        self._pipe, self._engine, self._turns = pipe, engine, turns
        self._jobs: asyncio.Queue[DirectJob | AnswerJob | None] = asyncio.Queue()
        self._round: DirectRound | None = None
        self._spent_ns = time.process_time_ns()

    async def serve(self) -> None:
        loop = asyncio.get_running_loop()
        loop.add_reader(self._pipe.fileno(), self._hear)
        loop.add_signal_handler(signal.SIGTERM, self._end)
        while (job := await self._jobs.get()) is not None:
            try:
                reply: Any = await (self._answer(job) if isinstance(job, AnswerJob) else self._drive(job))
            except Exception as error:  # noqa: BLE001 - the sweep reports it; without a reply it would wait for ever
                traceback.print_exc()
                reply = RuntimeError(f"{type(error).__name__}: {error}")
            try:
                self._pipe.send(reply)
            except OSError:
                return
            del job, reply
            gc.collect()  # here, where nothing waits for us

    def _hear(self) -> None:
        try:
            message = self._pipe.recv()
        except (EOFError, OSError):
            self._end()
            return
        if isinstance(message, DirectJob | AnswerJob):
            self._jobs.put_nowait(message)
        elif self._round and message is None:
            self._round.cancel()
        elif self._round:  # else it comes after its round had ended
            self._round.die(message)

    def _end(self) -> None:
        asyncio.get_running_loop().remove_reader(self._pipe.fileno())
        if self._round:
            self._round.cancel()
        self._jobs.put_nowait(None)

    async def _drive(self, job: DirectJob) -> tuple[RoundColumns | None, dict[str, Any]]:
        driver = self._round = DirectRound(job, self._engine, self._turns)
        more: dict[str, Any] = {"prefix_cache_reset": await self._reset()} if job.reset_prefix_cache else {}
        await self._warm(job)
        before = self._engine.counts()
        columns = await driver.run()
        self._round = None
        if columns is not None and (after := await settled(self._look, before, columns)):
            more["server"] = counted(before, after, columns)
        spent, self._spent_ns = self._spent_ns, time.process_time_ns()
        facts = {"stamps": "in process", "engine_died": driver.died, "worker_cpu_ns": self._spent_ns - spent}
        return columns, asdict(driver.facts) | facts | more

    async def _warm(self, job: DirectJob) -> None:
        """Let the engine compute the prefixes that prompts share. What fails shows as misses in the round."""
        if not job.prefixes:
            return
        ask = self._engine.prepare(job.prefixes, [1] * len(job.prefixes), exact=True, detokenize=False)
        with contextlib.suppress(Exception):
            async with asyncio.timeout(job.first_token_s):
                for place in range(len(job.prefixes)):
                    await ask(place, lambda _count, _engine_s: None)
        await asyncio.sleep(PAUSE_S)  # a step is counted just after its tokens came

    async def _look(self) -> Counts:
        return self._engine.counts()

    async def _answer(self, job: AnswerJob) -> list[GreedyAnswer]:
        return [
            await self._engine.answer(number, prompt, job.output, exact=job.exact, top=job.top)
            for number, prompt in enumerate(job.payloads)
        ]

    async def _reset(self) -> bool:
        try:
            async with asyncio.timeout(RESET_S):
                return await self._engine.reset_prefix_cache()
        except Exception:  # noqa: BLE001 - a dead or hung engine fails the round's requests too
            return False


async def _begin(pipe: Pipe[Any, Any], turns: StallSelector) -> None:
    """Start the engine, say how that went, live, and end it."""
    try:
        engine = await start(pipe.recv())
    except EngineError as error:
        pipe.send((error.message, error.key))
        return
    except Exception as error:  # noqa: BLE001 - vLLM raises what it likes; the log has it all
        traceback.print_exc()
        pipe.send((why(error), ""))
        return
    try:
        gc.collect()
        gc.freeze()
        gc.disable()
        pipe.send({**engine.facts, "benchbench": __version__})
        await EngineProcess(pipe, engine, turns).serve()
    finally:
        engine.shutdown()


def main(fd: int) -> None:
    """Run the process; `fd` is its end of the pipe."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.set_inheritable(fd, False)  # noqa: FBT003 - the library's signature
    os.register_at_fork(after_in_child=lambda: os.close(fd))  # ranks must not keep it open
    os.environ.pop("PROMETHEUS_MULTIPROC_DIR", None)  # counts are this process's alone
    turns = StallSelector()
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(turns)) as runner:
        runner.run(_begin(Pipe(fd), turns))


if __name__ == "__main__":
    main(int(sys.argv[1]))
