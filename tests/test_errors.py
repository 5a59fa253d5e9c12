"""What other packages report is told as what it is."""

from __future__ import annotations

import errno
import io
import resource
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
import torch

from histo_export.errors import not_written, system_error


@pytest.fixture
def small_files() -> Iterator[None]:
    """A real failing write: the process may not write files of over 10,000 bytes."""
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    signal.signal(signal.SIGXFSZ, handler)


def save_by_name(path: Path) -> None:
    torch.save({"a": torch.zeros(100_000)}, path)


def save_to_file(path: Path) -> None:
    with path.open("wb") as file:
        torch.save({"a": torch.zeros(100_000)}, file)


def save_safetensors(path: Path) -> None:
    safetensors.numpy.save_file({"a": np.zeros(100_000)}, path)


@pytest.mark.usefixtures("small_files")
@pytest.mark.parametrize(
    ("save", "number"),
    [(save_by_name, errno.ENOSPC), (save_to_file, errno.EFBIG), (save_safetensors, errno.EFBIG)],
)
def test_a_full_disk_is_known_behind_the_error_of_a_library(
    save: Callable[[Path], None], number: int, tmp_path: Path
) -> None:
    with pytest.raises(Exception) as caught:  # noqa: PT011 (of several libraries)
        save(tmp_path / "file")
    assert not isinstance(caught.value, OSError)
    error = system_error(caught.value)
    assert error is not None
    assert error.errno == number
    message = str(not_written(tmp_path / "file", error))
    assert "inline_container" not in message
    assert "Free some space" in message


def test_a_folder_that_may_not_be_written_is_known_too() -> None:
    with pytest.raises(RuntimeError) as caught:
        save_by_name(Path("/proc/file.ckpt"))
    error = system_error(caught.value)
    assert error is not None
    assert error.errno == errno.ENOENT


@pytest.mark.parametrize("error", [RuntimeError("mat1 and mat2 shapes"), ValueError("os error"), KeyError("a")])
def test_other_errors_are_not_taken_for_it(error: Exception) -> None:
    error.__context__ = OSError(errno.ENOSPC, "unrelated")
    assert system_error(error) is None


def test_an_interruption_is_not_taken_for_it() -> None:
    """torch reports whatever its file raises as a failed write."""

    class Interrupted(io.BytesIO):
        def write(self, content: Any) -> int:
            if self.tell() > 100:
                raise KeyboardInterrupt
            return super().write(content)

    with pytest.raises(RuntimeError, match=r"inline_container\.cc") as caught:
        torch.save({"a": torch.zeros(100_000)}, Interrupted())
    with pytest.raises(KeyboardInterrupt):
        system_error(caught.value)
