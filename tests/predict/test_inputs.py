"""What is found in the user's paths, and what the results are called. No model is needed for either."""

from __future__ import annotations

import json
import os
import socket
import sys
import unicodedata
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.predict import inputs as inputs_module
from histo_export.predict.inputs import (
    AGAIN,
    HIDDEN,
    OTHER,
    OWN,
    PARTS,
    SPECIAL,
    Found,
    Input,
    SlideInput,
    TileSetInput,
    find_inputs,
    path_of,
    source_of,
)
from histo_export.predict.names import name_inputs

WriteTiff = Callable[..., Path]


def touch(*paths: Path) -> None:
    """Slides by their suffix: what they hold is not looked at before they are read."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")


def tile(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8)).save(path)
    return path


def find(*paths: Path) -> Found:
    return find_inputs(paths, 75)


def taken(found: Found) -> list[str | list[str]]:
    """The names of slides, and lists of the names of tiles."""
    return [i.path.name if isinstance(i, SlideInput) else [file.name for file in i.files] for i in found.inputs]


def skipped(found: Found) -> dict[str, tuple[int, str]]:
    return {each.kind: (each.count, Path(each.example).name) for each in found.skipped}


def failed(found: Found) -> dict[str, str]:
    return {Path(failure.path).name: failure.reason for failure in found.failures}


# Folders


def test_linked_folders_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path / "slides/a.svs", tmp_path / "nas/2024/b.svs")
    (tmp_path / "slides/2024").symlink_to(tmp_path / "nas/2024")
    (tmp_path / "slides/1-loop").symlink_to(tmp_path / "slides")
    (tmp_path / "slides/2-up").symlink_to("..")
    (tmp_path / "nas/2024/back").symlink_to(tmp_path / "slides")
    found = find(tmp_path / "slides")
    assert taken(found) == ["a.svs", "b.svs"]
    assert found.inputs[1].path == tmp_path / "slides/2024/b.svs"
    assert not found.failures
    assert skipped(found) == {AGAIN: (3, "1-loop")}


def test_a_folder_of_nothing_but_links(tmp_path: Path) -> None:
    touch(tmp_path / "nas/b.svs")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/2024").symlink_to(tmp_path / "nas")
    assert taken(find(tmp_path / "in")) == ["b.svs"]


def test_a_file_is_taken_once_by_its_own_path(tmp_path: Path) -> None:
    touch(tmp_path / "in/m.svs", tmp_path / "in/z/n.svs")
    (tmp_path / "in/a.svs").symlink_to("m.svs")
    (tmp_path / "in/b").symlink_to("z")
    found = find(tmp_path / "in", tmp_path / "in/m.svs", tmp_path / "in/z")
    assert [path_of(item).relative_to(tmp_path) for item in found.inputs] == [Path("in/m.svs"), Path("in/z/n.svs")]
    assert skipped(found) == {AGAIN: (4, "a.svs")}
    assert not found.failures


def test_whatever_is_left_out_is_counted(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "notes.xml", tmp_path / "list.csv", tmp_path / ".DS_Store")
    touch(tmp_path / "@eaDir/a.svs@SynoEAStream/thumb.jpg", tmp_path / "__MACOSX/a.svs", tmp_path / "._a.svs")
    os.mkfifo(tmp_path / "pipe.tif")  # opening it would wait for ever
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(os.path.relpath(tmp_path / "socket.svs"))  # the length of an address is limited
        found = find(tmp_path)
    assert taken(found) == ["a.svs"]
    assert skipped(found) == {HIDDEN: (4, ".DS_Store"), SPECIAL: (2, "pipe.tif"), OTHER: (2, "list.csv")}


def test_results_of_histo_are_not_inputs(tmp_path: Path) -> None:
    """So the output may lie in the input folder, or be the input folder itself."""
    touch(tmp_path / "a.svs", tmp_path / "run.json", tmp_path / "failed.csv")
    for folder in ("a", "predictions/a", "predictions/tiles"):
        tile(tmp_path / folder / "heatmap.png")
        (tmp_path / folder / "done.json").write_text(json.dumps({"key": "0123", "tiles": 3}))
    tile(tmp_path / "predictions/.b.partial-1/heatmap.png")
    tile(tmp_path / "training/curves.png")
    touch(tmp_path / "training/report.json")
    tile(tmp_path / "tiles/1.png")
    touch(tmp_path / "tiles/done.json")  # somebody else's
    found = find(tmp_path)
    assert taken(found) == ["a.svs", ["1.png"]]
    assert skipped(found)[OWN] == (4, "a")
    assert not found.failures
    assert failed(find(tmp_path / "predictions/a")) == {
        "a": "is a result of histo predict. Name images, slides or a folder of them"
    }


def test_a_link_that_leads_nowhere_is_a_failure_and_ends_nothing(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs")
    for name in ("self.tif", "self"):
        (tmp_path / name).symlink_to(name)
    (tmp_path / "2024").symlink_to("/nowhere/2024")  # a disk that is not mounted holds half of the slides
    found = find(tmp_path, tmp_path / "self", tmp_path / "2024")
    assert taken(found) == ["a.svs"]
    assert failed(found) == {
        "self.tif": "is a link that leads nowhere. Repair or delete it",
        "self": "is a link that leads to itself. Repair or delete it",
        "2024": "is a link that leads nowhere. Repair or delete it",
    }
    assert len(found.failures) == 5


def test_folders_that_hold_nothing(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "text/a.xml")
    found = find(tmp_path / "empty", tmp_path / "text")
    assert set(failed(found)) == {"empty", "text"}
    assert "holds neither tiles nor slides" in found.failures[0].reason


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_folders_that_may_not_be_read(tmp_path: Path) -> None:
    touch(tmp_path / "a.svs", tmp_path / "locked/b.svs")
    (tmp_path / "locked").chmod(0)
    try:
        found = find(tmp_path, tmp_path / "locked/b.svs")
    finally:
        (tmp_path / "locked").chmod(0o755)
    assert taken(found) == ["a.svs"]
    assert set(failed(found)) == {"locked", "b.svs"}
    assert all("permission denied" in reason for reason in failed(found).values())


def test_permission_errors_are_failures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As root nothing is forbidden, so the refusal is played."""
    touch(tmp_path / "a.svs", tmp_path / "locked/b.svs")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = find(tmp_path)
    assert taken(found) == ["a.svs"]
    assert failed(found) == {"locked": "may not be read (permission denied). Check its permissions"}


# Types of files


def test_slides_are_told_by_their_content(tmp_path: Path, write_tiff: WriteTiff) -> None:
    (tmp_path / "in").mkdir()
    large = np.zeros((1100, 1100, 3), np.uint8)
    for name in (
        "slide.svs2",
        "no suffix",
        "pyramid.abc",
        "scan.qptiff",
        "scan.btf",
        "scan.tf8",
        "scan.tf2",
        "scan.TIFF",
    ):
        write_tiff(tmp_path / "in" / name, large)
    for name in ("small", "small.tif", "small.btf"):
        write_tiff(tmp_path / "in" / name, large[:75, :75], levels=1)
    touch(tmp_path / "in/notes", tmp_path / "in/notes.doc")
    found = find(tmp_path / "in")
    *slides, tiles = taken(found)
    assert sorted(slides) == sorted(path.name for path in (tmp_path / "in").iterdir() if path.stat().st_size > 1e6)
    assert len(slides) == 8
    assert tiles == ["small", "small.btf", "small.tif"]
    assert skipped(found) == {OTHER: (2, "notes")}


def test_images_of_any_suffix_that_are_named_one_by_one(tmp_path: Path) -> None:
    for kind, name in (("png", "tile"), ("jpeg", "tile.jfif"), ("png", "a.png")):
        Image.new("RGB", (8, 8)).save(tmp_path / name, format=kind)
    touch(tmp_path / "table.xlsx", tmp_path / "text")
    os.mkfifo(tmp_path / "pipe.txt")
    found = find(*(tmp_path / name for name in ("tile", "tile.jfif", "a.png")))
    assert taken(found) == [["tile", "tile.jfif", "a.png"]]
    found = find(tmp_path / "table.xlsx", tmp_path / "text", tmp_path / "pipe.txt", tmp_path / "gone.png")
    assert failed(found) == {
        "table.xlsx": "is of an unknown type (.xlsx). Name images, slides or lists of them",
        "text": "is of an unknown type (no suffix). Name images, slides or lists of them",
        "pipe.txt": "is a pipe, a socket or a device. Name a file",
        "gone.png": "does not exist. Check the path",
    }


def test_parts_of_a_slide_are_no_inputs(tmp_path: Path) -> None:
    touch(tmp_path / "mirax.mrxs")
    touch(*(tmp_path / "mirax" / name for name in ("Slidedat.ini", "Index.dat", "Data0000.dat")))
    touch(tmp_path / "other.mrxs")
    tile(tmp_path / "other/1.png")  # no MIRAX folder, although it has the name of one
    (tmp_path / "scan.vms").write_text("[Virtual Microscope Specimen]\nImageFile=scan.jpg\nMapFile=scan_map2.jpg\n")
    touch(tmp_path / "scan.jpg", tmp_path / "scan_map2.jpg")
    found = find(tmp_path)
    assert taken(found) == ["mirax.mrxs", "other.mrxs", "scan.vms", ["1.png"]]
    assert skipped(found) == {PARTS: (5, "scan.jpg")}


def test_each_series_of_a_dicom_folder_is_a_slide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def write(name: str, series: str) -> None:
        touch(tmp_path / name)
        (tmp_path / name).write_bytes(bytes(128) + b"DICM" + series.encode())

    def series_of(path: Path) -> str | None:
        return path.read_bytes()[132:].decode() or None

    monkeypatch.setattr(inputs_module, "dicom_series", series_of)
    monkeypatch.setattr(inputs_module, "slide_format", lambda path: series_of(path) and "dicom")
    for name, series in (("a1.dcm", "A"), ("a2.dcm", "A"), ("b1.dcm", "B"), ("b2.DCM", "B"), ("b3", "B")):
        write(f"flat/{name}", series)
    write("other/1.2.840.1", "A")  # a reader looks for a series in one folder
    write("other/DICOMDIR", "")
    write("other/broken1.dcm", "")
    write("other/broken2.dcm", "")
    found = find(tmp_path)
    assert taken(found) == ["a1.dcm", "b1.dcm", "1.2.840.1", "broken1.dcm", "broken2.dcm"]
    assert skipped(found) == {PARTS: (3, "a2.dcm"), OTHER: (1, "DICOMDIR")}
    found = find(tmp_path / "flat/b3", tmp_path / "flat/b1.dcm", tmp_path / "flat/a2.dcm")
    assert taken(found) == ["b3", "a2.dcm"]
    assert not found.failures


def test_sets_of_tiles_need_no_openslide(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("openslide", "tifffile"):
        monkeypatch.setitem(sys.modules, name, None)
    tile(tmp_path / "A/1.png")
    touch(tmp_path / "A/notes", tmp_path / "A/b.dcm", tmp_path / "A/c.svs")
    found = find(tmp_path)
    assert taken(found) == ["b.dcm", "c.svs", ["1.png"]]
    assert skipped(found) == {OTHER: (1, "notes")}


@pytest.mark.parametrize("damage", ["archive", "empty", "text", "cut", "object"])
def test_files_that_are_no_arrays(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "array.npy"
    if damage == "archive":
        with path.open("wb") as file:
            np.savez(file, a=np.zeros(3))
    else:
        np.save(path, np.zeros((9, 75, 75, 3), np.uint8 if damage == "cut" else object), allow_pickle=True)
        keep = {"empty": 0, "text": 0, "cut": 1000}.get(damage)
        path.write_bytes(path.read_bytes()[:keep] + b"text" * (damage == "text"))
    found = find(path)
    assert not found.inputs
    assert "numpy.save" in failed(found)["array.npy"]


# Lists

MEIER = "Méier, Hans.tif"
NAMES = ("a.tif", "b c.tif", MEIER, "#3.tif", "sub/z.tif", "5$ x.tif", "trail .tif", "c;d.tif", "new\nline.tif")


@pytest.fixture
def slides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the slides `NAMES`, which is also the home folder."""
    monkeypatch.setattr(inputs_module, "is_slide", lambda path, tile_size: True)
    for name in NAMES:
        touch(tmp_path / name)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("plain.txt", b"a.tif\nb c.tif\n", ["a.tif", "b c.tif"]),
        ("no_end.txt", b"a.tif\n\n  b c.tif", ["a.tif", "b c.tif"]),
        ("one_column.csv", b"slide\na.tif\nb c.tif\n", ["a.tif", "b c.tif"]),
        ("semicolon.csv", b"slide;label\r\na.tif;tumor\r\nb c.tif;normal\r\n", ["a.tif", "b c.tif"]),
        ("bar.csv", b"a.tif|tumor\nb c.tif|normal\n", ["a.tif", "b c.tif"]),
        ("quoted_comma.csv", 'slide,label\n"Méier, Hans.tif",x\na.tif,y\n'.encode(), [MEIER, "a.tif"]),
        ("quoted_semicolon.csv", b'slide;label\n"c;d.tif";x\na.tif;y\n', ["c;d.tif", "a.tif"]),
        ("line_end.csv", b'slide,label\n"new\nline.tif",x\n', ["new\nline.tif"]),
        ("line_end_alone.csv", b'slide\n"new\nline.tif"\n', ["new\nline.tif"]),
        ("comma.txt", "a.tif\nMéier, Hans.tif\n".encode(), ["a.tif", MEIER]),
        ("excel_bom.csv", b"\xef\xbb\xbfslide,label\r\na.tif,1\r\n", ["a.tif"]),
        ("bom.txt", b"\xef\xbb\xbfa.tif\r\n", ["a.tif"]),
        ("latin1.csv", 'slide,label\r\n"Méier, Hans.tif",1\r\na.tif,1\r\n'.encode("cp1252"), [MEIER, "a.tif"]),
        ("latin1.txt", "Méier, Hans.tif\r\n".encode("cp1252"), [MEIER]),
        ("decomposed.txt", unicodedata.normalize("NFD", MEIER).encode(), [MEIER]),
        ("utf16.txt", "a.tif\r\nMéier, Hans.tif\r\n".encode("utf-16"), ["a.tif", MEIER]),
        ("utf16be.txt", b"\xfe\xff" + "a.tif\r\n".encode("utf-16-be"), ["a.tif"]),
        ("utf16_no_mark.txt", "a.tif\r\nb c.tif".encode("utf-16-le"), ["a.tif", "b c.tif"]),
        ("utf16be_no_mark.txt", "a.tif\r\nb c.tif".encode("utf-16-be"), ["a.tif", "b c.tif"]),
        ("utf16.csv", "slide\ta\r\na.tif\t1\r\n".encode("utf-16"), ["a.tif"]),
        ("tabs.txt", b"a.tif\ttumor\nb c.tif\tnormal\n", ["a.tif", "b c.tif"]),
        ("tabs.tsv", b"slide\tlabel\na.tif\ttumor\n", ["a.tif"]),
        ("id_first.csv", b"case_id,slide_path\n1,a.tif\n2,b c.tif\n", ["a.tif", "b c.tif"]),
        ("id_that_is_a_folder.csv", b"case,slide,label\nsub,a.tif,sub\nsub,b c.tif,sub\n", ["a.tif", "b c.tif"]),
        ("no_heading.csv", b"a.tif,1\nb c.tif,2\n", ["a.tif", "b c.tif"]),
        ("heading_with_dot.csv", b"file.name,label\na.tif,1\n", ["a.tif"]),
        ("sep.csv", b"sep=,\na.tif,1\n", ["a.tif"]),
        ("sep_bar.csv", b'"sep=|"\r\nslide|label\r\na.tif|1\r\n', ["a.tif"]),
        ("sep_odd.csv", b"sep=:\nslide:label\na.tif:1\n", ["a.tif"]),
        ("quoted.txt", b"\"b c.tif\"\n'a.tif'\n", ["b c.tif", "a.tif"]),
        ("hash.txt", b"# two slides\n#3.tif\na.tif\n", ["#3.tif", "a.tif"]),
        ("hash.csv", b"# made by hand\nslide,label\n#3.tif,1\na.tif,2\n#gone.tif,3\n", ["#3.tif", "a.tif"]),
        ("old_mac.txt", b"a.tif\rb c.tif\r", ["a.tif", "b c.tif"]),
        ("old_mac.csv", b"slide;label\ra.tif;1\rb c.tif;2\r", ["a.tif", "b c.tif"]),
        ("home.txt", b"~/a.tif\n$HOME/b c.tif\n", ["a.tif", "b c.tif"]),
        ("dollar.txt", b"5$ x.tif\n", ["5$ x.tif"]),
        ("spaces.txt", b"trail .tif\n  a.tif \n", ["trail .tif", "a.tif"]),
        ("backslash.txt", b"sub\\z.tif\n", ["z.tif"]),
        ("folder.txt", b"sub\na.tif\n", ["z.tif", "a.tif"]),
        ("twice.txt", b"a.tif\n./a.tif\nsub/../a.tif\n", ["a.tif"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_lists_as_people_write_them(slides: Path, name: str, content: bytes, expected: list[str]) -> None:
    (slides / name).write_bytes(content)
    found = find(slides / name)
    assert taken(found) == expected
    assert not found.failures


def test_lists_name_lists_arrays_and_tiles(slides: Path) -> None:
    np.save(slides / "array.npy", np.zeros((2, 75, 75, 3), np.uint8))
    tile(slides / "t/TUMOR/1.png")
    tile(slides / "2.png")
    (slides / "inner.csv").write_text("a.tif,1\nsub/z.tif,2\n")
    (slides / "outer.txt").write_text("inner.csv\nouter.txt\narray.npy\nt\n2.png\nt/TUMOR/1.png\n")
    found = find(slides / "outer.txt")
    assert [(path_of(item).name, getattr(item, "files", [])) for item in found.inputs] == [
        ("a.tif", []),
        ("z.tif", []),
        ("array.npy", []),
        ("t", [slides / "t/TUMOR/1.png"]),
        ("outer.txt", [slides / "2.png"]),
    ]
    assert not found.failures
    assert skipped(found) == {AGAIN: (2, "outer.txt")}


@pytest.mark.parametrize(
    ("content", "note"),
    [
        (b"case_id,slide_path\n1,a.tif\n", "column 2 (slide_path), separated by comma"),
        (b"a.tif;1\n", "column 1, separated by semicolon"),
        (b"slide\na.tif\n", "every line below the heading 'slide'"),
        (b"a.tif\n", None),
    ],
)
def test_what_was_taken_of_a_list_is_said(slides: Path, content: bytes, note: str | None) -> None:
    (slides / "list.csv").write_bytes(content)
    assert find(slides / "list.csv").notes == ([] if note is None else [f"{slides / 'list.csv'}: {note}"])


def test_a_bad_line_of_a_list_is_a_failure_and_ends_nothing(slides: Path) -> None:
    (slides / "loop.tif").symlink_to("loop.tif")
    lines = [
        "gone.tif",
        "C:\\slides\\a.tif",
        "\\\\server\\share\\a.tif",
        "\\",
        "x" * 300 + ".tif",
        "y/" * 3000,
        "nul\0.tif",
    ]
    (slides / "list.txt").write_text("\n".join(["a.tif", *lines, "loop.tif", "notes.doc", "b c.tif"]))
    touch(slides / "notes.doc")
    found = find(slides / "list.txt")
    assert taken(found) == ["a.tif", "b c.tif"]
    reasons = [failure.reason for failure in found.failures]
    windows = "is a path of Windows. Write the path that this machine has for it"
    assert reasons[:6] == [
        "does not exist. Check the path",
        *[windows] * 3,
        *["is longer than a path may be. Check the program that wrote it"] * 2,
    ]
    assert "holds a character that no path may hold" in reasons[6]
    assert "leads to itself" in reasons[7]
    assert "unknown type (.doc)" in reasons[8]
    assert max(len(failure.path) for failure in found.failures) < 400


@pytest.mark.parametrize(
    ("name", "content", "missing"),
    [
        ("a.csv", b"slide,label\ngone.tif,1\nlost.tif,2\n", ["gone.tif", "lost.tif"]),
        ("b.csv", b"case_id,slide_path\n1,gone.tif\n2,lost.tif\n", ["gone.tif", "lost.tif"]),
        ("c.csv", b"gone.tif;1\nlost.tif;2\n", ["gone.tif", "lost.tif"]),
        ("d.txt", b"gone.tif\nlost.tif\n", ["gone.tif", "lost.tif"]),
        ("e.txt", b"Meier, Karl.tif\n", ["Meier, Karl.tif"]),
        ("f.csv", b"slide,label\na.tif,1\n,2\nlost.tif,3\n", ["f.csv", "lost.tif"]),
        ("g.csv", b"gone.tif,1\na.tif,1\n", ["gone.tif"]),
        ("h.txt", b"gone_folder\na.tif\n", ["gone_folder"]),
    ],
)
def test_missing_files_are_named_and_no_heading_swallows_one(
    slides: Path, name: str, content: bytes, missing: Sequence[str]
) -> None:
    (slides / name).write_bytes(content)
    assert [Path(failure.path).name for failure in find(slides / name).failures] == missing


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"\xff\xfea\x00\x00\xd8", "is neither UTF-8 nor UTF-16 text"),
        (np.random.default_rng(1).integers(0, 256, 5000, np.uint8).tobytes(), "is not text"),
        (b"", "holds no path"),
        (b"# nothing\n\n", "holds no path"),
    ],
)
def test_files_that_are_no_lists(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "list.txt").write_bytes(content)
    found = find(tmp_path / "list.txt")
    assert reason in failed(found)["list.txt"]
    assert len(found.failures) == 1


@pytest.mark.parametrize("separator", ["\n", ",", ";", "\t", '"'])
@pytest.mark.parametrize("suffix", [".txt", ".csv"])
def test_lists_with_odd_shapes_end_nothing(slides: Path, separator: str, suffix: str) -> None:
    """Very wide rows, quotes without end, fields that are longer than csv allows."""
    for content in (separator * 200_000, f'"{"x" * 200_000}', f"a.tif{separator}" * 60, f'a.tif\n"b{separator}'):
        path = slides / f"odd{suffix}"
        path.write_text(content)
        assert isinstance(find(path), Found)


# Names


def names_of(items: Sequence[Input], out: Path, keys: Sequence[str] | None = None) -> list[str]:
    return [item.name for item in name_inputs(items, keys or [source_of(item) for item in items], out)]


def done(folder: Path, key: str, source: Path | str | None) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    content = {"key": key, "tiles": 3} | ({"source": str(source)} if source else {})
    (folder / "done.json").write_text(json.dumps(content))


@pytest.fixture
def two(tmp_path: Path) -> tuple[SlideInput, SlideInput]:
    """Slides of one name in two folders."""
    touch(tmp_path / "p1/HE.svs", tmp_path / "p2/HE.svs")
    return SlideInput(tmp_path / "p1/HE.svs"), SlideInput(tmp_path / "p2/HE.svs")


def test_a_name_is_that_of_the_file_or_folder(tmp_path: Path) -> None:
    touch(*(tmp_path / name for name in ("a.svs", "b.ome.tif", "1.2.840.11", "c", "list.csv", "in/x.svs")))
    items = [SlideInput(tmp_path / name) for name in ("a.svs", "b.ome.tif", "1.2.840.11", "c")]
    sets = [TileSetInput(tmp_path / name) for name in ("list.csv", "in")]
    assert names_of([*items, *sets], tmp_path / "out") == ["a", "b.ome", "1.2.840.11", "c", "list", "in"]


def test_a_name_stays_when_other_inputs_arrive(two: tuple[SlideInput, SlideInput], tmp_path: Path) -> None:
    first, second = two
    out = tmp_path / "out"
    assert names_of([second], out) == ["HE"]
    done(out / "HE", "k", source_of(second))
    other, same = names_of([first, second], out)
    assert same == "HE"
    assert other.startswith("HE-")
    assert names_of([first], out) == [other]
    done(out / other, "k", source_of(first))
    assert names_of([second, first], out) == ["HE", other]


def test_names_of_a_run_do_not_depend_on_the_order(two: tuple[SlideInput, SlideInput], tmp_path: Path) -> None:
    first, second = two
    out = tmp_path / "out"
    a, b = names_of([first, second], out)
    assert [a[:3], b[:3], len({a, b})] == ["HE-", "HE-", 2]
    assert names_of([second, first], out) == [b, a]
    done(out / b, "k", source_of(second))
    assert names_of([second], out) == [b]  # alone, it is found again


def test_an_interrupted_set_is_found_again(tmp_path: Path) -> None:
    for parent in ("p1", "p2"):
        tile(tmp_path / parent / "tiles/1.png")
    first, second = find(tmp_path / "p1/tiles", tmp_path / "p2/tiles").inputs
    out = tmp_path / "out"
    (out / f".tiles.shards-{'k2'.ljust(16, '0')}").mkdir(parents=True)
    names = names_of([first, second], out, ["k1".ljust(64, "0"), "k2".ljust(64, "0")])
    assert names[1] == "tiles"
    assert names[0] != "tiles"


@pytest.mark.parametrize(
    ("names", "folded"),
    [
        (("HE.svs", "he.svs"), True),
        (("e\u0301.svs", "\u00e9.svs"), True),
        (("a .svs", "a.svs"), True),
        (("a.svs", "b.svs"), False),
    ],
)
def test_names_that_are_equal_somewhere_are_equal_here(tmp_path: Path, names: tuple[str, str], folded: bool) -> None:
    """On some file systems HE is he, é as one letter is e with an accent, and no name ends with a space."""
    for i, name in enumerate(names):
        touch(tmp_path / f"p{i}" / name)
    items = [SlideInput(tmp_path / f"p{i}" / name) for i, name in enumerate(names)]
    assert all("-" in name for name in names_of(items, tmp_path / "out")) == folded
    done(tmp_path / "out" / Path(names[0]).stem.strip(), "k", source_of(items[0]))
    assert ("-" in names_of([items[1]], tmp_path / "out")[0]) == folded


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("12:30 <a>?.svs", "12_30 _a__"),
        ("back\\slash|*.svs", "back_slash__"),
        ("ends...svs", "ends"),
        ("CON.svs", "_CON"),
        ("aux.1.svs", "_aux.1"),
        ("com¹.tif", "_com¹"),
        ("console.svs", "console"),
        ("模.svs", "模"),
    ],
)
def test_names_are_allowed_on_every_system(tmp_path: Path, file: str, name: str) -> None:
    """Results that Linux has written are read on Windows, too."""
    touch(tmp_path / file)
    assert names_of([SlideInput(tmp_path / file)], tmp_path / "out") == [name]


def test_data_that_was_moved_is_found_again(two: tuple[SlideInput, SlideInput], tmp_path: Path) -> None:
    """The key holds a file's name, size and time; the path may have changed, if nothing is left at the old one."""
    first, second = two
    out = tmp_path / "out"
    done(out / "HE", "same", "/mnt/gone/HE.svs")
    assert names_of([first], out, ["same"]) == ["HE"]
    assert names_of([first], out, ["other"]) != ["HE"]
    done(out / "HE", "same", source_of(second))
    assert names_of([first], out, ["same"]) != ["HE"]  # a copy, which has the same size and time


def test_results_of_version_0_1_keep_their_names(two: tuple[SlideInput, SlideInput], tmp_path: Path) -> None:
    """Their done.json names no source."""
    first, second = two
    out = tmp_path / "out"
    done(out / "HE", "k2", None)
    assert names_of([first, second], out, ["k1", "k2"])[1] == "HE"
    assert names_of([first], out, ["k1"]) == ["HE"]  # the run asks whether to replace it


def test_a_folder_that_is_no_result_is_left_to_the_run_to_refuse(tmp_path: Path) -> None:
    touch(tmp_path / "out/a/precious.txt", tmp_path / "a.svs")
    assert names_of([SlideInput(tmp_path / "a.svs")], tmp_path / "out") == ["a"]


@pytest.mark.parametrize(
    "name",
    [
        "..svs",
        "...svs",
        "....svs",
        ".hidden.svs",
        "run.json.svs",
        "RUN.json.svs",
        "failed.csv.svs",
        "new\nline.svs",
        " .svs",
        "é" * 120 + ".svs",
        "L" * 250 + ".svs",
        os.fsdecode(b"\xff" * 249) + ".svs",
        "-dash.svs",
        "$a$.svs",
        "[red]x.svs",
    ],
)
def test_every_name_is_one_of_a_new_visible_folder(tmp_path: Path, name: str) -> None:
    touch(tmp_path / "in" / name)
    found = find(tmp_path / "in") if not name.startswith(".") else find(tmp_path / "in" / name)
    out = tmp_path / "out"
    out.mkdir()
    for record in ("run.json", "index.html", "failed.csv"):
        touch(out / record)
    (result,) = names_of(found.inputs, out)
    assert not result.startswith(".")
    assert "\n" not in result
    (out / f".{result}.partial-{'x' * 40}").mkdir()  # what a run makes first
    (out / result).mkdir()
    assert (out / result).parent == out
    if name.startswith(("é", "L")):
        assert result[:50] == name[:50]


def test_long_names_differ_by_their_paths(tmp_path: Path) -> None:
    names = ["L" * 240 + "1.svs", "L" * 240 + "2.svs"]
    touch(*(tmp_path / name for name in names))
    results = names_of([SlideInput(tmp_path / name) for name in names], tmp_path / "out")
    assert len(set(results)) == 2
    assert [names_of([SlideInput(tmp_path / name)], tmp_path / "out")[0] for name in names] == results


def test_single_tiles_have_a_source_of_their_own(tmp_path: Path) -> None:
    paths = [tile(tmp_path / f"{i}.png") for i in range(3)]
    (one,), (two_tiles,) = find(paths[0]).inputs, find(*paths[1:]).inputs
    assert source_of(one) == str(paths[0])
    assert source_of(two_tiles).startswith(f"{tmp_path} (2 single tiles, ")
    assert names_of([one], tmp_path / "out") == ["tiles"]
    done(tmp_path / "out/tiles", "k", source_of(one))
    assert names_of([two_tiles], tmp_path / "out") != ["tiles"]
