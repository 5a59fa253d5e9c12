"""The folder of a training run: its files, and whether it holds another run."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from histo_export.errors import UsageError, not_written
from histo_export.files import write_atomic
from histo_export.strict_json import dump_json

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

    def existing(self) -> list[Path]:
        """The files of a run that exist."""
        files = [self.best, self.last, self.metrics, self.report, self.curves, self.confusion]
        return [file for file in files if file.exists()] + sorted(self.path.glob(EVENTS))

    def refuse_another_run(self) -> None:
        """Raises UsageError where the folder holds a run already."""
        if files := self.existing():
            raise UsageError(
                self.path,
                f"already holds a training run ({files[0].name})",
                "Continue it with --resume, replace it with --force, or choose another --out",
            )

    def make_empty(self) -> None:
        """Makes the folder and removes the run in it; HistoError where nothing can be written."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            for path in self.existing():
                path.unlink()
            probe = self.path / ".histo-writable"
            probe.touch()
            probe.unlink()
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

    def write_report(self, content: Mapping[str, Any]) -> None:
        """Writes report.json; HistoError where it can't be written."""
        self._write(self.report, dump_json(content, indent=2, ascii_only=True) + "\n")

    def _write(self, file: Path, text: str) -> None:
        try:
            write_atomic(file, text)
        except OSError as error:
            raise not_written(file, error) from error
