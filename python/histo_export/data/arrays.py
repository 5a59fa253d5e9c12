"""Tiles in `.npy` arrays: uint8 `(n, h, w, 3)`, memory-mapped, never unpickled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histo_export.data.duplicates import duplicate_notes, identical_tiles
from histo_export.data.groups import Grouping, Groups, refuse_shared
from histo_export.data.split import DEFAULT_SPLIT, Split, check_split, split_tiles
from histo_export.data.tiles import (
    SPLITS,
    TileData,
    TileSet,
    choose_classes,
    fingerprint,
    name_notes,
    need_crop,
    need_two_classes,
    size_notes,
)
from histo_export.errors import HistoError, UsageError
from histo_export.trained_on import Hashes, tile_hash

BLOCKS = 6
"""Classes in an array without labels and names: as many as in the report."""


def open_arrays(
    path: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
    grouping: Grouping | None = None,
) -> TileData:
    """Open one `.npy` array, or a folder of one, or of `train.npy`, `val.npy` and `test.npy`.

    Labels come from `<stem>_labels.npy` (or `labels.npy`, for a single array) beside it: integers
    `(n,)` counting from 0. Without that file the classes are equal consecutive blocks.

    Class names come from `<stem>_classes.txt` or `classes.txt` beside it, one a line in label order;
    `classes` then chooses among them. Without that file `classes` names all labels in order; without
    both they are `class0`, `class1`, ..., and an array without labels is taken to hold `BLOCKS` blocks.

    Args:
        path: `.npy` file or folder.
        name: of the data set, for messages and model cards.
        classes: see above.
        crop: side in pixels that tiles must have at least.
        split: of a single array; default 0.68/0.16/0.16 per class.
        seed: of that split.
        grouping: which tiles must stay together in the split; a tile's name is like "tiles[17]".

    Raises:
        UsageError: unknown or miscounted classes, or `split` for arrays that are split already.
        HistoError: wrong shape, type or labels, pickled objects, truncated files.
    """
    files = _find(path)
    folder = files[0].parent
    single = len(files) == 1
    if not single and split is not None:
        raise UsageError("split", f"{folder} is already split into train, val and test", "Leave --split out")
    arrays = [_open_tiles(file) for file in files]
    labels = [labels_beside(file, len(array), single=single) for file, array in zip(files, arrays, strict=True)]
    all_names = _all_classes(files, labels, classes)
    chosen = choose_classes(all_names, classes, where=folder)
    need_two_classes(chosen, folder)

    sources, new_labels = _sources(files, arrays, labels, all_names, chosen)
    groups = None if grouping is None else grouping.groups_of([name for source in sources for name in source.names])
    if single:
        check_split(split or DEFAULT_SPLIT)
        parts = list(split_tiles(new_labels[0], groups, chosen, split or DEFAULT_SPLIT, seed, files[0]))
        sources, new_labels = [sources[0].part(ids) for ids in parts], [new_labels[0][ids] for ids in parts]
    else:
        parts = np.split(np.arange(sum(map(len, new_labels))), np.cumsum([len(part) for part in new_labels[:-1]]))
        refuse_shared(groups, parts, folder)
    _need_every_class(sources, new_labels, chosen)
    sides = [(int(array.shape[1]), int(array.shape[2])) for array in arrays]
    smallest, _ = need_crop(sides, [f"every tile of {file.name}" for file in files], crop, folder)
    each_tile = [side for side, array in zip(sides, arrays, strict=True) for _ in range(len(array))]
    notes = [*_block_notes(files, labels, all_names), *size_notes(each_tile, crop)]
    by_split = [None] * 3 if groups is None else [groups[part] for part in parts]
    data = _tile_data(name, chosen, sources, new_labels, by_split, smallest)
    return replace(
        data,
        notes=(*data.notes, *notes),
        one_size=len({side for pair in sides for side in pair}) == 1,
        groups_from="" if grouping is None else grouping.source,
    )


def _block_notes(files: Sequence[Path], labels: Sequence[NDArray[np.int64] | None], names: Sequence[str]) -> list[str]:
    """What was assumed of arrays without labels, and how to state what is true."""
    return [
        f"{file.name} has no labels: its tiles are taken for {len(names)} equal consecutive blocks, one for each of "
        f"{', '.join(names)}; if that is wrong, save the labels as {file.stem}_labels.npy (integers from 0) beside it, "
        "and the names in classes.txt"
        for file, own in zip(files, labels, strict=True)
        if own is None
    ]


def _tile_data(
    name: str,
    classes: tuple[str, ...],
    sources: Sequence[_ArraySource],
    labels: Sequence[NDArray[np.int64]],
    groups: Sequence[Groups | None],
    side: int,
) -> TileData:
    """The data set of train, val and test; `side`: smallest side of a tile in pixels."""
    digests, hashes = zip(*(source.digests() for source in sources), strict=True)
    tiles = [list(zip(part.tolist(), own, strict=True)) for part, own in zip(labels, digests, strict=True)]
    names = [source.names for source in sources]
    counts = [len(part) for part in names]
    train, val, test = map(TileSet, [classes] * 3, labels, names, sources, hashes, groups)
    return TileData(
        name=name,
        classes=classes,
        train=train,
        val=val,
        test=test,
        tile_size=side,
        mpp=None,
        synthetic=False,
        fingerprint=fingerprint(classes, tiles, [own.tolist() for own in groups if own is not None]),
        description=f"{name}: {sum(counts):,} tiles of {side}x{side} pixels in .npy arrays, "
        f"{len(classes)} classes, train/val/test {'/'.join(map(str, counts))}",
        notes=(*name_notes(classes), *duplicate_notes(identical_tiles([train, val, test]), counts)),
    )


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is to be read as arrays: it has `.npy` files, not only in folders of its own."""
    try:
        return any(p.suffix == ".npy" and p.is_file() for p in folder.iterdir())
    except OSError:
        return False  # open_folder reports why


def _all_classes(
    files: Sequence[Path], labels: Sequence[NDArray[np.int64] | None], classes: Sequence[str] | None
) -> tuple[str, ...]:
    """The names of all labels: as listed beside the arrays, or else `classes`, or else `class0`, `class1`, …"""
    folder = files[0].parent
    listed = next((names for file in files if (names := class_list(file)) is not None), None)
    top = max((int(part.max()) for part in labels if part is not None), default=-1)
    if listed is not None:
        all_names = listed
    elif classes is not None:
        all_names = tuple(classes)
    else:
        all_names = tuple(f"class{i}" for i in range(top + 1 if top >= 0 else BLOCKS))
    if top >= len(all_names):
        raise HistoError(
            folder,
            f"its labels go up to {top}, but there are only {len(all_names)} class names",
            "Give one name per label, in label order (classes.txt or --classes)",
        )
    if listed is None and classes is not None and 0 <= top < len(all_names) - 1:
        raise UsageError(
            f"classes {', '.join(all_names)}",
            f"are {len(all_names)} names for {top + 1} labels",
            "Give one name per label, or choose a subset by writing all names to classes.txt",
        )
    return all_names


def _need_every_class(
    sources: Sequence[_ArraySource], labels: Sequence[NDArray[np.int64]], classes: Sequence[str]
) -> None:
    """HistoError where a class has no tile in train, val or test."""
    for split, source, part in zip(SPLITS, sources, labels, strict=True):
        for label, c in enumerate(classes):
            if not np.any(part == label):
                raise HistoError(
                    f"class {c}", f"has no tile in {split} ({source.path})", "Add tiles, or leave it out with --classes"
                )


def _sources(
    files: Sequence[Path],
    arrays: Sequence[NDArray[np.uint8]],
    labels: Sequence[NDArray[np.int64] | None],
    all_names: Sequence[str],
    chosen: Sequence[str],
) -> tuple[list[_ArraySource], list[NDArray[np.int64]]]:
    """For each array its tiles of the chosen classes, and their labels, int64 `(n,)`: indices into `chosen`."""
    position = np.full(len(all_names), -1, dtype=np.int64)
    for new, c in enumerate(chosen):
        position[all_names.index(c)] = new
    sources, new_labels = [], []
    for file, array, own in zip(files, arrays, labels, strict=True):
        old = own if own is not None else _blocks(file, len(array), len(all_names))
        ids = np.flatnonzero(position[old] >= 0)
        sources.append(_ArraySource(file, array, ids))
        new_labels.append(position[old][ids])
    return sources, new_labels


def _find(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    files = {p.stem: p for p in sorted(path.glob("*.npy")) if not p.name.startswith(".")}
    if "train" in files:
        val = files.get("val") or files.get("valid") or files.get("validation")
        if val is None or "test" not in files:
            missing = [f"{s}.npy" for s, p in (("val", val), ("test", files.get("test"))) if p is None]
            raise HistoError(
                path,
                f"has train.npy but no {' and no '.join(missing)}",
                "Add it, or give one array and let it be split (--split)",
            )
        return [files["train"], val, files["test"]]
    tiles = [p for stem, p in files.items() if stem != "labels" and not stem.endswith("_labels")]
    if len(tiles) != 1:
        what = ", ".join(p.name for p in tiles[:5]) or "only labels"
        raise HistoError(
            path,
            f"holds {what}; it is unclear which array to use",
            "Name one .npy file, or name the arrays train.npy, val.npy and test.npy",
        )
    return tiles


def _open(path: Path) -> NDArray[np.generic]:
    """Map an array without ever unpickling; HistoError with what is wrong with the file."""
    step = "Save it again with numpy.save(path, array)"
    try:
        with path.open("rb") as file:
            magic = file.read(8)
            if magic[:6] != b"\x93NUMPY":
                what = (
                    "a .npz archive"
                    if magic[:2] == b"PK"
                    else "a pickle"
                    if magic[:1] == b"\x80"
                    else "not a .npy file"
                )
                cause = "is empty (0 bytes)" if not magic else f"is {what}"
                raise HistoError(path, cause, f"It must be one array of numbers. {step}")
            file.seek(0)
            version = np.lib.format.read_magic(file)
            read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
            header = read.get(version)
            if header is not None:
                shape, _, dtype = header(file)
                if dtype.hasobject:
                    raise HistoError(
                        path,
                        "holds pickled Python objects, which are never loaded because they can run code",
                        "Save the tiles as one uint8 array (numpy.stack the list of tiles first)",
                    )
                need = file.tell() + int(np.prod(shape, dtype=object)) * dtype.itemsize
                if need > (have := os.fstat(file.fileno()).st_size):
                    raise HistoError(
                        path,
                        f"is truncated: shape {shape} needs {need:,} bytes and the file has {have:,}",
                        "Copy or save it again",
                    )
        if header is not None and 0 in shape:
            return np.empty(shape, dtype)  # an empty region of a file cannot be mapped
        mapped: NDArray[np.generic] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped
    except PermissionError as error:
        raise HistoError(path, "may not be read (permission denied)", "Check its permissions") from error
    except OSError as error:
        raise HistoError(path, f"cannot be read ({error.strerror or error})", "Check the path and the disk") from error
    except HistoError:
        raise
    except Exception as error:  # a damaged header can raise SyntaxError, TypeError, struct.error, ...
        raise HistoError(path, f"has a damaged .npy header ({' '.join(str(error).split())[:120]})", step) from error


def _open_tiles(path: Path) -> NDArray[np.uint8]:
    array = _open(path)
    step = "Save tiles as uint8 RGB of shape (n, height, width, 3)"
    if array.ndim != 4 or array.shape[3] != 3:
        hint = ""
        if array.ndim == 4 and array.shape[1] == 3:
            hint = "; channels come last here: array.transpose(0, 2, 3, 1)"
        raise HistoError(path, f"has shape {array.shape}, not (n, height, width, 3)", step + hint)
    if array.dtype != np.uint8:
        hint = " (values 0..255, not 0..1)" if array.dtype.kind == "f" else ""
        raise HistoError(path, f"has dtype {array.dtype}, not uint8", step + hint)
    if 0 in array.shape:
        raise HistoError(path, f"holds no tile (shape {array.shape})", step)
    return array  # type: ignore[return-value]


def labels_beside(path: Path, n: int, *, single: bool) -> NDArray[np.int64] | None:
    """The labels in `<stem>_labels.npy` beside an array of `n` tiles, int64 `(n,)`; None where there is no such file.

    Args:
        path: of the array.
        n: tiles in it.
        single: whether `labels.npy` counts, too.

    Raises:
        HistoError: it does not hold one integer from 0 for each tile.
    """
    candidates = [path.with_name(f"{path.stem}_labels.npy")]
    if single:
        candidates.append(path.with_name("labels.npy"))
    file = next((c for c in candidates if c.is_file()), None)
    if file is None:
        return None
    labels = _open(file)
    step = f"It must hold one integer from 0 up per tile of {path.name}"
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise HistoError(file, f"has shape {labels.shape} and dtype {labels.dtype}, not integers (n,)", step)
    if len(labels) != n:
        raise HistoError(file, f"has {len(labels):,} labels for {n:,} tiles", step)
    # A copy: it is small, and a mapped file could change after the check.
    copied = np.array(labels).astype(np.int64)
    if copied.min() < 0:
        raise HistoError(file, f"has a negative label ({copied.min()})", step)
    if copied.max() >= 10_000:
        raise HistoError(file, f"has the label {copied.max()}, which cannot be a class index", step)
    return copied


def class_list(path: Path) -> tuple[str, ...] | None:
    """The names in `<stem>_classes.txt` or `classes.txt` beside a file, in label order; None where there is no list.

    Raises:
        HistoError: it can't be read, is empty or names a class twice.
    """
    for file in (path.with_name(f"{path.stem}_classes.txt"), path.with_name("classes.txt")):
        if not file.is_file():
            continue
        try:
            names = tuple(line.strip() for line in file.read_text(encoding="utf-8-sig").splitlines() if line.strip())
        except (OSError, UnicodeDecodeError) as error:
            raise HistoError(file, f"cannot be read as text ({error})", "Write one class name a line") from error
        if len(set(names)) < len(names) or not names:
            raise HistoError(file, "names a class twice" if names else "is empty", "Write one class name a line")
        return names
    return None


def _blocks(path: Path, n: int, k: int) -> NDArray[np.int64]:
    if n % k:
        raise HistoError(
            path,
            f"holds {n:,} tiles, which are not {k} equal blocks, and no label array lies beside it",
            f"Save the labels as {path.stem}_labels.npy, or name the right number of classes with --classes",
        )
    return np.repeat(np.arange(k, dtype=np.int64), n // k)


@dataclass
class _ArraySource:
    """Tile `i` is `array[ids[i]]`."""

    path: Path
    array: NDArray[np.uint8]
    ids: NDArray[np.int64]

    def part(self, indices: NDArray[np.int64]) -> _ArraySource:
        """Only these of its tiles."""
        return _ArraySource(self.path, self.array, self.ids[indices])

    @property
    def names(self) -> list[str]:
        """Of its tiles, such as "tiles[17]"."""
        return [f"{self.path.stem}[{i}]" for i in self.ids]

    def __call__(self, i: int) -> NDArray[np.uint8]:
        return np.array(self.array[self.ids[i]], dtype=np.uint8, order="C")

    def digests(self) -> tuple[list[bytes], Hashes]:
        """sha256 of each tile's shape and bytes, and its `tile_hash`, int64 `(n,)`; hashing releases the GIL."""

        def digest(i: int) -> tuple[bytes, int]:
            tile = self(i)
            return hashlib.sha256(repr(tile.shape).encode() + tile.tobytes()).digest(), tile_hash(tile)

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            pairs = list(pool.map(digest, range(len(self.ids))))
        return [sha256 for sha256, _ in pairs], np.array([key for _, key in pairs], dtype=np.int64)

    def __getstate__(self) -> dict[str, object]:
        # Pickling a memory map would copy the whole file into every spawned worker.
        return {"path": self.path.absolute(), "ids": self.ids}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.array = _open_tiles(self.path)
