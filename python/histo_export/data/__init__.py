"""Labelled H&E tiles from any source, as one type.

    data = open_data("tiles/")            # train|val|test/<class>/*.png, or <class>/*.png
    data = open_data("tiles.npy")         # uint8 (n, h, w, 3)
    data = open_data("tiles.csv")         # columns path, label and perhaps split and group
    data = open_data("tiles.zip")         # or .tar, .npz, .parquet, and folders of these: see `containers`
    data = open_data("kather2016")        # a public set, downloaded once
    data = open_data("demo")              # generated, synthetic
    data.train.tile(0), data.train.labels[0], data.classes

Nothing here imports torch; `histo_export.data.transforms` does.
"""

from __future__ import annotations

import contextlib
import difflib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from histo_export.data.public_sets import SETS
from histo_export.data.split import Split
from histo_export.data.tiles import TileData, TileSet
from histo_export.errors import HistoError, UsageError
from histo_export.files import home_path

__all__ = ["TileData", "TileSet", "open_data"]

DEMO_SIZE = (60, 10, 20)
"""Tiles per class in train, val and test of the demo set."""


def open_data(
    spec: str | Path,
    *,
    classes: Sequence[str] | None = None,
    crop: int | None = None,
    split: Split | None = None,
    seed: int = 0,
    cache: Path | None = None,
    demo_size: tuple[int, int, int] = DEMO_SIZE,
    groups: str | None = None,
    class_map: str | Path | None = None,
) -> TileData:
    """Open and check a set of tiles.

    Args:
        spec: `"demo"`, a name of `public_sets.SETS`, a folder of images, a CSV or Parquet table of images, a `.npy`
            file, a folder of `.npy` files, or a file that holds tiles (`containers.KINDS`), or a folder of such files.
            Write `./demo` for a folder with the name demo.
        classes: class names in label order; default all of them (kather2016: six of eight). For arrays
            without a list of names they are the names of all labels.
        crop: side in pixels of the square that the model sees; every tile must hold it; default: see `default_crop`.
        split: (train, val, test) as fractions that sum to at most 1, or as counts per class, for a set
            that is not split yet; default 0.68/0.16/0.16 (kather2016: 425/100/100).
        seed: integer ≥ 0 of that split, or of the demo's tiles.
        cache: where public sets are kept; default `$HISTO_CACHE` or `~/.cache/histo-export`.
        demo_size: demo tiles per class in train, val and test.
        groups: which tiles lie on one side of a split, because they are of one slide or patient; see
            `groups.grouping_named`.
        class_map: path of a table with the columns `folder` and `class`, see `class_map.read_class_map`.

    Raises:
        UsageError: an impossible path, class, split or grouping.
        HistoError: data that cannot be used, with every unreadable file named.
    """
    crop = default_crop(spec) if crop is None else crop
    if crop < 1:
        raise UsageError(f"crop {crop}", "must be at least 1 pixel", "Use --crop 128")
    if seed < 0:
        raise UsageError(f"seed {seed}", "must not be negative", "Use --seed 0")
    if spec == "demo":
        from histo_export.data.demo import open_demo

        for option, value in (("split", split), ("groups", groups), ("class-map", class_map)):
            if value is not None:
                cause = "the demo set is made with its splits and classes, each tile for itself"
                raise UsageError(option, cause, f"Leave --{option} out")
        return open_demo(classes=classes, crop=crop, seed=seed, size=demo_size)
    from histo_export.data.groups import grouping_named

    grouping = None if groups is None else grouping_named(groups)
    if isinstance(spec, str) and spec in SETS:
        if class_map is not None:
            raise UsageError("class-map", f"{spec} has names of its own for its classes", "Choose them with --classes")
        from histo_export.data.public import open_public

        return open_public(
            SETS[spec], classes=classes, crop=crop, split=split, seed=seed, cache=cache, grouping=grouping
        )

    path = home_path(spec)
    if not _exists(path):
        if re.match(r"[A-Za-z][A-Za-z0-9+.]+:/", str(spec)):
            raise UsageError(
                f"data {str(spec)!r}", "is an address, and only files are read", "Download it, and name it"
            )
        raise UsageError(f"data {str(spec)!r}", "does not exist", _suggestion(path, str(spec)))
    name = name_of(spec)
    opener = _opener(path, str(spec))
    chosen: dict[str, Any] = {"classes": classes, "crop": crop, "split": split, "seed": seed, "grouping": grouping}
    if class_map is not None:
        from histo_export.data.arrays import open_arrays
        from histo_export.data.class_map import read_class_map

        if opener is open_arrays:
            step = "Write the names into classes.txt, one a line, and choose with --classes"
            raise UsageError("class-map", f"{path} is an array, whose labels are numbers", step)
        chosen["class_map"] = read_class_map(class_map)
    return opener(path, name=name, **chosen)


def _opener(path: Path, typed: str) -> Callable[..., TileData]:
    """What opens a path that exists; UsageError where nothing does."""
    from histo_export.data.arrays import holds_arrays, open_arrays
    from histo_export.data.container_set import holds_containers, open_container_set
    from histo_export.data.containers import UNREADABLE, holds_tiles, kind_of
    from histo_export.data.folder import open_folder
    from histo_export.data.table import open_table

    suffix = path.suffix.lower()
    if path.is_dir():
        if holds_arrays(path):
            return open_arrays
        return open_container_set if holds_containers(path) else open_folder
    if not path.is_file():
        raise UsageError(f"data {typed!r}", "is not a regular file", "Give a folder of tiles, an archive or a table")
    if suffix == ".npy":
        return open_arrays
    if suffix == ".csv" or (suffix == ".parquet" and not holds_tiles(path)):
        return open_table
    if kind_of(path):
        return open_container_set
    if suffix in UNREADABLE:
        cause, _, step = UNREADABLE[suffix].partition(". ")
        raise UsageError(f"data {typed!r}", cause, step)
    step = "Give a folder of tiles, an array, an archive (.zip, .tar, .npz, .parquet), or a table"
    cause = "is neither a folder nor a .npy, .csv or .parquet file, nor another file that holds tiles"
    raise UsageError(f"data {typed!r}", cause, step)


def default_crop(spec: str | Path) -> int:
    """The crop where the user names none: 128 pixels as in the report, and less for sets whose tiles are small."""
    if isinstance(spec, str) and spec in SETS:
        return SETS[spec].crop
    from histo_export.data.demo import CROP

    return CROP if spec == "demo" else 128


def is_name(spec: str | Path) -> bool:
    """Whether tiles are known by a name, and not by a path."""
    return spec == "demo" or (isinstance(spec, str) and spec in SETS)


def name_of(spec: str | Path) -> str:
    """The name of a set of tiles: of a path the last part only, because model cards travel, and a home folder's path
    should not."""
    return str(spec) if is_name(spec) else home_path(spec).resolve().name or str(spec)


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except PermissionError as error:
        raise HistoError(path, "may not be read (permission denied)", "Check its permissions") from error
    except (OSError, ValueError):  # a name too long, or with a NUL
        return False


def _suggestion(path: Path, name: str) -> str:
    known = {each: each for each in ("demo", *SETS)}
    with contextlib.suppress(OSError, ValueError):
        known |= {p.name: str(p) for p in path.parent.iterdir()}
    near = difflib.get_close_matches(path.name or name, list(known), n=1, cutoff=0.6)
    hint = f"Did you mean {known[near[0]]}? " if near else ""
    return (
        f"{hint}Give a folder of images, a .npy, .csv, .parquet, .zip, .tar or .npz file, demo, or a public set "
        "(histo data lists them)"
    )
