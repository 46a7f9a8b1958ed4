"""Secrets stay out of files and logs: by the names that they stand under, and by their values where those are known."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

MASK = "***"
SHORTEST = 4  # fewer characters would be found in ordinary words
_ENV_VALUE = 8  # a value of the environment that is shorter is a switch or a number, more likely than a secret

_CAMEL = re.compile(r"(?<=[a-z0-9])(?=[A-Z])")
_TELLING = re.compile(
    r"(?i)(^|[^a-z])(key|token|pat|auth|authorization|bearer|cookie)s?$|[_.-]pwd$"
    r"|api[_.-]?key|private[_.-]?key|access[_.-]?key|secret|passw|passphrase|credential"
)
_NAMES_ONLY = {"api_key_env", "headers_env"}  # these say where a secret is, not what it is
_HARMLESS = re.compile(r"[\d.,_]*|(?i:none|null|true|false)")

_FURTHER = re.compile(r",(?=-{0,2}[A-Za-z_][\w.-]*=)")  # as in the name of a variant: a=1,b=2

_USERINFO = re.compile(r"(?<=://)[^/?#\s]+@")
_QUERY = re.compile(r"([?&])([^=&\s]{1,80})=([^&\s]+)")
_QUERY_NAME = re.compile(r"(?i)key|token|secret|passw|auth|credential|sig")  # in URLs more names tell than elsewhere
_GAP = r"[^\S\r\n]"  # a name at a line's end tells nothing of the next line
_SCHEME = re.compile(rf"(?i)\b(bearer|basic){_GAP}+[^\s\"',;]+")
_HEADER = re.compile(rf"(?i)\b((?:proxy-)?authorization|(?:set-)?cookie)([\"']?{_GAP}*[:=]{_GAP}*[\"']?)[^\"'\r\n]+")
_VALUE = r"""\[[^\]]*\]|"(?:[^"\\]|\\.)*"|'(?:[^'\\]|\\.)*'"""
_NAMED = re.compile(
    rf"""(?<![\w.?&-])(?P<name>-{{0,2}}[A-Za-z_][\w.-]*)(?P<sep>["']?{_GAP}*[:=]{_GAP}*)"""
    rf"""(?P<value>{_VALUE}|\S+?(?=[,;)}}\]]*(?:\s|$)))"""
)
_OPTIONED = re.compile(
    rf"(?<![\w-])(?P<name>--[A-Za-z][\w.-]*)(?P<sep>{_GAP}+)"
    rf"(?P<value>(?:(?:{_VALUE}|[^\s-]\S*)(?:{_GAP}+|(?=[\r\n])|$))+)"
)
_ASSIGNED = re.compile(r"(?P<name>-{0,2}[\w.-]+)=(?P<value>.*)", re.DOTALL)
_OPTION = re.compile(r"--.*|-[A-Za-z]{1,3}(=.*)?", re.DOTALL)


def is_sensitive(name: str, value: object = "") -> bool:
    """Whether a value under this name is to be hidden: `api_key`, `HF_TOKEN`, `--password`.

    Counts (`max_tokens: 8`), switches and None are not secrets, whatever they are called.
    """
    if name in _NAMES_ONLY or value is None or isinstance(value, bool):
        return False
    if not _TELLING.search(_CAMEL.sub("_", name)):
        return False
    count = _FURTHER.split(str(value), 1)[0]
    return not (name.lower().endswith("tokens") and _HARMLESS.fullmatch(count) and count)


def masked(value: Any, name: str = "", secrets: Collection[str] = ()) -> Any:  # noqa: ANN401 - JSON in, JSON out
    """A copy of JSON-like data without secrets: values of telling keys and options, and what `mask_text` finds in text.

    Lists are also read as command lines: `--api-key VALUE ...`, `--api-key=VALUE`, `HF_TOKEN=VALUE`.
    """
    if isinstance(value, Mapping):
        inherited = name in _NAMES_ONLY or is_sensitive(name)  # whatever its own keys are called
        return {key: masked(item, name if inherited else str(key), secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [masked(item, name, secrets) for item in value] if is_sensitive(name) else _items(value, name, secrets)
    if is_sensitive(name, value):
        return MASK
    return mask_text(value, secrets) if isinstance(value, str) and name not in _NAMES_ONLY else value


def _items(items: Sequence[Any], name: str, secrets: Collection[str]) -> list[Any]:
    option, items_masked = "", []  # option: a telling one, whose values follow
    for item in items:
        if isinstance(item, str) and (pair := _ASSIGNED.fullmatch(item)) and is_sensitive(pair["name"], pair["value"]):
            option = ""
            items_masked.append(f"{pair['name']}={MASK}")
            continue
        if isinstance(item, str) and (not option or _OPTION.fullmatch(item)):
            option = item if item.startswith("-") and is_sensitive(item) else ""
            items_masked.append(mask_text(item, secrets))
        else:
            items_masked.append(masked(item, option or name, secrets))
    return items_masked


def secrets_of(environ: Mapping[str, str]) -> frozenset[str]:
    """Values of the environment variables with telling names, for `mask_text`; a file's path is where, not what."""
    values = {value for name, value in environ.items() if len(value) >= _ENV_VALUE and is_sensitive(name, value)}
    return frozenset(value for value in values if not (value.startswith("/") and Path(value).exists()))


def mask_text(text: str, secrets: Collection[str] = ()) -> str:
    """`text` (a log line, an error message) without the known `secrets`, nor the start of one that was cut off, and
    without what looks like one: user info and telling queries of URLs, Bearer tokens, values of telling names.
    """
    text = without(text, secrets)
    text = _QUERY.sub(_queried, _USERINFO.sub(f"{MASK}@", text))
    text = _HEADER.sub(rf"\1\2{MASK}", _SCHEME.sub(rf"\1 {MASK}", text))
    return _NAMED.sub(_hidden, _OPTIONED.sub(_hidden, text))


def without(text: str, secrets: Collection[str]) -> str:
    """`text` without the known `secrets`, nor the start of one that was cut off."""
    for secret in sorted(secrets, key=len, reverse=True):
        start = secret[:8]
        if len(secret) >= SHORTEST and start in text:
            head, *tails = text.split(start)
            text = head + "".join(MASK + tail[_in_common(tail, secret[len(start) :]) :] for tail in tails)
    return text


def _in_common(a: str, b: str) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(a, b, strict=False)))


def _queried(match: re.Match[str]) -> str:
    before, name, _ = match.groups()
    return f"{before}{name}={MASK}" if _QUERY_NAME.search(name) or is_sensitive(name) else match[0]


def _hidden(match: re.Match[str]) -> str:
    """The match, from the first telling name on without its value."""
    name, sep, value = match["name"], match["sep"], match["value"].rstrip()
    pieces, shown = [value] if value[0] in "\"'[" else _FURTHER.split(value), ""
    for place, piece in enumerate(pieces):
        if place:
            name, sep, _ = piece.partition("=")
        rest = ",".join(pieces[place:])[len(name + sep) if place else 0 :]
        bare = rest.strip("\"'")
        if bare != MASK and is_sensitive(name, bare) and not _HARMLESS.fullmatch(bare):
            quote = rest[0] if rest[0] in "\"'" else ""
            return shown + ("," if place else "") + name + sep + quote + MASK + quote + match["value"][len(value) :]
        shown += f",{piece}" if place else name + sep + piece
    return match[0]
