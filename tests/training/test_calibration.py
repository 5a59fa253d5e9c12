"""One temperature, fitted on validation, recorded in the checkpoint, and divided into the head at export."""

import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from histo_export.data import TileData, TileSet
from histo_export.export import run as export_run
from histo_export.export.card import describe_calibration
from histo_export.export.formats import FORMATS, Source, write_formats
from histo_export.export.run import ExportSettings, export_bundle
from histo_export.measures import log_losses
from histo_export.metrics import chance_remark
from histo_export.model.checkpoint import Checkpoint, read_checkpoint
from histo_export.model.provenance import checked_training
from histo_export.runtimes import open_runtime
from histo_export.spec import ModelSpec
from histo_export.training import run as training_run
from histo_export.training.calibration import LIMITS, calibrate, fit_temperature
from histo_export.training.floors import colour_floor
from histo_export.training.folder import RunFolder
from histo_export.training.module import TileTraining
from histo_export.training.recipes import TrainConfig
from histo_export.training.result import TrainResult
from histo_export.training.run import train

CONFIG = TrainConfig(recipe="report", epochs=1, batch_size=8, device="cpu", seed=7, autocast="fp32", calibrate=True)


def sampled(temperature: float, tiles: int = 4000) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are too large by `temperature`, and labels drawn with the true probabilities."""
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, (tiles, 4))
    gumbel = random.gumbel(size=logits.shape)
    return (temperature * logits).astype(np.float32), (logits + gumbel).argmax(1)


@pytest.mark.parametrize("temperature", [0.3, 1.0, 4.0])
def test_the_temperature_of_the_lowest_loss_is_found(temperature: float) -> None:
    logits, labels = sampled(temperature)
    fitted = fit_temperature(logits, labels)
    assert fitted == pytest.approx(temperature, rel=0.05)
    exact = logits.astype(np.float64)
    loss = {t: log_losses(exact / t, labels).mean() for t in (fitted / 1.001, fitted, fitted * 1.001)}
    assert min(loss, key=loss.__getitem__) == fitted


def test_what_a_temperature_changes_is_told_for_both_splits() -> None:
    (val, val_labels), (test, test_labels) = sampled(3.0, 1000), sampled(2.5, 500)
    found = calibrate(val, val_labels, test, test_labels)
    assert found.val_after.log_loss < found.val_before.log_loss
    assert found.test_after.calibration_error < found.test_before.calibration_error
    assert found.temperature == fit_temperature(val, val_labels), "test has no part in it"
    assert found.remark() is None
    record = checked_training({"calibration": json.loads(json.dumps(found.to_dict()))})["calibration"]
    assert describe_calibration(record).startswith(f"logits divided by {found.temperature:.4g}, fitted on 1,000 valid")


def test_tiles_that_are_too_easy_give_a_remark_in_place_of_a_temperature_of_zero() -> None:
    labels = np.arange(30) % 3
    found = calibrate(3 * np.eye(3)[labels], labels, 3 * np.eye(3)[labels], labels)
    assert LIMITS[0] <= found.temperature < 0.2
    remark = found.remark()
    assert remark is not None
    assert "is not to be trusted: the 30 validation tiles are too few or too easy" in remark


def with_temperature(checkpoint: Checkpoint, temperature: float) -> Checkpoint:
    logits, labels = sampled(2.0, 50)
    record = calibrate(logits, labels, logits, labels).to_dict() | {"temperature": temperature}
    return replace(checkpoint, training=checkpoint.training | {"calibration": record})


def test_only_the_head_is_divided(checkpoint: Checkpoint) -> None:
    calibrated = with_temperature(checkpoint, 1.7).calibrated()
    for key, value in checkpoint.state_dict.items():
        expected = (value.double() / 1.7).float() if key.startswith("fc.") else value
        assert torch.equal(calibrated.state_dict[key], expected), key
    assert checkpoint.calibrated() is checkpoint


RUNTIMES = {"onnxruntime": "onnx", "torchscript": "torchscript", "native": "native", "torch": "native"}


@pytest.fixture(scope="module")
def files(checkpoint: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """The files of the network, and of the calibrated one."""
    folders = tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("calibrated")
    for folder, made in zip(folders, (checkpoint, with_temperature(checkpoint, 1.7).calibrated()), strict=True):
        write_formats(folder, ["onnx", "torchscript", "native"], Source(made, name="made"), lambda step: None)
    yield folders
    for folder in folders:
        shutil.rmtree(folder)


@pytest.mark.parametrize("name", RUNTIMES)
def test_every_runtime_gives_the_logits_over_the_temperature(
    name: str, checkpoint: Checkpoint, files: tuple[Path, Path]
) -> None:
    file = FORMATS[RUNTIMES[name]].file
    assert file is not None
    plain, calibrated = (
        open_runtime(name, folder / file, threads=1).run(checkpoint.golden).astype(np.float64) for folder in files
    )
    assert np.abs(calibrated - plain / 1.7).max() < 5e-6 * np.abs(plain).max()
    assert (calibrated.argmax(1) == plain.argmax(1)).all()


def test_an_export_divides(checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Checkpoint] = []

    def stop(folder: Path, formats: Any, source: Source, report: Any) -> None:
        written.append(source.checkpoint)
        raise KeyboardInterrupt

    monkeypatch.setattr(export_run, "write_formats", stop)
    with pytest.raises(KeyboardInterrupt):
        export_bundle(with_temperature(checkpoint, 1.7), tmp_path / "bundle", ExportSettings(["native"]))
    ratio = checkpoint.state_dict["fc.weight"] / written[0].state_dict["fc.weight"]
    assert torch.allclose(ratio, torch.tensor(1.7))


@pytest.fixture(scope="module")
def calibrated_run(few: TileData, tmp_path_factory: pytest.TempPathFactory) -> TrainResult:
    spec = ModelSpec(pool=1, classes=few.classes, crop=32, tile_size=36)
    return train(few, spec, CONFIG, tmp_path_factory.mktemp("run") / "run", progress=False)


def test_a_run_records_its_temperature_and_keeps_its_weights(calibrated_run: TrainResult) -> None:
    result = calibrated_run
    best, last = read_checkpoint(result.checkpoint), read_checkpoint(result.out / "last.ckpt")
    assert result.calibration is not None
    assert best.training["calibration"] == result.calibration
    assert all(torch.equal(value, last.state_dict[key]) for key, value in best.state_dict.items())
    assert result.test.loss == pytest.approx(result.calibration["test_after"]["log_loss"]), "as the exported files"
    report = json.loads((result.out / "report.json").read_text())
    assert report["calibration"] == result.calibration
    assert report["floors"]["colour"]["accuracy"] == result.floors["colour"]["accuracy"]
    assert (result.out / "calibration.png").is_file()


def test_intervals_are_by_group_where_the_test_tiles_have_groups(
    calibrated_run: TrainResult, few: TileData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_groups(tiles: TileSet) -> TileSet:
        groups = np.array([f"slide {i % 2}" for i in range(len(tiles))])
        return TileSet(tiles.classes, tiles.labels, tiles.names, tiles.tile, groups=groups)

    grouped = replace(few, val=with_groups(few.val), test=with_groups(few.test))
    of_floor: list[Any] = []
    of_validation: list[Any] = []

    def spy_on_validation(*args: Any, **settings: Any) -> str | None:
        of_validation.append(settings["groups"])
        return chance_remark(*args, **settings)

    def spy(*args: Any, **settings: Any) -> Any:
        of_floor.append(settings["groups"])
        return colour_floor(*args, **settings)

    monkeypatch.setattr(training_run, "colour_floor", spy)
    monkeypatch.setattr(training_run, "chance_remark", spy_on_validation)
    out = shutil.copytree(calibrated_run.out, tmp_path / "run")
    assert calibrated_run.test.groups is None
    assert train(grouped, calibrated_run.spec, CONFIG, out, existing="resume", progress=False).test.groups == 2
    assert of_floor[0].tolist() == [f"slide {i % 2}" for i in range(len(few.test))]
    assert of_validation[0] is grouped.val.groups


def test_a_complete_run_is_calibrated_later_and_by_validation_alone(
    calibrated_run: TrainResult, few: TileData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(calibrated_run.out, tmp_path / "run")
    monkeypatch.setattr(TileTraining, "training_step", lambda *args: pytest.fail("it is trained again"))
    without = replace(CONFIG, calibrate=False)
    plain = train(few, calibrated_run.spec, without, out, existing="resume", progress=False)
    assert plain.calibration is None
    assert not (out / "calibration.png").exists(), "it is of the earlier test"
    assert (out / "probabilities.png").exists()
    assert read_checkpoint(out / "best.ckpt").calibrated().training["calibration"] is None
    assert calibrated_run.calibration is not None
    assert plain.test.loss == pytest.approx(calibrated_run.calibration["test_before"]["log_loss"])
    seen: list[np.ndarray] = []

    def spy(val: np.ndarray, val_labels: np.ndarray, *test: np.ndarray) -> Any:
        seen.append(val_labels)
        return calibrate(val, val_labels, *test)  # type: ignore[arg-type]

    monkeypatch.setattr(training_run, "calibrate", spy)
    monkeypatch.setattr(training_run, "colour_floor", lambda *args, **settings: pytest.fail("it is known"))
    options = {"training": {"calibrate": True}}
    again = train(few, calibrated_run.spec, CONFIG, out, existing="resume", options=options, progress=False)
    assert RunFolder(out).read_options() == options, "the next resumption tests as this one"
    assert again.calibration == calibrated_run.calibration
    assert again.floors == calibrated_run.floors
    assert len(seen[0]) == len(few.val)
