"""What `out` tells of its runs: run.json, a record of each run, and failed.csv, all that could not be used so far."""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from histo_export.errors import HistoError, not_written
from histo_export.files import write_atomic
from histo_export.predict.inputs import Failure, text_of
from histo_export.predict.pages.run import write_run_page
from histo_export.strict_json import dump_json

RUN, FAILED = "run.json", "failed.csv"
COLUMNS = ("path", "reason", "input")
"""Of failed.csv: the tile or slide, why it could not be used, and the input that it belongs to, as an absolute path."""


@dataclass(frozen=True)
class FailedRow:
    """A row of failed.csv; see `COLUMNS`."""

    path: str
    reason: str
    input: str

    @classmethod
    def of(cls, failure: Failure, source: Path | str) -> FailedRow:
        """The row of a failure; `source` is the input as the user named it."""
        return cls(text_of(failure.path), failure.reason, absolute(source))


def absolute(path: Path | str) -> str:
    """An input's path as failed.csv has it: absolute, links not followed, without bytes that are not UTF-8."""
    return text_of(os.path.abspath(path))  # noqa: PTH100 (Path.absolute keeps "..")


def earlier_failures(out: Path, paths: Iterable[Path], sources: Iterable[Path | str]) -> list[FailedRow]:
    """The rows of failed.csv that a run says nothing about, so that they still hold.

    Args:
        out: of the run.
        paths: what the user named. What lies below has been looked at again.
        sources: all inputs of the run, and what of `paths` could not be used.

    Raises:
        HistoError: the file can't be read.
    """
    try:
        text = (out / FAILED).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return []
    except OSError as error:
        raise HistoError(out / FAILED, f"cannot be read ({error.strerror})", "Check its permissions") from error
    named = [absolute(path) for path in paths]
    judged = {*named, *map(absolute, sources)}
    rows = (tuple(row.get(column) or "" for column in COLUMNS) for row in csv.DictReader(io.StringIO(text)))
    return [
        FailedRow(path, reason, source)
        for path, reason, source in rows
        # A row without its input is from an older version, which listed the last run only.
        if source and source not in judged and not any(source.startswith(folder + os.sep) for folder in named)
    ]


def write_record(out: Path, record: Mapping[str, Any], rows: Sequence[FailedRow], names: Sequence[str]) -> None:
    """Writes run.json, index.html and failed.csv, which is removed where nothing failed.

    The record of the run before is kept as run-<when it began>.json.

    Args:
        out: of the run.
        record: the content of run.json.
        rows: of failed.csv.
        names: of the folders of the run's results, in their order.

    Raises:
        HistoError: they can't be written.
    """
    try:
        _keep_earlier(out)
        write_atomic(out / RUN, dump_json(record, indent=2, ascii_only=True) + "\n")
        write_run_page(out, record, names, [astuple(row) for row in rows])
        if not rows:
            (out / FAILED).unlink(missing_ok=True)
            return
        table = io.StringIO()
        csv.writer(table, lineterminator="\n").writerows([COLUMNS, *map(astuple, rows)])
        write_atomic(out / FAILED, table.getvalue())
    except OSError as error:
        raise not_written(out, error) from error


def _keep_earlier(out: Path) -> None:
    """Gives the run.json of the run before a name of its own."""
    try:
        began = str(json.loads((out / RUN).read_text(encoding="utf-8"))["began"])
    except FileNotFoundError:
        return
    except (ValueError, KeyError, TypeError):  # not ours, or damaged: kept all the same
        began = "damaged"
    stem = "run-" + "".join(c for c in began if c.isalnum())
    kept, number = out / f"{stem}.json", 1
    while kept.exists():
        number += 1
        kept = out / f"{stem}-{number}.json"
    (out / RUN).rename(kept)
