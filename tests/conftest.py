"""What several tests share: the command line, an untrained network whose batch norms aren't trivial, and its bundle."""

from __future__ import annotations

import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from filelock import FileLock
from rich.console import Console

from histo_export import cli, parity
from histo_export.cli import show
from histo_export.data.demo import CLASSES
from histo_export.model.checkpoint import Checkpoint, write_checkpoint
from histo_export.model.net import TileNet
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn, tile_hash
from random_norms import randomise_batch_norms

ALL_FORMATS = ("onnx", "torchscript", "native", "pt2", "triton")


def _make_checkpoint(pool: int = 3, crop: int = 64, tile_size: int = 75, dropout: float = 0.0) -> Checkpoint:
    """Random weights and random batch-norm statistics: a fold that forgets any of them shows.

    Its record says that the first two golden tiles were trained on, and that the third one was in the validation split.
    """
    torch.manual_seed(pool)
    spec = ModelSpec(pool, CLASSES, crop=crop, tile_size=tile_size, mpp=0.495, dropout=dropout)
    net = TileNet.of(spec)
    randomise_batch_norms(net)
    golden = np.random.default_rng(7).integers(0, 256, (5, tile_size, tile_size, 3), dtype=np.uint8)
    training = {"data": {"name": "made", "synthetic": True, "description": "made for a test"}, "recipe": "none"}
    hashes = np.array([tile_hash(tile) for tile in golden])
    return Checkpoint(spec, dict(net.state_dict()), golden, training, TrainedOn.of(hashes[:2], hashes[2:3]))


@pytest.fixture
def histo(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str, str]]:
    """Runs `histo ARGS…` in this process; returns exit code, stdout, stderr."""

    def call(*args: object, entry: Callable[[], object] = cli.main) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["histo", *map(str, args)])
        monkeypatch.setattr(show, "log", Console(stderr=True, highlight=False, width=200))
        monkeypatch.setattr(show, "out_console", Console(highlight=False, width=200))
        with pytest.raises(SystemExit) as stop:
            entry()
        captured = capsys.readouterr()
        return int(stop.value.code or 0), captured.out, captured.err

    return call


@pytest.fixture(scope="session")
def make_checkpoint() -> Callable[..., Checkpoint]:
    return _make_checkpoint


@pytest.fixture(scope="session")
def checkpoint() -> Checkpoint:
    """Pool 3 on a 2×2 map, so that its head is folded; an odd difference between tile and crop."""
    return _make_checkpoint()


@pytest.fixture(scope="session")
def checkpoint_file(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "best.ckpt"
    write_checkpoint(path, {"state_dict": checkpoint.state_dict, "histo": checkpoint.block()})
    return path


@pytest.fixture(scope="session")
def bundle(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A bundle with every format, which no test may change: those that damage one take `copy_bundle`.

    One for all processes of a test run: it takes a minute to write and to check.
    """
    from histo_export.export.bundle import open_bundle
    from histo_export.export.run import ExportSettings, export_bundle

    own = tmp_path_factory.getbasetemp()
    out = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shared" / "bundle"
    out.parent.mkdir(exist_ok=True)
    with FileLock(out.parent / "lock"):
        if not out.exists():
            export_bundle(checkpoint, out, ExportSettings(ALL_FORMATS, threads=2))
    yield out
    open_bundle(out)  # compares every file with its sha256


LINKED_BYTES = 1_000_000


def _copy_or_link(source: str, target: str) -> str:
    if Path(source).stat().st_size > LINKED_BYTES:
        os.link(source, target)
        return target
    return shutil.copy2(source, target)


@pytest.fixture(scope="session")
def copy_bundle() -> Callable[[Path, Path], Path]:
    """Copies a bundle of 425 MB to a new folder at once: large files are hard links; see `own_file`."""
    return lambda bundle, target: Path(shutil.copytree(bundle, target, copy_function=_copy_or_link))


@pytest.fixture(scope="session")
def own_file() -> Callable[[Path], Path]:
    """Replaces a hard link by a copy of the file, which a test may then change, and returns its path."""

    def own(path: Path) -> Path:
        partial = path.with_name(f"{path.name}.partial")
        shutil.copy2(path, partial)
        return partial.replace(path)

    return own


@pytest.fixture(scope="session", autouse=True)
def _short_timing() -> Iterator[None]:
    """Exports of the command line, too, time each file for a moment only: no test looks at the figures."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "TIMING_S", 0.01)
        yield


@pytest.fixture(scope="session", autouse=True)
def _no_fsync() -> Iterator[None]:
    """Checkpoints of 170 MB would be forced to the disk, which no test needs: nothing here survives a power cut."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda fd: None)
        yield


@pytest.fixture
def tf32_settings() -> Iterator[tuple[Any, Any]]:
    """torch's settings for TF32, of convolutions and of products of matrices, both switched on."""
    settings = torch.backends.cudnn, torch.backends.cuda.matmul
    before = [setting.allow_tf32 for setting in settings]
    for setting in settings:
        setting.allow_tf32 = True
    yield settings
    for setting, allowed in zip(settings, before, strict=True):
        setting.allow_tf32 = allowed


@pytest.fixture(scope="session")
def other_threads_advance() -> Callable[[Callable[[], object]], bool]:
    """Whether Python runs other threads while `work` is in C++.

    `work` is repeated, in a thread, until this thread has had five turns in a row during one call. That is impossible
    where the call holds the GIL: this thread then gets a turn before and after it only. Nothing depends on how fast
    the machine is, if one call takes 10 ms or more; the minute is for a failure.
    """

    def advance(work: Callable[[], object]) -> bool:
        calls = 0
        enough = threading.Event()

        def repeat() -> None:
            nonlocal calls
            while not enough.is_set():
                calls += 1
                work()

        worker = threading.Thread(target=repeat)
        worker.start()
        call = turns = 0
        end = time.monotonic() + 60
        while turns < 5 and worker.is_alive() and time.monotonic() < end:
            turns = turns + 1 if call == calls > 0 else 0
            call = calls
            time.sleep(0.001)
        enough.set()
        worker.join()
        return turns == 5

    return advance


@pytest.fixture(scope="session", autouse=True)
def _writable_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The user's cache, which keeps the compiled libtorch runtime for the next run, or one of this run's own."""
    with pytest.MonkeyPatch.context() as patch:
        cache = Path(os.environ.get("HISTO_CACHE") or "~/.cache/histo-export").expanduser()
        try:
            cache.mkdir(parents=True, exist_ok=True)
            writable = os.access(cache, os.W_OK)
        except OSError:
            writable = False
        if not writable:
            patch.setenv("HISTO_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield
