"""The model card: what people who did not make the model learn from it."""

from __future__ import annotations

from typing import Any

import pytest

from histo_export.export.bundle import BundleConfig, HistoBlock
from histo_export.export.card import model_card
from histo_export.spec import ModelSpec

TEST = {
    "accuracy": 0.9,
    "interval": [0.85, 0.94],
    "tiles": 200,
    "classes": ["TUMOR", "a|b"],
    "precision": [0.91, 0.89],
    "recall": [0.5, 1.0],
    "f1": [0.7, 0.8],
    "support": [100, 1234],
}


def card(training: dict[str, Any], mpp: float | None = 0.5) -> str:
    """The card of a bundle without files."""
    spec = ModelSpec(2, ("TUMOR", "a|b"), mpp=mpp)
    block = HistoBlock(
        format=2,
        spec=spec.to_dict(),
        head_pool=2,
        input="float",
        precision="fp32",
        files={},
        parity={},
        training=training,
        versions={},
    )
    config = BundleConfig(
        num_classes=2,
        patch_size_pixels=150,
        spacing_um_px=0.5,
        class_names=list(spec.classes),
        transform=[],
        histo=block,
    )
    return model_card(config, spec)


def test_figures_of_each_class() -> None:
    text = card({"data": {"name": "tiles", "synthetic": False}, "test": TEST})
    assert "- Test accuracy: 90.0 % (95 % bootstrap interval 85.0 % to 94.0 %, 200 tiles of the test split)" in text
    assert "| TUMOR | 91.0 % | 50.0 % | 70.0 % | 100 |\n| a\\|b | 89.0 % | 100.0 % | 80.0 % | 1,234 |" in text


def test_an_extended_run_and_the_last_epoch_are_told() -> None:
    history = [{"epoch": e, "val_accuracy": a, "val_loss": 1.0} for e, a in ((1, 0.5), (2, 0.9), (3, 0.8))]
    extended = [{"after_epoch": 2, "from": 2, "to": 3}, {"after_epoch": 3, "from": 3, "to": 9}]
    run = {"epochs": 9, "extended": extended, "history": history, "epoch": 3, "val_accuracy": 0.8}
    text = card(run)
    assert "- epochs: 9 (first 2; extended after epoch 2 to 3, after epoch 3 to 9)\n" in text
    assert (
        "- Epoch: these are the weights of epoch 3 (validation accuracy 80.0 %), and epoch 2 was better (90.0 %)"
        in text
    )
    assert "- Epoch:" not in card(run | {"history": history[:2], "epoch": 2, "val_accuracy": 0.9})
    assert "- epochs: 9\n" in card({"epochs": 9})


def test_use_limits_licence_and_metadata() -> None:
    text = card({"data": {"name": "tiles", "synthetic": False}, "test": TEST})
    head, _, body = text.removeprefix("---\n").partition("\n---\n")
    metadata = dict(line.split(": ", 1) for line in head.splitlines())
    assert metadata["pipeline_tag"] == "image-classification"
    assert metadata["license"] == "unknown"
    assert body.lstrip().startswith("# ResNet34 tile classifier, pool 2")
    for words in (
        "Exported on 20",
        "at 0.5 µm per pixel",
        "not a medical device",
        "Licence of the weights: not stated",
        "73 % of a tile's area",
        "## How to load",
    ):
        assert words in text
    assert "the µm per pixel of its training tiles, which are unknown" in card({}, mpp=None)


@pytest.mark.parametrize(
    ("training", "tiles", "accuracy"),
    [
        ({"data": {"synthetic": False}, "test": TEST}, "real", "90.0 %"),
        ({"data": {"synthetic": True}, "test": TEST}, "synthetic", "90.0 %"),
        ({"trained_elsewhere": True}, "synthetic", "unknown, because the network was trained elsewhere"),
        ({}, "kept", "unknown, because no test is recorded"),
    ],
)
def test_the_card_claims_no_more_than_is_recorded(training: dict[str, Any], tiles: str, accuracy: str) -> None:
    text = card(training)
    assert f"on {tiles} tiles and on noise" in text
    assert "| error | allowed |" in text
    assert "Δlogit" not in text  # an absolute difference beside a relative limit would look like a failure
    assert ("real tiles" in text) == (tiles == "real")
    origin = {"real": "tiles of one data set (below).", "synthetic": "synthetic tiles."}
    if "trained_elsewhere" not in training:
        assert f"It was trained on {origin.get(tiles, 'tiles that are not recorded here.')}" in text
    assert f"- Test accuracy: {accuracy}" in text
    assert ("| class | precision" in text) == ("test" in training)


def test_foreign_weights_are_named_and_no_checkpoint() -> None:
    text = card({"trained_elsewhere": True, "weights": "model.pth"})
    assert "compared with the weights in model.pth in float64" in text
    assert "with the checkpoint in float64" in card({})
