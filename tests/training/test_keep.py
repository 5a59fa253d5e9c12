"""Which weights a run keeps, and what is said of their validation accuracy."""

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import nn

from histo_export.cli import show
from histo_export.data import TileData
from histo_export.errors import HistoError
from histo_export.export.card import epoch_note
from histo_export.model.checkpoint import read_checkpoint
from histo_export.model.provenance import kept_weights
from histo_export.spec import ModelSpec
from histo_export.training import provenance
from histo_export.training.module import TileTraining, moving_average
from histo_export.training.recipes import TrainConfig
from histo_export.training.run import train

CONFIG = TrainConfig(recipe="report", epochs=2, batch_size=8, device="cpu", seed=7, autocast="fp32")
OPTIMISTIC = "chosen because its validation accuracy is the highest, which is optimistic"


def test_the_average_is_of_weights_and_of_running_statistics() -> None:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    average = moving_average(net, 0.5)
    expected: dict[str, torch.Tensor] = {}
    for step in range(12):
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(torch.randn_like(parameter))
        net(torch.randn(8, 3))  # moves the running statistics
        average.update_parameters(net)
        decay = min(0.5, (1 + step) / (10 + step))
        for key, value in net.state_dict().items():
            if value.is_floating_point():
                before = expected.get(key, value)
                expected[key] = decay * before + (1 - decay) * value if step else value.clone()
    for key, value in expected.items():
        assert torch.allclose(average.module.state_dict()[key], value, atol=1e-6), key
    assert {"1.running_mean", "1.running_var"} <= expected.keys()
    assert not any(parameter.requires_grad for parameter in average.parameters())


def state(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path).state_dict


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def small(few: TileData) -> ModelSpec:
    return ModelSpec(pool=1, classes=few.classes, crop=32, tile_size=36)


def test_an_average_is_kept_tested_and_resumed_to_the_same_bits(
    few: TileData, small: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = replace(CONFIG, keep="ema")
    result = train(few, small, config, tmp_path / "a", progress=False)
    assert result.training["averaged"] is True
    best, last = state(result.checkpoint), state(result.out / "last.ckpt")
    assert not torch.equal(best["fc.weight"], last["fc.weight"])
    assert not torch.equal(best["bn1.running_mean"], last["bn1.running_mean"])
    step = TileTraining.training_step

    def interrupted(self: TileTraining, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.history) == 1:
            raise KeyboardInterrupt
        return step(self, batch, batch_idx)

    with monkeypatch.context() as patch:
        patch.setattr(TileTraining, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(few, small, config, tmp_path / "b", progress=False)
    train(few, small, config, tmp_path / "b", existing="resume", progress=False)
    for name in ("best.ckpt", "last.ckpt"):
        assert same_bits(state(tmp_path / "b" / name), state(result.out / name)), name
    notes = [epoch_note(read_checkpoint(result.out / name).training) for name in ("best.ckpt", "last.ckpt")]
    expected = "these are the weights of epoch 2; their moving average, which the run keeps, is in best.ckpt"
    assert notes == ["", expected]
    assert kept_weights(read_checkpoint(result.checkpoint).training) == "moving average of the weights after epoch 2"
    (tmp_path / "b" / "best.ckpt").unlink()
    with pytest.raises(HistoError, match="which held the moving average of the weights after epoch 2"):
        train(few, small, config, tmp_path / "b", existing="resume", progress=False)


def test_the_last_epoch_is_kept_however_good_an_earlier_one_is(
    few: TileData, small: ModelSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    result = train(few, small, replace(CONFIG, keep="last", steps=3, epochs=None), tmp_path / "run", progress=False)
    assert result.epochs == 2, "12 tiles in batches of 8 are 2 steps an epoch"
    assert result.best_epoch == 2
    assert same_bits(state(result.checkpoint), state(result.out / "last.ckpt"))
    assert not (result.out / "calibration.png").exists()
    text = io.StringIO()
    monkeypatch.setattr(show, "out_console", Console(file=text, width=200))
    show.print_accuracy(result)
    assert "optimistic" not in text.getvalue()
    assert "Floors on the same tiles: chance 33.3 %, always the largest class 33.3 %, colour alone" in text.getvalue()
    best = replace(result, training=result.training | {"keep": "best"})
    show.print_accuracy(best)
    assert "(optimistic: the epoch was chosen by it)" in text.getvalue()
    show.print_measures(result.test.to_dict(), result.calibration, exported=False)
    assert "expected calibration error" in text.getvalue()


def history(*accuracies: float) -> list[dict[str, Any]]:
    return [{"epoch": i + 1, "val_accuracy": value, "val_loss": 1.0} for i, value in enumerate(accuracies)]


@pytest.mark.parametrize(
    ("training", "expected"),
    [
        ({"epochs": 3, "epoch": 2, "history": history(0.5, 0.9)}, f"epoch 2, {OPTIMISTIC}"),
        ({"epochs": 1, "epoch": 1, "history": history(0.5)}, ""),
        ({"epochs": 3, "epoch": 3, "history": history(0.5, 0.9, 0.6)}, ""),
        ({"epochs": 3, "epoch": 3, "history": history(0.5, 0.9, 0.6), "keep": "last"}, "epoch 3, the last"),
        (
            {"epochs": 20, "epoch": 3, "history": history(0.5, 0.9, 0.6), "keep": "last"},
            "epoch 3 of 20; the run is not complete",
        ),
        (
            {"epochs": 20, "epoch": 3, "history": history(0.5, 0.9, 0.6), "keep": "ema", "averaged": True},
            "moving average of the weights after epoch 3 of 20; the run is not complete",
        ),
        ({"epochs": 3, "epoch": 3, "history": history(0.5, 0.9, 0.6), "keep": "ema"}, ""),
        ({}, ""),
    ],
)
def test_a_chosen_validation_accuracy_is_called_optimistic(training: dict[str, Any], expected: str) -> None:
    assert kept_weights(training) == expected
    if training.get("keep") == "last":
        assert epoch_note(training) == ""


def test_runs_of_older_versions_had_what_was_fixed_then() -> None:
    """Their identity lacks the parts that can be changed since."""
    now = TrainConfig().identity(5)
    old = {key: value for key, value in now.items() if key != "keep"}
    old["settings"] = {
        key: now["settings"][key] for key in ("augmentation", "warmup", "label_smoothing", "weight_decay")
    }
    old["augmentation"] = {
        key: now["augmentation"][key] for key in ("brightness", "contrast", "saturation", "hue", "stain")
    }
    assert provenance._with_new_entries(old) == now
    report = TrainConfig(recipe="report").identity(5)
    assert provenance._with_new_entries(report | {"augmentation": None}) == report
