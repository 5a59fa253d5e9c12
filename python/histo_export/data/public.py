"""Public sets in the cache: fetched, checked, removed, and opened as training data.

An archive is downloaded, compared with its publisher's checksum, unpacked, and removed again, unless the user put it
there. Processes that want the same archive wait for each other.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import shutil
import sys
import urllib.parse
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from filelock import FileLock, Timeout

from histo_export.data.arrays import open_arrays
from histo_export.data.download import Source, download, md5_of, part_of, version_of
from histo_export.data.folder import open_folder, open_with_test
from histo_export.data.groups import Grouping
from histo_export.data.public_sets import SETS, Archive, PublicSet
from histo_export.data.split import DEFAULT_SPLIT, Split
from histo_export.data.tiles import TileData, choose_classes
from histo_export.data.unpack import MAX_UNPACKED, SUMS, read_sums, unpack_folders, unpack_medmnist
from histo_export.errors import HistoError, UsageError
from histo_export.files import cache_folder

MIRROR = "HISTO_DATA_URL"
"""The variable that names a mirror of all sets: a folder on a server that holds the archives by their names."""

State = Literal["missing", "part", "complete", "damaged"]


def open_public(
    record: PublicSet,
    *,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
    cache: Path | None = None,
    grouping: Grouping | None = None,
) -> TileData:
    """Opens a set, downloading it if the cache does not hold it yet.

    Args:
        record: of the set.
        classes: any of the set's, in label order; default: those of the record.
        crop: side in pixels that tiles must have at least.
        split: of a set that is not split; by group, the shares of tiles.
        seed: of the split.
        cache: folder; default `files.cache_folder()`.
        grouping: which tiles must stay together in the split.

    Raises:
        UsageError: an unknown class, or a split of a set that has one.
        HistoError: no network, a corrupt or unsafe archive, a full disk.
    """
    chosen = choose_classes(
        list(record.classes),
        record.default_classes or None if classes is None else classes,
        where=record.name,
        match=lambda c: c.strip("0123456789_").casefold(),
    )
    if split is not None and (len(record.archives) > 1 or record.archives[0].holds == "medmnist"):
        raise UsageError("split", f"{record.name} is split by its publisher", "Leave --split out")
    roots = fetch(record, cache)
    folders = [record.classes[c] for c in chosen]
    for archive, root in zip(record.archives, roots, strict=True):
        if fault := _lacking(archive, root, folders):
            raise HistoError(root, fault, f"Run histo data --remove {record.name}, and then the same command again")
    if record.archives[0].holds == "medmnist":
        data = open_arrays(roots[0], name=record.name, classes=chosen, crop=crop, seed=seed, grouping=grouping)
    elif len(roots) > 1:
        data = open_with_test(
            *roots, name=record.name, classes=folders, crop=crop, split=record.split, seed=seed, grouping=grouping
        )
    else:
        split = split or (record.split if grouping is None else DEFAULT_SPLIT)
        named = {"name": record.name, "classes": folders, "crop": crop}
        data = open_folder(roots[0], **named, split=split, seed=seed, grouping=grouping)  # type: ignore[arg-type]
    return _described(data, record, chosen, grouping is not None)


def _described(data: TileData, record: PublicSet, chosen: tuple[str, ...], grouped: bool) -> TileData:
    """The tiles with the facts of their record, and with the names of classes in place of those of folders."""
    sets = {part: getattr(data, part) for part in ("train", "val", "test")}
    for tiles in sets.values():
        tiles.classes = chosen
    counts = "/".join(str(len(tiles)) for tiles in sets.values())
    return dataclasses.replace(
        data,
        classes=chosen,
        mpp=record.mpp,
        description=f"{record.about}, {len(chosen)} of {len(record.classes)} classes, train/val/test {counts}",
        notes=data.notes if grouped else (*data.notes, record.note),
        licence=record.licence,
        citation=record.citation,
    )


def fetch(record: PublicSet, cache: Path | None = None) -> list[Path]:
    """The folders of a set's archives in the cache, which are downloaded and unpacked where necessary.

    The next call resumes an interrupted download.

    Raises:
        HistoError: no network, a damaged archive, a full disk; or the set can be had by hand only, and isn't there.
        UsageError: the address of the mirror is wrong.
    """
    place = cache or cache_folder()
    try:
        return [_fetch(record, archive, place) for archive in record.archives]
    except OSError as error:
        step = "Free some space, or choose another folder with HISTO_CACHE"
        raise HistoError(place, f"cannot be written ({error.strerror or error})", step) from error


def _fetch(record: PublicSet, archive: Archive, cache: Path) -> Path:
    target, file = cache / archive.folder, cache / archive.file
    if target.is_dir():
        return target
    cache.mkdir(parents=True, exist_ok=True)
    with _alone(archive, cache):
        if target.is_dir():  # made by another process while this one waited
            return target
        if not file.exists():
            most = MAX_UNPACKED if archive.size is None else 2 * archive.size  # some sizes are rounded
            address, by_hand = _address(record, archive, file), _by_hand(archive, file)
            download(Source(address, archive.file, archive.md5, most, by_hand), file)
        elif archive.md5 is not None and (found := md5_of(file)) != archive.md5:
            cause = f"is damaged (md5 {found}, expected {archive.md5})"
            raise HistoError(file, cause, "Delete it and run again to download it anew")
        if archive.md5 is None:
            print(
                f"note: {file} was not checked: its publisher states no checksum, so that a damaged archive, or one of "
                "somebody else, may not be noticed",
                file=sys.stderr,
            )
        if archive.holds == "medmnist":
            unpack_medmnist(file, target, list(record.classes))
        else:
            unpack_folders(file, target, set(record.classes.values()))
        # Downloaded, by this call or an earlier one, not put there by the user, whose file stays.
        if version_of(file).exists() and not part_of(file).exists():
            file.unlink()
            version_of(file).unlink()
    return target


def _lock_of(archive: Archive, cache: Path) -> Path:
    return cache / f"{archive.folder}.lock"


@contextmanager
def _alone(archive: Archive, cache: Path) -> Iterator[None]:
    """Waits for other processes that work on an archive; the system frees the lock of one that is killed."""
    lock = FileLock(_lock_of(archive, cache))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"Waiting for another process that fetches {archive.file}", file=sys.stderr)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _address(record: PublicSet, archive: Archive, file: Path) -> str:
    """Where an archive is downloaded from: the mirror of the set, or of all sets, or its publisher."""
    own = f"HISTO_{record.name.upper().replace('-', '_')}_URL"
    variable = own if os.environ.get(own) else MIRROR
    base = os.environ.get(variable) or archive.url
    if base is None:
        raise HistoError(record.name, "cannot be downloaded by a program", _by_hand(archive, file))
    try:
        scheme = urllib.parse.urlsplit(base).scheme
    except ValueError:  # such as http://[
        scheme = ""
    if scheme not in ("http", "https"):
        raise UsageError(base, "is not an http or https address", f"Correct {variable}")
    return base if base.endswith(archive.file) else f"{base.rstrip('/')}/{archive.file}"


def _by_hand(archive: Archive, file: Path) -> str:
    step = f"download {archive.file} from {archive.page} by hand and put it at {file}"
    return f"To get it, {step}, then run again" if archive.url is None else f"Run again to go on, or {step}"


def _lacking(archive: Archive, root: Path, folders: Sequence[str]) -> str:
    """What an unpacked folder lacks at first sight; "" where it looks complete."""
    names = [f"{split}.npy" for split in ("train", "val", "test")] if archive.holds == "medmnist" else folders
    missing = [name for name in names if not (root / name).exists()]
    return f"lacks {missing[0]}" if missing else ""


def state_of(record: PublicSet, cache: Path) -> tuple[State, int]:
    """How far a set is, at first sight (`verify` reads every file), and the bytes of it that have arrived.

    A set is damaged if a class or an array is missing.
    """
    states = []
    arrived = 0
    for archive in record.archives:
        target, file = cache / archive.folder, cache / archive.file
        if target.is_dir():
            states.append("damaged" if _lacking(archive, target, list(record.classes.values())) else "complete")
            continue
        here = [each.stat().st_size for each in (file, part_of(file)) if each.exists()]
        arrived += sum(here)
        states.append("part" if here else "missing")
    if "damaged" in states:
        return "damaged", arrived
    if len(set(states)) > 1:
        return "part", arrived
    return states[0], arrived  # type: ignore[return-value]  # one of them


def verify(record: PublicSet, cache: Path) -> list[str]:
    """Reads every file of a set that is complete; the faults, one a line: none where all is as it was unpacked.

    Raises:
        HistoError: a file can't be read.
    """
    faults = []
    for archive in record.archives:
        root = cache / archive.folder
        try:
            sums = read_sums(root)
            if sums is None:
                faults.append(f"{root}: has no record of its files ({SUMS}), because an older version unpacked it")
                continue
            found = {file.relative_to(root).as_posix() for file in root.rglob("*") if file.is_file()} - {SUMS}
            faults += [f"{root / name}: is missing" for name in sorted(sums.keys() - found)]
            faults += [f"{root / name}: was added" for name in sorted(found - sums.keys())]
            faults += [
                f"{root / name}: has changed"
                for name in sorted(found & sums.keys())
                if _sha256(root / name) != sums[name]
            ]
        except OSError as error:
            raise HistoError(root, f"cannot be read ({error.strerror or error})", "Check its permissions") from error
    return faults


def _sha256(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def remove(record: PublicSet, cache: Path) -> list[str]:
    """Removes all of a set from the cache.

    Returns:
        The other sets that have lost an archive with it.

    Raises:
        HistoError: it can't be removed, or another process fetches it.
    """
    lost = set()
    for archive in record.archives:
        target, file = cache / archive.folder, cache / archive.file
        if not any(each.exists() for each in (target, file, part_of(file), version_of(file))):
            continue
        try:
            with FileLock(_lock_of(archive, cache), timeout=0):
                if target.is_dir():
                    lost |= {name for name, other in SETS.items() if archive in other.archives}
                    # Under another name first: what is half removed must not look complete.
                    aside = target.with_name(f".{target.name}.removed-{os.getpid()}")
                    target.rename(aside)
                    shutil.rmtree(aside)
                for each in (file, part_of(file), version_of(file)):
                    each.unlink(missing_ok=True)
        except Timeout as error:
            raise HistoError(record.name, "is being fetched by another process", "Wait for it to end") from error
        except OSError as error:
            cause = f"cannot be removed ({error.strerror or error})"
            raise HistoError(cache, cause, "Check its permissions") from error
    return sorted(lost - {record.name})
