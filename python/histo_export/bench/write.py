"""The folder of a report: `report.json`, `report.md`, `report.html` and the plots."""

from __future__ import annotations

from pathlib import Path

from histo_export.bench.document import document
from histo_export.bench.plots import draw
from histo_export.bench.render import to_html, to_markdown
from histo_export.bench.report import Report
from histo_export.errors import UsageError, not_written
from histo_export.files import atomic_folder
from histo_export.strict_json import dump_json


def write_report(report: Report, out: Path, force: bool) -> list[Path]:
    """Writes report.json, report.md, report.html and the plots into `out`, all or none.

    Raises:
        UsageError: `out` exists and is not an old report, or is one and `force` is not set.
        HistoError: it can't be written.
    """
    check_destination(out, force)
    try:
        with atomic_folder(out) as folder:
            plots = draw(report, folder)
            doc = document(report)
            (folder / "report.json").write_text(
                dump_json(report.model_dump(mode="json"), indent=1) + "\n", encoding="utf-8"
            )
            (folder / "report.md").write_text(to_markdown(doc, plots), encoding="utf-8")
            (folder / "report.html").write_text(to_html(doc, plots), encoding="utf-8")
    except OSError as error:
        raise not_written(out, error) from error
    return sorted(out.iterdir())


def check_destination(out: Path, force: bool) -> None:
    """Raises the UsageError of `write_report`, to be called before ten minutes of measuring."""
    if not out.exists():
        return
    if not out.is_dir() or (any(out.iterdir()) and not (out / "report.json").is_file()):
        raise UsageError(out, "exists and is not a report", "Choose another --out")
    if (out / "report.json").is_file() and not force:
        raise UsageError(out, "exists", "Add --force to replace the report, or choose another --out")
