"""From a sweep's engine to a server that is there: started or found, asked what it is, stopped afterwards."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any

from benchbench.datasets.corpus import corpus_words
from benchbench.engines.direct_job import make_direct_job
from benchbench.engines.log_backends import chosen_backends
from benchbench.engines.process import EngineProcess, Hooks
from benchbench.engines.running_texts import running_texts
from benchbench.engines.same_servers import naming, together
from benchbench.engines.token_lengths import (
    WORDS,
    Fitted,
    exact_texts,
    find_counter,
    fit_mean,
    fit_vocabulary,
    vocabulary_range,
)
from benchbench.errors import EngineError
from benchbench.loadgen.job import Job
from benchbench.openai.client import Capabilities, attach, post
from benchbench.openai.target import GENERATION, Access, Target, leaves_path_open, make_target, untimed_body
from benchbench.prompts.dealing_out import dealt_out
from benchbench.prompts.prefix_groups import block_notes
from benchbench.prompts.prompt_dealer import Dealer
from benchbench.prompts.round_job import Source, Texts, make_job
from benchbench.prompts.text_fitting import TextFitter, fit_ids
from benchbench.spec import Cell, EndpointEngine, Plan, SimulatorEngine, VllmServeEngine
from benchbench.spec.engine_sections import CACHE_VARIABLES
from benchbench.stopping import unless_stopped

PROBE_S = 120.0  # a first generation may compile kernels


@dataclass(frozen=True, slots=True)
class Opened:
    """An engine to send requests to; `url` is empty where it is in the worker's own process.

    `others`: further servers that share the load, of which `pinned` ones keep their places in flight.

    `vocab`: token ids for prompts lie in [low, high). `texts`: makes text prompts of exact length, where the plan has
    any. `notes`: what was found out about lengths. `watch`, where the engine is ours: a descriptor that is readable
    when something happened to it, and the question why it is gone (None while it lives). `start`: facts of its start.
    """

    url: str
    vocab: tuple[int, int] | None
    texts: Texts | None = None
    access: Access = field(default_factory=Access)
    capabilities: Capabilities = field(default_factory=Capabilities)
    notes: tuple[str, ...] = ()
    text_overhead: int = 0
    approximate: bool = False  # texts have about the length asked for
    watch: tuple[int, Callable[[], str | None]] | None = None
    start: Mapping[str, Any] = field(default_factory=dict)
    others: tuple[str, ...] = ()
    pinned: bool = False
    running: TextFitter | None = None  # makes exact texts of the corpus and of a file's prompts, where the plan has any
    dealer: Dealer | None = None  # of the prompts of files
    salt: int = 0  # of prompts, where nobody could see that the server still has an earlier run's in its prefix cache

    @property
    def urls(self) -> tuple[str, ...]:
        """The addresses of all its servers; none of one without."""
        return (self.url, *self.others) if self.url else ()

    def common_tokens(self, cell: Cell) -> int:
        """Tokens that all prompts of a cell have in common by their form, and a prefix cache may know."""
        of_file = self.dealer if cell.prompts.kind == "file" else None
        kind = of_file.kind(cell) if of_file else cell.prompts.kind
        return 0 if kind == "token_ids" else self.text_overhead

    def targets(self, cell: Cell) -> list[Target]:
        """Where a cell's requests go, with the credentials that they need."""
        return [make_target(url, cell.engine.api, self.access) for url in self.urls]

    def job(self, cell: Cell, phase: str, number: int, attempt: int, output: int | None = None) -> Job:
        """A round's work for the worker; `output` overrides the cell's. Raises EngineError without prompts."""
        source = self.source(cell, phase, number)
        if source is None:
            raise EngineError("no prompts can be made for this cell", "prompts.kind")
        if not self.url:
            return make_direct_job(cell, source, phase, number, attempt, output)
        targets = self.targets(cell)
        job = make_job(cell, targets[0], source, phase, number, attempt, output, self.salt)
        return dealt_out(job, targets, number, pinned=self.pinned)

    def source(self, cell: Cell, phase: str, number: int) -> Source | None:
        """Where the prompts of a round come from. Raises EngineError when a file has none left."""
        kind, running = cell.prompts.kind, self.running
        if kind == "token_ids":
            return self.vocab
        if kind == "corpus" and running:
            return partial(running.corpus_texts, corpus_words(cell.prompts.path, cell.prompts.sha256))
        if kind != "file" or self.dealer is None:
            return self.texts
        dealt, law = self.dealer.take(cell, phase, number), cell.lengths.input
        exact = law is None or law.kind != "file"
        return replace(dealt, fit=running.fit if running else fit_ids) if exact else dealt


@contextlib.contextmanager
def open_engine(plan: Plan, hooks: Hooks) -> Iterator[Opened]:
    """The server of a plan, for as long as the block runs. Raises EngineError."""
    engine = plan.spec.engine
    if isinstance(engine, EndpointEngine):
        yield _attached(engine, plan, hooks.stop)
    elif isinstance(engine, VllmServeEngine):
        with _served(engine, plan, hooks) as opened:
            yield opened
    elif isinstance(engine, SimulatorEngine):
        with _simulator(engine, plan) as url:
            yield _prepared(plan, url, Access(), hooks.stop)


def _attached(engine: EndpointEngine, plan: Plan, stop: int | None) -> Opened:
    """The server, or the servers, that run already."""
    with naming(engine.urls[0], engine):
        access, path_notes = _with_path(engine, plan.spec.model, access_of(engine, _connect_s(plan)), stop)
        opened = _prepared(plan, engine.urls[0], access, stop)
    opened = replace(opened, notes=(*path_notes, *opened.notes))
    if len(engine.urls) == 1:
        return opened
    all_of_them = together(engine, plan, access, opened.capabilities, stop)
    return replace(
        opened,
        capabilities=all_of_them.capabilities,
        notes=(*opened.notes, *all_of_them.notes),
        start={"servers": all_of_them.facts},
        others=engine.urls[1:],
        pinned=engine.routing == "pinned",
    )


def _with_path(engine: EndpointEngine, model: str, access: Access, stop: int | None) -> tuple[Access, list[str]]:
    """The access with the API's path, where a base path leaves it open, and a note: /v1, unless only without it a
    request for one token is answered. Raises EngineError and InterruptedSweep.
    """
    url = engine.urls[0]
    if engine.path is not None or not leaves_path_open(url):
        return access, []
    body = untimed_body(engine, model, "Hi", 1)

    def status(path: str) -> int:
        answer = post(url, replace(access, path=path), GENERATION[engine.api], body, PROBE_S)
        return asyncio.run(unless_stopped(stop, answer))[0]

    with contextlib.suppress(OSError):
        if status("/v1") == HTTPStatus.NOT_FOUND and status("/") == HTTPStatus.OK:
            note = "the API stands under the url itself, without /v1, as engine.path: / would say"
            return replace(access, path="/"), [note]
    return access, []


def _prepared(plan: Plan, url: str, access: Access, stop: int | None) -> Opened:
    """Ask the server what it is, and find out how prompts get their exact lengths."""
    model = plan.spec.model
    capabilities = attach(url, model, access, stop)
    notes, vocab, texts, overhead, exact = list(capabilities.notes), None, None, 0, True
    if capabilities.reset_prefix_cache is False and any(cell.rounds.reset_prefix_cache for cell in plan.cells):
        notes.append("rounds.reset_prefix_cache: the server has no such route (vLLM has it in its development mode)")
    notes += block_notes(plan, capabilities.cache_config or {})
    ids = next((cell for cell in plan.cells if cell.prompts.kind == "token_ids"), None)
    if ids is not None:
        vocab = ids.prompts.vocab
        if vocab is None and (vocab := vocabulary_range(url, model, access, ids.prompts.tokenizer)):
            notes.append(f"prompt token ids are drawn from {vocab[0]} to {vocab[1] - 1}, as the tokenizer told")
        if vocab is None:
            message = "is required: neither the server (POST /tokenize) nor a tokenizer tells its vocabulary"
            raise EngineError(message, "prompts.vocab", allowed="[low, high), or prompts.kind: text")
    asks = plan.spec.fidelity != "off"  # its questions are random words where prompts are of a text
    text = next((cell for cell in plan.cells if cell.prompts.kind == "text" or (asks and cell.prompts.sha256)), None)
    if text is not None:
        fitted, how, exact = _fitted(text, url, access)
        texts, overhead = partial(exact_texts, fitted), fitted.overhead
        notes.append(how)
    dealer = Dealer(plan.spec)
    running, how, least = running_texts(plan.cells, url, access, dealer)
    notes += [how] if how else []
    opened = Opened(url, vocab, texts, access, capabilities, tuple(notes), overhead or least, approximate=not exact)
    return replace(opened, running=running, dealer=dealer)


def _fitted(cell: Cell, url: str, access: Access) -> tuple[Fitted, str, bool]:
    """Words of known lengths, a sentence that says by whom they were counted, and whether lengths are exact."""
    try:
        counter = find_counter(url, access, cell.engine, cell.model, cell.prompts.tokenizer)
    except EngineError as error:
        if error.gone:
            raise
        note = f"lengths of text prompts are not exact, about one token a word: {error}"
        return Fitted(tuple(WORDS), 0, WORDS[0]), note, False
    try:
        fitted = fit_vocabulary(counter.count, WORDS)
    except EngineError as error:
        if error.gone:
            raise
        fitted = fit_mean(counter.count, WORDS)
        mean = f"a word is {fitted.word_tokens:.2f} tokens on average, counted by {counter.how}"
        return fitted, f"lengths of text prompts are not exact ({error.message}): {mean}", False
    how = (
        f"text prompts have exact lengths, counted by {counter.how}: {len(fitted.words)} words of one token each, "
        f"{fitted.overhead} tokens besides (template, BOS, first word)"
    )
    return fitted, how, True


def start_facts(env: Mapping[str, Any], process: EngineProcess, ready_s: float) -> dict[str, Any]:
    """What the manifest says of an engine that we launched; `log` is relative to the run's folder."""
    return {
        "pid": process.pid,
        "env": env,
        "log": f"{process.log.parent.name}/{process.log.name}",
        "ready_s": ready_s,
        "backends": chosen_backends(process.text()),
        "ranks": list(process.ranks.values()),
        "fresh_caches": list(CACHE_VARIABLES) if process.scratch else [],
    }


def _connect_s(plan: Plan) -> float:
    return min((cell.timeouts.connect_s for cell in plan.cells), default=10.0)


@contextlib.contextmanager
def _served(engine: VllmServeEngine, plan: Plan, hooks: Hooks) -> Iterator[Opened]:
    from benchbench.engines.vllm import serve

    with serve(engine, plan.spec.model, hooks, _connect_s(plan)) as served:
        opened, process = _prepared(plan, served.url, served.access, hooks.stop), served.process
        start = {**start_facts(engine.env, process, served.ready_s), "argv": list(served.argv)}
        yield replace(opened, watch=(process.events_fd, process.died), start=start)


@contextlib.contextmanager
def _simulator(engine: SimulatorEngine, plan: Plan) -> Iterator[str]:
    from benchbench.engines.simulator import ProfileError, SimulatorError, SimulatorProcess

    models = sorted({cell.model for cell in plan.cells}) or [plan.spec.model]
    start = plan.sessions[0]
    try:
        with SimulatorProcess(
            engine.profile,
            scale=engine.scale,
            port=engine.port,
            options=engine.options,
            models=models,
            start="" if start.block is None else f"{start.variant}/{start.block}",
        ) as process:
            yield process.url
    except ProfileError as error:
        raise EngineError(str(error), "engine.profile") from None
    except SimulatorError as error:
        raise EngineError(str(error), "engine", gone=True) from None


def access_of(engine: EndpointEngine, connect_s: float) -> Access:
    """Credentials from the environment; nothing of them is in the sweep file. Raises EngineError."""
    headers = {}
    for name, variable in engine.headers_env.items():
        if variable not in os.environ:
            raise EngineError(f"the environment variable {variable} is not set", f"engine.headers_env.{name}")
        headers[name] = os.environ[variable]
    if engine.api_key_env:
        if not (key := os.environ.get(engine.api_key_env)):
            raise EngineError(f"the environment variable {engine.api_key_env} is not set", "engine.api_key_env")
        headers["Authorization"] = f"Bearer {key}"
    for name, value in headers.items():
        if not value.isprintable():
            ours = name == "Authorization" and name not in engine.headers_env
            key = "engine.api_key_env" if ours else f"engine.headers_env.{name}"
            raise EngineError("its value holds characters that no HTTP header may", key)
    if engine.ca_file is not None and not Path(engine.ca_file).is_file():
        raise EngineError(f"no such file: {engine.ca_file}", "engine.ca_file")
    return Access(headers, engine.ca_file, engine.insecure, engine.proxy, connect_s, engine.path)
