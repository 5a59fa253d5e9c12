"""What the documentation site has beside the files in docs/: a hook of MkDocs, which `make docs` runs (mkdocs.yml).

Pages that would repeat something are made here when the site is built: the front page from README.md, the reference of
the commands from the program, that of Python from the docstrings, and that of C++ and C, which Doxygen has written.
"""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

ROOT = Path(__file__).parents[1]
DOXYGEN = ROOT / "build" / "docs-cpp" / "html"
"""Where `make docs-cpp` writes the reference of C++ and C."""
FROM_ROOT = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
}
"""Pages at the root of the repository → their places in the site."""
LOADED_BY_CSS = re.compile(r"(?:url\(|@import)\s*['\"]?((?:https?:)?//[^'\")\s]+)")
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")

PYTHON = """# Python reference

`histo_export.__all__` is all that is public. [Python](python.md) is the guide with examples.

"""
PYTHON_OBJECTS = (
    *("histo_export.predict.load", "histo_export.predict.Classifier", "histo_export.predict.TilePrediction"),
    "histo_export.predict.whole_slide.SlidePrediction",
    *(f"histo_export._core.{name}" for name in ("Model", "Engine", "BatchRunner", "TileQueue", "FusedHead")),
    *("histo_export.embedding.cmake_prefix", "histo_export.errors.HistoError", "histo_export.errors.UsageError"),
)
"""What `histo_export.__all__` names, where it is defined, and what these return."""

CPP = """# C++ and C reference

Doxygen has made it from the public headers in `cpp/include/histo`:
[all classes and functions](cpp-reference/index.html).

The guides are [C++ and C](cpp.md) and [in a host program](cpp-hosts.md).
"""


def on_files(files: Any, config: Any) -> Any:
    """Adds the pages that are made here."""
    from mkdocs.structure.files import File

    for name, place in FROM_ROOT.items():
        text = (ROOT / name).read_text(encoding="utf-8")
        files.append(File.generated(config, place, content=_relinked(text, PurePosixPath(name))))
    files.append(File.generated(config, "commands.md", content=command_reference()))
    objects = "".join(f"::: {name}\n\n" for name in PYTHON_OBJECTS)
    files.append(File.generated(config, "python-reference.md", content=PYTHON + objects))
    files.append(File.generated(config, "cpp-reference.md", content=CPP))
    for path in sorted(DOXYGEN.rglob("*")):
        if path.is_file():
            place = f"cpp-reference/{path.relative_to(DOXYGEN).as_posix()}"
            files.append(File.generated(config, place, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Pages of docs/ link to files outside, for readers of the repository."""
    if page.file.generated_by:
        return markdown
    return _relinked(markdown, PurePosixPath("docs", page.file.src_uri))


def _relinked(markdown: str, source: PurePosixPath) -> str:
    """A page with the links of the site: pages at the root have moved, and sources are named without a link."""

    def link(found: re.Match[str]) -> str:
        image, text, target = found.groups()
        path, mark, anchor = target.partition("#")
        if not path or re.match(r"\w+:", path):
            return found[0]
        parts: list[str] = []
        for part in (source.parent / path).parts:
            parts[-1:] = [] if part == ".." else [*parts[-1:], part]
        place = "/".join(parts)
        here = source.parent.parts[1:]  # below docs
        if place in FROM_ROOT:
            return f"{image}[{text}]({'../' * len(here)}{FROM_ROOT[place]}{mark}{anchor})"
        if parts[0] != "docs":
            return text
        if source.parts[0] == "docs":
            return found[0]
        return f"{image}[{text}]({place.removeprefix('docs/')}{mark}{anchor})"

    return LINK.sub(link, markdown)


def on_post_build(config: Any) -> None:
    """Ends the build where a page loads something from another host, or has a link that leads nowhere."""
    from mkdocs.exceptions import PluginError

    if problems := list(site_problems(Path(config["site_dir"]))):
        raise PluginError("\n".join(problems[:50]))


def site_problems(site: Path) -> Iterator[str]:
    """A line for each thing that a page or a style sheet would load from another host, and for each broken link."""
    for page in sorted(site.rglob("*.html")):
        found = _References()
        found.feed(page.read_text(encoding="utf-8", errors="replace"))
        where = page.relative_to(site)
        for loaded, target in found.targets:
            parts = urlsplit(target)
            if parts.scheme in ("data", "javascript", "mailto") or not (parts.path or parts.netloc):
                continue
            if parts.scheme or parts.netloc:
                if loaded:
                    yield f"{where}: loads {target}"
                continue
            path = unquote(parts.path)
            if not (site / path[1:] if path.startswith("/") else page.parent / path).exists():
                yield f"{where}: {target} does not exist"
        if "mermaid" in found.classes:
            yield f"{where}: has a Mermaid diagram, whose script comes from another host"
    for sheet in sorted(site.rglob("*.css")):
        for target in LOADED_BY_CSS.findall(sheet.read_text(encoding="utf-8")):
            yield f"{sheet.relative_to(site)}: loads {target}"


class _References(HTMLParser):
    """Collects what a page links to and loads."""

    def __init__(self) -> None:
        super().__init__()
        self.targets: list[tuple[bool, str]] = []
        """Whether it is loaded with the page, and where it is."""
        self.classes: set[str] = set()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("href", "src", "data", "poster", "action") and value:
                self.targets.append((tag != "a", value.strip()))
            elif name == "srcset" and value:
                self.targets += [(True, part.split()[0]) for part in value.split(",") if part.strip()]
            elif name == "class" and value:
                self.classes.update(value.split())


def command_reference() -> str:
    """The page of all commands and their options, in Markdown."""
    from histo_export.cli.app import built_app
    from histo_export.cli.examples import EXAMPLES

    text = [
        "# Commands\n",
        "This page is made from the program. `histo COMMAND --help` prints the same.\n",
        "`histo-export` is `histo export` by itself. Exit codes: 0 success, 1 failed, 2 wrong use or missing packages,",
        "130 and 143 interrupted; [`histo verify`](bundle.md#parity) also has 3.\n",
    ]
    for name, command in built_app().commands.items():
        if command.hidden:
            continue
        arguments = [param.metavar or param.name for param in command.params if not _names(param)]
        paragraphs = [_plain(part) for part in (command.help or "").split("\n\n")]
        text += [f"## histo {name}\n", "\n\n".join(map(_escaped, paragraphs)), ""]
        text += ["```text", " ".join(["histo", name, "[OPTIONS]", *arguments]), "```\n"]
        text += ["```sh", *EXAMPLES[name], "```\n"]
        text += ["| option | value | default | effect |", "|---|---|---|---|", *_rows(command), ""]
    return "\n".join(text)


def _names(param: Any) -> list[str]:
    """As an option is typed; none of an argument."""
    return [name for name in (*param.opts, *param.secondary_opts) if name.startswith("-")]


def _rows(command: Any) -> Iterator[str]:
    """The table of a command's arguments and options, with a row for the title of each group of options."""
    shown = [param for param in command.params if not getattr(param, "hidden", False)]
    for title in dict.fromkeys(_group(param) for param in shown):
        if title:
            yield f"| **{title}** | | | |"
        yield from (_row(param) for param in shown if _group(param) == title)


def _group(param: Any) -> str:
    return getattr(param, "rich_help_panel", None) or ""


def _row(param: Any) -> str:
    names = ", ".join(f"`{name}`" for name in _names(param)) or f"`{param.metavar or param.name}`".replace("|", r"\|")
    value = f"`{param.metavar}`" if _names(param) and param.metavar else ""
    effect, _, told = _plain(param.help or "").partition("[default: ")  # where the value depends on other options
    default = _escaped(told.removesuffix("]")) or _default(param)
    return f"| {names} | {value} | {default} | {_escaped(effect)} |"


def _default(param: Any) -> str:
    if isinstance(param.show_default, str):
        return _escaped(param.show_default)
    if param.required:
        return "required"
    silent = param.default is None or isinstance(param.default, bool) or callable(param.default)
    return "" if silent else f"`{param.default}`"


def _plain(text: str) -> str:
    """A text of the help without the marks of rich, in one line."""
    from rich.text import Text

    return " ".join(Text.from_markup(text).plain.split())


def _escaped(text: str) -> str:
    """Plain text as Markdown."""
    return re.sub(r"([\\`*_<>|#\[\]])", r"\\\1", text.strip())


def compiled_docstring(path: str) -> str | None:
    """The docstring of something in the compiled module, without the signature that pybind11 writes above it.

    Args:
        path: as "histo_export._core.Engine.run".
    """
    module, names = "histo_export._core", path.removeprefix("histo_export._core").strip(".")
    found: Any = importlib.import_module(module)
    for name in filter(None, names.split(".")):
        found = getattr(found, name, None)
    text = inspect.getdoc(found) or ""
    return re.sub(r"\A\w+\(.*\n+", "", text).strip() or None


try:
    import griffe
except ImportError:  # outside of the site's build
    pass
else:

    class CompiledDocstrings(griffe.Extension):
        """Gives the types in `_core.pyi` the docstrings of the compiled module."""

        def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
            """Called for each object that was read."""
            if obj.path.startswith("histo_export._core.") and obj.docstring is None and obj.name != "__init__":
                text = compiled_docstring(obj.path)
                obj.docstring = griffe.Docstring(text, parent=obj) if text else None
