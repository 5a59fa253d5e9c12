"""Tiles of one slide or patient stay on one side of a split, whatever names them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from histo_export.data import TileData, open_data
from histo_export.data.groups import grouping_named
from histo_export.data.split import DEFAULT_SPLIT, grouped_split
from histo_export.errors import HistoError, UsageError

from .conftest import noise_tile, save

MakeSplit = Callable[..., Path]


@pytest.fixture
def slides(tmp_path: Path) -> Path:
    """slides/{A,B}/s{0..11}_{0..2}.png of 32x32: three tiles of each of twelve slides in each class."""
    for k, c in enumerate("AB"):
        for slide in range(12):
            for i in range(3):
                save(tmp_path / "slides" / c / f"s{slide}_{i}.png", noise_tile(k, slide, i))
    return tmp_path / "slides"


def sides(data: TileData) -> list[set[str]]:
    return [set(part.groups) for part in (data.train, data.val, data.test) if part.groups is not None]


def by_hand(counts: list[list[int]]) -> tuple[np.ndarray, np.ndarray]:
    """The label and the group of each tile, of how many tiles of each class the groups have."""
    own, labels = np.nonzero(counts)
    times = np.array(counts)[own, labels]
    return labels.repeat(times), own.repeat(times).astype(str)


def complete(counts: list[list[int]], parts: tuple[int, ...]) -> bool:
    """Whether each class is in each part, where group `g` is in part `parts[g]`."""
    classes = range(len(counts[0]))
    return all(any(parts[g] == p and counts[g][c] for g in range(len(counts))) for p in range(3) for c in classes)


@settings(max_examples=40, deadline=None)
@given(
    counts=st.integers(3, 7).flatmap(
        lambda groups: st.lists(
            st.lists(st.one_of(st.just(0), st.integers(1, 20)), min_size=3, max_size=3),
            min_size=groups,
            max_size=groups,
        )
    ),
    seed=st.integers(0, 3),
)
@example(counts=[[12, 16, 0], [13, 0, 3], [0, 4, 16], [0, 10, 0], [16, 0, 11], [0, 15, 0]], seed=0)
def test_few_groups_are_refused_only_where_no_split_has_every_class(counts: list[list[int]], seed: int) -> None:
    counts = [row for row in counts if any(row)]
    assume(counts)
    labels, own = by_hand(counts)
    possible = any(complete(counts, parts) for parts in product(range(3), repeat=len(counts)))
    try:
        found = grouped_split(labels, own, ("a", "b", "c"), DEFAULT_SPLIT, seed, "tiles")
    except HistoError:
        assert not possible
    else:
        part_of = tuple(next(p for p in range(3) if str(g) in own[found[p]]) for g in range(len(counts)))
        assert complete(counts, part_of)


def test_groups_that_no_split_can_deal_out_are_refused() -> None:
    """Slides 2 and 3 would have to be in one part because of a and b, and in two because of c."""
    labels, own = by_hand([[1, 1, 1], [1, 1, 0], [1, 0, 1], [0, 1, 1]])
    with pytest.raises(HistoError) as refused:
        grouped_split(labels, own, ("a", "b", "c"), DEFAULT_SPLIT, 0, "tiles")
    text = str(refused.value)
    assert "no split by its 4 groups has every class in train, val and test; the nearest lacks:\n  class " in text
    assert "--seed" not in text, "another one cannot help"


def test_many_groups_that_leave_a_class_out_are_refused() -> None:
    """As above, beside ten slides of a fourth class, so that not all ways are tried."""
    counts = [[1, 1, 1, 0], [1, 1, 0, 0], [1, 0, 1, 0], [0, 1, 1, 0], *[[0, 0, 0, 5]] * 10]
    labels, own = by_hand(counts)
    with pytest.raises(HistoError, match=r"(?s)its 14 groups leave classes out of a split:\n  class \w: .*--seed"):
        grouped_split(labels, own, tuple("abcd"), DEFAULT_SPLIT, 0, "tiles")


@settings(max_examples=25, deadline=None)
@given(
    groups=st.integers(3, 30),
    tiles=st.integers(30, 120),
    split=st.sampled_from([DEFAULT_SPLIT, (0.5, 0.25, 0.25), (0.4, 0.2, 0.1), (0.34, 0.33, 0.33)]),
    seed=st.integers(0, 1000),
)
def test_a_group_is_never_on_two_sides(groups: int, tiles: int, split: tuple[float, float, float], seed: int) -> None:
    rng = np.random.default_rng(seed)
    own = np.array([f"slide {g}" for g in rng.integers(0, groups, tiles)])
    labels = rng.integers(0, 3, tiles)
    classes = ("a", "b", "c")
    try:
        parts = grouped_split(labels, own, classes, split, seed, "tiles")
    except HistoError as error:
        assert "class" in error.cause, "only where a class would be missing"  # noqa: PT017
        return
    assert not set.intersection(set(own[parts[0]]), set(own[parts[1]]))
    assert not set(own[parts[2]]) & {*own[parts[0]], *own[parts[1]]}
    assert len(np.unique(np.concatenate(parts))) == sum(map(len, parts))
    if sum(split) > 0.999:
        assert sum(map(len, parts)) == tiles
    for part in parts:
        assert np.bincount(labels[part], minlength=3).all()
    again = grouped_split(labels, own, classes, split, seed, "tiles")
    assert all(np.array_equal(a, b) for a, b in zip(parts, again, strict=True))


def test_shares_are_near_and_seeded() -> None:
    rng = np.random.default_rng(0)
    own, labels = rng.integers(0, 60, 3000).astype(str), rng.integers(0, 4, 3000)
    parts = grouped_split(labels, own, tuple("abcd"), DEFAULT_SPLIT, 0, "tiles")
    for part, share in zip(parts, DEFAULT_SPLIT, strict=True):
        assert np.abs(np.bincount(labels[part]) / np.bincount(labels) - share).max() < 0.03
    # These are the tiles on every machine: a resumed run must get the same ones.
    assert sorted({int(g) for g in own[parts[2]]}) == [1, 5, 10, 18, 28, 30, 31, 35, 58]
    other = grouped_split(labels, own, tuple("abcd"), DEFAULT_SPLIT, 1, "tiles")
    assert not np.array_equal(parts[2], other[2])


@pytest.mark.parametrize("how", ["pattern", "csv", "folder"])
def test_every_way_to_name_groups(slides: Path, tmp_path: Path, how: str) -> None:
    if how == "pattern":
        text = r"/(s\d+)_"
    elif how == "csv":
        names = [p.relative_to(slides).as_posix() for p in slides.rglob("*.png")]
        lines = [f"{name},{name.split('/')[1].split('_')[0]}" for name in names]
        table = tmp_path / "groups.csv"
        table.write_text("\n".join(["path,group", *lines, "A/unused.png,x", ""]), encoding="utf-8")
        text = str(table)
    else:
        for file in [*slides.rglob("*.png")]:
            save(file.parent / file.stem.split("_")[0] / file.name, noise_tile(*map(ord, file.stem)))
            file.unlink()
        text = "folder:1"
    data = open_data(slides, crop=32, groups=text)
    train, val, test = sides(data)
    assert {*train, *val, *test} == {f"s{i}" for i in range(12)}
    assert len(train) + len(val) + len(test) == 12
    assert data.groups == (len(train), len(val), len(test))
    assert data.groups_from == ("groups.csv" if how == "csv" else text), "no path of this machine"
    assert data.fingerprint != open_data(slides, crop=32).fingerprint
    if how == "pattern":
        assert all(f"/{g}_" in name for name, g in zip(data.test.names, data.test.groups, strict=True))  # type: ignore[arg-type]


def test_groups_are_part_of_what_tiles_are(slides: Path) -> None:
    """Intervals are by group, so that other groups are other data, even where the split is the same."""
    train = [*slides.rglob("*.png")]
    for file in train:
        side = "train" if "_0" in file.stem else "val" if "_1" in file.stem else "test"
        target = slides.parent / "split" / side / file.parent.name / f"{side}{file.name}"
        target.parent.mkdir(parents=True, exist_ok=True)
        file.rename(target)
    root = slides.parent / "split"
    by_side = [open_data(root, crop=32, groups=pattern) for pattern in (r"((?:train|val|test)s)", r"/([tv]\w+\d)_")]
    assert by_side[0].fingerprint != by_side[1].fingerprint
    assert by_side[0].groups == (1, 1, 1)


def test_kathers_names_tell_the_slide() -> None:
    names = [
        "01_TUMOR/1A11_CRC-Prim-HE-07_022.tif_Row_601_Col_151.tif",
        "01_TUMOR/10062_CRC-Prim-HE-02_003b.tif_Row_1_Col_301.tif",
        "08_EMPTY/10647_CRC-Prim-HE-10c.tif_Row_1_Col_1.tif",
    ]
    assert grouping_named("kather2016").groups_of(names).tolist() == ["07", "02", "10"]


def test_groups_in_two_splits_of_split_data_are_named(make_split: MakeSplit) -> None:
    root = make_split()
    with pytest.raises(HistoError) as refused:
        open_data(root, crop=32, groups=r"/(\d)\.png")
    text = str(refused.value)
    assert "2 of 3 groups have tiles in more than one split:\n  0: train, val, test\n  1: train, val, test" in text
    with pytest.raises(HistoError, match=r"the groups are the splits themselves \(train, val, test\)"):
        open_data(root, crop=32, groups="folder:2")
    data = open_data(root, crop=32, groups=r"^(\w+/\w+)/")
    assert data.groups == (2, 2, 2)


@pytest.mark.parametrize("text", [r"/(caf.+)_", "folder:1"])
def test_a_slide_that_is_written_in_two_ways_is_one_group(text: str) -> None:
    names = [f"A/caf\u00e9_/{i}" for i in range(2)] + [f"A/cafe\u0301_/{i}" for i in range(2)]
    assert len(set(grouping_named(text).groups_of(names).tolist())) == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("(", "is not a regular expression"),
        ("slide", "has 0 groups in brackets, not one"),
        ("(a)(b)", "has 2 groups in brackets"),
        ("none.csv", "does not exist"),
        ("x" * 300 + ".csv", "does not exist"),
        ("~nobody-of-this-name/none.csv", "does not exist"),
        ("folder:0", "is no folder above a tile"),
    ],
)
def test_a_grouping_that_is_none_is_refused_at_once(flat: Path, text: str, words: str) -> None:
    with pytest.raises(UsageError, match=words.replace("(", r"\(")):
        open_data(flat, crop=8, groups=text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (r"^A/(\d)", "the expression matches nothing in 20 of 30 tiles (B/0.png, B/1.png, B/2.png, …)"),
        ("folder:2", "there are not so many folders above 30 of 30 tiles"),
        ("folder", "train, val and test need a group each of every class:\n  class A: 1 of 3\n  class B: 1 of 3"),
    ],
)
def test_tiles_that_groups_do_not_fit_are_named(flat: Path, text: str, words: str) -> None:
    with pytest.raises(HistoError) as refused:
        open_data(flat, crop=8, groups=text)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,slide\nA/0.png,1\n", "has no column group"),
        ("path,group\n", "has no row"),
        ("path,group\nA/0.png,\n,b\n", "row 2: no group\n  row 3: no path"),
        ("path,group\nA/0.png,1\nA/0.png,2\n", "row 3: A/0.png is in group 2, but above in 1"),
        ("path,group\nA/0.png,1\n", "it has no row with the path of 29 of 30 tiles (A/1.png"),
        ("path,group\nA/0.png,1,2\n", "row 2: 3 cells"),
        ('path,group\n"A/0.png,1\n', "is not a CSV"),
        (b"path,group\n\xff\xfe,1\n", "is not a table in UTF-8"),
    ],
)
def test_a_wrong_csv_of_groups_is_one_error(flat: Path, tmp_path: Path, content: str | bytes, words: str) -> None:
    table = tmp_path / "groups.csv"
    table.write_bytes(content.encode() if isinstance(content, str) else content)
    with pytest.raises(HistoError) as refused:
        open_data(flat, crop=8, groups=str(table))
    assert words in str(refused.value)


def test_counts_and_the_demo_have_no_groups(flat: Path) -> None:
    with pytest.raises(UsageError, match="whole groups seldom add up"):
        open_data(flat, crop=8, groups=r"(\d)\.png", split=(5, 2, 2))
    with pytest.raises(UsageError, match="each tile for itself"):
        open_data("demo", groups="folder")


def test_few_groups_are_split_wherever_they_can_be(tmp_path: Path) -> None:
    """B is on three slides only, one of which has nearly all of A, so that no split has both in their shares."""
    for i in range(30):
        save(tmp_path / "t" / "A" / f"s{0 if i < 28 else 1 + i % 2}_{i}.png", noise_tile(1, i))
    for i in range(3):
        save(tmp_path / "t" / "B" / f"s{i}_{i}.png", noise_tile(2, i))
    data = open_data(tmp_path / "t", crop=8, groups=r"/(s\d)_")
    assert data.groups == (1, 1, 1)
    for i in range(3):
        save(tmp_path / "t" / "C" / f"s{i + 3}_{i}.png", noise_tile(3, i))
    assert open_data(tmp_path / "t", crop=8, groups=r"/(s\d)_").groups == (2, 2, 2)
