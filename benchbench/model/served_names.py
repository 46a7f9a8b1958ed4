"""By which names a server's answers may call a model, as its own list of models has them. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

# A revision behind a name: gpt-4o-2024-08-06, llama3:latest, gemini-2.0-flash-001.
_REVISION = re.compile(r"[-:@](?:latest|\d{3,}(?:-\d+)*)$")
_OF_ANOTHER = {"object", "owned_by", "parent"}  # texts of an entry that are no names of its model


def names_of(listed: Sequence[Mapping[str, Any]], model: str) -> tuple[str, ...]:
    """The names of `model` in a list as of GET /v1/models, empty where it is not in there.

    They are its id, what else its entry calls it (root, aliases), and the ids of the same root: vLLM's answers name the
    first of several served names. An adapter (LoRA) has a root of its own, and its parent is another model.
    """
    entry = next((item for item in listed if item.get("id") == model), None)
    if entry is None:
        return ()
    names = {model}
    for key, value in entry.items():
        texts = value if isinstance(value, list) else [value]
        names |= {text for text in texts if isinstance(text, str) and text and key not in _OF_ANOTHER}
    root = entry.get("root")
    names |= {str(item.get("id")) for item in listed if root and item.get("root") == root}
    return tuple(sorted(names))


def is_among(name: str, names: Sequence[str]) -> bool:
    """Whether a model is called one of `names`: in any case, with or without folder and revision."""
    return _plain(name) in map(_plain, names)


def _plain(name: str) -> str:
    return _REVISION.sub("", name.lower().rstrip("/").rpartition("/")[2].removesuffix(".gguf"))
