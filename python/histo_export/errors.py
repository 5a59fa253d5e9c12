"""The errors that a user can act on.

Each one names the thing, the cause and the next step, because the command line prints nothing else: for a problem in
the input, users see this one line and no traceback.
"""

from __future__ import annotations

import errno
import traceback
from pathlib import Path


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
        end = "" if self.next_step.endswith((".", "?", "…")) else "."
        return f"{self.thing}: {self.cause}. {self.next_step}{end}"


class UsageError(HistoError):
    """The command was called wrongly: an impossible option, or two that contradict each other."""

    exit_code = 2


def not_written(thing: object, error: OSError, elsewhere: str = "choose another --out") -> HistoError:
    """What to tell of a file or folder that could not be written.

    Args:
        thing: what was being written.
        error: what the system reported.
        elsewhere: how the user chooses another place, in lower case.
    """
    remedies = {
        **dict.fromkeys((errno.ENOSPC, errno.EDQUOT), f"Free some space or {elsewhere}"),
        errno.EFBIG: f"Free some space, raise the limit of file sizes (ulimit -f) or {elsewhere}",
        errno.ENAMETOOLONG: f"Use shorter names or {elsewhere}",
        **dict.fromkeys((errno.EACCES, errno.EPERM), f"Check the permissions or {elsewhere}"),
    }
    next_step = remedies.get(error.errno or 0, elsewhere[:1].upper() + elsewhere[1:])
    return HistoError(thing, f"could not be written ({error.strerror or error})", next_step)


def one_line(error: BaseException, most: int = 200) -> str:
    """The text of an error of another package on one line of at most `most` characters, or its type if it has none."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def place_of(error: BaseException) -> str:
    """Type, text and place of an error that nobody foresaw: the innermost line of this package that it came through."""
    package = Path(__file__).parent
    frames = ((Path(frame.filename), frame.lineno) for frame in traceback.extract_tb(error.__traceback__))
    ours = [f", {file.relative_to(package)}:{line}" for file, line in frames if file.is_relative_to(package)]
    text = " ".join(str(error).split())[:200]
    return type(error).__name__ + (f": {text}" if text else "") + (ours[-1] if ours else "")
