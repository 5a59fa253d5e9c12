"""Files and folders that appear complete or not at all, whatever ends the process; and the package's cache folder."""

from __future__ import annotations

import glob
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def cache_folder() -> Path:
    """Where downloads and compiled code are kept: `$HISTO_CACHE`, or `~/.cache/histo-export`. It may not exist yet."""
    return Path(os.environ.get("HISTO_CACHE") or "~/.cache/histo-export").expanduser()


@contextmanager
def atomic_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out`. It becomes `out` when the block ends without an error, and is removed otherwise.

    An old folder at `out` stays until then. Hidden folders that killed processes left are removed first.

    Raises:
        OSError: the folder can't be written.
    """
    partial = _partial(out)
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        partial.mkdir()
        yield partial
        _replace(partial, out)
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
        partial.unlink(missing_ok=True)


def write_atomic(path: Path, text: str) -> None:
    """Writes UTF-8 text; an old file at `path` stays until the new one is complete.

    Raises:
        OSError: the file can't be written.
    """
    with atomic_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths may be any bytes


def _partial(path: Path) -> Path:
    return path.parent / f".{path.name}.partial-{os.getpid()}"


def _remove_stale(path: Path) -> None:
    """Removes what ended processes left beside `path`, and what another process with our number left."""
    for stale in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        pid = stale.name.rpartition("-")[2]
        ended = pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists()
        if not ended and pid != str(os.getpid()):
            continue
        if stale.is_dir():
            shutil.rmtree(stale, ignore_errors=True)
        else:
            stale.unlink(missing_ok=True)


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
