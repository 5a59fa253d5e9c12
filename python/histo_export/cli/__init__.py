"""The command line: `histo` and its subcommands, and `histo-export`, which is `histo export`.

Only the result goes to stdout; progress and messages go to stderr. Exit codes: 0 success, 1 a failed check, 2 wrong
use, 130 interrupted by Ctrl-C, 143 by SIGTERM. torch and Lightning are imported by the commands that need them, so that
help appears at once.

`app` puts the commands together, and each has a file of its own. `options` has the options that several commands share,
`tiles` opens the data, `usage` explains wrong use, `examples` has lines to copy, and `show` prints.
"""

from histo_export.cli.app import export_main, main

__all__ = ["export_main", "main"]
