"""One large file from an HTTP server, resumed after interruptions.

Not by a library: `torch.hub` and `torchvision.datasets.utils` begin anew after each interruption and need torch; pooch,
which scikit-image and SciPy use, does not resume either; the downloader of huggingface_hub resumes, but is not public,
and is made for its own servers. What has arrived lies in `<file>.part`, and beside it what the server calls this
version of the file, so that two versions are never mixed.
"""

from __future__ import annotations

import email.message
import hashlib
import http.client
import json
import shutil
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from histo_export.errors import HistoError, one_line
from histo_export.strict_json import dump_json

TIMEOUT = 30.0
"""Seconds without a byte after which a connection is closed."""
ATTEMPTS = 4
"""Connections in succession that may bring no byte."""
LONGEST_WAIT = 60.0
"""Seconds; a server that asks for more (Retry-After) is asked again after these."""
MARGIN = 64 << 20
"""Bytes of the disk that a download leaves free."""
_CHUNK = 1 << 18


@dataclass(frozen=True)
class Source:
    """A file on a server.

    Attributes:
        address: http or https.
        name: of what is downloaded, for people.
        md5: of the file, as its publisher states it; None where none is stated.
        most: bytes that the file can have; a server that sends more is left.
        by_hand: the next step where the download fails, such as where to get the file by hand.
    """

    address: str
    name: str
    md5: str | None
    most: int
    by_hand: str


class _ChangedError(ConnectionError):
    """What has arrived is of no use any more, and has been removed."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects to http and https, but never from https to http: only https proves which server answers."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        allowed = ("https",) if req.type == "https" else ("http", "https")
        if urllib.parse.urlsplit(newurl).scheme not in allowed:
            cause = f"leads to {newurl}, which is not {' or '.join(allowed)}"
            raise HistoError(req.full_url, cause, "Use another mirror")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def part_of(file: Path) -> Path:
    """Where the bytes of a file lie that has not arrived completely."""
    return file.with_name(file.name + ".part")


def version_of(file: Path) -> Path:
    """Where it is written which version of the file `part_of` is a part of."""
    return file.with_name(file.name + ".part.json")


def download(source: Source, file: Path) -> None:
    """Downloads a file, and checks its md5. An earlier attempt is resumed if the server still has the same version.

    `version_of(file)` stays beside the complete file, and tells that no user put it there.

    Args:
        source: what is downloaded.
        file: where it comes to lie, complete; its folder exists.

    Raises:
        HistoError: no network, an error of the server, too little room on the disk, or another md5.
        OSError: the file can't be written.
    """
    console = Console(stderr=True)
    columns = (
        TextColumn(f"Downloading {source.name}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    if not console.is_terminal:
        print(f"Downloading {source.address} to {file.parent}", file=sys.stderr)
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("download", total=None)
        for done, total in _all_connections(source, file):
            progress.update(task, completed=done, total=total)
    part = part_of(file)
    if source.md5 is not None and (found := md5_of(part)) != source.md5:
        size = part.stat().st_size
        _drop(file)
        raise HistoError(
            file,
            f"was damaged ({size:,} bytes with md5 {found}, expected {source.md5}) and has been deleted",
            f"Run again to download it anew; if that fails, {source.address} has another file",
        )
    part.replace(file)


def md5_of(file: Path) -> str:
    """The md5 of a file, in hex. OSError where it can't be read."""
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()


def _all_connections(source: Source, file: Path) -> Iterator[tuple[int, int | None]]:
    """Connects as often as necessary; yields as `_receive`."""
    part = part_of(file)
    failed = 0
    while True:
        before = part.stat().st_size if part.exists() else 0
        wait: float | None = None
        try:
            yield from _receive(source, file)
            return
        except urllib.error.HTTPError as error:
            error.close()
            if error.code < 500 and error.code not in (408, 425, 429):
                raise HistoError(source.address, _answer(error), source.by_hand) from error
            reason = _answer(error)
            wait = _retry_after(error.headers)
        except (urllib.error.URLError, http.client.HTTPException, TimeoutError, ConnectionError) as error:
            reason = one_line(Exception(getattr(error, "reason", None) or error))
        except ValueError as error:  # an address that is none, of a mirror or of a redirect
            cause = f"is no address, or leads to none ({one_line(error)})"
            raise HistoError(source.address, cause, source.by_hand) from error
        have = part.stat().st_size if part.exists() else 0
        failed = 0 if have > before else failed + 1
        if failed == ATTEMPTS:
            kept = f"; {have / 1e6:.1f} MB are kept" if have else ""
            raise HistoError(source.address, f"could not be downloaded ({reason}{kept})", source.by_hand)
        time.sleep(min(LONGEST_WAIT, 0.25 * 2**failed) if wait is None else wait)


def _retry_after(headers: email.message.Message) -> float | None:
    """How many seconds the server wants to be left alone; None where it names no number."""
    seconds = _number(headers.get("Retry-After"))
    return None if seconds is None else min(float(seconds), LONGEST_WAIT)


def _number(text: str | None) -> int | None:
    """A number in a header; None where it is absent or not one."""
    return int(text) if text and text.isascii() and text.isdigit() and len(text) < 20 else None


def _answer(error: urllib.error.HTTPError) -> str:
    """An answer of a server that is an error, without what a terminal would take for a command."""
    reason = "".join(c for c in one_line(Exception(error.reason)) if c.isprintable())
    return f"the server answered {error.code} {reason}"


def _receive(source: Source, file: Path) -> Iterator[tuple[int, int | None]]:
    """One connection; yields (bytes received so far, total bytes if known). ConnectionError if it ends too early."""
    part = part_of(file)
    have = part.stat().st_size if part.exists() else 0
    headers = {"User-Agent": "histo-export", "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
        if version := _recorded_version(file):
            headers["If-Range"] = version  # a server with another version sends all of that
    opener = urllib.request.build_opener(_NoDowngrade)
    try:
        response = opener.open(urllib.request.Request(source.address, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        if error.code != 416 or not have:
            raise
        # The server has no more bytes: the file is complete (then its md5 is right), or too long.
        error.close()
        if error.headers.get("Content-Range") == f"bytes */{have}":
            return
        _drop(file)
        raise _ChangedError("the partial file did not fit and was dropped") from error
    with response:
        resumed = response.status == 206
        if resumed and not (response.headers.get("Content-Range") or "").startswith(f"bytes {have}-"):
            _drop(file)
            raise _ChangedError("the server sent another range than asked for")
        length = _number(response.headers.get("Content-Length"))
        done = have if resumed else 0  # a server without ranges, or with another version: start over
        total = None if length is None else done + length
        if total is not None and total > source.most:
            raise _too_much(source, file, total)
        _check_room(file, (total or 0) - done, 0 if resumed else have)
        version_of(file).write_text(dump_json({"version": _version(response.headers)}), encoding="utf-8")
        with part.open("ab" if resumed else "wb") as out:
            checked = done
            while block := response.read1(_CHUNK):  # what is there: read() would lose it to a timeout
                out.write(block)
                done += len(block)
                if done > source.most:
                    break
                if total is None and done - checked >= MARGIN // 4:  # the room was not checked before
                    checked = done
                    need_room(file.parent, 0, "download")
                yield done, total
    if done > source.most:
        raise _too_much(source, file, done)
    if total is not None and done < total:
        raise ConnectionError(f"connection lost after {done:,} of {total:,} bytes")


def _version(headers: email.message.Message) -> str | None:
    """What `If-Range` may name: a strong ETag, or else the time of change; None where the server states neither."""
    tag = headers.get("ETag") or ""
    return tag if tag.startswith('"') else headers.get("Last-Modified")


def _recorded_version(file: Path) -> str | None:
    try:
        version = json.loads(version_of(file).read_text(encoding="utf-8"))["version"]
    except (OSError, ValueError, KeyError, TypeError):  # of an older version of this program, or cut off
        return None
    return version if isinstance(version, str) and version.isascii() and version.isprintable() else None


def _check_room(file: Path, missing: int, freed: int) -> None:
    """HistoError where the disk has less room than the bytes that are missing; `freed` are overwritten."""
    need_room(file.parent, missing - freed, "download")


def need_room(folder: Path, size: int, what: str) -> None:
    """HistoError where the disk of a folder has no room for `size` bytes; `what` names what needs them."""
    free = shutil.disk_usage(folder).free
    if size + MARGIN > free:
        raise HistoError(
            folder,
            f"has {free / 1e9:.2f} GB free, and the {what} needs {(size + MARGIN) / 1e9:.2f} GB",
            "Free some space, or choose another folder with HISTO_CACHE",
        )


def _too_much(source: Source, file: Path, size: int) -> HistoError:
    """Removes what has arrived of a file that can't be the one."""
    _drop(file)
    cause = f"sends {size:,} bytes or more, and {source.name} has fewer than {source.most:,}"
    return HistoError(source.address, cause, source.by_hand)


def _drop(file: Path) -> None:
    """Removes what has arrived of a file."""
    part_of(file).unlink(missing_ok=True)
    version_of(file).unlink(missing_ok=True)
