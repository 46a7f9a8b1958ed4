"""Running text cut and filled up to an exact number of tokens. Pure, but for whoever counts."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np

from benchbench.datasets.prompt_file import Prompt, fitted_ids
from benchbench.errors import EngineError

HEAD_WORDS = 6  # random ones that a prompt of the corpus begins with, so that no two have a beginning in common
SLACK = 8  # tokens that may be filled with single words, or 1 % of a long prompt
TRIES = 12

_PIECE = re.compile(r"\S{1,12}\s*")  # words; some languages write without spaces


def fit_ids(_: np.random.Generator, prompt: Prompt, others: Sequence[Prompt], length: int) -> Prompt:
    """Token ids of a file as so many: cut, or followed by others of the file over and over."""
    return fitted_ids(prompt, length, [*others, prompt])  # type: ignore[arg-type, list-item] # all of a file are alike


@dataclass(slots=True)
class TextFitter:
    """Makes texts of exact lengths. `count`: tokens of a prompt of this text, template and BOS included.

    `words`: each one token in running text, after a space. `least`: tokens of the shortest prompt. `per_word`: tokens
    of a word, as counted so far: the next text's first guess.
    """

    count: Callable[[str], int]
    words: Sequence[str]
    lead: str
    least: int
    per_word: float = 1.4

    def fit(self, generator: np.random.Generator, prompt: Prompt, others: Sequence[Prompt], length: int) -> Prompt:
        """A prompt of a file as one of `length` tokens: cut, or followed by others of the file over and over."""
        if not isinstance(prompt, str):
            return fit_ids(generator, prompt, others, length)
        after = [str(other) for other in others]

        def pieces() -> Iterable[str]:
            yield from _PIECE.findall(prompt)
            while True:
                for text in (*after, prompt):
                    yield "\n\n"
                    yield from _PIECE.findall(text)

        return self._exact(generator, pieces(), length)

    def corpus_texts(self, corpus: Sequence[str], generator: np.random.Generator, count: int, length: int) -> list[str]:
        """`count` texts of `length` tokens: a few random words, then the corpus from a random word on."""
        texts = []
        for _ in range(count):
            start = int(generator.integers(len(corpus)))
            head = [self.words[k] for k in generator.integers(len(self.words), size=HEAD_WORDS)]
            rest = (corpus[(start + step) % len(corpus)] for step in range(length))
            texts.append(self._exact(generator, [f"{word} " for word in (self.lead, *head)] + list(rest), length))
        return texts

    def _exact(self, generator: np.random.Generator, pieces: Iterable[str], length: int) -> str:
        """As many of the pieces as `length` tokens hold, and single words for the rest. Raises EngineError."""
        if length < self.least:
            message = f"{length} tokens hold no prompt: template, BOS and the first word are {self.least - 1}"
            raise EngineError(message, "grid.input", allowed=f"{self.least} or more")
        every = list(islice(pieces, 2 * length))
        few, tokens = self._cut(every, length)
        text = "".join(every[:few]).rstrip()
        if tokens > length and len(text) > 1:  # of one piece alone
            return self._exact(generator, text, length)
        filled = max(0, length - tokens)
        for _ in range(TRIES):
            words = [self.words[k] for k in generator.integers(len(self.words), size=filled)]
            whole = " ".join((text, *words))
            if (off := length - self.count(whole)) == 0:
                return whole
            filled += off
            while filled < 0 and few > 1:  # what is longer than was counted before gives way to words
                few -= 1
                text, filled = "".join(every[:few]).rstrip(), filled + 2
            filled = max(0, filled)
        message = f"no text of just {length} tokens can be made: the tokens of a word depend on its neighbours"
        raise EngineError(message, "prompts.kind", allowed="token_ids, or grid.input: file for prompts as they are")

    def _cut(self, pieces: Sequence[str], length: int) -> tuple[int, int]:
        """(how many pieces, their tokens): close below `length`, at least one piece."""
        slack = max(SLACK, length // 100)
        low, low_tokens, high = 1, 0, len(pieces) + 1  # `low` pieces fit, `high` do not
        guess = min(len(pieces), max(1, round((length - slack / 2) / self.per_word)))
        for _ in range(TRIES):
            tokens = self.count("".join(pieces[:guess]).rstrip())
            if tokens <= length:
                low, low_tokens = guess, tokens
            else:
                high = guess
            self.per_word = max(0.2, tokens / guess)
            if (low == guess and length - tokens <= slack) or high - low <= 1:
                break
            guess += round((length - slack / 2 - tokens) / self.per_word)
            guess = guess if low < guess < high else (low + high) // 2
        return low, low_tokens or self.count(pieces[0].rstrip())
