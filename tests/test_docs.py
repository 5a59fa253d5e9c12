"""The pages for people name what is there: links, paths, headers, environment variables; and are wrapped evenly."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")})
ARCHITECTURE = ROOT / "docs" / "architecture.md"

FENCE = re.compile(r"^\s*```.*?^\s*```[^\n]*\n", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
PATH = re.compile(r"(?<![\w./-])(?:\.ci|benchmarks|cpp|docs|python|tests)/[\w./*{},-]*[\w/*}]")
"""A path from the root of the repository, perhaps with a pattern: `cpp/src/plan/plan.{h,cpp}`."""

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def prose(text: str) -> str:
    """Without blocks of code."""
    return FENCE.sub("", text)


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub writes them into links."""
    headings = re.findall(r"^#+ +(.+?) *$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def expand(pattern: str) -> list[str]:
    """`plan.{h,cpp}` → `plan.h`, `plan.cpp`."""
    if not (braces := re.search(r"\{([^{}]*)\}", pattern)):
        return [pattern]
    return [pattern[: braces.start()] + part + pattern[braces.end() :] for part in braces[1].split(",")]


def missing(paths: Iterator[str]) -> list[str]:
    return [path for pattern in paths for path in expand(pattern) if not any(ROOT.glob(path))]


def test_a_missing_path_is_found() -> None:
    text = "`tests/test_docs.{py,cpp}`, python docs/nothing/run.py --out build/docs, `cpp/src/*/nothing.h`"
    assert missing(iter(PATH.findall(text))) == ["tests/test_docs.cpp", "docs/nothing/run.py", "cpp/src/*/nothing.h"]
    assert anchors("# A `b`, c\n```\n# d\n```\n## E?\n") == {"a-b-c", "e"}


@pages
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for link in LINK.findall(prose(page.read_text(encoding="utf-8"))):
        if re.match(r"https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target.read_text(encoding="utf-8"))):
            broken.append(link)
    assert not broken


@pages
def test_paths_exist(page: Path) -> None:
    """Paths of the repository in text and commands, and the headers that C++ programs include."""
    text = LINK.sub("", page.read_text(encoding="utf-8"))
    headers = re.findall(r"(?<![\w/])histo/\w+\.h\b", text)
    installed = [f"cpp/{part}include/{header}" for header in headers for part in ("", "torch/")]
    assert missing(iter(PATH.findall(text))) == []
    if page.name != "CHANGELOG.md":  # which names headers of older versions
        assert len(missing(iter(installed))) == len(headers)  # each is in one of the two


def test_every_path_of_the_architecture_exists() -> None:
    """There each code span with a slash or a file's suffix is a path from the root, so that none escapes the test."""
    spans = CODE.findall(prose(ARCHITECTURE.read_text(encoding="utf-8")))
    paths = [span for span in spans if "/" in span or re.search(r"\.(h|cpp|inl|py|pyi|md|txt|toml)$", span)]
    assert len(paths) > 40
    assert missing(iter(paths)) == []


@pages
def test_lines_are_wrapped_at_120_columns(page: Path) -> None:
    """Tables and blocks of code are as wide as they must be."""
    lines = prose(page.read_text(encoding="utf-8")).splitlines()
    assert [line for line in lines if len(line) > 120 and not line.startswith("|")] == []


def test_environment_variables_are_documented() -> None:
    page = (ROOT / "docs" / "environment.md").read_text(encoding="utf-8")
    sources = [path for folder in ("benchmarks", "cpp", "python", "tests") for path in (ROOT / folder).rglob("*.*")]
    code = "".join(path.read_text(encoding="utf-8") for path in sources if path.suffix in {".py", ".h", ".cpp"})
    read = set(re.findall(r'(?:getenv\(|environment_variable\(|environ(?:\.get\(|\[))"(\w+)"', code))
    assert {"HISTO_ISA", "HISTO_CACHE", "CXX"} <= read
    assert {name for name in read - {"HOME", "PATH"} if f"`{name}`" not in page} == set()


def closed_set(name: str) -> list[str]:
    """The values of an enumeration of the C++ library."""
    header = (ROOT / "cpp/include/histo/names.h").read_text(encoding="utf-8")
    (body,) = re.findall(rf"enum class {name} : int \{{(.*?)\n\}};", header, re.DOTALL)
    values = re.findall(r"^  (\w+) =", body, re.MULTILINE)
    assert values
    return values


def row(page: str, cell: str) -> str:
    """The row of a table that begins with `cell`."""
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines()
    (found,) = [line for line in lines if line.startswith(f"| `{cell}` |")]
    return found


def test_every_instruction_set_is_listed() -> None:
    listed = row("docs/environment.md", "HISTO_ISA")
    assert [isa for isa in closed_set("Isa") if f"`{isa}`" not in listed] == []


@pytest.mark.parametrize("precision", closed_set("Precision"))
def test_every_precision_is_explained(precision: str) -> None:
    assert row("docs/quantisation.md", precision)


def test_the_front_page_is_short_and_begins_with_the_two_commands() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 120
    assert FENCE.findall(text)[0].lstrip().startswith("```sh\nmake demo")
    (picture,) = re.findall(r"!\[[^]]+\]\((\S+)\)", text)
    assert (ROOT / picture).stat().st_size < 300_000


@pytest.mark.parametrize("page", sorted(ROOT.glob("docs/benchmarks/*.md")), ids=lambda page: page.name)
def test_figures_have_a_processor_and_a_date(page: Path) -> None:
    """Each section with a table of figures, or the text above all sections."""
    text = page.read_text(encoding="utf-8")
    assert len(text.splitlines()) < 200
    above, *sections = re.split(r"^## ", text, flags=re.MULTILINE)
    stated = re.compile(r"20\d\d-\d\d-\d\d.*?Zen \d|Zen \d.*?20\d\d-\d\d-\d\d", re.DOTALL)
    for section in [above] if stated.search(above) else [above, *sections]:
        figures = re.search(r"\d\.\d\d", section)
        assert not figures or stated.search(section), section[:60]
