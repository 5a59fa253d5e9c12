"""The check of a release: two builds that differ, licences that lack, libraries that would have to be bundled."""

from __future__ import annotations

import io
import runpy
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
NAME = "histo_export-1.0-cp311-cp311-linux_x86_64.whl"


@pytest.fixture(scope="module")
def check() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "packaging/release_build.py"))


def make_wheel(folder: Path, *, month: int = 1, **files: str) -> Path:
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / NAME, "w") as archive:
        for name, text in files.items():
            archive.writestr(zipfile.ZipInfo(name, (2026, month, 1, 0, 0, 0)), text)
    return folder / NAME


def test_two_builds_that_differ_are_told_apart(check: dict[str, Any], tmp_path: Path) -> None:
    files = {"histo_export/a.py": "1", "histo_export/b.py": "2"}
    first = make_wheel(tmp_path / "first", **files)
    assert list(check["differences"](first, make_wheel(tmp_path / "same", **files))) == []
    other = make_wheel(tmp_path / "other", **files | {"histo_export/b.py": "3"})
    assert list(check["differences"](first, other)) == [f"{NAME}: two builds differ in histo_export/b.py"]
    later = make_wheel(tmp_path / "later", month=2, **files)
    assert "times" in next(check["differences"](first, later))


def test_files_of_an_sdist_are_compared_too(check: dict[str, Any], tmp_path: Path) -> None:
    for text in ("1", "2"):
        with tarfile.open(tmp_path / f"{text}.tar.gz", "w:gz") as archive:
            member = tarfile.TarInfo("a/b.txt")
            member.size = 1
            archive.addfile(member, io.BytesIO(text.encode()))
    found = list(check["differences"](tmp_path / "1.tar.gz", tmp_path / "2.tar.gz"))
    assert found[1:] == ["1.tar.gz: two builds differ in a/b.txt"]


def test_licences_that_lack_are_named(check: dict[str, Any], tmp_path: Path) -> None:
    info = "histo_export-1.0.dist-info"
    whole = {f"{info}/licenses/LICENSE": "", f"{info}/licenses/THIRD_PARTY.txt": "", "histo_export/a.py": ""}
    bundled = {"pybind11": "Copyright\n  somebody"}
    wheel = make_wheel(tmp_path, **whole)
    assert list(check["licence_problems"](wheel, "x Copyright somebody y", bundled)) == []
    assert list(check["licence_problems"](wheel, "Copyright", bundled)) == [
        "THIRD_PARTY.txt lacks the licence of pybind11"
    ]
    bare = make_wheel(tmp_path, **{"histo_export/a.py": "", "other/b.py": ""})
    assert list(check["licence_problems"](bare, "", {})) == [
        f"{NAME} lacks LICENSE",
        f"{NAME} lacks THIRD_PARTY.txt",
        f"{NAME} has other/b.py, which is not the project's",
    ]


def test_the_notices_have_the_licence_of_the_pybind11_that_is_compiled_in(check: dict[str, Any]) -> None:
    pybind11 = pytest.importorskip("pybind11")
    (licence,) = Path(pybind11.__file__).parent.parent.glob("pybind11-*.dist-info/licenses/LICENSE")
    text = licence.read_text(encoding="utf-8")
    notices = check["NOTICES"].read_text(encoding="utf-8")
    assert " ".join(text.split()) in " ".join(notices.split())
