"""`kather2016`: 5,000 H&E tiles of colorectal cancer in eight classes, downloaded once to a cache.

Kather JN, Weis CA, Bianconi F, et al. Multi-class texture analysis in colorectal cancer histology.
Scientific Reports 6, 27988 (2016). Data: Zenodo record 53169, https://doi.org/10.5281/zenodo.53169,
CC BY 4.0. 625 tiles of 150x150 pixels per class at 0.495 µm per pixel, from ten slides.

The six default classes are an assumption. The report that this project starts from says "six classes"
and does not name them; the six tissue classes in the archive's own order are taken, so fat (ADIPOSE)
and background (EMPTY) are left out. `classes` chooses any others.
"""

from __future__ import annotations

import dataclasses
import hashlib
import http.client
import os
import shutil
import stat
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from filelock import FileLock
from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from histo_export.data.folder import open_folder
from histo_export.data.groups import Grouping
from histo_export.data.split import DEFAULT_SPLIT as SHARES
from histo_export.data.split import Split
from histo_export.data.tiles import TileData, choose_classes
from histo_export.errors import HistoError, UsageError
from histo_export.files import atomic_folder, cache_folder

URL = "https://zenodo.org/record/53169/files"
"""The folder of the archive on the server; `$HISTO_KATHER2016_URL` replaces it (a mirror, a test server)."""
FOLDER = "Kather_texture_2016_image_tiles_5000"
ARCHIVE = f"{FOLDER}.zip"
# As stated by public loaders of the set and by Zenodo's page. Zenodo chose MD5, which detects damage in transit; only
# https protects against a forged archive.
ARCHIVE_MD5 = "0ddbebfc56344752028fda72602aaade"
MPP = 0.495
ALL_CLASSES = ("TUMOR", "STROMA", "COMPLEX", "LYMPHO", "DEBRIS", "MUCOSA", "ADIPOSE", "EMPTY")
DEFAULT_CLASSES = ALL_CLASSES[:6]
DEFAULT_SPLIT: Split = (425, 100, 100)
SPLIT_BY_TILE = (
    "the tiles come from ten slides and are split by tile, so one slide's tiles lie in train and in test: accuracy on "
    "new slides will be lower; --groups kather2016 splits by slide"
)
TIMEOUT = 30.0
"""Seconds without a byte after which a connection is closed."""
ATTEMPTS = 4
MAX_UNPACKED = 2 << 30
"""Bytes; the real archive unpacks to about 350 MB."""
MAX_MEMBERS = 20_000
_CHUNK = 1 << 18


def open_kather2016(
    *,
    classes: Sequence[str] | None = None,
    crop: int,
    split: Split | None = None,
    seed: int = 0,
    cache: Path | None = None,
    url: str | None = None,
    grouping: Grouping | None = None,
) -> TileData:
    """Open the set, downloading it if the cache does not hold it yet.

    Args:
        classes: any of `ALL_CLASSES` (`"01_TUMOR"` is understood too); default `DEFAULT_CLASSES`.
        crop: side in pixels that tiles must have at least.
        split: default 425/100/100 per class; by group, the same shares.
        seed: of the split.
        cache: folder; default `files.cache_folder()`.
        url: folder on a server that holds the archive, or the archive's own address.
        grouping: which tiles must stay together in the split.

    Raises:
        UsageError: an unknown class.
        HistoError: no network, a corrupt or unsafe archive, a full disk.
    """
    chosen = choose_classes(
        ALL_CLASSES,
        DEFAULT_CLASSES if classes is None else classes,
        where="kather2016",
        match=lambda c: c.strip("0123456789_").casefold(),
    )
    root = fetch(cache or cache_folder(), url=url)
    folders = [f"{ALL_CLASSES.index(c) + 1:02d}_{c}" for c in chosen]
    missing = [f for f in folders if not (root / f).is_dir()]
    if missing:
        raise HistoError(root, f"lacks the folder {missing[0]}", f"Delete {root} and run again to unpack it anew")
    split = split or (DEFAULT_SPLIT if grouping is None else SHARES)
    data = open_folder(root, name="kather2016", classes=folders, crop=crop, split=split, seed=seed, grouping=grouping)
    sets = {s: getattr(data, s) for s in ("train", "val", "test")}
    for tiles in sets.values():
        tiles.classes = chosen
    return dataclasses.replace(
        data,
        classes=chosen,
        mpp=MPP,
        description=f"Kather et al. 2016 colorectal H&E tiles (Zenodo 53169, CC BY 4.0), "
        f"{len(chosen)} of 8 classes, train/val/test {'/'.join(str(len(t)) for t in sets.values())}",
        notes=data.notes if grouping else (*data.notes, SPLIT_BY_TILE),
    )


def fetch(cache: Path, *, url: str | None = None) -> Path:
    """The folder of the unpacked archive inside `cache`, which is downloaded and unpacked if necessary.

    The next call resumes an interrupted download. Processes that call this at the same time wait for each other.
    """
    target = cache / FOLDER
    try:
        if target.is_dir():
            return target
        cache.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / f"{FOLDER}.lock"):  # the system releases it if this process is killed
            if target.is_dir():  # made by another process while this one waited
                return target
            archive = cache / ARCHIVE
            if not archive.exists():
                _download(_address(url), archive)
            _check_md5(archive)
            unpack(archive, target)
    except OSError as error:
        raise HistoError(
            cache,
            f"cannot be written ({error.strerror or error})",
            "Free some space, or choose another folder with HISTO_CACHE (about 600 MB are needed)",
        ) from error
    return target


def _address(url: str | None) -> str:
    base = url or os.environ.get("HISTO_KATHER2016_URL") or URL
    if urllib.parse.urlsplit(base).scheme not in ("http", "https"):
        raise UsageError(base, "is not an http or https address", "Correct HISTO_KATHER2016_URL")
    return base if base.endswith(".zip") else f"{base.rstrip('/')}/{ARCHIVE}"


def _by_hand(archive: Path) -> str:
    return (
        f"Run again to go on, or download {ARCHIVE} from https://zenodo.org/record/53169 by hand "
        f"and put it at {archive}"
    )


def _download(address: str, archive: Path) -> None:
    """Download to `<archive>.part`, continue where an earlier attempt stopped, then rename."""
    part = archive.with_name(archive.name + ".part")
    console = Console(stderr=True)
    columns = (
        TextColumn("Downloading kather2016"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        print(f"Downloading {address} to {archive.parent}", file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("download", total=None)
        for attempt in range(ATTEMPTS):
            try:
                for done, total in _receive(address, part):
                    progress.update(task, completed=done, total=total)
                part.replace(archive)
                return
            except urllib.error.HTTPError as error:
                error.close()
                if error.code < 500 or attempt == ATTEMPTS - 1:
                    raise HistoError(
                        address, f"the server answered {error.code} {error.reason}", _by_hand(archive)
                    ) from error
            except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
                if attempt == ATTEMPTS - 1:
                    reason = getattr(error, "reason", None) or error
                    have = part.stat().st_size if part.exists() else 0
                    kept = f"; {have / 1e6:.1f} MB are kept" if have else ""
                    raise HistoError(address, f"could not be downloaded ({reason}{kept})", _by_hand(archive)) from error
            time.sleep(0.25 * 2**attempt)


def _receive(address: str, part: Path) -> Iterator[tuple[int, int | None]]:
    """One request; yields (bytes received so far, total bytes if known). ConnectionError if it ends too early."""
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "histo-export", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    try:
        response = urllib.request.urlopen(urllib.request.Request(address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code == 416 and have:
            # The server has no more bytes: the file is complete (then its md5 is right), or too long (then it is
            # downloaded again).
            error.close()
            if error.headers.get("Content-Range") == f"bytes */{have}":
                return
            part.unlink()
            raise ConnectionError("the partial file did not fit and was dropped") from error
        raise
    with response:
        length = response.headers.get("Content-Length")
        going_on = response.status == 206
        if going_on and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            part.unlink()
            raise ConnectionError("the server sent another range than asked for")
        done = have if going_on else 0  # a server without Range sends everything: start over
        total = done + int(length) if length and length.isdigit() else None
        with part.open("ab" if going_on else "wb") as file:
            while block := response.read(_CHUNK):
                file.write(block)
                done += len(block)
                yield done, total
    if total is not None and done < total:
        raise ConnectionError(f"connection lost after {done:,} of {total:,} bytes")


def _check_md5(archive: Path) -> None:
    with archive.open("rb") as file:
        found = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    if found != ARCHIVE_MD5:
        size = archive.stat().st_size
        archive.unlink()
        raise HistoError(
            archive,
            f"was damaged ({size:,} bytes with md5 {found}, expected {ARCHIVE_MD5}) and has been deleted",
            "Run again to download it anew",
        )


def unpack(archive: Path, target: Path) -> None:
    """Unpacks the folder `FOLDER` of a zip archive as `target`, which appears complete or not at all.

    Raises:
        HistoError: `archive` is not a zip file, or it has absolute paths, `..`, links, encrypted members, too many
            members or too many bytes. Nothing is written then.
        OSError: `target` can't be written.
    """
    try:
        with zipfile.ZipFile(archive) as file:
            members = [member for member in file.infolist() if not member.is_dir()]
            _refuse_unsafe(archive, file.infolist(), members)
            inside = {member: PurePosixPath(member.filename).parts for member in members}
            if not any(len(parts) > 1 and parts[0] == FOLDER for parts in inside.values()):
                raise HistoError(archive, f"holds no folder {FOLDER}", _distrust(archive))
            with atomic_folder(target) as partial:
                for member, (top, *rest) in inside.items():
                    if top != FOLDER:
                        continue
                    path = partial.joinpath(*rest)
                    path.parent.mkdir(parents=True, exist_ok=True)
                    # zipfile gives no more than the declared size, so the checked sum bounds what is written.
                    with file.open(member) as source, path.open("xb") as out:
                        shutil.copyfileobj(source, out)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, UnicodeError) as error:
        raise HistoError(archive, f"is not a sound zip archive ({error})", _distrust(archive)) from error


def _refuse_unsafe(archive: Path, entries: Sequence[zipfile.ZipInfo], members: Sequence[zipfile.ZipInfo]) -> None:
    """HistoError for an entry that could be written outside of the target, or for too many members or bytes."""
    for entry in entries:
        if reason := _unsafe(entry):
            raise HistoError(archive, f"is not safe to unpack: {entry.filename!r} {reason}", _distrust(archive))
    total = sum(member.file_size for member in members)
    if total > MAX_UNPACKED or len(members) > MAX_MEMBERS:
        raise HistoError(
            archive, f"is not safe to unpack: {len(members):,} files of {total:,} bytes in all", _distrust(archive)
        )


def _distrust(archive: Path) -> str:
    return f"Delete {archive} and download it from https://zenodo.org/record/53169"


def _unsafe(member: zipfile.ZipInfo) -> str | None:
    # orig_filename: zipfile cuts names at a NUL and turns the system's separators into slashes.
    name = member.orig_filename
    path = PurePosixPath(name)
    if path.is_absolute() or ":" in name or "\\" in name or "\0" in name:
        return "is an absolute or foreign path"
    if ".." in path.parts:
        return "leads out of the folder"
    mode = member.external_attr >> 16
    if mode and stat.S_IFMT(mode) not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "is a link or device"
    if member.flag_bits & 1:
        return "is encrypted"
    return None
