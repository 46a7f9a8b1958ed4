"""Text prompts of an exact length, and the range of token ids for prompts of ids.

Whoever tokenizes must be asked how many tokens a text is: the server's `/tokenize`, else a tokenizer that the sweep
names, else `usage.prompt_tokens` of requests for one token. Words that are one token each then make any length, with
what the chat template and BOS add counted once.
"""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from benchbench.errors import EngineError
from benchbench.http1.untimed import NotConnectedError
from benchbench.openai.client import json_object, post
from benchbench.openai.target import GENERATION, Access, prompt_field, untimed_body
from benchbench.spec import Engine

if TYPE_CHECKING:
    import numpy as np

Count = Callable[[str], int]  # tokens of a prompt that consists of this text, template and BOS included

MIN_WORDS = 16  # fewer would repeat themselves too soon
TOKENIZE_S, GENERATE_S = 30.0, 120.0  # a first generation may compile kernels
LOWEST_ID = 1000  # below are bytes, single letters and, in many vocabularies, the special tokens

# Two texts that tokenizers of different models seldom agree on.
_SAMPLES = (
    "time",
    "time to quantize MiniMax-M2.1: zwölf Boxkämpfer, 1234567890 Überläufe; 東京都, Москва\n\tdef f(x):",
)
# For the highest ids: letters of many scripts, each on its own, and long words, since what is seldom has a high id.
_BROAD = " ".join(
    [
        *map(chr, (*range(0x370, 0x5EA, 3), *range(0x905, 0xE30, 9), *range(0x3041, 0x30FA, 4))),
        *map(chr, (*range(0x4E00, 0x9FA5, 37), *range(0xAC00, 0xD7A3, 61))),
        "internationalization electroencephalography Geschwindigkeitsbegrenzung anticonstitutionnellement",
        "getElementsByClassName IllegalArgumentException достопримечательность responsabilidades 中华人民共和国",
    ]
)
# Words that byte-pair vocabularies of English hold whole, with their leading space: about one token each.
WORDS = (  # noqa: SIM905 - a list of quoted words would fill a screen
    "time people way water day man world life hand part child eye woman place work week case point government "
    "company number group problem fact house area money story month lot right study book job word business issue "
    "side kind head power hour game line end member law car city community name president team minute idea body "
    "information back parent face level office door health person art war history party result change morning "
    "reason research girl guy moment air teacher force education foot boy age policy music market sense nation "
    "plan college interest death experience effect tree home town food road rain blue cold warm dark tall deep "
    "soft star moon wind fish bird rock sand milk salt gold iron wood leaf rose seed corn rice meat soup cake tea "
    "cup box bag hat coat shoe ring rope knife boat ship bus map wall roof lamp desk bed key clock sun sea lake "
    "hill king"
).split()


@dataclass(frozen=True, slots=True)
class Counter:
    """How many tokens a text is as a prompt; `how` says who counts, for the manifest."""

    count: Count
    how: str


@dataclass(frozen=True, slots=True)
class Fitted:
    """`lead` and any n of `words` after it, with one space between, are a prompt of `overhead` + n tokens.

    The first word of a text has no space before it and may be cut in other tokens than in running text, so it is
    always the same one; `overhead` counts it, with the template and BOS. `word_tokens`: of a word, on average where
    words are several tokens each; then lengths are not exact.
    """

    words: tuple[str, ...]
    overhead: int
    lead: str
    word_tokens: float = 1.0


@dataclass(frozen=True, slots=True)
class _Server:
    """Who is asked how many tokens a text is."""

    url: str
    access: Access
    engine: Engine
    model: str

    def tokenized(self, text: str) -> int:
        """By POST /tokenize. Raises EngineError, as `used` does."""
        api, extra = self.engine.api, self.engine.extra_body
        added = {"add_generation_prompt" if api == "chat" else "add_special_tokens": True}
        body = {**added, **extra, "model": self.model, **prompt_field(api, text)}
        return _number(_post(self.url, self.access, "/tokenize", body, TOKENIZE_S), "count")

    def used(self, text: str) -> int:
        """By the usage of a request for one token."""
        body, route = untimed_body(self.engine, self.model, text, 1), GENERATION[self.engine.api]
        return _number(_post(self.url, self.access, route, body, GENERATE_S), "usage", "prompt_tokens")


def find_counter(
    url: str, access: Access, engine: Engine, model: str, tokenizer: str | None = None, *, often: bool = False
) -> Counter:
    """The first of POST /tokenize, the local `tokenizer` (a tokenizer.json or its folder) and a usage probe that works.

    Requests have the engine's extra_body, which may change the chat template. A local tokenizer is compared with the
    server's usage where there is one, and a constant difference (template, BOS) is counted in. `often`: each prompt
    will be counted, so that a local tokenizer is preferred, and the server's generation, which would then have it in
    its cache, is not asked. Raises EngineError when none works or nobody answers.
    """
    server = _Server(url, access, engine, model)
    ways = [("POST /tokenize", partial(_trusted, server.tokenized))]
    if tokenizer is not None:
        ways.append((f"tokenizer {Path(tokenizer).name}", partial(_local_counter, tokenizer, server)))
    if often:
        ways.reverse()
    else:
        ways.append(("usage.prompt_tokens of requests for one token", partial(_trusted, server.used)))
    refusals = []
    for name, way in ways:
        try:
            return way(name)
        except EngineError as error:
            if error.gone:
                raise
            refusals.append(f"{name}: {error.message}")
    message = "nobody counts the tokens of a text: " + "; ".join(refusals)
    raise EngineError(message, "prompts.tokenizer", allowed="a tokenizer.json or its folder")


def _trusted(count: Count, how: str) -> Counter:
    """A counter, once it has counted more for a longer text."""
    short, long = map(count, _SAMPLES)
    if long <= short:
        raise EngineError(f"counts {short} tokens for a word and {long} for a sentence", "prompts.tokenizer")
    return Counter(count, how)


def _local_counter(path: str, server: _Server, how: str) -> Counter:
    try:
        loaded = importlib.import_module("tokenizers").Tokenizer.from_file(str(_tokenizer_file(path)))
    except ImportError:
        raise EngineError("needs the package tokenizers", "prompts.tokenizer") from None
    except Exception as error:  # noqa: BLE001 - the library raises bare Exception
        raise EngineError(f"cannot be read: {error}", "prompts.tokenizer") from None
    loaded.no_truncation()
    loaded.no_padding()
    local = [len(loaded.encode(text).ids) for text in _SAMPLES]
    try:
        reported = [server.used(text) for text in _SAMPLES]
    except EngineError as error:
        if error.gone:
            raise
        if server.engine.api == "chat":
            message = f"cannot tell what the chat template adds ({error.message})"
            raise EngineError(message, "prompts.tokenizer") from None
        reported, how = local, f"{how}, not compared with the server ({error.message})"
    else:
        how = f"{how}, {reported[0] - local[0]:+d} tokens by the server's usage"
    offset = reported[0] - local[0]
    if reported[1] - local[1] != offset:
        message = f"it is another model's: {local} tokens in two samples where the server counts {reported}"
        raise EngineError(message, "prompts.tokenizer")
    return Counter(lambda text: len(loaded.encode(text).ids) + offset, how)


def _tokenizer_file(path: str) -> Path:
    return Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)


def _number(answer: Any, *names: str) -> int:  # noqa: ANN401 - JSON
    """The count that stands under these names, one within the other."""
    for name in names:
        answer = answer.get(name) if isinstance(answer, dict) else None
    if type(answer) is not int or answer < 1:
        raise EngineError(f"no {'.'.join(names)} in the answer", "prompts.tokenizer")
    return answer


def _post(url: str, access: Access, route: str, body: Mapping[str, Any], answer_s: float) -> dict[str, Any]:
    """The JSON object that a POST is answered with (empty for other content); EngineError without such an answer."""
    try:
        status, data = asyncio.run(post(url, access, route, body, answer_s))
    except NotConnectedError as error:
        raise EngineError(f"no server answers POST {route}: {error}", "engine.url", gone=True) from None
    except OSError as error:
        why = str(error) or type(error).__name__
        raise EngineError(f"POST {route} failed ({why})", "prompts.tokenizer") from None
    if status != 200:
        raise EngineError(f"POST {route} answers with status {status}", "prompts.tokenizer")
    return json_object(status, data)


def fit_vocabulary(count: Count, words: Iterable[str]) -> Fitted:
    """The `words` that are exactly one token each in running text, and what every prompt has besides.

    `words` hold no spaces; the first is the lead. One call counts a whole group: its tokens beyond one a word are
    those of its parts together, so only one half of a group is asked, and a group without any is done. All words good:
    three calls; b of n bad: about b log2(n / b) more. Raises EngineError if fewer than MIN_WORDS remain, or if
    the words in another order are another number of tokens.
    """
    listed = list(dict.fromkeys(words))
    lead = listed[0]
    overhead = count(lead)

    def beyond(group: Sequence[str]) -> int:
        return count(" ".join((lead, *group))) - overhead - len(group)

    def single(group: list[str], extra: int) -> list[str]:
        if extra == 0:
            return group
        if len(group) == 1:
            return []
        middle = len(group) // 2
        left = beyond(group[:middle])
        return single(group[:middle], left) + single(group[middle:], extra - left)

    kept = single(listed, beyond(listed))
    if len(kept) < MIN_WORDS:
        message = f"only {len(kept)} of {len(listed)} words are one token each for this server; {MIN_WORDS} are needed"
        raise EngineError(message, "prompts.kind", allowed="token_ids")
    if beyond([*kept[::-1], *kept[::2], *kept[1::2]]) != 0:
        message = "the tokens of a word depend on its neighbours, so that no exact text can be made"
        raise EngineError(message, "prompts.kind", allowed="token_ids")
    return Fitted(tuple(kept), overhead, lead)


def fit_mean(count: Count, words: Sequence[str]) -> Fitted:
    """All `words`, the first as lead, with their mean tokens in running text. Raises EngineError as `count` does."""
    overhead = count(words[0])
    return Fitted(tuple(words), overhead, words[0], (count(" ".join(words)) - overhead) / (len(words) - 1))


def exact_texts(fitted: Fitted, generator: np.random.Generator, count: int, length: int) -> list[str]:
    """`count` prompts of random words, `length` tokens each with template and BOS.

    Raises EngineError when `length` leaves no room for a word: a prompt is never empty.
    """
    room = length - fitted.overhead
    if room < 1:
        message = f"{length} tokens hold no prompt: template, BOS and the first word are {fitted.overhead}"
        raise EngineError(message, "grid.input", allowed=f"{fitted.overhead + 1} or more")
    picks = generator.integers(0, len(fitted.words), (count, max(1, round(room / fitted.word_tokens))))
    return [" ".join((fitted.lead, *(fitted.words[k] for k in row))) for row in picks]


def vocabulary_range(url: str, model: str, access: Access, tokenizer: str | None = None) -> tuple[int, int] | None:
    """[low, high): ids of ordinary tokens, for prompts of random ids; None if nobody says.

    Of a local tokenizer.json the longest run of ids without an added (special) token; else, by POST /tokenize, up to
    the highest id in a broad text. low = min(1000, highest // 4). Raises EngineError when the named file cannot be read
    or nobody answers.
    """
    if tokenizer is not None:
        try:
            return ordinary_range(orjson.loads(_tokenizer_file(tokenizer).read_bytes()))
        except (OSError, orjson.JSONDecodeError) as error:
            raise EngineError(f"cannot be read: {error}", "prompts.tokenizer") from None
    body = {"model": model, "prompt": _BROAD, "add_special_tokens": False}
    try:
        tokens = _post(url, access, "/tokenize", body, TOKENIZE_S).get("tokens")
    except EngineError as error:
        if error.gone:
            raise
        return None
    if not isinstance(tokens, list) or not tokens or not all(type(token) is int and token >= 0 for token in tokens):
        return None
    highest = max(tokens)
    return min(LOWEST_ID, highest // 4), highest + 1


def ordinary_range(data: Any) -> tuple[int, int] | None:  # noqa: ANN401 - JSON
    """The longest run of ids at or above low that are neither added nor missing, from a parsed tokenizer.json."""
    try:
        vocabulary = data["model"]["vocab"]  # a mapping to ids, or (Unigram) a list by id
        ids = set(vocabulary.values() if isinstance(vocabulary, dict) else range(len(vocabulary)))
        ids -= {added["id"] for added in data.get("added_tokens") or ()}
    except (AttributeError, KeyError, TypeError):
        return None
    if not ids:
        return None
    low = min(LOWEST_ID, max(ids) // 4)
    best, start = (low, low), low
    for k in range(low, max(ids) + 2):
        if k not in ids:
            best, start = max(best, (start, k), key=lambda run: run[1] - run[0]), k + 1
    return best if best[1] > best[0] else None
