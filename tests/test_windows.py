"""histo-run for Windows, under Wine: `make cpp-test-windows` builds it, and runs this after the C++ tests."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest

from histo_export import _core

BUILD = Path(__file__).parents[1] / "build"
RUN = BUILD / "windows-mingw/histo-run.exe"
OBJDUMP = "x86_64-w64-mingw32-objdump"
WINE = shutil.which("wine64") or shutil.which("wine")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not RUN.is_file() or WINE is None, reason="no build for Windows: make cpp-test-windows"),
]


def run(*arguments: str, code: int = 0) -> tuple[str, str]:
    """Output and last message of histo-run; in a locale of UTF-8, because Wine translates the command line by it."""
    environment = os.environ | {"WINEPREFIX": str(BUILD / "wine"), "WINEDEBUG": "-all", "LC_ALL": "C.UTF-8"}
    done = subprocess.run([str(WINE), str(RUN), *arguments], capture_output=True, check=False, env=environment)
    out, err = done.stdout.decode(), done.stderr.decode()
    assert done.returncode == code, (out, err)
    return out, err.splitlines()[-1] if err else ""  # Debian's Wine may have advice of its own before


def windows_path(path: Path) -> str:
    return "Z:" + str(path).replace("/", "\\")


@pytest.fixture
def place(bundle: Path, copy_bundle: Callable[[Path, Path], Path], tmp_path: Path) -> Path:
    """A bundle in a folder whose name no code page of Europe has."""
    folder = tmp_path / "模 ä"
    folder.mkdir()
    copy_bundle(bundle, folder / "bundle")
    return folder


def isas() -> Sequence[str]:
    return [isa for isa in _core.usable_isas() if isa != "amx"]  # which Windows is not asked for


def test_golden_tiles_agree(place: Path) -> None:
    for isa in isas():
        out, _ = run("--isa", isa, "--self-test", windows_path(place / "bundle"))
        assert out.startswith(windows_path(place / "bundle"))
        assert out.endswith(": passed\n")


def test_logits_are_those_of_linux(place: Path) -> None:
    tile = np.random.default_rng(4).integers(0, 256, (1, 75, 75, 3), np.uint8)
    tile.tofile(place / "模.raw")
    for isa in isas():
        engine = _core.Engine(place / "bundle/model.safetensors", isa=isa)
        out, _ = run("--isa", isa, "--raw", "75x75", windows_path(place / "bundle"), windows_path(place / "模.raw"))
        name, *logits, _ = out.removesuffix("\n").split("\t")
        assert name == windows_path(place / "模.raw")
        np.testing.assert_array_equal(np.array(logits, np.float32), engine.run(tile)[0])


def test_no_instruction_asks_more_of_the_stack_than_windows_gives() -> None:
    """Vectors lie there at any multiple of 16 bytes, where aligned moves of 32 and 64 bytes fault."""
    code = subprocess.run([OBJDUMP, "-d", "--no-show-raw-insn", str(RUN)], check=True, capture_output=True, text=True)
    wide = [line for line in code.stdout.splitlines() if "%ymm" in line or "%zmm" in line]
    assert any("vdpbf16ps" in line for line in wide)  # the kernels are there, also those that cannot be run here
    assert any("vpdpbusd" in line for line in wide)
    assert [line for line in wide if re.search("vmov(ap|dqa|nt)", line)] == []


def test_messages_name_the_file(place: Path) -> None:
    missing = windows_path(place / "無.ppm")
    out, err = run(windows_path(place / "bundle"), missing, code=1)
    assert out == ""
    assert err == f"histo-run: {missing}: cannot be opened (No such file or directory). Check the path"
    _, err = run(windows_path(place / "無"), missing, code=1)
    assert err.startswith(f"histo-run: {windows_path(place / '無')}: cannot be opened: ")
