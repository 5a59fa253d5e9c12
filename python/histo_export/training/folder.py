"""The folder of a training run: its files, and whether it may be used for a run."""

from __future__ import annotations

import csv
import io
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from histo_export.bundle_files import CONFIG
from histo_export.errors import HistoError, UsageError, not_written, one_line
from histo_export.files import write_atomic
from histo_export.strict_json import dump_json, read_json
from histo_export.training.starts import Start

EVENTS = "events.out.tfevents.*"
COLUMNS = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")
"""Of metrics.csv."""


class RunFolder:
    """The files of a run in the folder `path`, which need not exist yet."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.best, self.last = path / "best.ckpt", path / "last.ckpt"
        self.metrics, self.report = path / "metrics.csv", path / "report.json"
        self.curves, self.confusion = path / "curves.png", path / "confusion.png"
        self.probabilities, self.calibration = path / "probabilities.png", path / "calibration.png"
        self.options, self.starts = path / "options.json", path / "starts.json"
        self.duplicates = path / "duplicates.csv"

    def existing(self) -> list[Path]:
        """The files of a run that exist, without duplicates.csv, which a run that is refused leaves, too."""
        files = [self.best, self.last, self.metrics, self.report, self.curves, self.confusion]
        files += [self.probabilities, self.calibration, self.options, self.starts]
        return [file for file in files if file.exists()] + sorted(self.path.glob(EVENTS))

    def contents(self) -> list[str]:
        """The names of the files of a run that exist; those of TensorBoard, which are long, as one pattern."""
        events = any(self.path.glob(EVENTS))
        names = [file.name for file in self.existing() if not file.match(EVENTS)]
        return names + [self.duplicates.name] * self.duplicates.exists() + [EVENTS] * events

    def refuse_another_run(self) -> None:
        """Raises UsageError where the folder holds a run already."""
        if files := self.existing():
            go_on = f"Continue it with {shlex.join(['histo', 'train', '--resume', str(self.path)])}, replace"
            raise UsageError(
                self.path,
                f"already holds a training run ({files[0].name})",
                f"{go_on if self.last.exists() else 'Replace'} it with --force, or choose another --out",
            )

    def remove_run(self) -> None:
        """Removes the run in the folder; HistoError where that is impossible."""
        try:
            for path in self.existing():
                path.unlink()
        except OSError as error:
            raise not_written(self.path, error) from error

    def write_metrics(self, history: Sequence[Mapping[str, Any]]) -> None:
        """Writes metrics.csv, a row an epoch; HistoError where it can't be written."""
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
        writer.writeheader()
        for row in history:
            numbers = {key: f"{row[key]:.6g}" for key in COLUMNS[1:]}
            writer.writerow({"epoch": row["epoch"], **numbers})
        self._write(self.metrics, text.getvalue())

    def write_duplicates(self, table: str | None) -> None:
        """Writes duplicates.csv, or removes that of an earlier run; HistoError where it can't be written."""
        if table is not None:
            self._write(self.duplicates, table)
        elif self.duplicates.exists():
            self.duplicates.unlink()

    def write_report(self, content: Mapping[str, Any]) -> None:
        """Writes report.json; HistoError where it can't be written."""
        self._write_json(self.report, content)

    def write_options(self, options: Mapping[str, Any]) -> None:
        """Writes options.json, which `read_options` reads; HistoError where it can't be written."""
        self._write_json(self.options, {"format": 1, "options": options})

    def read_options(self) -> Any:
        """The options of the run as its caller gave them to `train`; None where they were not recorded.

        Raises:
            HistoError: the file is damaged, or of a newer version.
        """
        try:
            content = read_json(self.options)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HistoError(
                self.options, f"cannot be read ({one_line(error)})", "Delete it and give the options of the run again"
            ) from error
        if not isinstance(content, dict) or content.get("format") != 1 or "options" not in content:
            raise HistoError(
                self.options,
                "does not hold the options of a run in a format that this version reads",
                "Update histo-export, or delete the file and give the options of the run again",
            )
        return content["options"]

    def write_starts(self, starts: Sequence[Start]) -> None:
        """Writes starts.json, which `read_starts` reads; HistoError where it can't be written."""
        self._write_json(self.starts, {"format": 1, "starts": [asdict(start) for start in starts]})

    def read_starts(self) -> list[Start]:
        """The processes that took part in the run so far; none where no record is readable, which ends no run."""
        from pydantic import TypeAdapter, ValidationError

        try:
            content = read_json(self.starts)
            return TypeAdapter(list[Start]).validate_python(content["starts"])
        except (OSError, ValueError, TypeError, LookupError, ValidationError):
            return []

    def _write_json(self, file: Path, content: Mapping[str, Any]) -> None:
        self._write(file, dump_json(dict(content), indent=2) + "\n")

    def _write(self, file: Path, text: str) -> None:
        try:
            write_atomic(file, text)
        except OSError as error:
            raise not_written(file, error) from error


def check_place(out: Path, tiles: Path | None = None) -> None:
    """Fails where a run into the folder `out` would, or where its files could be taken for tiles later.

    Args:
        out: the run's folder, which need not exist.
        tiles: the folder of the tiles, if they are in one.

    Raises:
        UsageError: `out` is not a place for a run.
    """
    step = "Choose another --out"
    if out.is_symlink() and not out.exists():
        raise UsageError(out, "is a link that leads nowhere", f"Make the folder that it names, or {step.lower()}")
    if out.exists() and not out.is_dir():
        raise UsageError(out, "is a file, not a folder", step)
    real = out.resolve()
    if real == Path(real.anchor):
        raise UsageError(out, "is the root of the file system", step)
    if (out / CONFIG).is_file():
        raise UsageError(out, f"holds a bundle ({CONFIG})", step)
    if tiles is not None and tiles.is_dir() and tiles.resolve() in (real, *real.parents):
        raise UsageError(
            out, f"lies in the folder of the tiles ({tiles}), where its files could be taken for tiles later", step
        )
