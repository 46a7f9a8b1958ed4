"""Pictures, drawn by processes of their own, one a format, side by side: no command imports matplotlib.

Run as `python -m benchbench.cli.drawing FORMAT PARENT_PID`: what is to be drawn comes pickled on standard input, and
one line of JSON goes out. It dies with its parent.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchbench.api.pictures import FORMATS, Pictures


def drawn(pictures: Pictures, formats: Sequence[str] = FORMATS) -> tuple[list[Path], list[str]]:
    """The files, and why there are not more of them, a line a process that failed.

    Processes that still draw are ended with whatever ends this call.
    """
    data, files, problems = pickle.dumps(pictures), list[Path](), list[str]()
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(_process(form)) for form in formats]
        for process in processes:
            assert process.stdin is not None  # noqa: S101 - as started
            with contextlib.suppress(BrokenPipeError), process.stdin:
                process.stdin.write(data)
        for process in processes:
            assert process.stdout is not None  # noqa: S101 - as started
            line = process.stdout.read()
            answer = json.loads(line) if line else {"problem": f"the drawing process ended (exit {process.wait()})"}
            files += map(Path, answer.get("files", ()))
            problems += [answer["problem"]] if "problem" in answer else []
    order = {path.stem: number for number, path in reversed([*enumerate(files)])}
    return sorted(files, key=lambda path: order[path.stem]), sorted(set(problems))


def plots_text(pictures: Pictures) -> str:
    """Draw them: `Plots:` and a line a PNG, "" without any. What cannot be drawn is a warning on stderr."""
    from benchbench.cli.console import announce  # the processes that draw need no click

    files, problems = drawn(pictures)
    for problem in problems:
        announce("warning", f"the plots are not all drawn: {problem}")
    shown = [f"  {path}" for path in files if path.suffix == ".png"]
    return "\n".join(["Plots:", *shown]) if shown else ""


@contextlib.contextmanager
def _process(form: str) -> Iterator[subprocess.Popen[bytes]]:
    words = [sys.executable, "-m", "benchbench.cli.drawing", form, str(os.getpid())]
    with subprocess.Popen(
        words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, process_group=0
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def main(form: str, parent: int) -> None:
    """The life of such a process."""
    from benchbench.linux import die_with_parent

    die_with_parent(parent)
    answer: dict[str, Any]
    try:
        pictures: Pictures = pickle.load(sys.stdin.buffer)  # noqa: S301 - our parent's
        answer = {"files": [str(path) for path in pictures.draw([form])]}
    except Exception as error:  # noqa: BLE001 - the parent says what it was
        answer = {"problem": str(error) if isinstance(error, OSError) else repr(error)}
    sys.stdout.write(json.dumps(answer))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
