"""Every file below a folder, linked folders included, and what is left out: for training and for predict.

The product's own output is never taken for tiles, so a run may write into the folder that it reads.
"""

from __future__ import annotations

import errno
import json
import os
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

DONE = "done.json"
"""Marks the folder of one result of histo predict."""
OWN_PICTURES = frozenset(
    {"curves.png", "confusion.png", "probabilities.png", "calibration.png"}
    | {"latency.png", "throughput.png", "threads.png", "accuracy.png"}
)
"""What histo train and histo bench write beside their report.json."""
HIDDEN_NAMES = frozenset({"__macosx", "@eadir", "$recycle.bin", "thumbs.db", "desktop.ini"})
"""Besides names with a leading dot: what macOS, Synology and Windows put into folders, thumbnails among them."""


@dataclass
class Entries:
    """The entries of one folder, each list sorted by name.

    Attributes:
        files, folders: no links.
        file_links, folder_links: links to a file or a folder.
        hidden: files and folders.
        broken: links that lead nowhere, or to themselves.
        special: pipes, sockets and devices.
        unreadable: what the system refuses to show, and why.
    """

    files: list[Path] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    file_links: list[Path] = field(default_factory=list)
    folder_links: list[Path] = field(default_factory=list)
    hidden: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)

    def all_files(self) -> list[Path]:
        """Files and links to files, by name."""
        return sorted([*self.files, *self.file_links])

    def all_folders(self) -> list[Path]:
        """Folders and links to folders, by name."""
        return sorted([*self.folders, *self.folder_links])


def list_folder(folder: Path) -> Entries:
    """The entries of a folder by kind.

    Raises:
        OSError: it can't be read.
    """
    entries = Entries()
    with os.scandir(folder) as found:
        for entry in sorted(found, key=lambda each: each.name):
            _sort_in(entry, folder / entry.name, entries)
    return entries


def is_hidden(name: str) -> bool:
    """Whether a file or folder of this name is left out: it has a leading dot, or a system made it for itself."""
    return name.startswith(".") or name.casefold() in HIDDEN_NAMES


def _sort_in(entry: os.DirEntry[str], path: Path, entries: Entries) -> None:
    if is_hidden(entry.name):
        entries.hidden.append(path)
        return
    try:
        link = entry.is_symlink()
        if entry.is_dir():
            (entries.folder_links if link else entries.folders).append(path)
        elif entry.is_file():
            (entries.file_links if link else entries.files).append(path)
        elif link and not path.exists():
            entries.broken.append(path)
        else:
            entries.special.append(path)
    except OSError as error:
        if error.errno == errno.ELOOP:
            entries.broken.append(path)
        else:
            entries.unreadable.append((path, error))


@dataclass
class Walk:
    """What lies below a folder.

    Attributes:
        files: each file once, its real path → the path by which it was reached; a folder's own files come before those
            of its folders, both sorted by name.
        hidden: hidden files, and hidden folders, which are not entered.
        own: results of histo predict (folders, which are not entered), and pictures of histo train and histo bench.
        again: links to files and folders that were reached by another path, or that hold the link itself.
        broken, special, unreadable: see `Entries`.
    """

    files: dict[str, Path] = field(default_factory=dict)
    hidden: list[Path] = field(default_factory=list)
    own: list[Path] = field(default_factory=list)
    again: list[Path] = field(default_factory=list)
    broken: list[Path] = field(default_factory=list)
    special: list[Path] = field(default_factory=list)
    unreadable: list[tuple[Path, OSError]] = field(default_factory=list)


def walk(root: Path) -> Walk:
    """All files below `root`, the root itself may be a link.

    A file or folder that several paths lead to counts once, by the path without links where there is one, so that a
    link that is added later changes no names. Links to a folder above `root` are not followed: they would bring in
    `root` itself and everything beside it.
    """
    found = Walk()
    real_root = Path(os.path.realpath(root))
    visited = {_identity(folder) for folder in real_root.parents}
    folders = deque([root])
    links: deque[Path] = deque()
    while folders or links:
        if folders:
            _enter(folders.popleft(), found, visited, folders, links)
        elif (link := links.popleft()).is_dir():
            folders.append(link)
        else:
            _take(found, [link], linked=True)
    found.files = dict(sorted(found.files.items(), key=lambda item: place_in_order(item[1].relative_to(root))))
    found.again.sort()
    return found


def _enter(folder: Path, found: Walk, visited: set[tuple[int, int]], folders: deque[Path], links: deque[Path]) -> None:
    """Adds what one folder holds; its folders and links wait in the queues."""
    try:
        identity = _identity(folder)
        if identity in visited:
            found.again.append(folder)
            return
        visited.add(identity)
        entries = list_folder(folder)
    except OSError as error:
        found.unreadable.append((folder, error))
        return
    names = {path.name for path in entries.files}
    if DONE in names and done_record(folder) is not None:
        found.own.append(folder)
        return
    pictures = OWN_PICTURES & names if "report.json" in names else frozenset()
    found.own += [path for path in entries.files if path.name in pictures]
    _take(found, (path for path in entries.files if path.name not in pictures), linked=False)
    folders += entries.folders
    links += entries.file_links + entries.folder_links
    found.hidden += entries.hidden
    found.broken += entries.broken
    found.special += entries.special
    found.unreadable += entries.unreadable


def _take(found: Walk, files: Iterable[Path], *, linked: bool) -> None:
    """Adds files; where none is `linked`, they lie in one folder, whose real path is asked for once."""
    real_folder = None
    for file in files:
        if linked:
            real = os.path.realpath(file)
        else:
            real_folder = real_folder or os.path.realpath(file.parent)
            real = os.path.join(real_folder, file.name)  # noqa: PTH118  a Path for each of a million files is slow
        if real in found.files:
            found.again.append(file)
        else:
            found.files[real] = file


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def place_in_order(path: PurePath) -> list[tuple[bool, str]]:
    """A sort key of paths below a folder: files before folders, then by name."""
    *folders, file = path.parts
    return [*((True, folder) for folder in folders), (False, file)]


def done_record(folder: Path) -> dict[str, Any] | None:
    """What `done.json` says of a complete result of histo predict; None where the folder is not one."""
    try:
        done = json.loads((folder / DONE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return done if isinstance(done, dict) and isinstance(done.get("key"), str) and "tiles" in done else None
