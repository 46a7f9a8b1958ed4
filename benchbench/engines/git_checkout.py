"""A variant's source: one commit of a git repository, checked out and built in a cache folder of our own.

    $XDG_CACHE_HOME/benchbench/git/NAME-HASH/    one for each repository
        mirror.git         its branches and tags, and what else was asked for
        lock               held by whoever fetches or builds here
        COMMIT-HASH/       a worktree of the mirror; HASH is that of the build commands
        COMMIT-HASH.log    what building it said; there once it is built

The repository itself is only read. Git runs without hooks and asks nothing.
"""

from __future__ import annotations

import contextlib
import difflib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from benchbench.engines.log_diagnosis import plain
from benchbench.engines.process import EngineProcess, Hooks
from benchbench.engines.vllm import Launched
from benchbench.errors import EngineError, MovedRefError
from benchbench.host.local_results import store_path
from benchbench.secrets import mask_text, masked, secrets_of
from benchbench.spec import Git, Variant, VllmServeEngine
from benchbench.spec.plan import NOT_IN_KEY
from benchbench.store.run_directory import replace_file

DIFF_BYTES = 1 << 20  # of a checkout's own changes, more are cut off
STATUS_LINES = 200
GRACE_S = 3.0  # for a build that is given up

_SETTINGS = (
    *("core.hooksPath=/dev/null", "core.fsmonitor=false", "gc.auto=0", "maintenance.auto=false"),
    *("diff.autoRefreshIndex=false", "submodule.recurse=false", "protocol.version=2"),  # 2: any commit can be fetched
)
_GIT = ("git", *(word for setting in _SETTINGS for word in ("-c", setting)))
_QUIET = {"GIT_TERMINAL_PROMPT": "0", "GIT_ASKPASS": "true", "SSH_ASKPASS_REQUIRE": "never"}
_READ_ONLY = {"GIT_OPTIONAL_LOCKS": "0", "GIT_NO_LAZY_FETCH": "1"}
_ACCESS = ("GIT_SSH", "GIT_SSL_", "GIT_PROXY_", "GIT_CONFIG_GLOBAL", "GIT_CONFIG_SYSTEM", "GIT_CONFIG_NOSYSTEM")
_SHA = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_REMOTE = re.compile(r"[\w+.-]+://|[^/:]+:")  # a URL, or HOST:PATH as ssh takes it


@dataclass(frozen=True, slots=True)
class Checkout:
    """A built commit. `dirty`, `diff`: changes of the user's own checkout, which are not in it (`git status` lines)."""

    path: Path
    commit: str
    ref: str
    repo: str
    dirty: tuple[str, ...]
    diff: str
    log: Path
    committed_ns: int | None = None

    @property
    def facts(self) -> dict[str, Any]:
        """For the manifest."""
        facts: dict[str, Any] = {"repo": self.repo, "ref": self.ref, "commit": self.commit, "dirty": list(self.dirty)}
        facts |= {} if self.committed_ns is None else {"committed_ns": self.committed_ns}
        return dict(masked({**facts, "path": str(self.path), "log": f"{self.log.parent.name}/{self.log.name}"}))


def checkout(git: Git, name: str, hooks: Hooks, measured: str | None = None) -> Checkout:
    """The commit that `git.ref` names now, built. `measured`: the commit that variant `name` has been measured at.

    Git and the build commands log into `hooks.logs`/build-NAME.log. Raises EngineError, MovedRefError when that is no
    longer the commit, LaunchStoppedError when `hooks.stop` becomes readable, OSError when a folder can't be written to.
    """
    work, theirs, repo = _work(git, name, hooks)
    with work.locked():
        commit = work.commit(theirs)
        if measured not in {None, commit}:
            raise MovedRefError(f"{git.ref} is now at {commit}, this run measured {measured}", f"{work.key}.ref")
        path = work.built(commit)
    dated = _read([*work.mirror, "rev-list", "--max-count=1", "--timestamp", commit]).stdout.split()
    committed_ns = int(dated[0]) * 10**9 if dated else None
    return Checkout(path, commit, git.ref, repo, *(_changes(theirs) if theirs else ((), "")), work.log, committed_ns)


class Commit(NamedTuple):
    """A commit: name in full, its author's day (YYYY-MM-DD), its first line. `within`: it touches the paths."""

    sha: str
    date: str
    subject: str
    within: bool = True


def commits_between(
    git: Git, good: str, bad: str, name: str, hooks: Hooks, paths: Sequence[str] = ()
) -> tuple[Commit, tuple[Commit, ...]]:
    """The commit of `good`, and those after it up to `bad`, the eldest first; of merges only first parents.

    Nothing is built; `git.ref` is not looked at. Raises as `checkout`, and EngineError where good is no first parent.
    """
    works = [_work(git.model_copy(update={"ref": ref}), name, hooks) for ref in (good, bad)]
    mirror = works[0][0].mirror
    with works[0][0].locked():
        first, last = (work.commit(theirs) for work, theirs, _ in works)
        form, chain = "--format=%H%x00%as%x00%s", (f"{first}..{last}",)
        base = _lines([*mirror, "log", "-1", form, first])[0].split("\0", 2)
        lines = [line.split("\0", 2) for line in _lines([*mirror, "log", "--first-parent", "--reverse", form, *chain])]
        touching = {*_lines([*mirror, "log", "--first-parent", "--format=%H", *chain, "--", *paths])}
        parent = _commit(mirror, f"{lines[0][0]}^1") if lines else None
    if parent != first:
        turned = not lines and first != last
        why = f"{bad} comes before {good}: swap them" if turned else f"{good} is not among the first parents of {bad}"
        raise EngineError("good and bad are the same commit" if first == last else why, f"variants.{name}.git")
    if not touching:
        raise EngineError(f"no commit between {good} and {bad} touches {', '.join(paths)}", f"variants.{name}.git")
    return Commit(base[0], base[1], base[2]), tuple(
        Commit(sha, date, text, sha in touching) for sha, date, text in lines
    )


def _lines(argv: Sequence[str]) -> list[str]:
    return _read(argv).stdout.decode(errors="replace").splitlines()


def _work(git: Git, name: str, hooks: Hooks) -> tuple[_Work, list[str] | None, str]:
    """What fetching and building needs, git in the user's repository where that is on this host, and its name."""
    key = f"variants.{name}.git"
    if shutil.which("git") is None:
        raise EngineError("git is not installed", key)
    hooks.logs.mkdir(parents=True, exist_ok=True)
    local = not _REMOTE.match(git.repo)
    repo = str(Path(git.repo).expanduser().absolute()) if local else git.repo
    theirs = [*_GIT, "-C", repo] if local else None
    source = str(_common_folder(repo, theirs, key)) if theirs else repo
    stem = source.rstrip("/").removesuffix("/.git").removesuffix(".git")
    label = re.sub(r"[^\w.-]", "-", re.split(r"[/:]", stem)[-1])
    folder = store_path("git").absolute() / f"{label}-{_hash(source)}"
    folder.mkdir(parents=True, exist_ok=True)
    return _Work(git, name, hooks, key, folder, source, hooks.logs / f"build-{name}.log"), theirs, repo


def built_alike(variants: Mapping[str, Variant]) -> list[str]:
    """Variants that are asked for alike, or built from the same files as things stand, in sentences; only repositories
    on this host count.

    What is built of a ref is the tree of its commit: two commits may have the same.
    """
    same: dict[tuple[str, tuple[str, ...]], list[tuple[str, str]]] = {}
    for name, variant in variants.items() if shutil.which("git") else ():
        if (git := variant.git) is None or _REMOTE.match(git.repo) or not Path(git.repo).expanduser().is_dir():
            continue
        where = [*_GIT, "-C", str(Path(git.repo).expanduser())]
        commit = _commit(where, git.ref)
        tree = commit and _read([*where, "rev-parse", f"{commit}^{{tree}}"]).stdout.decode().strip()
        if commit and tree:
            same.setdefault((tree, git.build), []).append((name, f"{git.ref} (commit {commit[:12]})"))
    alike_names: dict[str, list[str]] = {}
    for name, variant in variants.items():
        engine = {key: value for key, value in variant.engine.items() if key not in NOT_IN_KEY}
        alike_names.setdefault("" if variant.git else repr(sorted(engine.items())), []).append(name)
    sentences = [
        f"variants {' and '.join(names)} are the same: a build is compared with itself"
        for key, names in alike_names.items()
        if key and len(names) > 1
    ]
    for group in same.values():
        if len(group) > 1:
            names, refs = zip(*group, strict=True)
            alike = " have the same files" if len(set(refs)) > 1 else ""
            sentences.append(
                f"variants {' and '.join(names)} build the same code: {' and '.join(dict.fromkeys(refs))}{alike}"
            )
    return sentences


def moved_into(engine: Launched, folder: Path) -> Launched:
    """The engine as it starts in a checkout: `cwd`, `venv`, `python` and files of `command` are looked for there.

    A word of `command` is one of its files when it has a slash and there is such a file.
    """

    def inside(path: str) -> str:
        return str(folder / Path(path).expanduser())

    changes: dict[str, Any] = {"cwd": inside(engine.cwd or ".")}
    if engine.venv is not None:
        changes["venv"] = inside(engine.venv)
    if engine.python is not None and "/" in engine.python:
        changes["python"] = inside(engine.python)
    if isinstance(engine, VllmServeEngine) and engine.command is not None:
        words = [inside(word) if "/" in word and (folder / word).exists() else word for word in engine.command]
        changes["command"] = tuple(words)
    return engine.model_copy(update=changes)


@dataclass(slots=True)
class _Work:
    """What fetching and building have in common."""

    git: Git
    name: str
    hooks: Hooks
    key: str
    folder: Path
    source: str
    log: Path
    begun: float = field(default_factory=time.monotonic)

    @property
    def mirror(self) -> list[str]:
        return [*_GIT, f"--git-dir={self.folder / 'mirror.git'}"]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One at a time fetches or builds from this repository."""
        with (self.folder / "lock").open("w") as file:
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    line = "another run fetches or builds from this repository"
                    self.hooks.turn(f"building {self.name}", self.begun, line)
            yield

    def commit(self, theirs: Sequence[str] | None) -> str:
        """The commit of the ref, as the user's repository (`theirs`: git in it) or the URL has it; it is here then."""
        ref = self.git.ref
        if theirs is not None:
            commit = _commit(theirs, ref)
            if commit is not None and not _commit(self.mirror, commit):
                self._fetch(commit)
        elif _SHA.fullmatch(ref) and _commit(self.mirror, ref):
            return ref  # a commit's full name needs no look there once it is here
        else:
            self._fetch()
            commit = _commit(self.mirror, ref)
            if commit is None and not ref.startswith("-") and self._git("fetch", "--", self.source, ref) is None:
                commit = _commit(self.mirror, "FETCH_HEAD")  # HEAD, refs/pull/1/head, or a commit of no branch
        if commit is None:
            raise self._unknown(theirs or self.mirror)
        return commit

    def _fetch(self, *commits: str) -> None:
        if not (self.folder / "mirror.git").exists():
            for words in (["init", "--quiet", "--bare", "--template="], ["symbolic-ref", "HEAD", "refs/none"]):
                done = _read([*self.mirror, *words])  # its HEAD is none that a ref could mean
                if done.returncode:
                    raise EngineError(f"git {words[0]} failed: {_reason(done.stderr)}", self.key)
        every = ("+refs/heads/*:refs/heads/*", "+refs/tags/*:refs/tags/*")
        failed = self._git("fetch", "--progress", "--prune", "--update-shallow", "--", self.source, *every, *commits)
        if failed is not None:
            raise EngineError(f"cannot be fetched: {failed}", f"{self.key}.repo", gone=not commits)

    def built(self, commit: str) -> Path:
        """The commit's worktree, built; one that was not finished is made anew."""
        tree = self.folder / f"{commit[:12]}-{_hash(json.dumps(self.git.build))}"
        done = tree.with_name(f"{tree.name}.log")
        if done.exists() and tree.is_dir():
            with self.log.open("ab") as log:
                log.write(done.read_bytes())
            return tree
        done.unlink(missing_ok=True)
        shutil.rmtree(tree, ignore_errors=True)
        start = self.log.stat().st_size if self.log.exists() else 0
        failed = self._git("worktree", "add", "--force", "--detach", str(tree), commit)
        if failed is None and (tree / ".gitmodules").exists():
            where = [*_GIT, "-c", f"remote.origin.url={self._origin()}", "-C", str(tree)]
            failed = self._git("submodule", "update", "--init", "--recursive", "--progress", where=where)
        if failed is not None:
            raise EngineError(f"cannot be checked out: {failed}", self.key)
        for command in self.git.build:
            self._build(command, tree)
        replace_file(done, self.log.read_bytes()[start:])
        return tree

    def _origin(self) -> str:
        """What relative URLs of submodules are relative to: where the user's repository is from, else itself."""
        if _REMOTE.match(self.git.repo):
            return self.git.repo
        folder = str(Path(self.git.repo).expanduser().absolute())
        return _read([*_GIT, "-C", folder, "config", "remote.origin.url"]).stdout.decode().strip() or folder

    def _build(self, command: str, tree: Path) -> None:
        code, tail = self._run(["/bin/sh", "-c", command], tree, _environment())
        if code != 0:
            last = f": {tail[-1]}" if tail else ""
            message = f"`{mask_text(command)}` failed (exit code {code}){last}"
            raise EngineError(message, f"{self.key}.build", lines=(*tail, f"whole log: {self.log}"))

    def _git(self, *words: str, where: Sequence[str] = ()) -> str | None:
        """A command of git that may take long, in the mirror if not elsewhere: why it failed, None if it did not."""
        code, tail = self._run([*(where or self.mirror), *words], self.folder, _environment() | _READ_ONLY)
        return None if code == 0 else _reason("\n".join(tail).encode())

    def _run(self, argv: Sequence[str], cwd: Path, env: dict[str, str]) -> tuple[int | None, list[str]]:
        """A command's exit code and last lines; nothing that it has started is left."""
        command = " ".join(("git", *argv[len(_GIT) :]) if argv[0] == "git" else argv[2:])
        with self.log.open("ab") as log:
            log.write(mask_text(f"$ {command}\n", secrets_of(env)).encode(errors="replace"))
        with EngineProcess(argv, env, cwd, self.log, grace_s=GRACE_S) as process:
            while process.died() is None:
                self.hooks.turn(f"building {self.name}", self.begun, process.last_line(), [process.events_fd])
        return process.code, [plain(line) for line in process.tail(10)]

    def _unknown(self, where: Sequence[str]) -> EngineError:
        """The error for a ref that there is not, with names that are like it, or else the youngest."""
        form = "--format=%(refname:lstrip=2)"
        done = _read([*where, "for-each-ref", "--sort=-committerdate", form, "refs/heads", "refs/tags", "refs/remotes"])
        names = done.stdout.decode(errors="replace").split()
        some = difflib.get_close_matches(self.git.ref, names, 6) or names[:6]
        more = f" and {len(names) - len(some)} more" if len(names) > len(some) else ""
        message = f"no commit has this name in {mask_text(self.git.repo)}: {self.git.ref}"
        return EngineError(message, f"{self.key}.ref", allowed=", ".join(some) + more)


def _commit(where: Sequence[str], ref: str) -> str | None:
    if ref.startswith("-"):
        return None
    done = _read([*where, "rev-parse", "--verify", "--quiet", f"{ref}^{{commit}}"])
    return done.stdout.decode().strip() if done.returncode == 0 else None


def _environment() -> dict[str, str]:
    """Ours, without what leads git to another repository than that of its folder."""
    kept = {name: value for name, value in os.environ.items() if name.startswith(_ACCESS) or name[:4] != "GIT_"}
    return kept | _QUIET


def _read(argv: Sequence[str]) -> subprocess.CompletedProcess[bytes]:
    """A git command that is quick and changes nothing of the user's; in a session of its own, out of Ctrl-C's way."""
    env = _environment() | _READ_ONLY
    return subprocess.run(
        argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, check=False, start_new_session=True
    )


def _common_folder(folder: str, where: Sequence[str], key: str) -> Path:
    """Where a repository on this host keeps its objects, the same for all its worktrees."""
    if not Path(folder).is_dir():
        raise EngineError(f"no such folder: {folder}", f"{key}.repo")
    done = _read([*where, "rev-parse", "--git-common-dir"])
    if done.returncode:
        raise EngineError(f"is not a git repository that can be read: {_reason(done.stderr)}", f"{key}.repo")
    return (Path(folder) / os.fsdecode(done.stdout.rstrip(b"\n"))).resolve()


def _changes(where: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """What the user has changed and not committed: lines of `git status`, and the diff. A bare repository has none."""
    status = _read([*where, "status", "--porcelain"]).stdout.decode(errors="replace").splitlines()
    if not status:
        return (), ""
    data = _read([*where, "diff", "--no-ext-diff", "--no-textconv", "--no-color", "HEAD"]).stdout[:DIFF_BYTES]
    if len(status) > STATUS_LINES:
        status[STATUS_LINES:] = [f"... and {len(status) - STATUS_LINES} more"]
    return tuple(status), mask_text(data.decode(errors="replace"), secrets_of(os.environ))


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _reason(output: bytes) -> str:
    """The line that says why git failed: its first error, else its last line."""
    lines = [mask_text(line) for line in output.decode(errors="replace").splitlines() if line.strip()]
    return next((line for line in lines if line.startswith(("fatal:", "error:"))), lines[-1] if lines else "no reason")
