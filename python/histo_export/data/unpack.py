"""Archives of tiles become folders, complete or not at all, with a record of every file's sha256."""

from __future__ import annotations

import errno
import hashlib
import stat
import zipfile
import zlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from histo_export.data.download import need_room
from histo_export.errors import HistoError, one_line
from histo_export.files import atomic_folder

SUMS = ".SHA256SUMS"
"""In each unpacked folder: sha256 and path of its files, as the program sha256sum reads them (`sha256sum -c`)."""
MAX_UNPACKED = 32 << 30
"""Bytes of an archive's content; the largest public set unpacks to 16 GB."""
MAX_MEMBERS = 200_000
_BLOCK = 1 << 20
_FAULTS = (zipfile.BadZipFile, RuntimeError, EOFError, ValueError, MemoryError, OSError, zlib.error)
"""What a faulty archive leads to. OSError is there for EINVAL, the answer to a place before the begin of the file."""


def unpack_folders(archive: Path, target: Path, folders: Collection[str]) -> None:
    """Unpacks the folders of the classes from a zip archive. Each becomes `target/<folder>/<file>`, wherever in the
    archive it lies; the rest is left out.

    Args:
        archive: the zip archive.
        target: appears complete or not at all.
        folders: names of folders.

    Raises:
        HistoError: `archive` is not a zip file, or it has absolute paths, `..`, links, encrypted members, too many
            members or too many bytes, or lacks a folder; or the disk has no room. Nothing is written then.
        OSError: `target` can't be written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = _safe_members(archive, file)
            places = {member: PurePosixPath(member.filename).parts[-2:] for member in members}
            wanted = {member: parts for member, parts in places.items() if len(parts) == 2 and parts[0] in folders}
            if missing := set(folders) - {parts[0] for parts in wanted.values()}:
                raise HistoError(archive, f"holds no folder {min(missing)}", _distrust(archive))
            if len(set(wanted.values())) < len(wanted):
                raise HistoError(archive, "holds two files of one name in a class", _distrust(archive))
            need_room(target.parent, sum(member.file_size for member in wanted), "unpacked set")
            with atomic_folder(target) as partial:
                sums = {}
                for member, (folder, name) in wanted.items():
                    (partial / folder).mkdir(exist_ok=True)
                    with file.open(member) as source:
                        sums[f"{folder}/{name}"] = _copy(source, partial / folder / name)
                _write_sums(partial, sums)
    except _FAULTS as error:
        raise _not_sound(archive, error) from error


def unpack_medmnist(archive: Path, target: Path, classes: Sequence[str]) -> None:
    """Unpacks the .npz file of a MedMNIST set into the arrays that `arrays.open_arrays` reads.

    They are memory-mapped there; an .npz file would have to be in memory as a whole.

    Args:
        archive: members `<split>_images.npy`, uint8 `(n, side, side, 3)`, and `<split>_labels.npy`, integers `(n, 1)`.
        target: gets `<split>.npy`, `<split>_labels.npy` (`(n,)`) and `classes.txt`; appears complete or not at all.
        classes: names in label order.

    Raises:
        HistoError: as `unpack_folders`, and for pickled objects.
        OSError: `target` can't be written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = {member.filename: member for member in _safe_members(archive, file)}
            names = {split: (f"{split}_images.npy", f"{split}_labels.npy") for split in ("train", "val", "test")}
            if missing := {name for pair in names.values() for name in pair} - members.keys():
                raise HistoError(archive, f"holds no array {min(missing)}", _distrust(archive))
            need_room(target.parent, sum(member.file_size for member in members.values()), "unpacked set")
            with atomic_folder(target) as partial:
                sums = {}
                for split, (images, labels) in names.items():
                    with file.open(members[images]) as source:
                        sums[f"{split}.npy"] = _copy(source, partial / f"{split}.npy")
                    with file.open(members[labels]) as source:
                        _save_labels(source, partial / f"{split}_labels.npy")
                (partial / "classes.txt").write_text("\n".join(classes) + "\n", encoding="utf-8")
                for small in (*(f"{split}_labels.npy" for split in names), "classes.txt"):
                    sums[small] = hashlib.sha256((partial / small).read_bytes()).hexdigest()
                _write_sums(partial, sums)
    except _FAULTS as error:
        raise _not_sound(archive, error) from error


def _save_labels(source: IO[bytes], path: Path) -> None:
    """Labels `(n, 1)` become `(n,)`. ValueError for pickled objects, which are never loaded, and for another shape."""
    labels = np.lib.format.read_array(source, allow_pickle=False)
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise ValueError(f"labels of shape {labels.shape}")
    np.save(path, labels, allow_pickle=False)


def _copy(source: IO[bytes], path: Path) -> str:
    """Writes a file that must not exist yet; returns its sha256.

    zipfile gives no more than the size that the archive's directory declares, so the sum that was checked bounds what
    is written.
    """
    digest = hashlib.sha256()
    with path.open("xb") as out:
        while block := source.read(_BLOCK):
            out.write(block)
            digest.update(block)
    return digest.hexdigest()


def _write_sums(folder: Path, sums: Mapping[str, str]) -> None:
    lines = (f"{digest}  {name}\n" for name, digest in sorted(sums.items()))
    (folder / SUMS).write_text("".join(lines), encoding="utf-8")


def read_sums(folder: Path) -> dict[str, str] | None:
    """Path → sha256 of the files of an unpacked folder; None where there is no record.

    Raises:
        HistoError: the record can't be read.
    """
    file = folder / SUMS
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        return {name: digest for digest, name in (line.split("  ", 1) for line in lines)}
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise HistoError(file, f"can't be read ({one_line(error)})", "Remove the set and fetch it again") from error


def _safe_members(archive: Path, file: zipfile.ZipFile) -> list[zipfile.ZipInfo]:
    """The files of an archive; HistoError for an entry that could be written outside of the target, or for too much."""
    for entry in file.infolist():
        if reason := _unsafe(entry):
            raise HistoError(archive, f"is not safe to unpack: {entry.filename!r} {reason}", _distrust(archive))
    members = [member for member in file.infolist() if not member.is_dir()]
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED or len(members) > MAX_MEMBERS:
        cause = f"is not safe to unpack: {len(members):,} files of {total:,} bytes in all"
        raise HistoError(archive, cause, _distrust(archive))
    return members


def _not_sound(archive: Path, error: Exception) -> HistoError:
    """What to say of `_FAULTS`; raises an OSError that is not the archive's fault, such as a full disk."""
    if isinstance(error, OSError) and error.errno != errno.EINVAL:
        raise error
    return HistoError(archive, f"is not a sound zip archive ({one_line(error)})", _distrust(archive))


def _distrust(archive: Path) -> str:
    return f"Delete {archive} and download it from the page of its publisher"


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    # orig_filename: zipfile cuts names at a NUL and turns the system's separators into slashes.
    name = member.orig_filename
    path = PurePosixPath(name)
    if path.is_absolute() or ":" in name or "\\" in name or "\0" in name:
        return "is an absolute or foreign path"
    if ".." in path.parts:
        return "leads out of the folder"
    if not name.isprintable():
        return "has characters that cannot be printed"
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or device"
    if member.flag_bits & 1:
        return "is encrypted"
    if member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # LZMA takes up to 4 GB of memory
        return "is compressed by another method than Deflate"
    return None
