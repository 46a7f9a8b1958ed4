"""The program `bench`: until its modules are imported an interrupt simply ends it, as nothing has begun."""

import atexit
import gc
import os
import signal
import sys
import threading


def run() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Importing makes 0.1 million objects and hardly any garbage; to look for it took 0.1 s of each start.
    gc.set_threshold(200_000, 20, 100)
    from benchbench.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        main()
    except SystemExit as end:
        if end.code is not None and not isinstance(end.code, int):
            raise
        leave(end.code or 0)
        raise
    leave(0)


def leave(code: int) -> None:
    """End the process without taking the interpreter apart, which took 0.08 s with all that a sweep imports.

    Does nothing where more is to be done than what is registered for the end: then Python ends in its usual way.
    """
    if any(not (thread is threading.main_thread() or thread.daemon) for thread in threading.enumerate()):
        return
    try:
        atexit._run_exitfuncs()  # noqa: SLF001 - there is no public name
        sys.stdout.flush()
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads any more, or it is closed
        return
    os._exit(code)
