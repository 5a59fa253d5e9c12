"""The tutorial, followed by its own text: each command and its Python, on the slide that it makes, only smaller."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/tutorial.md").read_text(encoding="utf-8")
FORMATS = (ROOT / "docs/formats.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, bundle: Path, copy_bundle: Callable[[Path, Path], Path]) -> Path:
    """The working folder after step 2, which trains for a minute: the bundle of the tests stands for its bundle."""
    folder = tmp_path_factory.mktemp("tutorial")
    (folder / "bundles").mkdir()
    copy_bundle(bundle, folder / "bundles/demo-pool2")
    return folder


def test_from_the_slide_to_qupath(
    folder: Path, histo: Callable[..., tuple[int, str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    (python,) = blocks("python")
    small = python.replace("COLUMNS, ROWS = 26, 18", "COLUMNS, ROWS = 15, 3")
    assert small != python
    exec(small, {})

    lines = [line for block in blocks("sh") for line in block.splitlines()]
    install, *commands = (shlex.split(line, comments=True) for line in lines)
    assert install == ["pip", "install", ".[all]"]
    assert all(command[0] == "histo" for command in commands)
    skipped = (["export", "--pool", "2"], ["export", "--data", "tiles/", "--pool", "2", "--mpp", "0.5"])  # they train
    ran = [arguments for _, *arguments in commands if arguments not in skipped]
    assert [arguments[0] for arguments in ran] == ["doctor", "predict"]
    for arguments in ran:
        code, out, _ = histo(*arguments)
        assert code == 0
    assert "of tissue" in out

    named = re.findall(r"`(results/[\w/.]+)`", PAGE)
    assert len(named) >= 3
    assert [name for name in named if not Path(name).exists()] == []

    # What docs/formats.md says of the files that are now there.
    summary = json.loads(Path("results/made/summary.json").read_text(encoding="utf-8"))
    assert [key for key in summary if f"`{key}`" not in FORMATS] == []
    feature = json.loads(Path("results/made/tiles.geojson").read_text(encoding="utf-8"))["features"][0]
    for key in ("id", "geometry.coordinates", *(f"properties.{key}" for key in feature["properties"])):
        assert f"| `{key}` |" in FORMATS
    heading = Path("results/made/tiles.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    classes = summary["classes"]
    assert heading == ["minx", "miny", "width", "height", *(f"prob_{name}" for name in classes)]
    for name in ("`minx`, `miny`", "`width`, `height`", "`prob_<class>`"):
        assert f"| {name} |" in FORMATS
    assert [file.name for file in Path("results/made").iterdir() if f"`{file.name}`" not in FORMATS] == []
    run = json.loads(Path("results/run.json").read_text(encoding="utf-8"))
    assert {"command", "began", "seconds", "executed", "settings", "machine", "messages"} <= run.keys()
