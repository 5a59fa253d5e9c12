"""The page of `histo serve`: drop images, see their classes and what the network saw. It is the same for all servers;
but for the limit on images: its script asks for models and answers."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

from histo_export.html_page import content_policy, html_page
from histo_export.predict.colours import hex_colours
from histo_export.predict.pages.templates import shared_file

COLOURS = 256
"""Of classes; a model with more repeats them."""
AT_A_TIME = 16
"""Images of a request, at most, so that answers appear while others wait."""


@cache
def page(most_images: int) -> tuple[str, str]:
    """The text of the page, and the content security policy that it must be sent with.

    Args:
        most_images: of a request.
    """
    folder = files(__package__)
    body, style, script = (
        folder.joinpath(f"page.{kind}").read_text(encoding="utf-8") for kind in ("html", "css", "js")
    )
    style, script = shared_file("page.css") + style, shared_file("shared.js") + script
    data = {"colours": hex_colours(COLOURS), "at_a_time": min(AT_A_TIME, most_images)}
    text = html_page("histo serve", body, style=style, script=script, data=data, live=True)
    return text, f"{content_policy(style, script, live=True)}; frame-ancestors 'none'"
