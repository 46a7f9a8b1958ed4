"""What the usual events of a stream tell by their bytes alone is what the parsers would have told."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchbench.decoding.decode import Decoder
from benchbench.decoding.response import Response
from benchbench.decoding.usual_event import QuickDecoder, form_of

STREAMS = sorted((Path(__file__).parent / "data" / "sse").glob("*.txt"))
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
COMPLETION = (
    b'{"id":"cmpl-1","object":"text_completion","created":1,"model":"m","choices":[{"index":0,"text":%s,"logprobs":null,'
    b'"finish_reason":%s,"token_ids":%s}]}'
)
CHAT = b'{"id":"chat-1","model":"m","choices":[{"index":0,"delta":{"content":%s},"finish_reason":%s,"token_ids":%s}]}'
# llama.cpp's order, where what changes from stream to stream stands last
BEHIND = b'{"choices":[{"finish_reason":null,"delta":{"reasoning_content":%s},"x":%s,"y":%s}],"id":"a","model":"m"}'
FORMS = (COMPLETION, CHAT, BEHIND)
TEXTS = (
    *(
        b'"a"',
        b'" de"',
        b'"\\n"',
        b'"\\"\\\\"',
        b'"\\u00e9"',
        b'"\\ud83d\\ude00"',
        b'"\\ud800"',
        '"é漢"'.encode(),
        b'"\xff"',
    ),
    *(
        b'"\xc3"',
        b'""',
        b'"\x01"',
        b'"\t"',
        b'"\x7f"',
        b'"\\x"',
        b'"\\u12"',
        b'"a\\"',
        b'"a"b"',
        b'"\\/"',
        b"null",
        b"1",
        b"NaN",
    ),
    *(
        b'"a","text":"b"',
        b'"a","error":{"message":"no"}',
        b'"a","role":"assistant"',
        b'"","role":"assistant"',
        b"{}",
        b"[]",
    ),
    *(b'"],\\"token_ids\\":[1"', b'"data: "', b'"\\r\\n"', b'"' + b"x" * 9000 + b'"', b'"' + b"y" * 300 + b'"'),
)
IDS = (
    *(b"[1]", b"[315]", b"[1,2,3]", b"null", b"[]", b"[01]", b"[-1]", b"[1.5]", b"[1, 2]", b"[1,]", b"[true]", b"1"),
    *(b"[99999999999999999999]", b'[1],"usage":{"completion_tokens":3}', b'[1],"token_ids":[1,2]', b'["1"]', b"[ 1]"),
)
REASONS = (b"null", b'""', b'"length"', b'"error"')
ODD = (
    *(b": keep-alive\n\n", b"data: [DONE]\n\n", b"event: error\n", b"\n", b"data: {}\n\n", b"id: 1\ndata: 5\n\n", b""),
    *(b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n', b"retry: 3\n\n", b"data: \n\n"),
    *(b'data: {"error":{"message":"x"}}\n\n', b'data: {"choices":[{"text":"a"},{"text":"b","index":1}]}\n\n', b"data"),
)


def told(decoder: Decoder) -> Response:
    return decoder.response(lambda at: at * 1_000_000)


def plainly(reads: Sequence[bytes]) -> Response:
    decoder = Decoder()
    for at, data in enumerate(reads):
        decoder.feed(data, at)
    return told(decoder)


def quickly(reads: Sequence[bytes], slices: int = 1) -> Response:
    decoder = QuickDecoder()
    size = -(-len(reads) // slices) or 1
    for begin in range(0, len(reads), size):
        decoder.feed_all(reads[begin : begin + size], begin)
    return told(decoder)


def cut(raw: bytes, places: Sequence[int]) -> list[bytes]:
    edges = sorted({0, len(raw), *(place % (len(raw) + 1) for place in places)})
    return [raw[a:b] for a, b in pairwise(edges)]


def chunk(body: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(body), body)


def chunks_of(raw: bytes) -> list[bytes]:
    """A captured response as a server sends it: the head, then each chunk by itself."""
    parts = raw.split(b"\n\n\r\n")
    return [part + b"\n\n\r\n" for part in parts[:-1]] + [parts[-1]]


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
def test_captured_streams_cut_anywhere(path: Path) -> None:
    raw = path.read_bytes()
    whole = chunks_of(raw)
    assert quickly(whole) == plainly(whole)
    for place in range(1, len(raw)):
        assert quickly([raw[:place], raw[place:]]) == plainly([raw[:place], raw[place:]])
    for many in (2, 3, 7):
        some = [b"".join(whole[k : k + many]) for k in range(0, len(whole), many)]
        assert quickly(some) == plainly(some)
    single = [raw[k : k + 1] for k in range(len(raw))]
    assert quickly(single) == plainly(single)


@pytest.mark.parametrize("path", STREAMS, ids=lambda path: path.stem)
@given(data=st.data())
@settings(max_examples=60)
def test_captured_streams_with_other_bytes(path: Path, data: st.DataObject) -> None:
    chunks = chunks_of(path.read_bytes())
    if len(chunks) > 2:
        repeated = chunks[data.draw(st.integers(1, len(chunks) - 1))]
        chunks[1:1] = [repeated] * data.draw(st.integers(0, 6))
    raw = bytearray(b"".join(chunks))
    edits = st.tuples(st.integers(0, len(raw) - 1), st.integers(0, 3), st.sampled_from(b'"\\{}[]:,0aZ \r\n\x00\xff'))
    for place, removed, byte in data.draw(st.lists(edits, max_size=3)):
        raw[place : place + removed] = bytes([byte])
    reads = cut(bytes(raw), data.draw(st.lists(st.integers(0, len(raw)), max_size=8)) + ends(raw))
    assert quickly(reads, data.draw(st.integers(1, 9))) == plainly(reads)


def ends(raw: bytes | bytearray) -> list[int]:
    """Where reads end if each chunk is one."""
    places, at = [], raw.find(b"\n\n\r\n")
    while at >= 0:
        places.append(at + 4)
        at = raw.find(b"\n\n\r\n", at + 4)
    return places


@st.composite
def bodies(draw: st.DrawFn) -> list[bytes]:
    """Chunks of a stream, most of them events of one form."""
    chooser = random.Random(draw(st.integers(0, 1 << 32)))
    form, oddness = chooser.choice(FORMS), chooser.choice((0.0, 0.1, 0.4))
    made = list[bytes]()
    ids = chooser.choice(IDS[:4])
    for _ in range(chooser.randint(1, 40)):
        if chooser.random() < oddness / 2:
            made.append(chunk(chooser.choice(ODD)))
            continue
        odd = chooser.random() < oddness
        parts = chooser.choice(TEXTS if odd else TEXTS[:8]), chooser.choice(REASONS) if odd else b"null"
        event = (chooser.choice(FORMS) if odd else form) % (*parts, chooser.choice(IDS) if odd else ids)
        if odd and chooser.random() < 0.2:
            event = event.replace(b'"m"', chooser.choice((b'"n"', b'"m","k":1', b'"m" ', b'"m","choices":[]')))
        line, end = b"data: " + event, b"\n\n"
        if odd and chooser.random() < 0.3:
            line, end = chooser.choice(
                ((b"data:" + event, end), (line, b"\r\n\r\n"), (line, b"\n"), (b"\n" + line, end))
            )
        body = line + end
        kind = chooser.random() if odd else 1.0
        if kind < 0.1:
            made.append(b"%X\r\n%s\r\n" % (len(body), body))
        elif kind < 0.2:
            made.append(b"%x;a=b\r\n%s\r\n" % (len(body), body))
        elif kind < 0.3:
            made.append(b"0%x\r\n%s\r\n" % (len(body), body))
        elif kind < 0.4:
            made.append(chunk(chunk(body)))  # what looks like a chunk inside of one
        elif kind < 0.5:
            made.append(b"%x\r\n%s\r\n" % (len(body) + chooser.randint(-2, 2), body))
        else:
            made.append(chunk(body))
    return made


@given(
    made=bodies(), cuts=st.lists(st.integers(0, 1 << 20), max_size=4), many=st.integers(1, 4), slices=st.integers(1, 5)
)
@settings(max_examples=600, deadline=None)
def test_streams_of_usual_and_odd_events(made: list[bytes], cuts: list[int], many: int, slices: int) -> None:
    chunks = [HEAD, *made, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n"]
    joined = [b"".join(chunks[k : k + many]) for k in range(0, len(chunks), many)]
    edges = [0]
    for part in joined:
        edges.append(edges[-1] + len(part))
    reads = cut(b"".join(joined), [*edges[:-1], *cuts])
    assert quickly(reads, slices) == plainly(reads)


@pytest.mark.parametrize("many", [1, 3])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("ids", IDS[:4])
def test_usual_events_do_not_go_to_the_parsers(
    form: bytes, ids: bytes, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = [chunk(b"data: " + form % (TEXTS[k % 8], b"null", ids) + b"\n\n") for k in range(60)]
    reads = [HEAD, *(b"".join(made[k : k + many]) for k in range(0, 60, many)), b"0\r\n\r\n"]
    expected, parsed = plainly(reads), list[int]()
    feed = Decoder.feed

    def counting(self: Decoder, data: bytes, at: int) -> None:
        parsed.append(at)
        feed(self, data, at)

    monkeypatch.setattr(Decoder, "feed", counting)
    assert quickly(reads) == expected
    assert len(expected.event_read) == 60
    assert parsed == [0, 1, len(reads) - 1]


def test_what_stands_behind_the_end_of_a_response_is_not_taken() -> None:
    usual = chunk(b"data: " + COMPLETION % (b'"a"', b"null", b"[1]") + b"\n\n")
    reads = [HEAD + usual, usual + b"0\r\n\r\n" + usual, usual]
    assert quickly(reads) == plainly(reads)


def test_no_form_where_a_text_is_not_the_only_one_of_its_name() -> None:
    twice = COMPLETION.replace(b'"index":0', b'"text":"a","index":0')
    assert form_of(chunk(b"data: " + COMPLETION % (b'"a"', b"null", b"[1]") + b"\n\n")) is not None
    assert form_of(chunk(b"data: " + twice % (b'"a"', b"null", b"[1]") + b"\n\n")) is None


def test_events_that_differ_each_time_are_looked_at_only_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    looked = list[bytes]()

    def looking(data: bytes) -> None:
        looked.append(data)

    monkeypatch.setattr("benchbench.decoding.usual_event.form_of", looking)
    made = [chunk(b"data: " + COMPLETION % (b'"a"', b"null", b"[1]") + b"\n\n") for _ in range(50)]
    quickly([HEAD, *made, b"0\r\n\r\n"])
    assert len(looked) == 3
