"""Files and folders that appear complete or not at all, whatever ends the process; and the package's cache folder.

What is not complete yet has a hidden name beside its place. Such names may be left behind by a process that was killed,
and they may belong to a process that is still at work, here, in another container or on another machine that shares
the folder. So nobody removes them for a process number alone: see `_is_stale`. `own_folder` makes sure that one process
alone works in a folder.
"""

from __future__ import annotations

import functools
import glob
import hashlib
import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from filelock import LeaseSettingsMismatch, SoftFileLease, Timeout

from histo_export.errors import HistoError, UsageError, not_written
from histo_export.system import process_exists, process_space

OWNER = ".histo.lock"
"""The file in a folder that names the process which works there."""
LEASE_S = 60.0
"""Seconds without a sign of life after which a folder's owner counts as ended."""
HEARTBEAT_S = 4.0
"""Seconds between an owner's signs of life."""
STALE_S = 24 * 3600.0
"""Seconds without a change after which the hidden files of an unknown process count as left behind."""
ELSEWHERE = "set TMPDIR to another folder"
"""The next step where a temporary file can't be written."""
NAME_BYTES = 160
"""Bytes of a name that a hidden name repeats, so that it has at most the 255 that file systems allow."""


def cache_folder() -> Path:
    """Where downloads and compiled code are kept: `$HISTO_CACHE`, or `~/.cache/histo-export`. It may not exist yet.

    Raises:
        HistoError: there is no such variable, and the user has no home folder.
    """
    try:
        return Path(os.environ.get("HISTO_CACHE") or "~/.cache/histo-export").expanduser()
    except RuntimeError as error:
        raise HistoError("The cache folder", "is unknown: this user has no home folder", "Set HISTO_CACHE") from error


def home_path(text: str | Path) -> Path:
    """A path with `~` replaced; as it is where there is no such user, so that it counts as any path that is missing."""
    return Path(os.path.expanduser(text))  # noqa: PTH111  Path fails where there is no such user


def hidden_path(path: Path, ending: str) -> Path:
    """A hidden path beside `path`: its name is `path`'s, or the start and the hash of a long one, and `ending`."""
    name = path.name
    if len(encoded := os.fsencode(name)) > NAME_BYTES:
        while len(os.fsencode(name)) > NAME_BYTES - 17:
            name = name[:-1]
        name += f"~{hashlib.sha256(encoded).hexdigest()[:16]}"
    return path.parent / f".{name}{ending}"


def hidden_paths(path: Path, ending: str) -> list[Path]:
    """The hidden paths beside `path` whose names begin with `path`'s and `ending`."""
    return list(path.parent.glob(glob.escape(hidden_path(path, ending).name) + "*"))


@contextmanager
def made_folder(folder: Path) -> Iterator[None]:
    """Makes a folder and its parents. Those that are still empty at the end are removed again.

    Raises:
        OSError: it can't be made.
    """
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    finally:
        with suppress(OSError):  # the first one that is not empty ends it
            for each in made:
                each.rmdir()


@contextmanager
def temporary_folder() -> Iterator[Path]:
    """A folder below `$TMPDIR`, which is removed at the end; HistoError if it can't be made."""
    try:
        folder = tempfile.TemporaryDirectory(prefix="histo-")
    except OSError as error:
        raise not_written("A temporary folder", error, ELSEWHERE) from error
    with folder as name:
        yield Path(name)


@contextmanager
def atomic_folder(out: Path, replace: bool = True) -> Iterator[Path]:
    """A hidden folder beside `out`. It becomes `out` when the block ends without an error, and is removed otherwise.

    An old folder at `out` stays until then. Hidden folders that killed processes left are removed first. If `out` is a
    link, the folder that it names is replaced, and the link stays.

    Args:
        out: the folder.
        replace: whether an old folder is replaced. If not, and there is one at the end that is not empty, it stays.

    Raises:
        OSError: the folder can't be written; ENOTEMPTY or EEXIST if an old one stays.
    """
    if out.is_symlink():
        out = out.resolve()
    partial = _partial(out)
    with made_folder(out.parent):
        try:
            _remove_stale(out)
            partial.mkdir()
            yield partial
            if replace:
                _replace(partial, out)
            else:
                with suppress(OSError):
                    out.rmdir()  # if it is empty: Windows refuses to overwrite that, too
                partial.rename(out)  # the system refuses to overwrite a folder that is not empty
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def new_folder_in(folder: Path) -> Iterator[Path]:
    """A hidden folder in `folder`, for files that are moved there once all are complete; removed at the end.

    Raises:
        OSError: it can't be made.
    """
    partial = _partial(folder / "new")
    try:
        partial.mkdir()
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def atomic_file(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`. The file that the block writes there becomes `path` when the block ends without an
    error, and is removed otherwise.

    An old file at `path` stays until then. Hidden files that killed processes left are removed first.

    Raises:
        OSError: the file can't be written.
    """
    partial = _partial(path)
    try:
        _remove_stale(path)
        yield partial
        partial.replace(path)
    finally:
        with suppress(OSError):  # an error of the block is the one to report
            partial.unlink()


def write_atomic(path: Path, text: str) -> None:
    """Writes UTF-8 text; an old file at `path` stays until the new one is complete.

    Raises:
        OSError: the file can't be written.
    """
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths may be any bytes


@contextmanager
def own_folder(folder: Path) -> Iterator[Callable[[], None]]:
    """Makes a folder in which this process alone works, among all containers and machines that share it.

    The owner is named in a file, which the owner touches every `HEARTBEAT_S` seconds (filelock's `SoftFileLease`). That
    needs nothing but a file that is created once, which every network file system can do; their locks (flock) are often
    local to a machine or switched off. A process that waits measures the time between two touches with its own clock.
    If an owner was killed, its folder is free at once for processes that can see that, and after `LEASE_S` for others.

    At the end, hidden files that workers have left are removed, and the folder too if it was made here and is empty.

    Args:
        folder: made if it does not exist.

    Returns:
        A function that raises HistoError if the folder has been lost to another process, because this one slept or the
        file system was gone for `LEASE_S`.

    Raises:
        UsageError: another process works in it.
        HistoError: the folder can't be made or written.
    """
    lease = SoftFileLease(
        folder / OWNER, lease_duration=LEASE_S, heartbeat_interval=HEARTBEAT_S, thread_local=False, poll_interval=0.1
    )

    def check() -> None:
        if lease.compromise is not None:
            raise HistoError(folder, "has been taken over by another run", "Wait for that run, then run this one again")

    with ExitStack() as stack:
        try:
            stack.enter_context(made_folder(folder))
            _acquire(lease, folder)
        except OSError as error:
            raise not_written(folder, error) from error
        stack.callback(lease.release)
        _remove_partials(folder)
        try:
            yield check
        finally:
            if lease.compromise is None:
                _remove_partials(folder)


def _acquire(lease: SoftFileLease, folder: Path) -> None:
    """Takes the folder; UsageError as soon as its owner has given a sign of life."""
    first = _touched(folder / OWNER)

    def alive() -> bool:
        nonlocal first
        now = _touched(folder / OWNER)
        first = first or now
        return now is not None and now != first

    try:
        lease.acquire(timeout=LEASE_S + 2 * HEARTBEAT_S, cancel_check=alive)
    except (Timeout, LeaseSettingsMismatch) as error:
        owner = lease.owner
        who = f"process {owner.pid} on {owner.hostname.partition('?')[0]}" if owner else "another process"
        raise UsageError(
            folder, f"is in use by another run ({who})", "Wait until it has ended, or choose another --out"
        ) from error


def _touched(path: Path) -> tuple[int, int] | None:
    """Identity and time of change of a file; None where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return None
    return facts.st_ino, facts.st_mtime_ns


_PARTIAL = re.compile(r"\.partial-([0-9a-f]{8})-(\d+)-[0-9a-f]{8}(-old)?")


def _partial(path: Path) -> Path:
    return hidden_path(path, f".partial-{_process_space()}-{os.getpid()}-{secrets.token_hex(4)}")


@functools.cache
def _process_space() -> str:
    """`process_space`; where the system has none, this process alone is one."""
    return process_space() or secrets.token_hex(4)


def _remove_stale(path: Path) -> None:
    """Removes what ended processes left beside `path`."""
    for partial in hidden_paths(path, ".partial-"):
        if _is_stale(partial):
            _remove(partial)


def _is_stale(partial: Path) -> bool:
    """Whether the process that wrote a hidden file or folder has ended.

    A process among ours is asked by its number. Others can't be, so nothing in the folder may have changed for long.
    """
    name = _PARTIAL.search(partial.name)
    if name and name[1] == _process_space() and not process_exists(int(name[2])):
        return True
    try:
        newest = max(each.lstat().st_mtime for each in (partial, *partial.rglob("*")))
    except OSError:  # it changes now
        return False
    return time.time() - newest > STALE_S


def _remove_partials(folder: Path) -> None:
    """Removes all hidden files and folders of unfinished work in a folder that is ours alone."""
    for partial in folder.glob(".*.partial-*"):
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            path.unlink()


def _replace(new: Path, out: Path) -> None:
    """Puts the folder `new` in the place of `out`; an old folder is moved aside first and comes back if that fails."""
    if not out.exists():
        new.rename(out)
        return
    old = new.with_name(f"{new.name}-old")
    out.rename(old)
    try:
        new.rename(out)
    except BaseException:
        old.rename(out)
        raise
    shutil.rmtree(old, ignore_errors=True)
