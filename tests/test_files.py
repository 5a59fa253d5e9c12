"""Files and folders that appear complete or not at all, and folders in which one process alone works."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from histo_export import files
from histo_export.errors import HistoError, UsageError, not_written, place_of
from histo_export.files import (
    atomic_file,
    atomic_folder,
    hidden_path,
    hidden_paths,
    made_folder,
    own_folder,
    temporary_folder,
    write_atomic,
)

NAMESPACE = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]


def _ended_process() -> int:
    """The number of a process that has ended."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


def _names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    write_atomic(path, "old")

    def fail() -> None:
        with atomic_file(path) as partial:
            partial.write_text("half", encoding="utf-8")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        fail()
    assert path.read_text(encoding="utf-8") == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_atomic(path, "new")
    assert path.read_text(encoding="utf-8") == "new"


@pytest.mark.parametrize("name", ["last.ckpt", "tiles [2].csv", "ä" * 127])
def test_what_a_killed_process_left_is_removed_and_what_others_write_is_not(tmp_path: Path, name: str) -> None:
    """Processes that can't be asked, of another container or machine, may be at work, whatever their numbers are."""
    here = files._process_space()
    stale = hidden_path(tmp_path / name, f".partial-{here}-{_ended_process()}-0123abcd")
    replaced = stale.with_name(f"{stale.name}-old")
    kept = [
        hidden_path(tmp_path / name, f".partial-{here}-{os.getppid()}-0123abcd"),
        hidden_path(tmp_path / name, f".partial-{here[::-1]}-{_ended_process()}-0123abcd"),
        hidden_path(tmp_path / name, ".partial-unknown"),
        tmp_path / f".other.partial-{here}-{_ended_process()}-0123abcd",
    ]
    for path in (stale, replaced, *kept):
        path.write_text("half", encoding="utf-8")
    write_atomic(tmp_path / name, "complete")
    assert _names(tmp_path) == {name, *(path.name for path in kept)}
    stale.mkdir()
    (stale / "tiles.csv").touch()
    (tmp_path / name).unlink()
    with atomic_folder(tmp_path / name):
        pass
    assert _names(tmp_path) == {name, *(path.name for path in kept)}


def test_what_an_unknown_process_left_is_removed_when_it_is_old(tmp_path: Path) -> None:
    partial = tmp_path / ".bundle.partial-00000000-1-0123abcd"
    (partial / "deep").mkdir(parents=True)
    (partial / "deep/file").touch()
    old = time.time() - files.STALE_S - 60
    for path in (partial, partial / "deep"):
        os.utime(path, (old, old))
    with atomic_folder(tmp_path / "bundle"):
        assert partial.exists(), "a file in it is new"
    os.utime(partial / "deep/file", (old, old))
    with atomic_folder(tmp_path / "bundle"):
        assert not partial.exists()


def test_two_writers_of_one_process_do_not_meet(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "a") as first, atomic_folder(tmp_path / "a") as second:
        assert first != second
        (first / "file").touch()
    assert _names(tmp_path / "a") == {"file"}


def test_hidden_names_fit_and_are_different(tmp_path: Path) -> None:
    long = [tmp_path / ("ä" * 120 + end) for end in ("a", "b")]
    hidden = [hidden_path(path, ".shards-0123456789abcdef") for path in long]
    assert hidden[0] != hidden[1]
    for path in hidden:
        path.mkdir()
    assert hidden_paths(long[0], ".shards-") == [hidden[0]]
    assert hidden_path(tmp_path / "set", ".x").name == ".set.x"


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_folders_that_were_made_for_nothing_are_removed(tmp_path: Path, error: type[BaseException]) -> None:
    def fail() -> None:
        with atomic_folder(tmp_path / "a/b/c") as folder:
            (folder / "half").touch()
            raise error

    with pytest.raises(error):
        fail()
    assert not list(tmp_path.iterdir())
    (tmp_path / "a").mkdir()
    with pytest.raises(error):
        fail()
    assert _names(tmp_path) == {"a"}, "it was there before"
    with made_folder(tmp_path / "a/b/c"):
        (tmp_path / "a/b/kept").touch()
    assert _names(tmp_path / "a/b") == {"kept"}


@pytest.mark.parametrize(
    ("number", "step"),
    [
        (errno.ENOSPC, "Free some space or choose another --out"),
        (errno.ENAMETOOLONG, "Use shorter names or choose another --out"),
        (errno.EACCES, "Check the permissions or choose another --out"),
        (errno.EIO, "Choose another --out"),
    ],
)
def test_the_next_step_suits_the_cause(number: int, step: str) -> None:
    error = not_written("out", OSError(number, os.strerror(number)))
    assert str(error) == f"out: could not be written ({os.strerror(number)}). {step}."


def test_the_place_of_an_unforeseen_error() -> None:
    with pytest.raises(AttributeError) as caught:
        hidden_path(None, "")  # type: ignore[arg-type]
    assert re.fullmatch(r"AttributeError: .* has no attribute 'name', files\.py:\d+", place_of(caught.value))
    assert place_of(ValueError()) == "ValueError"


OWN = """
import sys, time
from pathlib import Path
from histo_export import files
files.LEASE_S, files.HEARTBEAT_S = 2.0, 0.2
with files.own_folder(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(float(sys.argv[2]))
"""


@pytest.fixture
def _short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LEASE_S", 2.0)
    monkeypatch.setattr(files, "HEARTBEAT_S", 0.2)


def _owner(folder: Path, namespace: bool, seconds: float = 60) -> subprocess.Popen[bytes]:
    """A process that works in `folder`, perhaps in a PID namespace of its own."""
    command = [*(NAMESPACE if namespace else []), sys.executable, "-c", OWN, str(folder), str(seconds)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    line = process.stdout.readline()
    if namespace and not line:
        process.communicate()
        pytest.skip("needs the right to make PID namespaces")
    assert line == b"ready\n"
    return process


@pytest.mark.usefixtures("_short_lease")
@pytest.mark.parametrize("namespace", [False, True], ids=["same machine", "other PID namespace"])
def test_one_process_owns_a_folder(tmp_path: Path, namespace: bool) -> None:
    folder = tmp_path / "out"
    process = _owner(folder, namespace)
    try:
        work = folder / ".slide.partial-00000000-1-0123abcd"
        work.mkdir()
        message = (
            r"out: is in use by another run \(process \d+ on .*\)\. Wait until it has ended, or choose another --out"
        )
        with pytest.raises(UsageError, match=message), own_folder(folder):
            pass
        assert work.exists(), "the work of its owner"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    with own_folder(folder):
        assert _names(folder) == {files.OWNER}, "what the killed process left is removed"
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("_short_lease")
def test_an_owner_learns_that_it_has_lost_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "out"
    with own_folder(folder) as still_own:
        still_own()
        (folder / files.OWNER).unlink()
        (folder / "theirs").touch()
        deadline = time.monotonic() + 60

        def work() -> None:
            while time.monotonic() < deadline:
                still_own()
                time.sleep(0.02)

        with pytest.raises(HistoError, match="has been taken over by another run"):
            work()
    assert _names(folder) == {"theirs"}


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with (
        pytest.raises(HistoError, match=r"could not be written \(Not a directory\)"),
        own_folder(tmp_path / "file/out"),
    ):
        pass


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(self: Path) -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("HISTO_CACHE", raising=False)
    monkeypatch.setattr(Path, "expanduser", unknown)
    with pytest.raises(HistoError, match="Set HISTO_CACHE"):
        files.cache_folder()


def test_a_temporary_folder_that_cannot_be_made_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "none"))
    with pytest.raises(HistoError, match=r"temporary folder: could not be written .* Set TMPDIR"), temporary_folder():
        pass
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with temporary_folder() as folder:
        assert folder.parent == tmp_path
    assert not list(tmp_path.iterdir())
