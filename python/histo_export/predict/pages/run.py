"""The page over all results in the output of `histo predict`: what they are, what failed, and the record of the run.

It shows the results of earlier runs into the same folder, too. Its content follows from the files of the folder alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from histo_export.data.walk import done_record
from histo_export.files import write_atomic
from histo_export.predict.colours import hex_colours
from histo_export.predict.inputs import text_of
from histo_export.predict.pages.templates import PAGE, THUMBNAIL, page

SUMMARY = "summary.json"


def write_run_page(
    out: Path, record: Mapping[str, Any], names: Sequence[str], failures: Sequence[tuple[str, str, str]]
) -> None:
    """Writes index.html of a run, complete or not at all.

    Args:
        out: of the run.
        record: the content of run.json.
        names: of the run's results, in their order; those of earlier runs follow by name.
        failures: the rows of failed.csv.

    Raises:
        OSError: it can't be written, or `out` can't be read.
    """
    write_atomic(
        out / PAGE, page("run", f"Results: {text_of(out.absolute().name)}", run_data(out, record, names, failures))
    )


def run_data(
    out: Path, record: Mapping[str, Any], names: Sequence[str], failures: Sequence[tuple[str, str, str]]
) -> dict[str, Any]:
    """The plain values of the page."""
    mine = dict.fromkeys(names)
    others = sorted(
        entry.name for entry in os.scandir(out) if entry.name not in mine and not entry.name.startswith(".")
    )
    results = [(name, found) for name in (*mine, *others) if (found := _result(out / name))]
    return {
        "title": text_of(out.absolute().name),
        "results": [found | {"earlier": name not in mine} for name, found in results],
        "failures": [list(row) for row in failures],
        "record": record,
    }


def _result(folder: Path) -> dict[str, Any] | None:
    """What the page tells of one result; None where the folder is not one, or its summary is damaged."""
    done = done_record(folder)
    if done is None:
        return None
    try:
        summary = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
        facts = _slide(summary) if "tissue_mm2" in summary else _set(summary)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    place = quote(os.fsencode(folder.name))
    return facts | {
        "name": text_of(folder.name),
        "source": str(done.get("source") or ""),
        "page": f"{place}/{PAGE}" if (folder / PAGE).is_file() else f"{place}/",
        "thumbnail": f"{place}/{THUMBNAIL}" if (folder / THUMBNAIL).is_file() else "",
        "warnings": [str(each) for each in summary.get("warnings", ())],
        "executed": str(summary.get("executed", "")),
    }


def _slide(summary: Mapping[str, Any]) -> dict[str, Any]:
    classes, tissue = summary["classes"], float(summary["tissue_mm2"])
    return {
        "kind": "slide",
        "tiles": int(summary["tiles"]),
        "tissue": tissue,
        "classes": [
            {
                "name": name,
                "colour": colour,
                "amount": float(facts["area_mm2"]),
                "share": _share(facts["area_mm2"], tissue),
            }
            for (name, facts), colour in zip(classes.items(), hex_colours(len(classes)), strict=True)
        ],
        "rest": _share(summary.get("unanalysed_mm2", 0.0), tissue),
    }


def _set(summary: Mapping[str, Any]) -> dict[str, Any]:
    classes, tiles = summary["classes"], int(summary["tiles"])
    accuracy = [
        {"split": split, "accuracy": float(report["accuracy"]), "tiles": int(report["tiles"])}
        for split, report in summary.get("splits", {}).items()
    ]
    return {
        "kind": "set",
        "tiles": tiles,
        "tissue": None,
        "classes": [
            {"name": name, "colour": colour, "amount": int(count), "share": _share(count, tiles)}
            for (name, count), colour in zip(classes.items(), hex_colours(len(classes)), strict=True)
        ],
        "rest": 0.0,
        "accuracy": accuracy,
    }


def _share(part: float, whole: float) -> float:
    return round(float(part) / whole, 6) if whole else 0.0
