"""Pages from the HTML, CSS and JavaScript in this folder."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from importlib.resources import files
from typing import Any, Literal

from histo_export.html_page import html_page

PAGE = "index.html"
"""The name of each page in its folder, so that the folder's address is enough for a browser."""
THUMBNAIL = "thumbnail.jpg"
"""The picture of a result in `PAGE` of the run; beside the result's own page, which contains all that it shows."""

Kind = Literal["run", "slide", "tile_set"]


def page(kind: Kind, title: str, data: Mapping[str, Any]) -> str:
    """The text of a page.

    Args:
        kind: whose HTML and JavaScript.
        title: of the window; any text.
        data: plain values for its JavaScript, which shows texts as texts.
    """
    script = shared_file("shared.js") + shared_file(f"{kind}.js")
    return html_page(title, shared_file(f"{kind}.html"), style=shared_file("page.css"), script=script, data=data)


@cache
def shared_file(name: str) -> str:
    """The text of a file in this folder."""
    return files(__package__).joinpath(name).read_text(encoding="utf-8")
