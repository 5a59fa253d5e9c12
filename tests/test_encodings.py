"""Text files are UTF-8 in any locale. PLW1514 sees only calls whose object ruff can type; this sees all of them."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = sorted(path for folder in ("python", "benchmarks") for path in (ROOT / folder).rglob("*.py"))


def without_encoding(source: str) -> Iterator[int]:
    """Lines of calls that read or write text in the locale's encoding."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call):
            continue
        name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
        named = {keyword.arg for keyword in call.keywords}
        if "encoding" in named:
            continue
        text = "text" in named or "universal_newlines" in named  # subprocess
        if name in ("read_text", "write_text") or text or (name in ("open", "fdopen") and opens_text(call)):
            yield call.lineno


def opens_text(call: ast.Call) -> bool:
    """Whether a call of `open` names a text mode, or none and is the built-in: other objects can be opened, too."""
    modes = [
        each.value
        for each in (*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode"))
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and set(each.value) <= set("rwaxbt+")
    ]
    return any("b" not in mode for mode in modes) if modes else isinstance(call.func, ast.Name)


def test_what_is_found() -> None:
    source = """
path.read_text()
(folder / "a").write_text(text)
open(name)
path.open("w")
contestant.open()
subprocess.run(command, text=True)
path.open("rb")
open(name, encoding="utf-8")
Image.open(io.BytesIO(data))
os.open(name, os.O_RDONLY)
Path("x").read_text("utf-8", encoding="utf-8")
"""
    assert list(without_encoding(source)) == [2, 3, 4, 5, 7]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_file_names_its_encoding(path: Path) -> None:
    assert list(without_encoding(path.read_text(encoding="utf-8"))) == []
