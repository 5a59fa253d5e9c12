"""The blocks of code on the pages: each is run or compiled by a test, or is what a program has printed.

Commands are parsed by the program itself, so that a page cannot name an option that is not there; they are not run
here. Those of the tutorial are (`predict/test_tutorial.py`), and so is the Python of docs/serve.md
(`serve/test_examples.py`).
"""

from __future__ import annotations

import ast
import importlib
import re
import shlex
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from histo_export.cli.app import built_app
from histo_export.errors import UsageError

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")} - {ROOT / "CHANGELOG.md"})
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
TARGETS = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))

OTHER_TESTS = {
    ("docs/cpp.md", "cpp"): "test_cpp_snippets.py",
    ("docs/cpp.md", "cmake"): "test_embedding.py",  # the lines are those of cpp/examples/embed/CMakeLists.txt
    ("docs/cpp-hosts.md", "cpp"): "test_cpp_headers.py",
    ("docs/libtorch.md", "cpp"): "test_libtorch.py",  # the class, not the block: libtorch's headers take half a minute
}
"""Page and language → the test that compiles the blocks."""


@dataclass(frozen=True)
class Block:
    """A block of code.

    Attributes:
        page: from the root of the repository.
        line: of the page, from 1.
        language: what the fence says.
        text: without the fence's indentation.
    """

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(page: str, text: str) -> Iterator[Block]:
    for found in re.finditer(r"^( *)```(\w*)\n(.*?)^ *```$", text, re.DOTALL | re.MULTILINE):
        indent, language, code = found.groups()
        lines = [line.removeprefix(indent) for line in code.splitlines()]
        yield Block(page, text[: found.start()].count("\n") + 1, language, "\n".join(lines))


BLOCKS = [block for page in PAGES for block in blocks_of(str(page.relative_to(ROOT)), page.read_text(encoding="utf-8"))]


def of(language: str) -> Any:
    chosen = [block for block in BLOCKS if block.language == language]
    return pytest.mark.parametrize("block", chosen, ids=str)


def commands(text: str) -> Iterator[list[str]]:
    """The commands of a shell's block as words; what follows `for … in` and variables is left as it is."""
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line.removeprefix("$ "), posix=True, punctuation_chars=";|&")
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if re.fullmatch(r"[;|&]+|do|then|else", word):
                if words:
                    yield words
                words = []
            else:
                words.append(word)


def wrong(words: list[str]) -> str | None:
    """Why this command cannot be right; None where it is, or is another program's."""
    while words and re.fullmatch(r"\w+=.*", words[0]):
        words = words[1:]
    program = Path(words[0]).name if words else ""
    if program in ("histo", "histo-export"):
        return _refused(words[1:] if program == "histo" else ["export", *words[1:]])
    if program == "make":
        unknown = [word for word in words[1:] if "=" not in word and word not in TARGETS]
        return f"make has no target {unknown[0]}" if unknown else None
    if program == "pip":
        named = {extra for word in words for found in re.findall(r"\[([\w,-]+)\]$", word) for extra in found.split(",")}
        ours = any(re.match(r"(\.|histo-export)\[", word) for word in words)
        return f"unknown extra {', '.join(named - set(EXTRAS))}" if ours and named - set(EXTRAS) else None
    return None


def _refused(words: list[str]) -> str | None:
    """What the program says of these arguments, before it does anything."""
    if not words or words[0].startswith("-"):
        return None
    words = [word for i, word in enumerate(words) if word != ">" and words[i - 1] != ">"]
    words = ["1" if re.fullmatch(r"\$\w+", word) else word for word in words]
    app = built_app()
    context = app.make_context("histo", ["help"])
    if words[0].isupper():  # COMMAND
        return None
    name, command, rest = app.resolve_command(context, words)
    try:
        command.make_context(name, list(rest), parent=context)
    except UsageError as error:
        return str(error)
    except SystemExit:
        return None
    return None


def test_wrong_commands_are_found() -> None:
    text = "histo predict b slides/ --outt x  # to\nX=1 histo-export --pool two && make nothing; pip install '.[slide]'"
    assert [bool(wrong(words)) for words in commands(text)] == [True] * 4
    text = "for p in 1 2; do histo train t/ --pool $p \\\n --seed 3; done; histo bench b | tee x; pip install torch[x]"
    assert [wrong(words) for words in commands(text) if wrong(words)] == []


def test_each_block_is_of_a_language_that_a_test_knows() -> None:
    known = {"sh", "python", "text", *(language for _, language in OTHER_TESTS)}
    assert [str(block) for block in BLOCKS if block.language not in known] == []
    assert {str(block) for block in BLOCKS if block.language in ("cpp", "c", "cmake")} == {
        str(block) for block in BLOCKS if (block.page, block.language) in OTHER_TESTS
    }
    assert [file for file in OTHER_TESTS.values() if not (ROOT / "tests" / file).exists()] == []


@of("sh")
def test_commands_exist_and_take_these_options(block: Block) -> None:
    assert [why for words in commands(block.text) if (why := wrong(words))] == []


@of("python")
def test_python_is_valid_and_its_names_exist(block: Block) -> None:
    for node in ast.walk(ast.parse(block.text)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("histo_export"):
            module = importlib.import_module(node.module or "")
            assert [name.name for name in node.names if not hasattr(module, name.name)] == []
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "histo_export":
            module = importlib.import_module("histo_export")
            assert hasattr(module, node.attr) or importlib.import_module(f"histo_export.{node.attr}")
