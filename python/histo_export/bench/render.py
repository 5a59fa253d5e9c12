"""A report's document as Markdown and as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from histo_export.bench.document import Document


def to_markdown(doc: Document, plots: Sequence[Path]) -> str:
    """`report.md`; plots are linked by their file names."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"

    parts = [f"# {doc.title}", "", *(f"**{warning}**\n" for warning in doc.warnings)]
    parts += [*(f"- {conclusion}" for conclusion in doc.conclusions), ""]
    parts += [*(f"{lead}  " for lead in doc.lead), ""]
    parts += [f"- {note}" for note in doc.notes] + [""]
    parts += [f"![{plot.stem}]({plot.name})\n" for plot in plots]
    for section in doc.sections:
        parts += [f"## {section.title}", "", line(column.removeprefix("<") for column in section.columns)]
        parts.append(line(":--" if column.startswith("<") else "--:" for column in section.columns))
        parts += [line(row) for row in section.rows]
        parts += ["", section.note, ""] if section.note else [""]
    return "\n".join(parts)


STYLE = """
:root { color-scheme: light dark }
body { color: #1a1a1a; background: #ffffff }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
div { overflow-x: auto }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #8884 }
th { border-bottom: 2px solid #888 } .left { text-align: left }
p, ul { max-width: 60rem } .note { color: #595959; margin: .2rem 0 }
.warning { border-left: 4px solid #b35900; padding-left: .7rem; font-weight: 600 }
@media (prefers-color-scheme: dark) { body { color: #e6e6e6; background: #1a1a1a } .note { color: #b0b0b0 } }
img { max-width: min(100%, 52rem); display: block; background: #fff; margin: 1rem 0 }
summary { cursor: pointer }
"""


def to_html(doc: Document, plots: Sequence[Path]) -> str:
    """`report.html`: one file that contains the plots too; long tables are collapsed."""

    def cells(tag: str, values: Iterable[str], columns: Sequence[str]) -> str:
        left = [' class="left"' if column.startswith("<") else "" for column in columns]
        return "".join(f"<{tag}{c}>{html.escape(v)}</{tag}>" for v, c in zip(values, left, strict=True))

    parts = [
        "<!doctype html><html lang=en><meta charset=utf-8>",
        "<meta name=viewport content='width=device-width'>",
        f"<title>{html.escape(doc.title)}</title><style>{STYLE}</style>",
        f"<h1>{html.escape(doc.title)}</h1>",
        *(f"<p class=warning>{html.escape(warning)}</p>" for warning in doc.warnings),
        "<ul>" + "".join(f"<li>{html.escape(each)}</li>" for each in doc.conclusions) + "</ul>",
        *(f"<p class=note>{html.escape(lead)}</p>" for lead in doc.lead),
        "<ul>" + "".join(f"<li>{html.escape(note)}</li>" for note in doc.notes) + "</ul>" if doc.notes else "",
    ]
    for plot in plots:
        data = base64.b64encode(plot.read_bytes()).decode()
        parts.append(f'<img alt="{html.escape(plot.stem)}" src="data:image/png;base64,{data}">')
    for section in doc.sections:
        heads = cells("th", (column.removeprefix("<") for column in section.columns), section.columns)
        body = "".join(f"<tr>{cells('td', row, section.columns)}</tr>" for row in section.rows)
        note = f"<p class=note>{html.escape(section.note)}</p>" if section.note else ""
        table = f"<div><table><tr>{heads}</tr>{body}</table></div>{note}"
        title = html.escape(section.title)
        parts.append(
            f"<h2>{title}</h2>{table}"
            if section.brief
            else f"<details><summary><b>{title}</b></summary>{table}</details>"
        )
    return "\n".join(parts) + "\n"
