"""A sweep's data with what its files of prompts say: their hash, and the lengths of `grid` axes that are `file`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from benchbench.datasets.corpus import corpus_digest
from benchbench.datasets.prompt_file import OUTPUT, PromptFile, PromptFileError, read_prompts
from benchbench.yamlfile.mistakes import Fault

OF_A_FILE = ("path", "field", "output", "fit")


def with_files(data: dict[str, Any]) -> tuple[dict[str, Any], list[Fault]]:
    """The data with `prompts.sha256` filled in, in overrides too, and each axis that is `file` as what the file says.

    A sweep that has them already (a run's own) is left as it is, and no file is read.
    """
    faults = list(_misplaced(data))
    prompts = data.get("prompts")
    if isinstance(prompts, dict) and type(prompts.get("output")) is int:
        message = f"is {prompts['output']}: a length of all answers is grid.output"
        faults.append(Fault(("prompts", "output"), message, "the key of a line that holds the length of its answer"))
        return {**data, "prompts": {**prompts, "output": None}}, faults
    if not isinstance(prompts, dict) or faults or _unreadable(prompts):
        return data, faults
    grid, kind = data.get("grid"), prompts.get("kind")
    read = None
    try:
        if kind in ("file", "corpus") and (prompts.get("sha256") is None or _has_file_axis(grid)):
            read, digest = _read(prompts)
            if prompts.get("sha256") not in (None, digest):
                faults.append(Fault(("prompts", "sha256"), f"is not that of the file, which has {digest}"))
            data = {**data, "prompts": {**prompts, "sha256": digest}}
    except PromptFileError as error:
        return data, [Fault(("prompts", "path"), str(error))]
    if read and not faults:
        faults += _unfit(data, read)
        grid, more = _resolved_grid(grid, read, str(prompts.get("output") or OUTPUT))
        data, faults = {**data, "grid": grid}, faults + more
    return _with_override_files(data, faults)


def _with_override_files(data: dict[str, Any], faults: list[Fault]) -> tuple[dict[str, Any], list[Fault]]:
    """Other cells may be asked prompts of another file."""
    overrides = data.get("overrides")
    if not isinstance(overrides, (list, tuple)):
        return data, faults
    filled = list(overrides)
    for index, override in enumerate(overrides):
        own = override.get("prompts") if isinstance(override, dict) else None
        if not isinstance(own, dict) or own.get("sha256") or not own.keys() & {"kind", *OF_A_FILE}:
            continue
        merged = {**data["prompts"], "sha256": None, **own}
        if merged.get("kind") in ("file", "corpus") and not _unreadable(merged):
            try:
                filled[index] = {**override, "prompts": {**own, "sha256": _read(merged)[1]}}
            except PromptFileError as error:
                faults = [*faults, Fault(("overrides", index, "prompts", "path"), str(error))]
    return {**data, "overrides": filled}, faults


def _read(prompts: dict[str, Any]) -> tuple[PromptFile | None, str]:
    """What a file of prompts holds (None of a corpus, which is one text), and its hash."""
    path = prompts.get("path")
    if prompts["kind"] == "corpus":
        return None, corpus_digest(path)
    read = read_prompts(str(path), prompts.get("field"), prompts.get("output"))
    return read, read.sha256


def _unreadable(prompts: dict[str, Any]) -> bool:
    """Whether a value is none that a path or a key can be; the schema says so."""
    values = [prompts[key] for key in OF_A_FILE if prompts.get(key) is not None]
    return not all(isinstance(value, str) and value.isprintable() for value in values)


def _misplaced(data: dict[str, Any]) -> Iterator[Fault]:
    """Keys and axes that only a file of prompts gives a meaning, and what it lacks."""
    prompts, grid = data.get("prompts"), data.get("grid")
    prompts = prompts if isinstance(prompts, dict) else {}
    kind = prompts.get("kind", "token_ids")
    if kind == "file" and not prompts.get("path"):
        yield Fault(("prompts", "path"), "is missing: the file of prompts", "a file of JSON lines, or a JSON array")
    if _unreadable(prompts):
        return
    for key in OF_A_FILE:
        if prompts.get(key) is not None and kind != "file" and (kind, key) != ("corpus", "path"):
            yield Fault(("prompts", key), f"is of kind file, and prompts.kind is {kind}", "kind: file")
    if (
        prompts.get("output")
        and kind == "file"
        and not any(axis == "output" and _is_file(value) for _, axis, value in _axes(grid))
    ):
        yield Fault(("prompts", "output"), "is not used: no grid.output is file", "grid.output: file")
    for index, axis, value in _axes(grid):
        if not _is_file(value):
            if axis == "input" and kind == "file" and prompts.get("fit") == "as_is":
                yield Fault(
                    ("grid", index, axis),
                    "is a length, and prompts.fit: as_is leaves prompts as long as they are",
                    "file",
                )
        elif kind != "file":
            yield Fault(
                ("grid", index, axis), "is file, and prompts.kind names none", "prompts: {kind: file, path: ...}"
            )
        elif axis == "input" and prompts.get("fit") == "exact":
            yield Fault(
                ("prompts", "fit"), "is exact, and grid.input: file leaves prompts as long as they are", "as_is"
            )


def _unfit(data: dict[str, Any], read: PromptFile) -> Iterator[Fault]:
    """What the engine or the axes cannot do with the prompts that the file holds."""
    engine = data["engine"] if isinstance(data.get("engine"), dict) else {}
    api = "token_ids" if engine.get("kind") == "vllm_inprocess" else engine.get("api", "completions")
    takes = {"completions": ("text", "token_ids"), "chat": ("text", "messages"), "token_ids": ("token_ids",)}
    if read.kind not in takes.get(api, (read.kind,)):
        who = "the in-process engine" if api == "token_ids" else f"engine.api: {api}"
        yield Fault(("prompts", "path"), f"{who} takes no {read.kind.replace('_', ' ')}, which the file holds")
    if read.kind == "messages":
        for index, axis, value in _axes(data.get("grid")):
            if axis == "input" and not _is_file(value):
                yield Fault(("grid", index, axis), "is a length, and messages are sent as they are", "file")


def _resolved_grid(grid: Any, read: PromptFile, output: str) -> tuple[Any, list[Fault]]:  # noqa: ANN401 - anything
    """The grid, each `file` in it as {file: {mean, min, max}}, without numbers where only the server can count."""
    faults = []
    products = list(grid) if isinstance(grid, (list, tuple)) else [grid]
    for index, product in enumerate([*products]):
        for axis in ("input", "output"):
            if not isinstance(product, dict) or not _is_file(product.get(axis)):
                continue
            lengths = read.outputs if axis == "output" else None
            if axis == "input" and read.kind == "token_ids":
                lengths = tuple(len(prompt) for prompt in read.prompts)
            if axis == "output" and lengths is None:
                message = f"is file, and {read.silent} has no {output} (prompts.output)"
                faults.append(Fault(("grid", index, axis), message, "a number, or that key in each line"))
            known = {"mean": sum(lengths) / len(lengths), "min": min(lengths), "max": max(lengths)} if lengths else {}
            products[index] = {**products[index], axis: {"file": known}}
    return (products if isinstance(grid, (list, tuple)) else products[0]), faults


def _axes(grid: Any) -> Iterator[tuple[int, str, Any]]:  # noqa: ANN401 - anything
    for index, product in enumerate(grid if isinstance(grid, (list, tuple)) else [grid]):
        for axis in ("input", "output"):
            if isinstance(product, dict) and axis in product:
                yield index, axis, product[axis]


def _has_file_axis(grid: Any) -> bool:  # noqa: ANN401 - anything
    """Whether an axis is still to be resolved."""
    return any(value in ("file", ["file"]) for _, _, value in _axes(grid))


def _is_file(value: Any) -> bool:  # noqa: ANN401 - anything
    if isinstance(value, (list, tuple)) and len(value) == 1:
        value = value[0]
    return value == "file" or (isinstance(value, dict) and "file" in value)
