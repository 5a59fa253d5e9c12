"""The command line: `histo` and its subcommands, and `histo-export`, which is `histo export`.

Only the result goes to stdout; progress and messages go to stderr. Exit codes: 0 success, 1 a failed check, 2 wrong
use, 130 interrupted by Ctrl-C, 143 by SIGTERM. torch and Lightning are imported by the commands that need them, so that
help appears at once.

`app` puts the commands together, and each has a file of its own. `options` has the options that several commands share,
`tiles` opens the data, `usage` explains wrong use, `examples` has lines to copy, and `show` prints.
"""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

__all__ = ["export_main", "main"]


def main() -> NoReturn:
    """`histo`."""
    with _quiet_interrupt():
        from histo_export.cli import app
    app.main()


def export_main() -> NoReturn:
    """`histo-export`: `histo export` by itself."""
    with _quiet_interrupt():
        from histo_export.cli import app
    app.export_main()


@contextmanager
def _quiet_interrupt() -> Iterator[None]:
    """Ctrl-C while the commands are imported, which takes a moment, ends the process without a traceback, as later."""
    try:
        yield
    except KeyboardInterrupt:
        sys.exit(130)
