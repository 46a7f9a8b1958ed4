"""What an engine's log says about why it ended. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_ANSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_PREFIX = re.compile(r"^\([\w -]+?(?: rank=\d+)? pid=\d+\) ?")
_LEVEL = re.compile(r"^\[?(DEBUG|INFO|WARNING|ERROR|CRITICAL)\b:?(?: +\d\d-\d\d \d\d:\d\d:\d\d(?: +\[[^\]]*\])?)? ?")
_EXCEPTION = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception)\b(?::|$)")
# They say that something else, further up, was the reason.
_WRAPPER = re.compile(
    r"Engine core initialization failed|Engine process failed|WorkerProc initialization failed|Worker failed with error"
    r"|EngineCore encountered|EngineDeadError|Executor failed|CancelledError|KeyboardInterrupt|Broken pipe"
)
_NOISE = re.compile(
    r"^(?:Traceback|\s|[~^]|usage:|nanobind:|Process \w+:$|\[?[IW]\d{4} |\[W\d)"
    r"|Warning: |Dumping |leaked|Triton is installed"
)
_SOURCE = re.compile(r"^(?: {4}|  File )")  # of a traceback
_PLACE = re.compile(r'File "(?:[^"]*/)?([^"/]+)", line (\d+)')
_LONGEST = 250


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """`reason`: one line, empty if none was found; `key`: the sweep's key that may help; `lines`: the last useful."""

    reason: str
    key: str
    lines: tuple[str, ...]


# What to look for in the log, the more telling first; what to say, {0} being the line and {1} the group; whose fault.
_KNOWN: tuple[tuple[str, str, str], ...] = (
    (r"error: unrecognized arguments: (.*)", "unknown flag {1}", "engine.args"),
    (r"^[\w.-]+(?: serve)?: error: (?:argument )?(.*)", "{1}", "engine.args"),
    (
        r"No module named '?vllm\b",
        "this Python has no vLLM: set engine.venv or engine.python to one that has",
        "engine.python",
    ),
    (r"No module named ('[\w.]+')", "this Python lacks the module {1}", "engine.python"),
    (r"Failed to infer device type", "this build of vLLM finds no device that it supports", "engine.python"),
    (r"No (?:CUDA|HIP) GPUs are available|Found no NVIDIA driver", "no GPU is available: {0}", "engine.env"),
    (r"(\S+\.so[\w.]*: cannot open shared object file)", "a library is missing: {1}", "engine.env"),
    (
        r"(?:invalid device function|no kernel image is available|hipErrorNoBinaryForGpu)",
        "this build has no kernels for this GPU: {0}",
        "engine.python",
    ),
    (r"((?:Memory access fault|HW Exception) by GPU.*)", "a kernel of this build went wrong: {1}", "engine.python"),
    (r"number of available GPUs", "too few GPUs: {0}", "engine.args"),
    (r"(?i:address already in use)|EADDRINUSE", "the port is taken: {0}", "engine.port"),
    (r"Free memory on device", "GPU memory is in use already: {0}", "engine.args"),
    (
        r"No available memory for the cache blocks",
        "out of memory: nothing is left for the KV cache; raise gpu-memory-utilization or use more GPUs",
        "engine.args",
    ),
    (r"KV cache is needed, which is larger", "the KV cache is too small for max-model-len: {0}", "engine.args"),
    (r"(?:CUDA|HIP|XPU)(?: error:)? out of memory|OutOfMemoryError", "out of GPU memory: {0}", "engine.args"),
    (r"Cannot allocate memory|can't allocate memory|\bMemoryError\b", "out of memory: {0}", "engine.args"),
    (r"No space left on device", "a disk or /dev/shm is full: {0}", "engine.env"),
    (r"gated repo|GatedRepoError", "the model is gated: accept its licence and set HF_TOKEN", "model"),
    (
        r"is not a local folder and is not a valid|Repo id must be in the form|(?:Repository|LocalEntry)NotFoundError",
        "model not found: {0}",
        "model",
    ),
    (r"Cannot find any model weights", "the model has no weights: {0}", "model"),
    (r"trust_remote_code=True", "the model brings code of its own: set trust-remote-code: true", "engine.args"),
)
_PATTERNS = [(re.compile(pattern), say, key) for pattern, say, key in _KNOWN]


def diagnose(log: str, code: int | None = None) -> Diagnosis:
    """The likely reason for the end of an engine that wrote `log` and ended with `code` (as subprocess has it).

    A known failure if there is one, else the first exception that is no consequence of another: vLLM's innermost
    process, where things go wrong, writes first. Warnings and their tracebacks count for nothing.
    """
    errors = [line for line in _errors(log) if line.strip()]
    useful = [line for line in errors if not _NOISE.search(line)]
    useful = [line for line in useful if not _WRAPPER.search(line)] or useful
    lines = tuple(dict.fromkeys(_short(line) for line in useful))[-5:]
    for pattern, say, key in _PATTERNS:
        for line in errors:
            if not _SOURCE.match(line) and (match := pattern.search(line)):
                return Diagnosis(_short(say.format(_message(line), *match.groups())), key, lines)
    for at, line in enumerate(errors):
        if _EXCEPTION.match(line) and not _WRAPPER.search(line):
            return Diagnosis(_short(_with_context(errors, at)), "engine.args", lines)
    died = next((line for line in errors if "died unexpectedly" in line), "")
    if not died and code == -9:
        died = "perhaps the system ran out of memory"
    return Diagnosis(_short(died), "engine", lines)


def plain(line: str) -> str:
    """A line without colours and vLLM's prefixes."""
    return _LEVEL.sub("", _PREFIX.sub("", _ANSI.sub("", line))).rstrip()


def _errors(log: str) -> Iterator[str]:
    """The plain lines, but for those of levels below ERROR."""
    for line in log.splitlines():
        level = _LEVEL.match(_PREFIX.sub("", _ANSI.sub("", line)))
        if level is None or level[1] in {"ERROR", "CRITICAL"}:
            yield plain(line)


def _message(line: str) -> str:
    """An exception's own words."""
    return line[match.end() :].strip() if (match := _EXCEPTION.match(line)) else line.strip()


def _with_context(errors: list[str], at: int) -> str:
    """The exception; where it says nothing itself, with what stands near."""
    line = errors[at]
    if "validation error" in line and at + 1 < len(errors):  # pydantic's words stand on the next line
        return errors[at + 1].strip().removeprefix("Value error, ").partition(" [type=")[0]
    if ":" in line:
        return line
    source = next((text.strip() for text in reversed(errors[:at]) if text.strip(" ~^")), "nothing more is said")
    place = next((match for text in reversed(errors[:at]) if (match := _PLACE.search(text))), None)
    return f"{line}: {source}" + (f" ({place[1]}, line {place[2]})" if place else "")


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
