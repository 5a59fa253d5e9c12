"""The two programs: their commands, and what becomes of errors and signals."""

from __future__ import annotations

import os
import signal
import sys
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
from histo_export.errors import HistoError

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
    try:
        code = command(prog_name=name, standalone_mode=False)
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
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        code = 1
    sys.exit(code or 0)


def main() -> NoReturn:
    """`histo`."""
    _run(app, "histo")


def export_main() -> NoReturn:
    """`histo-export`: `histo export` by itself."""
    _run(export_app, "histo-export")
