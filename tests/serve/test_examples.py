"""The examples of docs/serve.md, against a server."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from histo_export import Engine

from .conftest import Pixels, Server, png

PAGE = (Path(__file__).parents[2] / "docs/serve.md").read_text(encoding="utf-8")


def blocks(language: str, words: str) -> list[str]:
    """The blocks of code with these words."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if words in block]


@pytest.fixture
def folder(tiles: Pixels, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with the tiles that the examples name."""
    monkeypatch.chdir(tmp_path)
    Path("tiles").mkdir()
    for name, tile in zip("ab", tiles, strict=False):
        Path(f"tiles/{name}.png").write_bytes(png(tile))
    return tmp_path


def here(code: str, server: Server) -> str:
    return code.replace("127.0.0.1:8000", f"127.0.0.1:{server.port}").replace('"tiles-pool2"', '"bundle"')


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
def test_curl(server: Server, folder: Path, logits: Any) -> None:
    (block,) = blocks("sh", "curl")
    for line, images in zip(here(block, server).splitlines(), (2, 1), strict=True):
        printed = subprocess.run(f"{line} --silent", shell=True, check=True, capture_output=True).stdout
        results = json.loads(printed)["results"]
        assert [list(result["logits"].values()) for result in results] == logits[:images].tolist()


def test_python(server: Server, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("requests")
    (block,) = blocks("python", "requests.post")
    exec(here(block, server).replace('open(path, "rb")', "__import__('pathlib').Path(path).read_bytes()"), {})
    assert len(capsys.readouterr().out.splitlines()) == 2


def test_tritonclient(server: Server) -> None:
    pytest.importorskip("geventhttpclient", reason='needs pip install "tritonclient[http]"')
    (block,) = blocks("python", "tritonclient")
    names: dict[str, Any] = {}
    exec(here(block, server), names)
    assert names["answer"].as_numpy("logits").shape == (8, 6)
    names["client"].close()


def test_queue(bundle: Path, tiles: Pixels, logits: Any) -> None:
    (block,) = blocks("python", "TileQueue")
    names: dict[str, Any] = {"tile": tiles[0]}
    exec(block.replace("bundles/tiles-pool2", bundle.as_posix()), names)
    (answer,) = names["answers"]
    assert isinstance(names["engine"], Engine)
    assert (answer.id, answer.logits.tobytes()) == (names["first"], logits[0].tobytes())


def test_every_option_of_the_limits_is_one(server: Server) -> None:
    from dataclasses import fields

    from histo_export.cli.serve import AddressOptions, EngineOptions, LimitOptions

    groups = (AddressOptions, EngineOptions, LimitOptions)
    defaults = {f"--{field.name.replace('_', '-')}": field.default for group in groups for field in fields(group)}
    told = re.findall(r"`(--[a-z-]+) ([0-9]+)`", PAGE)
    assert len(told) == 6
    assert all(defaults[option] == float(value) for option, value in told)
