"""Files and folders that appear whole or not at all, whatever ends the process."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_folder(out: Path) -> Iterator[Path]:
    """A hidden folder beside `out` that takes its place when the block ends well, and vanishes otherwise.

    A folder that is at `out` already stays until then. What a killed process has left is removed first.

    Raises:
        OSError: it can't be written.
    """
    partial = out.parent / f".{out.name}.partial-{os.getpid()}"
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        _remove_stale(out)
        partial.mkdir()
        yield partial
        _replace(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A hidden path beside `path`; what the block writes there takes its place when it ends well. OSError."""
    partial = path.with_name(f".{path.name}.partial-{os.getpid()}")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Writes UTF-8; an old file stays until the new one is complete. OSError where that can't be done."""
    with whole_file(path) as partial:
        partial.write_text(text, encoding="utf-8", errors="surrogateescape")  # paths may be any bytes


def _remove_stale(out: Path) -> None:
    """Removes the partial folders that killed processes left beside `out`, one that had our number included."""
    for folder in out.parent.glob(f".{out.name}.partial-*"):
        pid = folder.name.rpartition("-")[2]
        ended = pid.isdigit() and not Path(f"/proc/{pid}").exists() and Path("/proc").exists()
        if ended or pid == str(os.getpid()):
            shutil.rmtree(folder, ignore_errors=True)


def _replace(new: Path, out: Path) -> None:
    """Puts `new` in the place of `out`; an old folder is moved aside first and comes back if that fails."""
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
