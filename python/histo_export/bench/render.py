"""A report's document as Markdown and as HTML."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterable, Sequence
from pathlib import Path

from histo_export.bench.document import Document
from histo_export.html_page import html_page


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
div { overflow-x: auto }
img { max-width: min(100%, 52rem); display: block; background: #fff; margin: 1rem 0 }
"""


def to_html(doc: Document, plots: Sequence[Path]) -> str:
    """`report.html`: one file that contains the plots too; long tables are collapsed."""

    def cells(tag: str, values: Iterable[str], columns: Sequence[str]) -> str:
        left = [' class="left"' if column.startswith("<") else "" for column in columns]
        return "".join(f"<{tag}{c}>{html.escape(v)}</{tag}>" for v, c in zip(values, left, strict=True))

    parts = [
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
    return html_page(doc.title, "\n".join(parts), style=STYLE)
