"""On a Ray cluster of this machine's own: processes that share nothing but the folder."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export import HistoError
from histo_export.predict import run as run_module
from histo_export.predict.inputs import SlideInput, TileSetInput
from histo_export.predict.run import Progress, predict
from histo_export.predict.settings import PredictSettings
from histo_export.predict.work import Work, check_model, read_shard

ray = pytest.importorskip("ray", reason='needs pip install "histo-export[ray]"')

from histo_export.predict.on_ray import TRIES, on_ray  # noqa: E402

SETTINGS = PredictSettings(threads=1, batch=7)


@pytest.fixture(scope="module", autouse=True)
def _small_pictures() -> None:
    """None: Ray's workers draw in processes of their own."""


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    """Two CPUs, which is two actors with one thread each, however many this machine has."""
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def array_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "array.npy"
    np.save(path, np.random.default_rng(2).integers(0, 256, (96, 75, 75, 3), dtype=np.uint8))
    return path


def files_of(folder: Path) -> dict[str, bytes]:
    """All files; the record of the run and its page hold times."""
    times = {folder / "run.json", folder / "index.html"}
    files = (path for path in folder.rglob("*") if path.is_file() and path not in times)
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def actors() -> set[int]:
    """Processes of the cluster that hold a worker."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if entry.read_bytes().startswith(b"ray::MapWorker"):
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


def test_the_same_bytes_as_one_machine_although_a_worker_is_killed(
    cluster, bundle: Path, array_file: Path, large_slide_file: Path, tmp_path: Path, monkeypatch
) -> None:
    monkeypatch.setattr(run_module, "SHARD", 8)
    (tmp_path / "in/TUMOR").mkdir(parents=True)
    for i in range(9):
        Image.new("RGB", (75, 75), (200, 20 * i, 170)).save(tmp_path / f"in/TUMOR/{i}.png")
    (tmp_path / "in/TUMOR/3.png").write_bytes(b"no image")
    (tmp_path / "text.svs").write_text("no slide")
    monkeypatch.chdir(tmp_path)  # relative paths must mean the same there
    inputs = [array_file, large_slide_file, Path("in"), Path("text.svs")]
    killed: set[int] = set()

    def kill_one(progress: Progress) -> None:
        if progress.done and not killed:
            killed.add(min(actors()))
            os.kill(min(killed), signal.SIGKILL)

    far = predict(bundle, inputs, tmp_path / "far", SETTINGS, ray="auto", report=kill_one)
    assert killed
    near = predict(bundle, inputs, tmp_path / "near", SETTINGS)
    assert files_of(tmp_path / "far") == files_of(tmp_path / "near")
    assert {"array/tiles.csv", "large/tiles.geojson", "in/confusion.png", "failed.csv"} <= files_of(
        tmp_path / "far"
    ).keys()
    assert sorted((done.name, done.tiles, done.run) for done in far.done) == sorted(
        (done.name, done.tiles, done.run) for done in near.done
    )
    assert far.executed == near.executed
    assert len(far.failures) == 2


def test_a_unit_that_ends_every_worker_is_listed(cluster, bundle: Path, array_file: Path, tmp_path: Path) -> None:
    driver = os.getpid()

    class Poison(SlideInput):
        def __getattribute__(self, name: str):
            if name == "path" and os.getpid() != driver:
                os.kill(os.getpid(), signal.SIGKILL)
            return super().__getattribute__(name)

    opened, spec, _ = check_model(bundle, "native", None)
    work = [Work(Poison(Path("poison.svs"), "poison"), "key"), Work(TileSetInput(array_file, rows=range(5)), "key")]
    results = list(on_ray("auto", work, opened, spec, tmp_path, SETTINGS))
    failures = [unit.failure for unit in results if unit.failure]
    assert [failure.path for failure in failures] == ["poison.svs"]
    assert f"ended its worker {TRIES} times" in failures[0].reason
    (good,) = (unit for unit in results if not unit.failure)
    assert read_shard(good.work.place(tmp_path))[0].logits.shape == (5, 6)


def test_too_many_threads_for_the_cluster(cluster, bundle: Path, array_file: Path, tmp_path: Path) -> None:
    with pytest.raises(HistoError, match=r"has no room for an actor with 64 CPUs.*Use fewer --threads"):
        predict(bundle, [array_file], tmp_path, PredictSettings(threads=64), ray="auto")
