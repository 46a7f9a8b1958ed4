"""The program `bench`: until its modules are imported an interrupt simply ends it, as nothing has begun."""

import gc
import signal


def run() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    gc.set_threshold(50_000, 20, 100)  # importing makes little garbage; to look for it took 0.1 s of each start
    from benchbench.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
