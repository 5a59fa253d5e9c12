"""HTML pages that are one file, open from a disk without a network, and take text from anywhere: names may be hostile.

A page runs its own script and no other one, and loads nothing from another machine: a content security policy names
the hash of its script and of its style. Values reach the script as JSON in a block that the browser does not run.
"""

from __future__ import annotations

import base64
import hashlib
import html
from typing import Any

from histo_export.strict_json import dump_json

BASE_STYLE = """
:root {
  color-scheme: light dark;
  --ink: #1a1a1a; --paper: #ffffff; --soft: #595959; --panel: #f4f5f7; --accent: #1f5fa8; --warn: #b35900;
  --line: #8884;
}
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e6e6; --paper: #1a1a1a; --soft: #b0b0b0; --panel: #26282b; --accent: #8fbcf5; --warn: #f0a35c }
}
body { color: var(--ink); background: var(--paper) }
body { font: 15px/1.45 system-ui, sans-serif; max-width: 78rem; margin: 2rem auto; padding: 0 1rem }
h1 { font-size: 1.5rem } h2 { font-size: 1.1rem; margin-top: 2.2rem }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { padding: .15rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line) }
th { border-bottom: 2px solid #888 } .left { text-align: left }
p, ul { max-width: 60rem } .note { color: var(--soft); margin: .2rem 0 }
.warning { border-left: 4px solid var(--warn); padding-left: .7rem; font-weight: 600 }
summary { cursor: pointer }
"""
"""What all pages of the package look like."""

SCRIPT_ESCAPES = str.maketrans({"<": "\\u003c", ">": "\\u003e", "&": "\\u0026"})
"""Of characters that could end a script block, or begin a comment in it; in JSON they occur in strings only."""


def content_policy(style: str, script: str, *, live: bool = False) -> str:
    """The content security policy of a page; the arguments are those of `html_page`."""
    none = "'none'"
    policy = [
        f"default-src {none}",
        f"base-uri {none}",
        f"form-action {none}",
        "img-src data: file: 'self'",
        f"style-src {_hash(BASE_STYLE + style)}",
        f"script-src {_hash(script) if script else none}",
        *(["connect-src 'self'"] if live else []),
    ]
    return "; ".join(policy)


def html_page(title: str, body: str, *, style: str = "", script: str = "", data: Any = None, live: bool = False) -> str:
    """The text of a page.

    Args:
        title: of the window; any text.
        body: HTML; what comes from a user must be escaped in it.
        style: CSS besides `BASE_STYLE`.
        script: JavaScript that runs when the body is there.
        data: plain values, which the script finds as JSON in the element with the id "data"; None for none.
        live: the script may ask the server that the page came from, and no other one.
    """
    policy = content_policy(style, script, live=live)
    parts = [
        "<!doctype html>",
        '<html lang="en">',
        '<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title>",
        f"<style>{BASE_STYLE + style}</style>",
        body,
    ]
    if data is not None:
        parts.append(f'<script type="application/json" id="data">{script_json(data)}</script>')
    if script:
        parts.append(f"<script>{script}</script>")
    return "\n".join(parts) + "\n"


def script_json(data: Any) -> str:
    """JSON that may stand in a script element, whatever its strings hold; ASCII only."""
    return dump_json(data, ascii_only=True).translate(SCRIPT_ESCAPES)


def _hash(text: str) -> str:
    """The source expression of an inline script or style in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
