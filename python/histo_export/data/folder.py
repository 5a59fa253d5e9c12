"""Image folders: `train|val|test/<class>/*`, or `<class>/*` to be split."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from histo_export.data.images import SUFFIXES, BadImageError, decode_image, read_image_bytes
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

SPLIT_FOLDERS = {"train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
KEPT_BYTES = 512 << 20
"""Sets whose pixels fit in this many bytes are decoded once and kept; larger ones are decoded when read."""
LISTED = 20
"""Unreadable files named in one message."""


def open_folder(
    root: Path,
    *,
    name: str,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
) -> TileData:
    """Open a folder of images, decode every file once, and report all unusable ones together.

    Args:
        root: holds `train`, `val` (or `valid`, `validation`) and `test` with a folder per class each,
            or a folder per class. Folders inside a class folder are searched too.
        name: what the user typed.
        classes: the class folders to use, in label order; default all, sorted.
        crop: side in pixels that every tile must have at least.
        split: how to split a folder of classes; default 0.68/0.16/0.16.
        seed: of that split.

    Raises:
        UsageError: an unknown class, or `split` for a folder that is split already.
        HistoError: no images, one class, a class missing from a split, unreadable or too small files.
    """
    found = _find(root)
    if found.is_split:
        if split is not None:
            raise UsageError("split", f"{root} is already split into train, val and test", "Leave --split out")
        chosen = _classes_in_all_splits(found, classes)
    else:
        check_split(split or DEFAULT_SPLIT)
        chosen = choose_classes(sorted(found.parts[""]), classes, where=root)
        need_two_classes(chosen, root)
        empty = [c for c in chosen if not found.parts[""][c]]
        if empty:
            raise HistoError(
                root / empty[0], f"holds no image ({_suffixes()})", "Put tiles there, or delete the folder"
            )

    parts = SPLITS if found.is_split else ("",)
    paths, labels = [], []
    bounds = [0]
    for part in parts:
        for label, c in enumerate(chosen):
            files = found.parts[part][c]
            paths += files
            labels += [label] * len(files)
        bounds.append(len(paths))
    names = [path.relative_to(root).as_posix() for path in paths]
    all_labels = np.array(labels, dtype=np.int64)
    if not found.is_split:  # before decoding: too few tiles is found out at once
        indices = stratified_split(all_labels, chosen, split or DEFAULT_SPLIT, seed, root)
    else:
        indices = tuple(np.arange(a, b) for a, b in pairwise(bounds))  # type: ignore[assignment]

    checked = _decode_all(root, paths, names)
    smallest, largest = need_crop([c.size for c in checked], names, crop, root)
    splits = [[(int(all_labels[i]), checked[i].digest) for i in part] for part in indices]
    split_names = [[names[i] for i in part] for part in indices]
    sets = [
        TileSet(
            chosen,
            all_labels[part],
            split_names[k],
            _FileSource([paths[i] for i in part], split_names[k], [checked[i] for i in part]),
        )
        for k, part in enumerate(indices)
    ]
    notes = leakage_notes(split_names, splits)
    if found.ignored:
        notes.append(
            f"{len(found.ignored):,} files were ignored because they are not {_suffixes()} "
            f"(for example {found.ignored[0].relative_to(root).as_posix()})"
        )
    if smallest != largest:
        notes.append(f"tile sides range from {smallest} to {largest} pixels")
    sizes = f"{smallest}x{smallest}" if smallest == largest else f"{smallest} to {largest}"
    return TileData(
        name=name,
        classes=chosen,
        train=sets[0],
        val=sets[1],
        test=sets[2],
        tile_size=smallest,
        mpp=None,
        synthetic=False,
        fingerprint=fingerprint(chosen, splits),
        description=f"{name}: {sum(map(len, sets)):,} image tiles of {sizes} pixels, {len(chosen)} classes, "
        f"train/val/test {'/'.join(str(len(s)) for s in sets)}",
        notes=tuple(notes),
    )


@dataclass
class _Found:
    parts: dict[str, dict[str, list[Path]]]
    """Split name ("" when not split yet) to class name to its sorted image files."""
    ignored: list[Path]

    @property
    def is_split(self) -> bool:
        return "" not in self.parts


def _suffixes() -> str:
    return "jpg, jpeg, png, tif or tiff"


def _hidden(name: str) -> bool:
    return name.startswith((".", "__MACOSX")) or name.casefold() in ("thumbs.db", "desktop.ini")


def _folders(root: Path) -> list[Path]:
    return sorted(p for p in _listdir(root) if p.is_dir())


def _listdir(root: Path) -> list[Path]:
    try:
        return [path for path in root.iterdir() if not _hidden(path.name)]
    except PermissionError as error:
        raise HistoError(root, "may not be read (permission denied)", "Check its permissions") from error
    except OSError as error:
        raise HistoError(root, f"cannot be read ({error.strerror})", "Check the path and the disk") from error


def _find(root: Path) -> _Found:
    folders = _folders(root)
    if not folders:
        loose = [p for p in _listdir(root) if p.suffix.lower() in SUFFIXES]
        if loose:
            raise HistoError(
                root,
                f"holds images ({loose[0].name}, ...) but no folder per class",
                "Sort the tiles into one folder per class: <folder>/<class>/*.png",
            )
        raise HistoError(
            root,
            "is empty" if not _listdir(root) else "holds no images and no folders",
            "Give a folder <class>/* or train|val|test/<class>/* of images, or .npy arrays",
        )
    ignored: list[Path] = []
    by_split: dict[str, Path] = {}
    for folder in folders:
        key = SPLIT_FOLDERS.get(folder.name.casefold())
        if key is None:
            continue
        if key in by_split:
            raise HistoError(root, f"has both {by_split[key].name} and {folder.name}", f"Keep one folder for {key}")
        by_split[key] = folder
    if "train" in by_split:
        missing = [s for s in SPLITS if s not in by_split]
        if missing:
            raise HistoError(
                root,
                f"has train but no {' and no '.join(missing)} folder",
                "Add it, or give one folder of classes and let it be split (--split)",
            )
        parts = {s: {c.name: _images_under(c, ignored) for c in _folders(folder)} for s, folder in by_split.items()}
        return _Found({s: parts[s] for s in SPLITS}, ignored)
    if by_split and len(by_split) == len(folders):
        raise HistoError(root, f"has {' and '.join(by_split)} but no train folder", "Add train/<class>/* to it")
    return _Found({"": {c.name: _images_under(c, ignored) for c in folders}}, ignored)


def _images_under(folder: Path, ignored: list[Path]) -> list[Path]:
    images = []

    def fail(error: OSError) -> None:
        raise HistoError(error.filename, f"cannot be read ({error.strerror})", "Check its permissions") from error

    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = sorted(f for f in folders if not _hidden(f))
        for file in files:
            path = Path(parent, file)
            if path.suffix.lower() in SUFFIXES and not _hidden(file):
                images.append(path)
            elif not _hidden(file):
                ignored.append(path)
    # By text, not by Path: Windows paths compare without case, and the order must not depend on that.
    return sorted(images, key=lambda p: p.relative_to(folder).as_posix())


def _classes_in_all_splits(found: _Found, wanted: Sequence[str] | None) -> tuple[str, ...]:
    union = sorted({c for part in found.parts.values() for c in part})
    if not union:
        raise HistoError("train", "has no folder per class", "Sort the tiles into train/<class>/*")
    chosen = choose_classes(union, wanted, where="the folder")
    counts = {c: [len(found.parts[s].get(c, ())) for s in SPLITS] for c in chosen}
    if not any(n for per_split in counts.values() for n in per_split):
        raise HistoError("train, val and test", f"hold no image ({_suffixes()})", "Put tiles into <split>/<class>/")
    need_two_classes(chosen, "the folder")
    for c, per_split in counts.items():
        have = [s for s, n in zip(SPLITS, per_split, strict=True) if n]
        lack = [s for s, n in zip(SPLITS, per_split, strict=True) if not n]
        if lack:
            cause = f"has images in {', '.join(have)} but none in {', '.join(lack)}" if have else "has no image"
            raise HistoError(f"class {c}", cause, f"Add tiles to {lack[0]}/{c}, or leave the class out with --classes")
    return chosen


@dataclass
class _Checked:
    digest: bytes
    size: tuple[int, int]
    pixels: NDArray[np.uint8] | None


def _decode_all(root: Path, paths: Sequence[Path], names: Sequence[str]) -> list[_Checked]:
    """Decode every file with as many threads as this process may use CPUs (PIL releases the GIL).

    Raises:
        HistoError: listing all files that cannot be used, with reasons.
    """
    kept = 0
    keep = True

    def check(path: Path) -> _Checked | BadImageError:
        try:
            data = read_image_bytes(path)
            pixels = decode_image(data)
        except BadImageError as error:
            return error
        digest = hashlib.sha256(data).digest()
        return _Checked(digest, (pixels.shape[0], pixels.shape[1]), pixels if keep else None)

    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    checked: list[_Checked] = []
    bad: list[tuple[str, BadImageError]] = []
    console = Console(stderr=True)
    pool = ThreadPoolExecutor(min(cpus, 16), thread_name_prefix="decode")
    try:
        # Here and not in check(): the warning filters are per process, not per thread.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for name, result in track(
                zip(names, pool.map(check, paths), strict=True),
                description="Checking tiles",
                total=len(paths),
                console=console,
                transient=True,
                disable=not console.is_terminal or len(paths) < 500,
            ):
                if isinstance(result, BadImageError):
                    bad.append((name, result))
                    continue
                checked.append(result)
                kept += 0 if result.pixels is None else result.pixels.nbytes
                if keep and kept > KEPT_BYTES:
                    keep = False
                    for c in checked:
                        c.pixels = None
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
    if bad:
        if len(bad) == 1:
            raise HistoError(root / bad[0][0], str(bad[0][1]), "Repair or delete it and run again")
        lines = [f"  {name} {error}" for name, error in bad[:LISTED]]
        if len(bad) > LISTED:
            lines.append(f"  and {len(bad) - LISTED:,} more")
        raise HistoError(
            root,
            "files that cannot be used:\n" + "\n".join(lines) + f"\n{len(bad):,} of {len(paths):,} files",
            "Repair or delete them and run again",
        )
    if not keep:
        for c in checked:
            c.pixels = None
    return checked


class _FileSource:
    """Tiles from files, or from the pixels kept when they were checked."""

    def __init__(self, paths: list[Path], names: list[str], checked: list[_Checked]) -> None:
        self._paths = [path.absolute() for path in paths]
        self._names = names
        self._pixels = [c.pixels for c in checked]

    def __call__(self, i: int) -> NDArray[np.uint8]:
        pixels = self._pixels[i]
        if pixels is not None:
            return pixels.copy()
        try:
            return decode_image(read_image_bytes(self._paths[i]))
        except BadImageError as error:
            raise HistoError(
                self._paths[i],
                f"{error}, though it was fine when checked",
                "Do not change tiles during a run",
            ) from error

    def __getstate__(self) -> dict[str, object]:
        # A spawned worker reads the files again: sending it every pixel would cost more.
        return {"_paths": self._paths, "_names": self._names, "_pixels": [None] * len(self._paths)}
