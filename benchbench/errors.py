"""The errors that this program raises on purpose, and who catches them.

    BenchError
        SpecError (yamlfile.mistakes) a sweep that cannot be used: every mistake, with its line
        EngineError                 a server or an engine that cannot be used; names the key of the sweep at fault
            MovedRefError           a git ref that moved since its variant was measured
        LaunchStoppedError          somebody stopped the sweep while its engine started
        InterruptedSweep            somebody stopped the sweep while it measured
        StoppedError                the sweep cannot go on now, and can be resumed
        EngineDiedError             an engine of ours is gone; caught by `measure.sessions`, which starts it again
        WorkerDiedError             the load generator is gone
        RunError                    a run directory that cannot be used as asked
        ModelError                  model files that cannot be read
        CardError                   a model card that cannot be changed as asked
        UnknownFormatError          a file that no importer knows
        SimulatorError              the simulator could not be started
        ProfileError (engines.simulator)   a simulator's profile that cannot be used
        CheckFailedError            `bench check` has found something

A failed request is none of these: it is a record.
"""

from __future__ import annotations

from collections.abc import Sequence


class BenchError(Exception):
    """Whatever ends a command with a message instead of a traceback."""


class EngineError(BenchError):
    """A server can't be used. `key`: the sweep's key at fault. `gone`: nobody answers now, later somebody may.

    `lines`: what its log says last, when we launched it.
    """

    def __init__(
        self, message: str, key: str, *, allowed: str = "", gone: bool = False, lines: Sequence[str] = ()
    ) -> None:
        super().__init__(message)
        self.message, self.key, self.allowed, self.gone, self.lines = message, key, allowed, gone, tuple(lines)


class LaunchStoppedError(BenchError):
    """The sweep was asked to stop while its server started."""


class WorkerDiedError(BenchError):
    """The load generator's process ended or failed; the message has what it said last."""


class StoppedError(BenchError):
    """The sweep can't go on now, and can be resumed."""


class EngineDiedError(BenchError):
    """The engine that the sweep owns is gone."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class InterruptedSweep(BenchError):  # noqa: N818 - no error: somebody asked
    """The sweep was asked to stop."""


class RunError(BenchError):
    """A run directory that can't be used as asked. The message names it and says what to do."""


class ModelError(BenchError, ValueError):
    """A model's files that can't be read. The message names the file."""


class MovedRefError(EngineError):
    """A ref is at another commit than the one that a run has measured."""


class CardError(BenchError, ValueError):
    """A card cannot be changed as asked; the message begins with the line, where there is one."""


class UnknownFormatError(BenchError, ValueError):
    """Not a file of any format that can be imported."""


class CheckFailedError(BenchError):
    """`lines` for stderr and the exit `code`."""

    def __init__(self, code: int, *lines: object) -> None:
        super().__init__(*lines)
        self.code, self.lines = code, lines


class SimulatorError(BenchError):
    """The simulator could not be started."""
