"""Answers to fixed questions: compared start by start, asked after the timed rounds, read from what servers tell."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from answers import RESET, Ask, Script, completion, error, whole
from driving import CARRIED_OUT, bench, write_sweep
from hypothesis import given
from hypothesis import strategies as st
from servers import ScriptedServer

from benchbench import open_run
from benchbench.comparison.pairs import fidelity_of
from benchbench.fidelity.answers import GreedyAnswer, StartAnswers
from benchbench.fidelity.greedy_request import LEAST, TOP, read_answer, requests_for
from benchbench.fidelity.judge import LOGP_FLOOR, SLACK, Fidelity, Figures, difference, divergence, judge
from benchbench.fidelity.stored_answers import answers_of, answers_table, read_answers
from benchbench.spec import SimulatorEngine

SAME = Figures(
    answers=0, identical=1.0, prefix=1.0, first_divergence=None, dlogp_mean=0.0, dlogp_max=0.0, kl=0.0, gap=None
)


# ---- The comparison -------------------------------------------------------------------------------------


def answer_of(tokens: Sequence[int], shift: float = 0.0) -> GreedyAnswer:
    """Three likeliest a place: the token itself, and the two ids after it."""
    top = tuple({token: -0.5 + shift, token + 1: -1.5, token + 2: -3.0} for token in tokens)
    return GreedyAnswer(tuple(tokens), tuple(place[token] for token, place in zip(tokens, top, strict=True)), top)


TOKENS = st.lists(st.integers(0, 50), min_size=1, max_size=8)
SHIFTS = st.floats(-0.4, 0.4)


@st.composite
def starts(draw: st.DrawFn, least: int = 1) -> list[StartAnswers]:
    """Starts that answer about the same; some part from the first at some place, and all are shifted a little."""
    questions = draw(st.lists(TOKENS, min_size=1, max_size=4))
    made = []
    for _ in range(draw(st.integers(least, 4))):
        answers = []
        for tokens in questions:
            parting = draw(st.one_of(st.none(), st.integers(0, len(tokens) - 1)))
            own = tokens if parting is None else [*tokens[:parting], *(token + 1 for token in tokens[parting:])]
            answers.append(answer_of(own, draw(SHIFTS)))
        made.append(StartAnswers("id", "q", tuple(answers)))
    return made


@given(starts(), st.integers(1, 3), st.integers(1, 3))
def test_the_same_answers_match_with_no_difference(made: list[StartAnswers], ours: int, theirs: int) -> None:
    found = judge([made[0]] * ours, [made[0]] * theirs)
    assert (found.verdict, found.outside, found.starts) == ("matches", 0, (ours, theirs))
    assert found.figures == replace(SAME, answers=len(made[0].answers))
    assert found.band == (found.figures if ours > 1 else None)
    assert bool(found.reason) == (ours == 1)


@given(starts(), starts(), st.randoms())
def test_the_order_of_the_blocks_does_not_matter(
    ours: list[StartAnswers], theirs: list[StartAnswers], dice: random.Random
) -> None:
    count = min(len(one.answers) for one in (*ours, *theirs))
    ours, theirs = ([replace(one, answers=one.answers[:count]) for one in side] for side in (ours, theirs))
    mixed = [dice.sample(side, len(side)) for side in (ours, theirs)]
    assert judge(*mixed) == judge(ours, theirs)
    assert difference(ours[0].answers, theirs[0].answers) == difference(theirs[0].answers, ours[0].answers)


@given(starts(least=2), st.data())
def test_a_candidate_that_answers_as_starts_of_the_baseline_do_matches(
    made: list[StartAnswers], data: st.DataObject
) -> None:
    theirs = data.draw(st.lists(st.sampled_from(made), min_size=1, max_size=5))
    assert judge(made, theirs).verdict == "matches"


@given(st.lists(TOKENS, min_size=1, max_size=5), st.integers(1, 3), st.data())
def test_one_changed_token_is_found_where_it_is(questions: list[list[int]], ours: int, data: st.DataObject) -> None:
    good = StartAnswers("id", "q", tuple(map(answer_of, questions)))
    at = data.draw(st.integers(0, len(questions) - 1))
    place = data.draw(st.integers(0, len(questions[at]) - 1))
    bad = list(questions[at])
    bad[place] += 1
    other = replace(good, answers=tuple(answer_of(bad) if k == at else one for k, one in enumerate(good.answers)))
    found = judge([good] * ours, [good, other])
    assert (found.verdict, found.outside) == ("differs", 1)
    assert found.figures is not None
    assert found.figures.first_divergence == place + 1
    assert found.figures.identical == 1 - 1 / len(questions)
    assert found.figures.prefix == pytest.approx(1 - (1 - place / len(bad)) / len(questions))
    assert found.figures.dlogp_max in {0.0, None}
    assert found.figures.gap is None  # the first token is not among the likeliest of the second
    assert f"in 1 of 2 starts: 1 of {len(questions)} answers, the first at token {place + 1}" in found.sentence


@given(st.floats(0.005, 0.1), st.floats(0.0, 4.0), TOKENS)
def test_log_probabilities_may_move_as_far_as_slack_and_floor_allow(
    band: float, times: float, tokens: list[int]
) -> None:
    def start(shift: float) -> StartAnswers:
        return StartAnswers("id", "q", (answer_of(tokens, shift),))

    found = judge([start(0.0), start(band)], [start(-times * band)])
    assert found.figures is not None
    assert found.figures.dlogp_max == pytest.approx((1 + times) * band)
    far = (1 + times) * band - SLACK * band
    if far < -1e-9:  # KL grows with the square, and is further from its own limit below it
        assert found.verdict == ("matches" if (1 + times) ** 2 < SLACK else found.verdict)
    if far > LOGP_FLOOR + 1e-9:
        assert found.verdict == "differs"


def test_with_one_start_of_the_baseline_only_the_floor_is_allowed() -> None:
    def start(shift: float) -> StartAnswers:
        return StartAnswers("id", "q", (answer_of([1, 2, 3], shift),))

    assert judge([start(0.0)], [start(LOGP_FLOOR / 2)]).verdict == "matches"
    found = judge([start(0.0)], [start(0.05)])
    assert (found.verdict, found.band, found.reason) == ("differs", None, "one start of the baseline: no band")
    assert found.sentence == "outputs differ in the one start: 0 of 1 answers, log-probabilities by up to 0.05"


def test_a_parting_is_described_by_how_near_a_tie_it_was() -> None:
    a = GreedyAnswer((5, 6), (-0.7, -0.1), ({5: -0.70, 9: -0.72}, {6: -0.1, 7: -3.0}))
    b = GreedyAnswer((9, 1), (-0.69, -0.1), ({9: -0.69, 5: -0.74}, {1: -0.1, 7: -3.0}))
    found = judge([StartAnswers("id", "q", (a,))], [StartAnswers("id", "q", (b,))])
    assert found.figures is not None
    assert found.figures.gap == pytest.approx(0.02)
    assert found.figures.dlogp_mean is None  # nothing before the parting
    assert found.figures.kl == divergence(a.top[0], b.top[0])
    assert "at most 0.02 apart" in found.sentence
    assert orjson.loads(orjson.dumps(found))["figures"]["answers"] == 1


@pytest.mark.parametrize(("gap", "verdict"), [(0.03, "matches"), (0.05, "differs")])
def test_a_tie_that_noise_decides_is_no_difference(gap: float, verdict: str) -> None:
    def start(own: int, other: int, gap: float, shift: float = 0.0) -> StartAnswers:
        top = (*[{1: -0.7 + shift, 2: -0.75}] * 20, {own: -0.7 + shift, other: -0.7 - gap})
        return StartAnswers("id", "q", (GreedyAnswer((*[1] * 20, own), (*[-0.7 + shift] * 20, -0.7 + shift), top),))

    found = judge([start(5, 9, gap), start(5, 9, gap, 0.02)], [start(9, 5, gap)])  # 2 x 0.02 are allowed
    assert (found.verdict, found.figures and found.figures.identical) == (verdict, 0.0)
    alone = judge([start(5, 9, 0.0)], [start(9, 5, 0.0)])
    assert (alone.verdict, alone.sentence) == ("matches", "outputs match but for tokens that are equally likely")


def test_divergence_is_over_the_shared_tokens_made_to_sum_to_one() -> None:
    p, q = {1: math.log(0.5), 2: math.log(0.25), 3: -9.0}, {1: math.log(0.25), 2: math.log(0.5), 4: -9.0}
    assert divergence(p, q) == pytest.approx(math.log(2) / 3)  # p = (2/3, 1/3), q = (1/3, 2/3)
    assert divergence(p, p) == 0.0
    assert divergence(p, {1: -1.0, 7: -1.0}) is None


def test_what_cannot_be_compared_is_not() -> None:
    one = StartAnswers("id", "q", (answer_of([1]),))
    assert judge([one], [replace(one, questions_hash="other")]).reason == "not all starts were asked the same"
    texts = StartAnswers("text", "q", (GreedyAnswer((" a",)),))
    assert judge([one], [texts]).verdict == "not_measured"
    alone = judge([texts, texts], [texts])
    assert (alone.verdict, alone.reason) == ("matches", "no log-probabilities: tokens alone")
    assert alone.figures == replace(SAME, answers=1, dlogp_mean=None, dlogp_max=None, kl=None)


@given(starts(), st.booleans(), st.booleans())
def test_stored_answers_come_back(made: list[StartAnswers], told: bool, ids: bool) -> None:
    every = made[0]
    if not ids:
        texts = tuple(GreedyAnswer(tuple(map(str, one.tokens)), one.logprobs) for one in every.answers)
        every = StartAnswers("text", "q", (*texts, GreedyAnswer(())))
    if not told:
        every = replace(every, answers=tuple(GreedyAnswer(one.tokens) for one in every.answers))
    assert answers_of(answers_table(every)) == every


# ---- What servers tell ----------------------------------------------------------------------------------

PLAIN = {"tokens": [" a", " b"], "token_logprobs": [-0.1, -0.2], "top_logprobs": [{" a": -0.1, " c": -3}, {" b": -0.2}]}
NAMED = {"tokens": ["token_id:7"], "token_logprobs": [-0.1], "top_logprobs": [{"token_id:7": -0.1, "token_id:8": -1e9}]}
CHAT = {"content": [{"token": " a", "logprob": -0.1, "top_logprobs": [{"token": " a", "logprob": -0.1}]}]}


@pytest.mark.parametrize(
    ("choice", "unit", "expected"),
    [
        ({"logprobs": NAMED, "token_ids": [7]}, "id", GreedyAnswer((7,), (-0.1,), ({7: -0.1, 8: LEAST},))),
        ({"logprobs": PLAIN, "token_ids": [1, 2]}, "id", GreedyAnswer((1, 2), (-0.1, -0.2))),
        ({"logprobs": None, "token_ids": [1, 2]}, "id", GreedyAnswer((1, 2))),
        (
            {"logprobs": PLAIN},
            "text",
            GreedyAnswer((" a", " b"), (-0.1, -0.2), ({" a": -0.1, " c": -3.0}, {" b": -0.2})),
        ),
        ({"logprobs": {**PLAIN, "token_logprobs": [None, -0.2]}}, "text", GreedyAnswer((" a", " b"))),
        ({"logprobs": {**PLAIN, "top_logprobs": None}}, "text", GreedyAnswer((" a", " b"), (-0.1, -0.2))),
        ({"logprobs": CHAT, "message": {"content": " a"}}, "text", GreedyAnswer((" a",), (-0.1,), ({" a": -0.1},))),
        ({"text": "Two  words\n"}, "word", GreedyAnswer(("Two", "  words"))),
        ({"message": {"content": " it", "reasoning_content": "so"}}, "word", GreedyAnswer(("so", " it"))),
    ],
)
def test_an_answer_is_read_as_far_as_it_tells(choice: dict[str, Any], unit: str, expected: GreedyAnswer) -> None:
    assert read_answer(orjson.dumps({"choices": [choice]})) == (unit, expected)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"choices":[]}', b'{"choices":[{"text":""}]}', b'{"choices":[7]}']
)
def test_an_answer_of_no_use_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="an answer"):
        read_answer(body)


def test_what_is_asked_is_greedy_whatever_the_sweep_adds() -> None:
    extra = {"temperature": 1, "stream": True, "stream_options": {}, "n": 4, "top_k": 7}
    engine = SimulatorEngine(kind="simulator", api="chat", extra_body=extra)
    forms = requests_for(engine, "m", "hi", 3, exact=False)
    assert forms[3] == {
        "model": "m",
        "messages": [{"role": "user", "content": "hi"}],
        "max_tokens": 3,
        "temperature": 0,
        "seed": 0,
        "top_k": 7,
    }
    assert [{*form} - {*forms[3]} for form in forms] == [
        {"logprobs", "top_logprobs", "return_token_ids", "return_tokens_as_token_ids"},
        {"logprobs", "top_logprobs"},
        {"return_token_ids", "return_tokens_as_token_ids"},
        set(),
    ]


# ---- In a sweep -----------------------------------------------------------------------------------------

OTHER = {"engine": {"options": {"token_salt": 1}}}


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def sweep_of(variants: dict[str, Any], *words: object, **changes: Any) -> tuple[Fidelity, str]:
    """The second variant against the first, and what the sweep said."""
    defaults = {"engine": {"kind": "simulator", "scale": 0.1}, "blocks": 2, "fidelity": "strict"}
    write_sweep(Path("s.yaml"), "", **{**defaults, "variants": variants, **changes})
    result = bench("sweep", "s.yaml", "--out", "run", "--no-plots", *words)
    assert result.exit_code in CARRIED_OUT, result.stderr
    return fidelity_of(open_run("run"), *variants), result.stderr


def events(name: str) -> list[dict[str, Any]]:
    lines = map(json.loads, Path("run/journal.jsonl").read_text().splitlines())
    return [event for event in lines if event["event"] == name]


def test_a_variant_with_other_tokens_is_found_and_one_with_the_same_is_not() -> None:
    grid = {"input": 8, "output": 60, "batch": 1}
    same, _ = sweep_of({"a": {}, "b": {"engine": {"scale": 0.05}}}, grid=grid)
    assert (same.verdict, same.sentence) == ("matches", "outputs match within the noise of a restart")
    assert (same.figures, same.band, same.starts) == (replace(SAME, answers=8), replace(SAME, answers=8), (2, 2))
    names = sorted(path.name for path in Path("run/fidelity").iterdir())
    assert names == ["a-0.parquet", "a-1.parquet", "b-0.parquet", "b-1.parquet"]
    stored = read_answers(open_run("run").directory, "a")[0]
    assert (stored.unit, [len(one.tokens) for one in stored.answers]) == ("id", [32] * 8)
    assert all(
        len(place) == TOP and token in place
        for one in stored.answers
        for token, place in zip(one.tokens, one.top, strict=True)
    )

    Path("run/fidelity/b-1.parquet").unlink()  # as when the sweep was killed while it asked
    again, _ = sweep_of({"a": {}, "b": {"engine": {"scale": 0.05}}}, "--resume", grid=grid)
    assert again == same
    assert len(events("round_begun")) == 4
    starts = json.loads(Path("run/manifest.json").read_text())["starts"]
    assert [(one["variant"], one["block"]) for one in starts] == [("a", 0), ("b", 0), ("b", 1), ("a", 1), ("b", 1)]


@pytest.mark.parametrize(
    "changes",
    [{}, {"engine": {"kind": "simulator", "scale": 0.1, "api": "chat"}, "prompts": {"kind": "text"}}],
    ids=["ids", "chat"],
)
def test_other_tokens_differ(changes: dict[str, Any]) -> None:
    grid = {"input": 30, "output": 6, "batch": 1}
    found, _ = sweep_of({"a": {}, "b": OTHER}, blocks=1, grid=grid, **changes)
    assert (found.verdict, found.outside, found.starts) == ("differs", 1, (1, 1))
    assert found.figures is not None
    assert (found.figures.identical, found.figures.first_divergence) == (0.0, 1)


def test_without_fidelity_nothing_is_asked() -> None:
    found, _ = sweep_of({"a": {}, "b": OTHER}, blocks=1, fidelity="off")
    assert (found.verdict, found.reason) == ("not_measured", "a has no answers")
    assert not Path("run/fidelity").exists()


def answering(text: Callable[[Ask], str], refused: Sequence[str] = ()) -> Callable[[Ask], Script]:
    """A server without token ids or log-probabilities; 400 for a request with a field of `refused`."""

    def answer(ask: Ask) -> Script:
        body = ask.json
        if body.get("stream"):
            return completion(ask)
        if {*refused} & body.keys():
            return (error(400, "what is that"),)
        return (whole(200, {"choices": [{"text": text(ask), "logprobs": None}]}),)

    return answer


def attached(ours: ScriptedServer, theirs: ScriptedServer, **changes: Any) -> tuple[Fidelity, str]:
    engine = {"kind": "endpoint", "url": ours.url}
    return sweep_of({"a": {}, "b": {"engine": {"url": theirs.url}}}, engine=engine, **changes)


def test_a_server_without_log_probabilities_and_ids_is_compared_by_its_words() -> None:
    def last(ask: Ask) -> str:
        return "one two three" + (" 4" if ask.json["prompt"][-1] % 2 else " four")

    ours = answering(lambda _: "one two three four", ["logprobs"])
    with ScriptedServer(ours) as a, ScriptedServer(answering(last, ["return_tokens_as_token_ids"])) as b:
        found, _ = attached(a, b)
        asked = [{*ask.json} for ask in a.asks if not ask.json.get("stream")]
    assert ["logprobs" in one for one in asked] == ([True, True] + [False] * 8) * 2  # two forms were refused
    assert (found.verdict, found.reason) == ("differs", "no log-probabilities: tokens alone")
    assert found.figures is not None
    assert (found.figures.first_divergence, found.figures.dlogp_mean) == (4, None)
    assert read_answers(open_run("run").directory, "b")[1].unit == "word"


def test_a_variant_that_breaks_off_is_noted_and_its_other_block_is_compared() -> None:
    def breaks(ask: Ask) -> Script:
        plain = [one for one in b.asks if not one.json.get("stream")]
        return (RESET,) if len(plain) > 8 else answering(lambda _: "one")(ask)

    with ScriptedServer(answering(lambda _: "one")) as a, ScriptedServer(breaks) as b:
        found, said = attached(a, b)
    assert (found.verdict, found.starts) == ("matches", (2, 1))
    (failed,) = events("fidelity_failed")
    assert (failed["variant"], failed["block"]) == ("b", 1)
    assert f"note: fidelity of b is not measured in block 1: {failed['reason']}" in said
    assert len(events("cell_done")) == 4


def test_a_variant_that_never_answers_is_not_measured() -> None:
    with ScriptedServer(answering(lambda _: "one")) as a, ScriptedServer(answering(lambda _: "")) as b:
        found, _ = attached(a, b)
    assert found.verdict == "not_measured"
    assert found.reason == "b has no answers: an answer without tokens and without text"
    assert found.sentence == f"outputs were not compared ({found.reason})"
