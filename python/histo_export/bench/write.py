"""The folder of a report: `report.json`, `report.md`, `report.html` and the plots."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from histo_export.bench.document import document
from histo_export.bench.render import to_html, to_markdown
from histo_export.bench.report import Report
from histo_export.errors import UsageError, not_written
from histo_export.extras import installed
from histo_export.files import made_folder, new_folder_in, write_atomic
from histo_export.strict_json import dump_json

PLOTS = ("accuracy.png", "latency.png", "threads.png", "throughput.png")
"""All that `plots.draw` may draw; here, because that module needs matplotlib."""


def write_report(report: Report, out: Path, force: bool) -> list[Path]:
    """Writes report.json, report.md, report.html and the plots into `out`; an old report stays until all are complete.

    They are not written to a new folder that replaces `out`, because the file in it that names its owner must stay.

    Raises:
        UsageError: `out` exists and is not an old report, or is one and `force` is not set.
        HistoError: it can't be written.
    """
    check_destination(out, force)
    try:
        with made_folder(out), new_folder_in(out) as folder:
            plots = _draw(report, folder)
            doc = document(report)
            (folder / "report.json").write_text(_json(report), encoding="utf-8")
            (folder / "report.md").write_text(to_markdown(doc, plots), encoding="utf-8")
            (folder / "report.html").write_text(to_html(doc, plots), encoding="utf-8")
            for plot in PLOTS:  # this report may have others than the old one
                (out / plot).unlink(missing_ok=True)
            for file in folder.iterdir():
                file.replace(out / file.name)
    except OSError as error:
        raise not_written(out, error) from error
    return [path for path in _contents(out) if path.name in (*PLOTS, "report.html", "report.json", "report.md")]


def _contents(out: Path) -> list[Path]:
    """What lies in a folder, besides hidden files such as that of its owner."""
    return sorted(path for path in out.iterdir() if not path.name.startswith("."))


def _draw(report: Report, folder: Path) -> list[Path]:
    """The plots; none where matplotlib is not installed."""
    if not installed("matplotlib"):
        return []
    from histo_export.bench.plots import draw

    return draw(report, folder)


def check_destination(out: Path, force: bool) -> None:
    """Raises the errors of `write_report` that can be foreseen, to be called before ten minutes of measuring."""
    try:
        if out.exists() and (not out.is_dir() or (any(_contents(out)) and not (out / "report.json").is_file())):
            raise UsageError(out, "exists and is not a report", "Choose another --out")
        if (out / "report.json").is_file() and not force:
            raise UsageError(out, "exists", "Add --force to replace the report, or choose another --out")
        with made_folder(out.parent), tempfile.TemporaryFile(dir=out.parent) as file:
            file.write(b"report")
    except OSError as error:
        raise not_written(out, error) from error


def keep_report(report: Report) -> Path:
    """Writes report.json alone into a new folder for temporary files, and returns its path.

    For a report that could not be written where it belongs: the figures took a quarter of an hour.

    Raises:
        OSError: it can't be written there either.
    """
    folder = Path(tempfile.mkdtemp(prefix="histo-bench-"))
    try:
        write_atomic(folder / "report.json", _json(report))
    except OSError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return folder / "report.json"


def _json(report: Report) -> str:
    return dump_json(report.model_dump(mode="json"), indent=1) + "\n"
