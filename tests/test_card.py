"""The model card: what people who did not make the model learn from it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from histo_export.export.bundle import BundleConfig, HistoBlock
from histo_export.export.card import model_card
from histo_export.measures import Positive
from histo_export.metrics import report_of
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


NONE = {"value": None, "interval": None}
MEASURES = {
    **dict.fromkeys(("balanced_accuracy", "macro_f1", "log_loss", "brier", "calibration_error"), NONE),
    **{key: [NONE, NONE] for key in ("roc_auc", "average_precision")},
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


def test_measures_floors_and_calibration() -> None:
    logits = np.array([[3, 1], [0, 2], [2, 1], [1, 4], [1, 2], [2, 0]], np.float32)
    labels = np.array([0, 1, 1, 1, 0, 0])
    test = report_of(("TUMOR", "a|b"), logits, labels, positive=Positive("a|b", 0.5)).to_dict()
    colour = {"accuracy": 0.7, "interval": [0.6, 0.8], "ahead": -0.03, "ahead_interval": [-0.09, 0.02]}
    figures = {"calibration_error": 0.2, "log_loss": 1.0, "brier": 0.3}
    after = figures | {"calibration_error": 0.05}
    calibration: dict[str, Any] = {"temperature": 1.5, "tiles": 1200, "val_before": figures, "val_after": after}
    calibration |= {"test_before": figures, "test_after": after | {"calibration_error": 0.1}}
    history = [{"epoch": e, "val_accuracy": a, "val_loss": 1.0} for e, a in ((1, 0.5), (2, 0.9))]
    text = card(
        {
            **{"test": test, "calibration": calibration, "history": history, "epoch": 2, "epochs": 2},
            "val_accuracy": 0.9,
            "floors": {"chance": 0.5, "majority": 0.55, "colour": colour},
        }
    )
    assert "| macro F1 | 66.7 % | " in text
    assert f"| ROC AUC, a\\|b | {test['measures']['roc_auc'][1]['value']:.3f} | " in text
    point = test["measures"]["operating_point"]
    threshold = f"{100 * point['specificity']:.1f} % (probability ≥ {point['threshold']:.3f})"
    assert f"| sensitivity for a\\|b at specificity {threshold} | " in text
    assert "(epoch 2, chosen because its validation accuracy is the highest, which is optimistic)" in text
    assert (
        "- Floors on the same tiles: chance 50.0 %, always the largest class 55.0 %, colour alone 70.0 % (the network "
        "is -3.0 points from it, 95 % interval -9.0 to +2.0; **it does not beat it, and may have learnt nothing but "
        "the stain**)"
    ) in text
    assert (
        "- Calibrated: logits divided by 1.5, fitted on 1,200 validation tiles; calibration error 20.0 % → 5.0 % on "
        "these, 20.0 % → 10.0 % on test"
    ) in text


def test_what_was_changed_in_a_recipe_and_which_weights_are_kept_are_told() -> None:
    text = card({"recipe": "strong", "described_recipe": "strong, hue=0.1, flips=False", "keep": "ema"})
    assert "- recipe: strong, hue=0.1, flips=False\n- keep: ema\n" in text


@pytest.mark.parametrize(
    ("record", "fault"),
    [
        ({"calibration": {"temperature": 0}}, "calibration.temperature"),
        ({"floors": {"chance": 0.5, "majority": 0.5}}, "floors.colour"),
        ({"test": TEST | {"measures": {"roc_auc": 3}}}, "test.measures"),
        (
            {"test": TEST | {"measures": MEASURES | {"roc_auc": []}}},
            "roc_auc, measures.average_precision differ in len",
        ),
    ],
)
def test_a_record_that_no_training_writes_is_refused(record: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        card(record)


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
