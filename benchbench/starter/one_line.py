"""A sweep of a server that runs already, from a few options of the command line: the YAML that they stand for. Pure."""

from __future__ import annotations

import json
import re
from typing import NamedTuple

from benchbench.secrets import mask_text, masked
from benchbench.yamlfile.mistakes import SpecError
from benchbench.yamlfile.yaml_document import YamlText, read_yaml


class Wanted(NamedTuple):
    """What the options say; lists are as they were typed, `128,1024`. With `rate` there is no `batch`."""

    url: tuple[str, ...]
    model: str
    input: str
    output: str
    batch: str
    rate: str | None = None
    api: str = "completions"
    prompts: str = "text"
    key_env: str | None = None
    as_served: bool = False


def sweep_text(wanted: Wanted, seed: int) -> YamlText:
    """The sweep. Whatever was typed makes YAML of this form: what is wrong in it is found where sweeps are checked.

    Prompts are text by default, as any server takes it. Token ids spare the server its tokenizer, but only completions
    take them, and somebody must tell the vocabulary.
    """
    third = ("--batch", f"  batch: {_axis(wanted.batch)}")
    if wanted.rate is not None:
        third = ("--rate", f"  rate: {_axis(wanted.rate)}")
    lines = [
        ("--model", f"name: {json.dumps(_name(wanted.model))}"),
        ("--model", f"model: {_text(wanted.model)}"),
        ("--url", "engine:"),
        ("--url", "  kind: endpoint"),
        ("--url", f"  url: {_one_or_several(wanted.url)}"),
        ("--api", f"  api: {wanted.api}"),
        *([] if wanted.key_env is None else [("--key-env", f"  api_key_env: {_text(wanted.key_env)}")]),
        ("--input", "grid:"),
        ("--input", f"  input: {_axis(wanted.input)}"),
        ("--output", f"  output: {_axis(wanted.output)}"),
        third,
        *([] if wanted.rate is None else [("--rate", "load: {kind: open}")]),
        ("--prompts", f"prompts: {{kind: {wanted.prompts}}}"),
        *([("--as-served", "output: as_served")] if wanted.as_served else []),
        ("--url", f"seed: {seed}"),
    ]
    text = "".join(f"{line}\n" for _, line in lines)
    return YamlText("the command line", text.encode(errors="replace"), tuple(option for option, _ in lines))


def text_without_secrets(source: YamlText) -> str | None:
    """The text as it may be kept in a file; None where there is something in it that a run's manifest would mask."""
    try:
        data = read_yaml(source, source.name).data
    except SpecError:
        return None
    text = source.raw.decode("utf-8-sig")
    return text if mask_text(text) == text and masked(data) == data else None


def _name(model: str) -> str:
    """Of the model's name what can be a folder's."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", model.rstrip("/").rpartition("/")[2]).strip(".-")[:60] or "sweep"


def _text(value: str) -> str:
    return json.dumps(value, ensure_ascii=False)


def _one_or_several(values: tuple[str, ...]) -> str:
    texts = [*map(_text, values)]
    return texts[0] if len(texts) == 1 else f"[{', '.join(texts)}]"


def _axis(typed: str) -> str:
    items = [item.strip() for item in typed.split(",")]
    return f"[{', '.join(item if re.fullmatch(r'-?[0-9]+([.][0-9]+)?', item) else _text(item) for item in items)}]"
