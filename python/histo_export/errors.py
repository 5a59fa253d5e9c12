"""The errors that a user can act on.

Each one names the thing, the cause and the next step, because the command line prints nothing else: for a problem in
the input, users see this one line and no traceback.
"""

from __future__ import annotations


class HistoError(Exception):
    """A check failed: bad data, a damaged file, an export that diverges.

    Args:
        thing: what the error is about, as the user knows it (a path, an option, a class name).
        cause: what is wrong with it.
        next_step: what the user can do now.
    """

    exit_code = 1

    def __init__(self, thing: object, cause: str, next_step: str) -> None:
        self.thing = str(thing)
        self.cause = cause
        self.next_step = next_step
        super().__init__(self.thing, cause, next_step)

    def __str__(self) -> str:
        end = "" if self.next_step.endswith((".", "?")) else "."
        return f"{self.thing}: {self.cause}. {self.next_step}{end}"


class UsageError(HistoError):
    """The command was called wrongly: an impossible option, or two that contradict each other."""

    exit_code = 2
