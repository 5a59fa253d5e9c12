"""Files and folders that appear complete or not at all."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from histo_export.files import atomic_file, atomic_folder, write_atomic


def _ended_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomic(path, "old")

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, "new")
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["last.ckpt", "tiles [2].csv"])
def test_what_a_killed_process_left_is_removed_and_what_a_running_one_writes_is_not(tmp_path: Path, name: str) -> None:
    stale = tmp_path / f".{name}.partial-{_ended_process()}"
    running = tmp_path / f".{name}.partial-{os.getppid()}"
    stale.write_text("half")
    running.write_text("half")
    write_atomic(tmp_path / name, "complete")
    assert {path.name for path in tmp_path.iterdir()} == {name, running.name}
    stale.mkdir()
    (stale / "tiles.csv").touch()
    (tmp_path / name).unlink()
    with atomic_folder(tmp_path / name):
        pass
    assert {path.name for path in tmp_path.iterdir()} == {name, running.name}
