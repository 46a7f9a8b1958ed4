"""What decoding costs a token, with and without the short way for a stream's usual events; Markdown on stdout.

Streams of vLLM's form, their reads interleaved in a log as a round leaves them, of one event or several. CPU time in us
a token, the least of --repeats: of `Decoder` alone, which parses every event, of `QuickDecoder`, and their ratio, which
is what can be compared between machines. The results of both must be equal.
"""

from __future__ import annotations

import argparse
import gc
import random
import time
from collections.abc import Callable

from benchbench.decoding.decode import Decoder
from benchbench.decoding.response import Response
from benchbench.decoding.usual_event import QuickDecoder

HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
DONE = b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n"
COMPLETION = (
    b'data: {"id":"cmpl-%016x","object":"text_completion","created":1795422570,"model":"tiny","choices":[{"index":0,'
    b'"text":"%s","logprobs":null,"finish_reason":%s,"stop_reason":null,"prompt_token_ids":null,"token_ids":%s}]}\n\n'
)
CHAT = (
    b'data: {"id":"chatcmpl-%016x","object":"chat.completion.chunk","created":1795422610,"model":"tiny","choices":[{'
    b'"index":0,"delta":{"content":"%s"},"logprobs":null,"finish_reason":%s,"token_ids":%s}]}\n\n'
)
LOGPROBS = COMPLETION.replace(
    b'"logprobs":null', b'"logprobs":{"tokens":["a"],"token_logprobs":[-8.31776],"text_offset":[0]}'
)
WORDS = [b" de", b"(_", b" modes", b" auto", b"\\n", b" handler", "é".encode()]
# name: event, token ids, tokens a read
KINDS = {
    "completions, token ids": (COMPLETION, True, 1),
    "completions, text alone": (COMPLETION, False, 1),
    "chat, token ids": (CHAT, True, 1),
    "2 tokens a read": (COMPLETION, True, 2),
    "4 tokens a read": (COMPLETION, True, 4),
    "logprobs (nothing usual)": (LOGPROBS, True, 1),
}


def reads_of(event: bytes, streams: int, tokens: int, per_read: int, *, ids: bool) -> tuple[list[bytes], list[range]]:
    """A log's reads, and the places of each stream's."""
    rng, reads = random.Random(1), [HEAD] * streams
    for first in range(0, tokens, per_read):
        for stream in range(streams):
            parts = []
            for token in range(first, min(first + per_read, tokens)):
                reason = b'"length"' if token == tokens - 1 else b"null"
                number = b"[%d]" % rng.randrange(60_000) if ids else b"null"
                body = event % (stream, rng.choice(WORDS), reason, number)
                parts.append(b"%x\r\n%s\r\n" % (len(body), body))
            reads.append(b"".join(parts))
    reads += [DONE] * streams
    return reads, [range(stream, len(reads), streams) for stream in range(streams)]


def parsed(reads: list[bytes], places: range) -> Decoder:
    decoder = Decoder()
    for number, at in enumerate(places):
        decoder.feed(reads[at], number)
    return decoder


def quick(reads: list[bytes], places: range) -> Decoder:
    decoder = QuickDecoder()
    decoder.feed_all([reads[at] for at in places], 0)
    return decoder


def cost_ns(
    decode: Callable[[list[bytes], range], Decoder], reads: list[bytes], streams: list[range]
) -> tuple[int, list[Response]]:
    start = time.process_time_ns()
    responses = [decode(reads, places).response(lambda at: at) for places in streams]
    return time.process_time_ns() - start, responses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--tokens", type=int, default=200)
    parser.add_argument("--repeats", type=int, default=5)
    asked = parser.parse_args()
    print(f"{asked.streams} streams of {asked.tokens} tokens\n")
    print("| stream | parsed us | quick us | ratio |\n|---|---|---|---|")
    gc.disable()
    for name, (event, ids, per_read) in KINDS.items():
        reads, streams = reads_of(event, asked.streams, asked.tokens, per_read, ids=ids)
        pairs = [(cost_ns(parsed, reads, streams), cost_ns(quick, reads, streams)) for _ in range(asked.repeats)]
        if any(one[1] != two[1] for one, two in pairs):
            raise SystemExit(f"{name}: the two tell different things")
        each = asked.streams * asked.tokens * 1e3
        one, two = (min(pair[way][0] for pair in pairs) / each for way in (0, 1))
        print(f"| {name} | {one:.2f} | {two:.2f} | {two / one:.2f} |", flush=True)


if __name__ == "__main__":
    main()
