"""Tiles in `.npy` arrays: uint8 `(n, h, w, 3)`, memory-mapped, never unpickled."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from histo_export.data.split import DEFAULT_SPLIT, Split, check_split, stratified_split
from histo_export.data.tiles import (
    SPLITS,
    TileData,
    TileSet,
    choose_classes,
    fingerprint,
    leakage_notes,
    need_crop,
    need_two_classes,
)
from histo_export.errors import HistoError, UsageError

BLOCKS = 6
"""Classes in an array without labels, if nobody says otherwise: the report's number."""


def open_arrays(
    path: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
) -> TileData:
    """Open one `.npy` array, or a folder of one, or of `train.npy`, `val.npy` and `test.npy`.

    Labels come from `<stem>_labels.npy` (or `labels.npy`, for a single array) beside it: integers
    `(n,)` counting from 0. Without that file the classes lie in equal consecutive blocks.

    Class names come from `<stem>_classes.txt` or `classes.txt` beside it, one a line in label order;
    `classes` then chooses among them. Without that file `classes` names all labels in order; without
    both they are `class0`, `class1`, ..., and an array without labels is taken to hold `BLOCKS` blocks.

    Args:
        path: `.npy` file or folder.
        name: what the user typed.
        classes: see above.
        crop: side in pixels that tiles must have at least.
        split: of a single array; default 0.68/0.16/0.16 per class.
        seed: of that split.

    Raises:
        UsageError: unknown or miscounted classes, or `split` for arrays that are split already.
        HistoError: wrong shape, type or labels, pickled objects, truncated files.
    """
    files = _find(path)
    folder = files[0].parent
    if len(files) == 3 and split is not None:
        raise UsageError("split", f"{folder} is already split into train, val and test", "Leave --split out")
    arrays = [_open_tiles(file) for file in files]
    labels = [_labels_beside(file, len(a), single=len(files) == 1) for file, a in zip(files, arrays, strict=True)]

    listed = next((found for file in files if (found := _class_list(file)) is not None), None)
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
    chosen = choose_classes(all_names, classes, where=folder)
    need_two_classes(chosen, folder)

    position = np.full(len(all_names), -1, dtype=np.int64)
    for new, c in enumerate(chosen):
        position[all_names.index(c)] = new
    parts = []
    for file, array, given in zip(files, arrays, labels, strict=True):
        old = given if given is not None else _blocks(file, len(array), len(all_names))
        new_labels = position[old]
        keep = np.flatnonzero(new_labels >= 0)
        parts.append((file, array, keep, new_labels[keep]))
    if len(files) == 1:
        file, array, keep, new_labels = parts[0]
        check_split(split or DEFAULT_SPLIT)
        cut = stratified_split(new_labels, chosen, split or DEFAULT_SPLIT, seed, file)
        parts = [(file, array, keep[ids], new_labels[ids]) for ids in cut]
    for k, (file, _, _, part_labels) in enumerate(parts):
        for label, c in enumerate(chosen):
            if not np.any(part_labels == label):
                raise HistoError(
                    f"class {c}",
                    f"has no tile in {SPLITS[k]} ({file})",
                    "Add tiles, or leave it out with --classes",
                )

    sizes = [(int(a.shape[1]), int(a.shape[2])) for a in arrays]
    smallest, _ = need_crop(sizes, [f"every tile of {file.name}" for file in files], crop, folder)
    sets, names, tiles = [], [], []
    for file, array, ids, part_labels in parts:
        set_names = [f"{file.stem}[{i}]" for i in ids]
        source = _ArraySource(file, array, ids)
        sets.append(TileSet(chosen, part_labels, set_names, source))
        names.append(set_names)
        tiles.append(list(zip(part_labels.tolist(), source.digests(), strict=True)))
    return TileData(
        name=name,
        classes=chosen,
        train=sets[0],
        val=sets[1],
        test=sets[2],
        tile_size=smallest,
        mpp=None,
        synthetic=False,
        fingerprint=fingerprint(chosen, tiles),
        description=f"{name}: {sum(map(len, sets)):,} tiles of {smallest}x{smallest} pixels in .npy arrays, "
        f"{len(chosen)} classes, train/val/test {'/'.join(str(len(s)) for s in sets)}",
        notes=tuple(leakage_notes(names, tiles)),
    )


def holds_arrays(folder: Path) -> bool:
    """Whether a folder is to be read as arrays: it has `.npy` files directly inside."""
    try:
        return any(p.suffix == ".npy" and p.is_file() for p in folder.iterdir())
    except OSError:
        return False  # the folder reader says why


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
    """Map an array without ever unpickling; say what is wrong with the file otherwise."""
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
        if 0 in shape if header is not None else False:
            return np.empty(shape, dtype)  # an empty file region cannot be mapped
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


def _labels_beside(path: Path, n: int, *, single: bool) -> NDArray[np.int64] | None:
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
    # Read in full: it is small, and checking a map that may change underneath proves nothing.
    whole = np.array(labels).astype(np.int64)
    if whole.min() < 0:
        raise HistoError(file, f"has a negative label ({whole.min()})", step)
    if whole.max() >= 10_000:
        raise HistoError(file, f"has the label {whole.max()}, which cannot be a class index", step)
    return whole


def _class_list(path: Path) -> tuple[str, ...] | None:
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
    path: Path
    array: NDArray[np.uint8]
    ids: NDArray[np.int64]

    def __call__(self, i: int) -> NDArray[np.uint8]:
        return np.array(self.array[self.ids[i]], dtype=np.uint8, order="C")

    def digests(self) -> list[bytes]:
        """sha256 of each tile's shape and bytes; hashing releases the GIL."""

        def digest(i: int) -> bytes:
            tile = self(i)
            return hashlib.sha256(repr(tile.shape).encode() + tile.tobytes()).digest()

        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(digest, range(len(self.ids))))

    def __getstate__(self) -> dict[str, object]:
        # Pickling a memory map would copy the whole file into every spawned worker.
        return {"path": self.path.absolute(), "ids": self.ids}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state)
        self.array = _open_tiles(self.path)
