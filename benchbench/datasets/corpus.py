"""Running text to make prompts of: Newton's Opticks, which is shipped (opticks.md), or a file of the user's own."""

from __future__ import annotations

import gzip
from functools import lru_cache
from pathlib import Path

from benchbench.datasets.prompt_file import PromptFileError, digest_of

SHIPPED = "opticks.txt.gz"
LEAST_WORDS = 1000  # fewer would repeat themselves within a prompt


def corpus_digest(path: str | None) -> str:
    """SHA-256 of the text. Raises PromptFileError, as `corpus_words` does."""
    return digest_of(_text(path).encode())


@lru_cache(maxsize=4)
def corpus_words(path: str | None, sha256: str | None = None) -> tuple[str, ...]:
    """Its words in order, each with one space after it; the text must still be the one of this hash."""
    if sha256 not in {None, corpus_digest(path)}:
        raise PromptFileError(f"{path or SHIPPED}: has changed since the sweep was read")
    words = tuple(f"{word} " for word in _text(path).split())
    if len(words) < LEAST_WORDS:
        raise PromptFileError(f"{path}: has {len(words)} words, {LEAST_WORDS} are needed")
    return words


def _text(path: str | None) -> str:
    try:
        if path is None:
            return gzip.decompress((Path(__file__).parent / SHIPPED).read_bytes()).decode()
        return Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        raise PromptFileError(f"{path}: is no UTF-8 text") from None
    except OSError as error:
        raise PromptFileError(f"{path or SHIPPED}: {error.strerror}") from None
