"""From a sweep's engine to a server that is there: started or found, asked what it is, stopped afterwards."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from benchbench.engines.endpoint import Access, Capabilities, EngineError, attach
from benchbench.spec import EndpointEngine, Plan, SimulatorEngine
from benchbench.spec.values import base_url


@dataclass(frozen=True, slots=True)
class Opened:
    """A server to send requests to. `vocab`: token ids for prompts lie in [low, high)."""

    url: str
    vocab: tuple[int, int]
    access: Access = field(default_factory=Access)
    capabilities: Capabilities = field(default_factory=Capabilities)


@contextlib.contextmanager
def open_engine(plan: Plan, meanwhile: Callable[[], None] = lambda: None) -> Iterator[Opened]:
    """The server of a plan, for as long as the block runs; `meanwhile` is called while one of ours starts.

    Raises EngineError.
    """
    engine = plan.spec.engine
    if isinstance(engine, EndpointEngine):
        access = _access(engine, min((cell.timeouts.connect_s for cell in plan.cells), default=10.0))
        if plan.spec.prompts.kind == "token_ids" and plan.spec.prompts.vocab is None:
            message = "is required: this version does not ask an endpoint for its vocabulary"
            raise EngineError(message, "prompts.vocab", allowed="[low, high)")
        meanwhile()
        found = attach(base_url(engine.url), plan.spec.model, access)
        yield Opened(engine.url, plan.spec.prompts.vocab or (0, 1), access, found)
    else:
        with _simulator(engine, plan, meanwhile) as opened:
            yield opened


@contextlib.contextmanager
def _simulator(engine: SimulatorEngine, plan: Plan, meanwhile: Callable[[], None]) -> Iterator[Opened]:
    from benchbench.engines.simulator import ProfileError, SimulatorError, SimulatorProcess, load_profile

    models = sorted({cell.model for cell in plan.cells})
    try:
        size = load_profile(engine.profile, engine.options).vocab_size
        process = SimulatorProcess(
            engine.profile, scale=engine.scale, port=engine.port, options=engine.options, models=models
        )
        process.launch()
        try:
            meanwhile()
            process.listening()
            vocab = plan.spec.prompts.vocab or (min(1000, size // 2), size)
            yield Opened(process.url, vocab, capabilities=attach(process.url, plan.spec.model, Access()))
        finally:
            process.close()
    except ProfileError as error:
        raise EngineError(str(error), "engine.profile") from None
    except SimulatorError as error:
        raise EngineError(str(error), "engine", gone=True) from None


def _access(engine: EndpointEngine, connect_s: float) -> Access:
    """Credentials from the environment; nothing of them is in the sweep file."""
    headers = {}
    for name, variable in engine.headers_env.items():
        if variable not in os.environ:
            raise EngineError(f"the environment variable {variable} is not set", f"engine.headers_env.{name}")
        headers[name] = os.environ[variable]
    if engine.api_key_env and (key := os.environ.get(engine.api_key_env)):
        headers["Authorization"] = f"Bearer {key}"
    for name, value in headers.items():
        if not value.isprintable():
            raise EngineError("its value holds characters that no HTTP header may", f"engine.headers_env.{name}")
    if engine.ca_file is not None and not Path(engine.ca_file).is_file():
        raise EngineError(f"no such file: {engine.ca_file}", "engine.ca_file")
    return Access(headers, engine.ca_file, engine.insecure, engine.proxy, connect_s)
