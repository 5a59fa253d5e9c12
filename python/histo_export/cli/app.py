"""The two programs: their commands, and what becomes of errors and signals."""

from __future__ import annotations

import errno
import logging
import os
import signal
import sys
from collections.abc import Callable
from io import TextIOWrapper
from typing import Annotated, Any, NoReturn

import typer
from rich.markup import escape

from histo_export import __version__
from histo_export.cli import show
from histo_export.cli.bench import bench
from histo_export.cli.data import data
from histo_export.cli.doctor import doctor
from histo_export.cli.examples import EXAMPLES, FIRST_STEPS
from histo_export.cli.export import export
from histo_export.cli.inspect import inspect
from histo_export.cli.options import TRAINING_ORDER, expand_options
from histo_export.cli.predict import predict
from histo_export.cli.push import push
from histo_export.cli.serve import serve
from histo_export.cli.study import study
from histo_export.cli.train import train
from histo_export.cli.usage import Command, Group, first_paragraph
from histo_export.cli.verify import verify
from histo_export.errors import HistoError, not_written, one_line
from histo_export.extras import extra_with, install
from histo_export.system import ending_signals

_SETTINGS: dict[str, Any] = {
    "pretty_exceptions_enable": False,
    "rich_markup_mode": "rich",
    "context_settings": {"help_option_names": ["-h", "--help"]},
}
app = typer.Typer(
    cls=Group,
    help="Train ResNet34 tile classifiers with any pool size, export them with proven parity, measure every runtime.",
    epilog="[b]histo[/b] alone shows first steps. Completion of commands and options by the shell, once: "
    "histo --install-completion",
    **_SETTINGS,
)
export_app = typer.Typer(**_SETTINGS)


def _add(program: typer.Typer, name: str, command: Callable[..., Any]) -> None:
    """Adds a command, with its examples below its help, of which Typer would break each source line."""
    text = "\n\n".join(" ".join(paragraph.split()) for paragraph in (command.__doc__ or "").split("\n\n"))
    lines = "\n".join(map(escape, EXAMPLES[name]))
    program.command(name, cls=Command, help=text.strip(), epilog=f"[b]Examples[/b]\n{lines}")(command)


# In the order of `histo --help`.
_add(app, "export", expand_options(export, TRAINING_ORDER))
_add(app, "train", expand_options(train, TRAINING_ORDER))
_add(app, "study", expand_options(study))
_add(app, "verify", verify)
_add(app, "bench", expand_options(bench))
_add(app, "predict", expand_options(predict))
_add(app, "serve", expand_options(serve))
_add(app, "inspect", expand_options(inspect))
_add(app, "push", push)
_add(app, "data", data)
_add(app, "doctor", doctor)
_add(export_app, "export", expand_options(export, TRAINING_ORDER))


@app.callback(invoke_without_command=True)
def _root(
    ctx: typer.Context,
    version: Annotated[bool, typer.Option("--version", "-V", metavar="", help="Show the version and exit.")] = False,
) -> None:
    if version:
        show.out_console.print(f"histo-export {__version__}")
        raise typer.Exit
    if ctx.invoked_subcommand is None:
        _print_first_steps(ctx)


@app.command("help", cls=Command, hidden=True)
def _help(
    ctx: typer.Context, name: Annotated[str | None, typer.Argument(metavar="[COMMAND]", help="A command.")] = None
) -> None:
    """Show the help of the program or of a command."""
    root = ctx.find_root()
    if name is None:
        root.get_help()
        return
    _, command, _ = root.command.resolve_command(root, [name])  # type: ignore[attr-defined]  # it is a Group
    command.make_context(name, ["--help"], parent=root)


def _print_first_steps(ctx: typer.Context) -> None:
    """What to do, for those who type `histo` alone."""
    out = show.out_console
    out.print("Train classifiers of histology tiles, export them, run them on tiles and slides.\n")
    for line, effect in FIRST_STEPS.items():
        out.print(f"  [b]{escape(line)}[/b]\n      {escape(effect)}", soft_wrap=True)
    out.print("\nCommands; histo COMMAND --help explains each:\n")
    for name, command in ctx.command.commands.items():  # type: ignore[attr-defined]  # it is a Group
        if not command.hidden:
            out.print(f"  {name:8} {first_paragraph(command)}", soft_wrap=True)


class _Terminated:
    """What SIGTERM does: it ends the command as Ctrl-C does, so that `kill` cleans up; only the exit code differs."""

    received = False

    def __call__(self, *_: object) -> NoReturn:
        self.received = True
        raise KeyboardInterrupt


def built_app() -> Any:
    """`histo` as a group of commands, for the reference of the documentation."""
    return _built(app)


def _built(program: typer.Typer) -> Any:
    """The program as Typer runs it; completion is explained in the help, so that its options take no place there."""
    command = typer.main.get_command(program)
    for param in command.params:
        if param.name in ("install_completion", "show_completion"):
            param.hidden = True  # type: ignore[attr-defined]  # it is an option
    return command


def _run(command: typer.Typer, name: str) -> NoReturn:
    """Runs a command; every foreseen problem ends in one line on stderr and an exit code."""
    terminated = _Terminated()
    for number in ending_signals():
        signal.signal(number, terminated)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # its advice where the home folder is not writable
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            stream.reconfigure(errors="replace")  # a locale that lacks a character gets a question mark
    try:
        code = _built(command).main(prog_name=name, standalone_mode=False)
        sys.stdout.flush()
        if code == 130:
            show.log.print(f"{name}: interrupted; no incomplete file is left behind.", markup=False)
    except HistoError as error:
        code = error.exit_code
        show.log.print(f"{name}: {error}", markup=False, soft_wrap=True)
    except ImportError as error:  # a package that is not what it should be; commands ask for missing ones themselves
        extra = extra_with(error.name or "")
        code = 2
        step = f"Run {install(extra)}" if extra else "See histo doctor"
        told = HistoError("An import", f"failed ({one_line(error)})", step)
        show.log.print(f"{name}: {told}", markup=False, soft_wrap=True)
    except BrokenPipeError:  # `histo … | head`
        _drop_output()
        code = 1
    except OSError as error:
        if "--install-completion" in sys.argv:  # Typer writes to the home folder
            show.log.print(f"{name}: {_not_installed(name, error)}", markup=False, soft_wrap=True)
            sys.exit(1)
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO) or error.filename is not None:
            raise
        _drop_output()
        code = 1
        show.log.print(f"{name}: {not_written('standard output', error, 'choose another place')}", markup=False)
    sys.exit(143 if terminated.received and code == 130 else code or 0)


def _not_installed(name: str, error: OSError) -> HistoError:
    """What to say where completion cannot be installed."""
    by_hand = f"add what {name} --show-completion prints to the files that your shell reads"
    return not_written(error.filename or "the home folder", error, by_hand)


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
