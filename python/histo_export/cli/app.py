"""The two programs: their commands, and what becomes of errors and signals."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from io import TextIOWrapper
from typing import Annotated, NoReturn

import typer

from histo_export import __version__
from histo_export.cli import show
from histo_export.cli.bench import bench
from histo_export.cli.doctor import doctor
from histo_export.cli.export import export
from histo_export.cli.inspect import inspect
from histo_export.cli.options import TRAINING_ORDER, expand_options
from histo_export.cli.predict import predict
from histo_export.cli.train import train
from histo_export.cli.verify import verify
from histo_export.errors import HistoError, not_written

app = typer.Typer(
    name="histo",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train ResNet34 tile classifiers with any pool size, export them with proven parity, measure every runtime.",
)
export_app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="rich")

# In the order of `histo --help`.
app.command()(expand_options(export, TRAINING_ORDER))
app.command()(expand_options(train, TRAINING_ORDER))
app.command()(verify)
app.command()(expand_options(bench))
app.command()(expand_options(predict))
app.command()(inspect)
app.command()(doctor)
export_app.command()(expand_options(export, TRAINING_ORDER))


@app.callback(invoke_without_command=True)
def _root(
    version: Annotated[bool, typer.Option("--version", metavar="", help="Show the version and exit.")] = False,
) -> None:
    if version:
        show.out_console.print(f"histo-export {__version__}")
        raise typer.Exit


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _run(command: typer.Typer, name: str) -> NoReturn:
    """Runs a command; every foreseen problem ends in one line on stderr and an exit code."""
    signal.signal(signal.SIGTERM, _interrupt)  # so that `kill` cleans up as Ctrl-C does
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its advice where the home folder is not writable
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale that lacks a character gets a question mark
    try:
        code = command(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            show.log.print(f"{name}: interrupted; no incomplete file is left behind.", markup=False)
    except HistoError as error:
        code = error.exit_code
        show.log.print(f"{name}: {error}", markup=False, soft_wrap=True)
    except typer.exceptions.TyperException as error:
        code = error.exit_code
        message = error.format_message().strip()
        show.log.print(f"{name}: {message} See {name} --help.", markup=False, soft_wrap=True)
    except BrokenPipeError:  # `histo … | head`
        _drop_output()
        code = 1
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) or error.filename is not None:
            raise
        _drop_output()
        code = 1
        show.log.print(f"{name}: {not_written('standard output', error, 'choose another place')}", markup=False)
    sys.exit(code or 0)


def _drop_output() -> None:
    """What is left in the buffer of stdout has nowhere to go; Python would complain of it at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _open_closed_streams() -> None:
    """Gives a standard stream that was closed (`histo … >&-`) the null device.

    Otherwise the next file to be opened, perhaps a result, would get its number and whatever libraries print.
    """
    for number, mode in ((0, "r"), (1, "w"), (2, "w")):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, os.O_RDONLY if mode == "r" else os.O_WRONLY)  # the lowest number that is free
            assert opened == number
            stream = open(number, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)


def main() -> NoReturn:
    """`histo`."""
    _open_closed_streams()
    _run(app, "histo")


def export_main() -> NoReturn:
    """`histo-export`: `histo export` by itself."""
    _open_closed_streams()
    _run(export_app, "histo-export")
