"""Programs of other people that make files of a bundle: whether they are there, and how one is run."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from histo_export.errors import HistoError, UsageError, one_line
from histo_export.extras import needs
from histo_export.spec import InputKind


@dataclass(frozen=True)
class Converter:
    """What a format needs.

    Attributes:
        extra: a key of `extras.EXTRAS`; "" where none is needed.
        apart: a command whose package asks for other versions than ours, so that it needs an environment of its own;
            "" where there is none.
        takes_bytes: whether it takes the graphs of `--input uint8`.
        refused: cause and next step where it can't make files here at all.
    """

    extra: str = ""
    apart: str = ""
    takes_bytes: bool = False
    refused: tuple[str, str] | None = None

    def check(self, thing: str, kind: InputKind) -> None:
        """UsageError where `thing`, as the user knows it, can't be made. Imports nothing."""
        if self.refused is not None:
            raise UsageError(thing, *self.refused)
        if kind == "uint8" and not self.takes_bytes:
            raise UsageError(thing, "can't take bytes", "Leave out --input uint8")
        if self.extra:
            needs(thing, self.extra)
        if self.apart and found(self.apart) is None:
            step = f"Its versions clash with ours, so give it an environment of its own: pipx install {self.apart}"
            raise UsageError(thing, f"needs the command {self.apart}, which is not on the PATH", step)


def found(program: str) -> str | None:
    """The path of a command, beside this Python or on the PATH; None where there is none."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or shutil.which(program)


def convert(program: str, arguments: Sequence[str], folder: Path, made: Sequence[str]) -> None:
    """Runs a converter in a folder of its own.

    Args:
        program: a command.
        arguments: of the command.
        folder: in which it runs, and leaves whatever it makes.
        made: the files that it must make.

    Raises:
        HistoError: it failed or made something else; the text has the last line that it printed.
    """
    path = found(program)
    if path is None:
        raise UsageError(program, "is not on the PATH", "Install it, or leave its format out of --formats")
    done = subprocess.run(
        [path, *arguments], cwd=folder, capture_output=True, encoding="utf-8", errors="replace", check=False
    )
    if done.returncode == 0 and all((folder / name).is_file() for name in made):
        return
    lines = [line.strip() for line in (done.stdout + "\n" + done.stderr).splitlines() if line.strip()]
    said = lines[-1][:200] if lines else "it said nothing"
    raise HistoError(program, f"could not convert the model (exit status {done.returncode}: {said})", LEAVE_OUT)


def not_converted(converter: str, error: Exception) -> HistoError:
    """The error of a converter that was called in this process."""
    return HistoError(converter, f"could not convert the model ({one_line(error)[:200]})", LEAVE_OUT)


LEAVE_OUT = "Try another version of it, or leave its format out of --formats"
