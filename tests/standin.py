"""A stand-in for a server with eight ranks: starts at once, and misbehaves as STANDIN (words in the environment) says.

Standard library only, since it stands in for a program of another environment. After "listening" it has eight ranks
(forked, titled VLLM::TP0 ... unless `untitled`), and a short-lived helper that is none.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import signal
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory

MODES = set(os.environ.get("STANDIN", "").split())
MARK = os.environ.get("BENCH_TEST_MARK", "")
RANKS = 8
DEAF, HUNG = 3, 5  # ranks that ignore SIGTERM, that are stopped
CRASH = """(Worker pid=7) ERROR 11-23 18:29:43 [multiproc_executor.py:1063] Traceback (most recent call last):
(Worker pid=7) ERROR 11-23 18:29:43 [multiproc_executor.py:1063]   File "x/cpu_router.py", line 239, in forward
(Worker pid=7) ERROR 11-23 18:29:43 [multiproc_executor.py:1063]     assert self.scoring_func == "softmax"
(Worker pid=7) ERROR 11-23 18:29:43 [multiproc_executor.py:1063] AssertionError
(APIServer pid=5) ERROR 11-23 18:29:43 [async_llm.py:906] vllm.v1.engine.exceptions.EngineDeadError: EngineCore ..."""


def say(*words: str) -> None:
    sys.stdout.write(" ".join(words) + "\n")
    sys.stdout.flush()


class Handler(BaseHTTPRequestHandler):
    model = ""

    def do_GET(self) -> None:
        if self.path == "/v1/models":
            self._answer(200, {"data": [{"id": self.model, "owned_by": "vllm", "max_model_len": 4096}]})
        elif self.path == "/health":
            self._answer(503 if "never" in MODES else 200, {})
        else:
            self._answer(404, {})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        if "locked" in MODES and self.headers["Authorization"] != "Bearer " + os.environ["VLLM_API_KEY"]:
            self._answer(401, {})
        elif "crash" in MODES:
            say(CRASH)
            self._answer(500, {"error": {"message": "EngineCore encountered an issue."}})
            os.kill(os.getpid(), signal.SIGTERM)
        else:
            self._answer(200, {"usage": {"completion_tokens": 1}})

    def _answer(self, status: int, body: object) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


def rank(number: int, up: int) -> int:
    pid = os.fork()
    if pid:
        return pid
    signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in MODES and number == DEAF else signal.SIG_DFL)
    if "untitled" not in MODES:
        ctypes.CDLL(None).prctl(15, f"VLLM::TP{number}".encode(), 0, 0, 0)
    os.write(up, b"x")
    if "hung" in MODES and number == HUNG:
        os.kill(os.getpid(), signal.SIGSTOP)
    while "flood" in MODES and number == 0:
        sys.stdout.write("a line of the flood\n" * 1000)
    while True:
        time.sleep(60)


def daemon() -> None:
    """A process that has left the tree and the session, and still holds the port."""
    if not os.fork():
        os.setsid()
        if os.fork():
            os._exit(0)
        time.sleep(1000)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    Handler.model = given.served_model_name or given.model
    if "memory" in MODES:
        forgotten = SharedMemory(f"{MARK}-forgotten", create=True, size=4096)
        resource_tracker.unregister(forgotten._name, "shared_memory")
        tracked = SharedMemory(f"{MARK}-tracked", create=True, size=4096)
        forgotten.buf[0] = tracked.buf[0] = 1
    there, up = os.pipe()
    pids = [rank(number, up) for number in range(RANKS)]
    for _ in pids:
        os.read(there, 1)

    def end(*_: object) -> None:
        for pid in pids:
            os.kill(pid, signal.SIGTERM)
        for pid in pids:
            os.waitpid(pid, 0)
        os._exit(0)

    signal.signal(signal.SIGTERM, end)
    helper = subprocess.Popen(["/bin/sleep", "0.2"])
    server = HTTPServer((given.host, given.port), Handler)
    if "daemon" in MODES:
        daemon()
        os.wait()
    if "secret" in MODES:
        say("the token is", os.environ["A_TOKEN"], "and the other", os.environ["OTHER_KEY"])
    say("listening")
    while True:
        server.handle_request()
        helper.poll()


if __name__ == "__main__":
    main()
