"""The documentation site: what is generated for it, and that its pages load nothing from another host."""

from __future__ import annotations

import importlib.util
import runpy
import shutil
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

import histo_export
from histo_export.cli.app import built_app

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site() -> dict[str, Any]:
    """The names of the hook."""
    return runpy.run_path(str(ROOT / "packaging/docs_site.py"))


@pytest.fixture(scope="module")
def commands(site: dict[str, Any]) -> str:
    return str(site["command_reference"]())


def test_the_reference_has_each_command_and_each_option(commands: str) -> None:
    for name, command in built_app().commands.items():
        if command.hidden:
            assert f"## histo {name}\n" not in commands
            continue
        section = commands.split(f"## histo {name}\n", 1)[1].split("\n## ", 1)[0]
        assert f"histo {name} [OPTIONS]" in section
        for param in command.params:
            if not getattr(param, "hidden", False):
                shown = [option for option in (*param.opts, *param.secondary_opts) if option.startswith("-")]
                assert all(f"`{option}`" in section for option in shown)
                assert (param.metavar or "").replace("|", r"\|") in section


def test_the_reference_has_values_defaults_and_helps(commands: str) -> None:
    predict = commands.split("## histo predict\n", 1)[1].split("\n## ", 1)[0]
    assert "| `--batch` | `N` | `32` | Tiles per call of the runtime. |" in predict
    assert "| `--threads` | `N` | all usable CPUs | Of the runtime; as many others read tiles. |" in predict
    assert "| `--smooth` |  |  | Heat map of the mean of overlapping squares. |" in predict
    assert predict.count("| **Slide options** | | | |") == 1
    assert "| `BUNDLE` |  | required | A folder that histo export wrote, or hf://ORG/NAME\\[@REV\\]. |" in predict


def test_each_row_of_the_reference_has_four_cells(commands: str) -> None:
    rows = [line for line in commands.splitlines() if line.startswith("|")]
    assert len(rows) > 100
    assert {line.replace(r"\|", "").count("|") for line in rows} == {5}


def test_the_python_reference_has_all_that_is_public(site: dict[str, Any]) -> None:
    listed = {name.rpartition(".")[2] for name in site["PYTHON_OBJECTS"]}
    assert set(histo_export.__all__) - {"__version__"} <= listed


def test_docstrings_of_the_compiled_module_come_without_their_signature(site: dict[str, Any]) -> None:
    text = site["compiled_docstring"]("histo_export._core.Engine.run")
    assert text.startswith("Logits of a batch of tiles")
    assert "Args:\n    tiles:" in text


@pytest.mark.parametrize(
    ("page", "link", "moved"),
    [
        ("README.md", "[a](docs/predict.md#speed)", "[a](predict.md#speed)"),
        ("README.md", "![a](docs/results.png)", "![a](results.png)"),
        ("README.md", "[a](CHANGELOG.md)", "[a](changelog.md)"),
        ("docs/cpp.md", "[a](../CONTRIBUTING.md)", "[a](contributing.md)"),
        ("docs/cpp.md", "[`a`](../cpp/examples/queue)", "`a`"),
        ("docs/cpp.md", "[a](engine.md) [b](#c) [d](https://e.org/f)", "[a](engine.md) [b](#c) [d](https://e.org/f)"),
        ("docs/benchmarks/head.md", "[a](../../README.md#b)", "[a](../index.md#b)"),
        ("docs/benchmarks/head.md", "[a](../engine.md)", "[a](../engine.md)"),
    ],
)
def test_links_lead_to_pages_of_the_site(site: dict[str, Any], page: str, link: str, moved: str) -> None:
    assert site["_relinked"](link, PurePosixPath(page)) == moved


def test_what_a_page_loads_from_elsewhere_is_found(site: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "b.css").write_text("@import '//fonts.org/x.css'; a {background: url(data:x)}", encoding="utf-8")
    (tmp_path / "a.html").write_text(
        '<script src="https://cdn.org/x.js"></script><link rel="stylesheet" href="b.css"><a href="https://e.org">e</a>'
        '<a href="/a.html#x"></a>'
        '<a href="gone.html"></a><img srcset="b.css 1x, //img.org/x.png 2x"><i class="mermaid">',
        encoding="utf-8",
    )
    assert [line.split(": ", 1)[1].split(",")[0] for line in site["site_problems"](tmp_path)] == [
        "loads https://cdn.org/x.js",
        "gone.html does not exist",
        "loads //img.org/x.png",
        "has a Mermaid diagram",
        "loads //fonts.org/x.css",
    ]


class _Loader(yaml.SafeLoader):
    """Reads mkdocs.yml without calling what it names."""


_Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)


def test_each_page_is_in_the_navigation() -> None:
    config = yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader=_Loader)
    named = {page for part in config["nav"] for pages in part.values() for page in _leaves(pages)}
    pages = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert pages - named == set()
    made = {"index.md", "changelog.md", "contributing.md", "security.md", "commands.md"}
    assert named - pages == made | {"python-reference.md", "cpp-reference.md"}


def _leaves(pages: Any) -> list[str]:
    return [page if isinstance(page, str) else next(iter(page.values())) for page in pages]


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="make docs installs MkDocs")
@pytest.mark.skipif(shutil.which("doxygen") is None, reason="needs Doxygen")
def test_the_site_is_built_without_a_warning(tmp_path: Path) -> None:
    """In strict mode, with links and anchors checked; `make docs` does the same."""
    subprocess.run(["make", "docs-cpp"], cwd=ROOT, check=True, capture_output=True)
    command = (sys.executable, "-m", "mkdocs", "build", "--quiet", "--site-dir", tmp_path / "site")
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    reference = (tmp_path / "site/python-reference.html").read_text(encoding="utf-8")
    assert "Logits of a batch of tiles" in reference
    assert "histo_engine_run" in (tmp_path / "site/cpp-reference/c__api_8h.html").read_text(encoding="utf-8")
