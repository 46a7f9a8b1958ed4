"""The simulator's tokenizer: every id is a word of four letters, and about four characters are a token."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Mapping, Sequence

EOS = 2
# Ids below are special, and never generated or found in a text. As chat templates do, ours puts markers
# around each message and before the answer.
RESERVED = 16
_OPEN, _CLOSE, _ROLES = 3, 4, {"system": 5, "user": 6, "assistant": 7, "tool": 8}
OUTPUT_WORDS = 4096  # outputs are drawn from the first so many words; a power of two
_PIECE = re.compile(r" ?\S{1,4}|\s")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def word(token: int) -> str:
    """Four letters for an id below 26**4, another for each."""
    out = ""
    for _ in range(4):
        token, letter = divmod(token, 26)
        out = _LETTERS[letter] + out
    return out


class Vocabulary:
    def __init__(self, size: int) -> None:
        self.size = size

    def encode(self, text: str) -> list[int]:
        """Ids of a text: up to four non-space characters with the space before them are one token.

        `encode(decode(ids)) == ids` for ordinary ids; pieces that are no word of the vocabulary get an id
        by their checksum.
        """
        return [self._id(piece.removeprefix(" ") or " ") for piece in _PIECE.findall(text)]

    def decode(self, tokens: Iterable[int]) -> str:
        return "".join(f" {word(token)}" for token in tokens)

    def encode_chat(self, messages: Sequence[Mapping[str, object]], *, answer: bool = True) -> list[int]:
        """Ids of a conversation in the simulator's template; `answer` adds the marker that asks for one."""
        ids: list[int] = []
        for message in messages:
            role = _ROLES.get(str(message.get("role")), _ROLES["user"])
            ids += [_OPEN, role, *self.encode(_content_text(message.get("content"))), _CLOSE]
        return [*ids, _OPEN, _ROLES["assistant"]] if answer else ids

    def _id(self, piece: str) -> int:
        if len(piece) == 4 and piece.isascii() and piece.islower() and piece.isalpha():
            token = 0
            for letter in piece:
                token = token * 26 + ord(letter) - ord("a")
            if RESERVED <= token < self.size:
                return token
        return RESERVED + zlib.crc32(piece.encode("utf-8", "surrogatepass")) % (self.size - RESERVED)


def _content_text(content: object) -> str:
    """The text of a message: a string, or the text parts of a list of parts."""
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, Mapping))
    return "" if content is None else str(content)
