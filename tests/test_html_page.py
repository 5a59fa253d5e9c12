"""Pages that take text from anywhere: nothing in a name may run, and nothing may be loaded."""

from __future__ import annotations

import base64
import hashlib
import json
import re

import pytest

from histo_export.html_page import BASE_STYLE, html_page, script_json

HOSTILE = [
    "</script><script>alert(1)</script>",
    "<!--<script>",
    '"; alert(1); "',
    "a\nb\r\u2028\u2029\0",
    "'\"&amp;<>",
    "Grüße 腿 🔬",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_values_stay_values(text: str) -> None:
    written = script_json({text: [text]})
    assert json.loads(written) == {text: [text]}
    assert not set("<>&") & set(written)
    assert written.isascii()
    assert "\n" not in written
    page = html_page(text, "<p>body</p>", script="let a;", data={text: text})
    assert page.count("<script") == page.count("</script") == 2
    assert "alert(1)</" not in page
    assert page.count("<title>") == 1


def test_a_page_runs_its_own_script_only_and_loads_nothing() -> None:
    script = "document.title = 'Ä';\n"
    page = html_page("title", "<p>", style="p { color: red }", script=script, data=[1])
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', page)
    assert policy
    rules = dict(rule.split(" ", 1) for rule in policy[1].split("; "))
    assert rules["default-src"] == rules["base-uri"] == rules["form-action"] == "'none'"
    assert rules["img-src"] == "data: file: 'self'"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        [content] = re.findall(rf"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"
    assert "script-src 'none'" in html_page("title", "<p>")


def luminance(colour: str) -> float:
    """WCAG 2.2, of #rrggbb."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("dark", [False, True])
def test_text_of_the_pages_has_contrast(dark: bool) -> None:
    parts = BASE_STYLE.split("@media (prefers-color-scheme: dark)")
    colours = dict(re.findall(r"--(\w+): (#[0-9a-f]{6})", parts[dark]))
    assert colours.keys() == {"ink", "paper", "soft", "panel", "accent", "warn"}
    for text in ("ink", "soft", "accent"):
        for ground in ("paper", "panel"):
            low, high = sorted((luminance(colours[text]), luminance(colours[ground])))
            assert (high + 0.05) / (low + 0.05) >= 4.5, (text, ground)
