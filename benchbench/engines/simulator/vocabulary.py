"""The simulator's tokenizer: every id is a word of four letters, and about four characters are a token."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from string import ascii_lowercase

EOS = 2
# Ids below are special, and never generated or found in a text. As chat templates do, ours puts markers
# around each message and before the answer.
RESERVED = 16
_OPEN, _CLOSE, _ROLES = 3, 4, {"system": 5, "user": 6, "assistant": 7, "tool": 8}
_PIECE = re.compile(r" ?\S{1,4}|\s")
_WORD = re.compile(r"[a-z]{4}")


def word(token: int) -> str:
    """Four letters for an id below 26**4, another for each."""
    return "".join(ascii_lowercase[token // 26**place % 26] for place in (3, 2, 1, 0))


def decode(tokens: Iterable[int]) -> str:
    return "".join(f" {word(token)}" for token in tokens)


def encode(text: str, size: int) -> list[int]:
    """Ids of a text, below `size`: up to four non-space characters with the space before them are one token.

    `encode(decode(ids)) == ids` for ordinary ids; pieces that are no word of the vocabulary get an id
    by their checksum.
    """
    return [_id(piece.removeprefix(" ") or " ", size) for piece in _PIECE.findall(text)]


def encode_chat(messages: Sequence[Mapping[str, object]], size: int, *, answer: bool = True) -> list[int]:
    """Ids of a conversation in the simulator's template; `answer` adds the marker that asks for one."""
    ids: list[int] = []
    for message in messages:
        role = _ROLES.get(str(message.get("role")), _ROLES["user"])
        ids += [_OPEN, role, *encode(_content_text(message.get("content")), size), _CLOSE]
    return [*ids, _OPEN, _ROLES["assistant"]] if answer else ids


def _id(piece: str, size: int) -> int:
    if _WORD.fullmatch(piece):
        token = 0
        for letter in piece:
            token = token * 26 + ascii_lowercase.index(letter)
        if RESERVED <= token < size:
            return token
    return RESERVED + zlib.crc32(piece.encode("utf-8", "surrogatepass")) % (size - RESERVED)


def _content_text(content: object) -> str:
    """The text of a message: a string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)
