"""The program `bench`: until its modules are imported an interrupt simply ends it, as nothing has begun."""

import signal


def run() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    from benchbench.cli.main import main

    signal.signal(signal.SIGINT, signal.default_int_handler)
    main()
