"""`bench eval`: lm-eval run against each variant's server, as a sweep starts it, and its results kept."""

from __future__ import annotations

import json
import os
import re
import shutil
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from benchbench.accuracy.results import MANIFEST, copy_results
from benchbench.engines.git_checkout import checkout, moved_into
from benchbench.engines.open import Opened, open_engine
from benchbench.engines.process import EngineProcess, Hooks
from benchbench.errors import EngineError, RunError
from benchbench.host.environment import environment, spec_hash
from benchbench.measure.observer import Observer
from benchbench.openai.target import GENERATION, address_of
from benchbench.secrets import mask_text, masked
from benchbench.spec import EndpointEngine, Plan, Session, SweepSpec, VllmInprocessEngine, VllmServeEngine, make_plan
from benchbench.store.run_directory import replace_file

Task = tuple[str, int | None]  # lm-eval's name, and the number of shots (None: the task's own)

TASKS: tuple[Task, ...] = (("mmlu", 5), ("gsm8k", 8))
TIMEOUT_S = 1800  # of one request: lm-eval's 300 s are few for answers that begin with reasoning
_WARNED = {
    "Left truncating context": "prompts cut to max_length",
    "API returned null content": "empty answers (all of it reasoning?)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluationRequest:
    """What to evaluate. `limit`: questions of each task, or their share below 1. `model_args`: further ones of lm-eval.

    `results`: by a side's name, existing results of lm-eval. `published`: scores of the side `base`, as "NAME=SCORE".
    `metrics`: by task, the metric that counts.
    """

    tasks: tuple[Task, ...] = TASKS
    limit: float | None = None
    include_path: Path | None = None
    concurrent: int = 32
    model_args: Mapping[str, Any] = field(default_factory=dict)
    program: str = "lm_eval"
    results: Mapping[str, Path] = field(default_factory=dict)
    published: tuple[str, ...] = ()
    metrics: Mapping[str, str] = field(default_factory=dict)
    base: str | None = None


@dataclass(slots=True)
class EvaluationRun:
    """One evaluation on disk. `stop`: when this descriptor becomes readable, the run is cancelled.

    `runs`: by side and task, its command and, where it failed, why (`failed`).
    """

    spec: SweepSpec | None
    request: EvaluationRequest
    out: Path
    observer: Observer
    stop: int | None = None
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: dict[str, dict[str, Any]] = field(default_factory=dict)

    def run_tasks(self) -> list[str]:
        """Run each task without results in the folder; returns a message for each failure.

        So the same call continues what was interrupted. Raises EngineError (no engine, or no lm-eval), RunError
        (folder of another evaluation), LaunchStoppedError, ValueError (unreadable results) and OSError.
        """
        starts: dict[str, Session] = {}
        for start in make_plan(self.spec).sessions if self.spec else ():
            starts.setdefault(start.variant or self._name, start)
        program = _program(self.request.program) if starts else ""
        names = [*self.request.results, *starts]
        if len({_file_name(name) for name in names}) < len(names):
            raise ValueError(f"two sides share a name: {', '.join(names)}")
        if self.request.base not in {None, *names} and not self.request.published:
            raise ValueError(f"--base {self.request.base}: unknown side (allowed: {', '.join(names)})")
        self._open(names)
        for name, path in self.request.results.items():
            copy_results(path, self._folder(name))
        for name, start in starts.items():
            todo = [task for task in self.request.tasks if not self._target(name, task).exists()]
            try:
                if todo:
                    self._side(name, start, todo, program)
            except EngineError as error:
                if len(starts) == 1:
                    raise
                self.runs[name] = {"failed": str(error)}
                self.observer.note(f"{name} skipped: {error}")
            finally:
                self._write(names)
        return [f"{what}: {run['failed']}" for what, run in self.runs.items() if "failed" in run]

    # ---- The folder -----------------------------------------------------------------------------------------

    @property
    def _name(self) -> str:
        return self.spec.name if self.spec else self.out.name

    @property
    def _terms(self) -> dict[str, Any]:
        """What results in one folder must have in common."""
        sha = spec_hash(masked(self.spec.model_dump(mode="json"))) if self.spec else None
        return {"spec_sha256": sha, "limit": self.request.limit, "model_args": masked(dict(self.request.model_args))}

    def _folder(self, side: str) -> Path:
        return self.out / "results" / _file_name(side)

    def _target(self, side: str, task: Task) -> Path:
        return self._folder(side) / _file_name(_label(task))

    def _open(self, names: list[str]) -> None:
        path = self.out / MANIFEST
        if path.is_file():
            earlier = json.loads(path.read_bytes())
            if unlike := [key for key, value in self._terms.items() if earlier[key] != value]:
                raise RunError(f"{self.out}: holds another evaluation ({unlike[0]} differs): use another --out")
            self.runs = {what: run for what, run in earlier["runs"].items() if "failed" not in run}
            self.engines = earlier["engines"]
        elif self.out.is_dir() and any(self.out.iterdir()):
            raise RunError(f"{self.out}: the folder is not empty and holds no evaluation")
        self.out.mkdir(parents=True, exist_ok=True)
        self._write(names)

    def _write(self, names: list[str]) -> None:
        request, spec = self.request, self.spec
        own = (spec.baseline or next(iter(spec.variants), None)) if spec else None
        about = {
            "name": self._name,
            "created_ns": time.time_ns(),
            "base": request.base or ("published" if request.published else own or names[0]),
            "sides": {name: str(self._folder(name).relative_to(self.out)) for name in names},
            "published": list(request.published),
            "metrics": dict(request.metrics),
            "tasks": [_label(task) for task in request.tasks] if spec else [],
            **self._terms,
            "spec": masked(spec.model_dump(mode="json")) if spec else None,
            "runs": self.runs,
            "engines": self.engines,
            **environment(),
        }
        replace_file(self.out / MANIFEST, json.dumps(about, indent=2, default=str).encode() + b"\n")

    # ---- One variant ----------------------------------------------------------------------------------------

    def _side(self, name: str, start: Session, todo: list[Task], program: str) -> None:
        """One start of a variant, and its tasks one after the other."""
        assert self.spec  # noqa: S101 - what has a start has a sweep
        hooks = Hooks(self.out / "logs", self.observer.starting, self.stop)
        spec = Plan(self.spec, ()).of_session(start).spec
        if isinstance(spec.engine, VllmInprocessEngine):
            raise EngineError("lm-eval needs an HTTP engine", "engine.kind", allowed="endpoint, vllm_serve, simulator")
        if start.variant and (git := self.spec.variants[start.variant].git):
            source = checkout(git, start.variant, hooks)
            self.engines[name] = source.facts
            if isinstance(spec.engine, VllmServeEngine):
                spec = spec.model_copy(update={"engine": moved_into(spec.engine, source.path)})
        with open_engine(Plan(spec, (replace(start, cells=()),)), hooks) as opened:  # no cells: no prompts of ours
            facts = {"engine": asdict(opened.capabilities), "start": masked(dict(opened.start))}
            self.engines[name] = {**self.engines.get(name, {}), **facts}
            for task in todo:
                argv = [program, *self._words(spec, opened, task)]
                self._task(f"{name}/{_label(task)}", opened, hooks, argv, self._target(name, task))

    def _words(self, spec: SweepSpec, opened: Opened, task: Task) -> list[str]:
        """lm-eval's arguments; its results come into the folder `partial`."""
        request, (name, shots) = self.request, task
        args = {**model_args(spec, opened), "num_concurrent": request.concurrent, **request.model_args}
        chat = spec.engine.api == "chat"
        words = ["--model", "local-chat-completions" if chat else "local-completions"]
        words += ["--model_args", json.dumps(args), "--tasks", name]
        words += ["--output_path", str(self.out / "partial"), "--log_samples", *(["--apply_chat_template"] * chat)]
        words += [] if shots is None else ["--num_fewshot", str(shots)]
        words += [] if request.limit is None else ["--limit", f"{request.limit:g}"]
        return words + ([] if request.include_path is None else ["--include_path", str(request.include_path)])

    def _task(self, what: str, opened: Opened, hooks: Hooks, argv: list[str], target: Path) -> None:
        """One process of lm-eval, which is gone afterwards; its results become `target`.

        Raises EngineError, LaunchStoppedError and OSError.
        """
        partial = self.out / "partial"
        log = hooks.logs / f"eval-{_file_name(what)}.log"
        log.parent.mkdir(exist_ok=True)
        log.unlink(missing_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        begun, watch = time.monotonic(), opened.watch
        with EngineProcess(argv, _environment(opened, api_key(opened)), None, log, grace_s=5.0) as process:
            while process.died() is None:
                watched = [process.events_fd, *(watch[:1] if watch else ())]
                ready = hooks.turn(f"lm-eval {what}", begun, process.last_line(), watched)
                if watch and watch[0] in ready and (why := watch[1]()):
                    raise EngineError(why, "engine", gone=True)
        text = log.read_text(errors="replace")
        notes = [f"{meaning}: {count:,}" for sign, meaning in _WARNED.items() if (count := text.count(sign))]
        run = {"command": masked(argv), "log": f"logs/{log.name}", "notes": notes}
        if process.code == 0 and partial.exists():
            target.parent.mkdir(parents=True, exist_ok=True)
            partial.rename(target)
        else:
            run["failed"] = f"lm-eval ended with exit code {process.code}: {process.last_line() or 'no output'}"
            shutil.rmtree(partial, ignore_errors=True)
        self.runs[what] = run
        self.observer.note(f"{what}: {run['failed']} (whole log: {log})" if "failed" in run else f"{what}: done")


def model_args(spec: SweepSpec, opened: Opened) -> dict[str, Any]:
    """Arguments of lm-eval's model of an OpenAI endpoint. Raises EngineError for a server that they cannot describe."""
    engine, url = spec.engine, opened.url
    where = address_of(url, GENERATION[engine.api], opened.access.path)
    if mask_text(where) != where:
        raise EngineError("lm-eval would write the secret in this address into its results", "engine.url")
    args: dict[str, Any] = {"model": spec.model, "base_url": where, "timeout": TIMEOUT_S}
    if opened.capabilities.max_model_len:
        args["max_length"] = opened.capabilities.max_model_len  # its own default, 2048, cuts 5-shot prompts
    if isinstance(engine, EndpointEngine):
        if engine.proxy:
            raise EngineError("lm-eval does not support a proxy", "engine.proxy")
        args |= {"verify_certificate": False} if engine.insecure else {}
        args |= {"ca_cert_path": engine.ca_file} if engine.ca_file else {}
    tokenizer = spec.prompts.tokenizer
    if tokenizer is None and isinstance(engine, VllmServeEngine):
        named = str(engine.args.get("tokenizer") or engine.args.get("model") or spec.model)
        inside = Path(engine.cwd or ".").expanduser() / named
        tokenizer = str(inside) if inside.exists() else named
    if opened.capabilities.kind == "benchbench simulator":
        args["tokenizer_backend"] = "none"
    elif tokenizer is not None and engine.api == "completions":
        folder = str(Path(tokenizer).parent) if Path(tokenizer).is_file() else tokenizer
        args |= {"tokenizer": folder, "tokenizer_backend": "huggingface"}
    return args


def api_key(opened: Opened) -> str | None:
    """The bearer token, which lm-eval reads from its environment; no other header can be passed on secretly."""
    headers = dict(opened.access.headers)
    scheme, _, key = headers.pop("Authorization", "Bearer ").partition(" ")
    if headers or scheme != "Bearer":
        raise EngineError("lm-eval supports only a bearer token (engine.api_key_env)", "engine.headers_env")
    return key or None


def _environment(opened: Opened, key: str | None) -> dict[str, str]:
    """Ours, with the sweep's key or none (the user's own is for OpenAI), and no proxy on the way to the server."""
    env = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    direct = ",".join(filter(None, [env.get("no_proxy") or env.get("NO_PROXY"), urlsplit(opened.url).hostname]))
    return {**env, "no_proxy": direct, "NO_PROXY": direct, **({"OPENAI_API_KEY": key} if key else {})}


def _program(name: str) -> str:
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    if (program := shutil.which(name, path=path)) is None:
        raise EngineError(f"{name} is not installed: pip install 'lm-eval[api]' transformers, or --lm-eval PATH", "")
    return program


def _label(task: Task) -> str:
    return task[0] if task[1] is None else f"{task[0]}:{task[1]}"


def _file_name(text: str) -> str:
    return re.sub(r"[^\w.-]", "_", text)
