"""The questions that every variant answers after the timed rounds of each start, the same in all of them.

One after another, so that no answer depends on what else is in the batch. Nothing is timed.
"""

from __future__ import annotations

import asyncio
import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np

from benchbench.engines.open import Opened
from benchbench.errors import EngineError, WorkerDiedError
from benchbench.fidelity.answers import AnswerJob, GreedyAnswer, StartAnswers, Unit
from benchbench.fidelity.greedy_request import TOP, read_answer, requests_for
from benchbench.fidelity.stored_answers import answers_path, store_answers
from benchbench.openai.client import http_session
from benchbench.openai.target import GENERATION
from benchbench.secrets import mask_text
from benchbench.spec import Session, SweepSpec
from benchbench.spec.plan import shapes
from benchbench.stopping import unless_stopped
from benchbench.store.run_directory import RunDirectory

# Kernels differ by how many tokens a step has: prompts of several lengths. 32 tokens let a small error grow into
# another token; eight such answers take a 40 ms decode step 10 s.
INPUTS = (16, 32, 64, 64, 64, 128, 512, 1024)
OUTPUT = 32
ANSWER_S = 600.0  # the first request with log-probabilities takes vLLM's CPU build 30 to 40 s


@runtime_checkable
class Answering(Protocol):
    """A worker that puts the questions to its engine itself, without HTTP."""

    def answer(self, job: AnswerJob, deadline: float, stop: int | None = None) -> list[GreedyAnswer]: ...


@dataclass(frozen=True, slots=True)
class Questions:
    """Prompts as token ids or texts, and how long the answers are; `exact`: not ended by an end-of-sequence token."""

    prompts: Sequence[list[int] | str]
    output: int
    exact: bool

    @property
    def hash(self) -> str:
        """Of everything that is asked: answers to other questions cannot be compared."""
        return hashlib.sha256(repr((self.prompts, self.output, self.exact)).encode()).hexdigest()[:16]


def owed(run: RunDirectory, spec: SweepSpec, session: Session) -> bool:
    """Whether a session still has to answer: it has not, and has not failed to."""
    if spec.fidelity == "off" or session.block is None or answers_path(run, session.variant, session.block).exists():
        return False
    here = (session.variant, session.block)
    return here not in {(e["variant"], e["block"]) for e in run.events() if e["event"] == "fidelity_failed"}


def answer(
    run: RunDirectory, worker: object, opened: Opened, spec: SweepSpec, session: Session, stop: int | None
) -> str:
    """Ask a living engine, and store what it answers. What prevents that is journalled and returned, and stops nothing.

    `spec` is the variant's. Raises InterruptedSweep, LaunchStoppedError (in-process) and OSError (of writing).
    """
    try:
        questions = make_questions(spec, opened)
        if isinstance(worker, Answering):
            unit, answers = _in_process(worker, questions, stop)
        else:
            unit, answers = asyncio.run(unless_stopped(stop, _over_http(opened, spec, questions)))
    except (EngineError, WorkerDiedError, ValueError, OSError) as error:
        died = opened.watch and opened.watch[1]()
        reason = mask_text(died or str(error) or type(error).__name__, opened.access.secrets)
        run.journal("fidelity_failed", block=session.block, variant=session.variant, reason=reason)
        return f"fidelity of {session.variant} is not measured in block {session.block}: {reason}"
    store_answers(run, session.variant, session.block or 0, StartAnswers(unit, questions.hash, tuple(answers)))
    return ""


def make_questions(spec: SweepSpec, opened: Opened) -> Questions:
    """From the sweep's seed, no longer than its longest request, which every server of it has to take."""
    longest = max((shape.input or 0) + shape.output for shape in shapes(spec))
    output = min(OUTPUT, max(1, longest // 2))
    lengths = [min(length, longest - output) for length in INPUTS]
    digest = hashlib.sha256(f"fidelity {spec.seed}".encode()).digest()
    generator = np.random.default_rng(np.frombuffer(digest, np.uint32))
    return Questions(_prompts(spec, opened, generator, lengths), output, spec.output == "exact")


def _prompts(
    spec: SweepSpec, opened: Opened, generator: np.random.Generator, lengths: Sequence[int]
) -> list[list[int] | str]:
    vocab, texts = opened.vocab, opened.texts
    if vocab and (spec.prompts.kind == "token_ids" or texts is None):
        return [generator.integers(*vocab, length).tolist() for length in lengths]
    if texts is None:
        raise EngineError("no prompts can be made", "prompts.kind")
    return [texts(generator, 1, length)[0] for length in lengths]


def _in_process(worker: Answering, questions: Questions, stop: int | None) -> tuple[Unit, list[GreedyAnswer]]:
    payloads = [np.array(prompt, "<i4").tobytes() for prompt in questions.prompts]
    job = AnswerJob(payloads=payloads, output=questions.output, exact=questions.exact, top=TOP)
    return "id", worker.answer(job, time.monotonic() + ANSWER_S, stop)


async def _over_http(opened: Opened, spec: SweepSpec, questions: Questions) -> tuple[Unit, list[GreedyAnswer]]:
    """Ask in the first form that the server takes. Raises ValueError for an answer of no use, and OSError."""
    route, form, answers = GENERATION[spec.engine.api], 0, list[tuple[Unit, GreedyAnswer]]()
    async with http_session(opened.url, opened.access, answer_s=ANSWER_S) as request:
        for prompt in questions.prompts:
            forms = requests_for(spec.engine, spec.model, prompt, questions.output, exact=questions.exact)
            status, body = await request(route, forms[form])
            while status in {400, 422} and not answers and form + 1 < len(forms):
                form += 1
                status, body = await request(route, forms[form])
            if status != 200:
                raise ValueError(f"POST {route} answers with status {status}: {body[:200].decode(errors='replace')}")
            answers.append(read_answer(body))
    if len({unit for unit, _ in answers}) > 1:
        raise ValueError("the answers name their tokens in different ways")
    return answers[0][0], [answer for _, answer in answers]
