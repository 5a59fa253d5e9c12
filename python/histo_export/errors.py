"""The errors that a user can act on.

Each one names the thing, the cause and the next step, because the command line prints nothing else: for a problem in
the input, users see this one line and no traceback.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import traceback
from collections.abc import Iterable
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


class InterruptedRunError(HistoError):
    """Ctrl-C or a signal ended the command early, and what was complete by then has been written."""

    exit_code = 130


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


def system_error(error: BaseException) -> OSError | None:
    """The failed system call that a library reports as an error of its own; None if that is not what failed.

    torch's archives raise a RuntimeError ("[enforce fail at inline_container.cc:671] . unexpected pos 576 vs 534") and
    safetensors a SafetensorError. torch often keeps the system's reason to itself; it is ENOSPC then.

    Raises:
        KeyboardInterrupt: a signal came while torch wrote, which it reports as a failed write.
    """
    if isinstance(error, OSError):
        return error
    text = str(error)
    if number := re.search(r"\(os error (\d+)\)", text):
        return OSError(int(number[1]), os.strerror(int(number[1])))
    if "inline_container.cc" not in text:
        return None
    if isinstance(error.__context__, OSError):  # raised by the Python file that the archive was written to
        return error.__context__
    if isinstance(error.__context__, KeyboardInterrupt):
        raise error.__context__
    if reason := re.search(r"strerror: (.+)", text):
        return next((OSError(n, reason[1]) for n in errno.errorcode if os.strerror(n) == reason[1]), OSError(reason[1]))
    return OSError(errno.ENOSPC, "not all of it was written; the disk may be full")


def nearest(text: str, known: Iterable[str], offered: Iterable[str] = ()) -> str:
    """The next step for an unknown name out of a long list: what it may have meant.

    Args:
        text: the name.
        known: the list, which `histo doctor` prints.
        offered: those of the list that may be proposed; default: all.
    """
    every_name = list(known)
    names = list(offered) or every_name
    near = difflib.get_close_matches(text, names, n=1, cutoff=0.8)
    near = near or [name for name in names if text and text in name]
    near = near or difflib.get_close_matches(text, names, n=3, cutoff=0.5)
    every = f"histo doctor lists all {len(every_name)}"
    return f"Did you mean {' or '.join(near[:3])}? {every}" if near else every


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
