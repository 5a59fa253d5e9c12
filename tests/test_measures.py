import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.metrics import average_precision_score, balanced_accuracy_score, f1_score, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from histo_export import measures, metrics
from histo_export.export.card import measure_rows
from histo_export.measures import BINS, Measure, Positive, calibration_error, log_losses, probabilities_of
from histo_export.metrics import report_of
from histo_export.model.provenance import checked_training
from histo_export.statistics import interval_of, mean_interval, resample_weights

CLASSES = ("a", "b", "c")


def made(tiles: int = 80, classes: int = 3, seed: int = 0, tied: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are right more often than not, with many equal ones, and labels."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, classes, tiles)
    logits = random.normal(0, 1, (tiles, classes)) + 1.5 * np.eye(classes)[labels]
    return (np.round(logits, 1) if tied else logits).astype(np.float32), labels


def by_scikit_learn(logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """The figures of tiles that are drawn one by one."""
    probabilities, k = probabilities_of(logits), logits.shape[1]
    tensors = torch.from_numpy(probabilities), torch.from_numpy(labels)
    figures = {
        "log_loss": log_loss(labels, probabilities, labels=range(k)),
        "brier": float(((probabilities - np.eye(k)[labels]) ** 2).sum(1).mean()),
        "calibration_error": float(multiclass_calibration_error(*tensors, k, BINS)),
        "balanced_accuracy": balanced_accuracy_score(labels, logits.argmax(1)),
        "macro_f1": f1_score(labels, logits.argmax(1), labels=np.unique(labels), average="macro", zero_division=0),
    }
    for column in range(k):
        figures[f"roc_auc {column}"] = roc_auc_score(labels == column, probabilities[:, column])
        figures[f"average_precision {column}"] = average_precision_score(labels == column, probabilities[:, column])
    return figures


def test_each_resample_is_that_of_scikit_learn() -> None:
    """The tiles of a resample, drawn one by one, have the figures that come from its weights."""
    logits, labels = made()
    tiles = measures._Tiles(probabilities_of(logits), labels, log_losses(logits, labels))
    drawn = measures._Resampled(tiles, None)
    parts = list(resample_weights(len(labels), 12, seed=3, at_once=400))
    assert [part.shape for part in parts] == [(5, 80), (5, 80), (2, 80)]
    for part in parts:
        drawn.add(part)
    for row, weights in enumerate(np.concatenate(parts)):
        picked = np.repeat(np.arange(len(labels)), weights.astype(int))
        assert len(picked) == len(labels)
        expected = by_scikit_learn(logits[picked], labels[picked])
        ours = {name: float(np.concatenate(values)[row]) for name, values in drawn.values.items()}
        assert ours == pytest.approx(expected, rel=1e-6)


def test_the_values_are_those_of_scikit_learn_and_the_intervals_hold_them() -> None:
    logits, labels = made(300)
    report = report_of(CLASSES, logits, labels)
    found = report.measures
    assert found is not None
    expected = by_scikit_learn(logits, labels)
    named = {name: getattr(found, name) for name in ("log_loss", "brier", "calibration_error", "macro_f1")}
    named |= {f"roc_auc {i}": measure for i, measure in enumerate(found.roc_auc)}
    named |= {f"average_precision {i}": measure for i, measure in enumerate(found.average_precision)}
    for name, measure in named.items():
        assert measure.value == pytest.approx(expected[name], rel=1e-6), name
        assert measure.interval is not None
        if name != "calibration_error":  # biased upwards in resamples
            assert measure.interval[0] < measure.value < measure.interval[1], name
    assert found.balanced_accuracy.value == report.balanced_accuracy == pytest.approx(expected["balanced_accuracy"])
    assert found.macro_f1.value == report.macro_f1
    assert found.log_loss.value == pytest.approx(report.loss)
    assert found.resamples == measures.RESAMPLES
    assert found == report_of(CLASSES, logits, labels).measures
    assert found != report_of(CLASSES, logits, labels, seed=1).measures


def test_a_record_of_all_figures_is_plain_and_readable() -> None:
    logits, labels = made()
    content = report_of(CLASSES, logits, labels, groups=labels).to_dict()
    assert json.loads(json.dumps(content)) == content
    assert content["groups"] == 3
    assert content["chance"] == pytest.approx(1 / 3)
    assert checked_training({"test": content})


def test_groups_are_drawn_whole() -> None:
    groups = np.array(["x", "y", "x", "z", "z", "z"])
    (weights,) = resample_weights(6, 50, groups=groups)
    assert weights.shape == (50, 6)
    for members in ([0, 2], [3, 4, 5]):
        assert (weights[:, members] == weights[:, members[:1]]).all()
    assert (weights[:, [0, 1, 3]].sum(1) == 3).all(), "as many groups as there are"


def test_intervals_by_group_are_wider_where_tiles_of_a_group_are_alike() -> None:
    logits, labels = made(40, tied=False)
    copies = np.repeat(np.arange(40), 10)
    by_tile = report_of(CLASSES, logits[copies], labels[copies])
    by_group = report_of(CLASSES, logits[copies], labels[copies], groups=copies)
    alone = report_of(CLASSES, logits, labels, groups=np.arange(40))
    assert by_group.accuracy == by_tile.accuracy
    assert width(by_group.interval) > 2 * width(by_tile.interval)
    assert by_group.interval == pytest.approx(alone.interval, abs=1e-9), "ten copies of a tile tell what one tells"
    assert by_group.measures is not None
    assert by_tile.measures is not None
    assert alone.measures is not None
    assert width(by_group.measures.brier.interval) > 2 * width(by_tile.measures.brier.interval)
    assert by_group.measures.brier.interval == pytest.approx(alone.measures.brier.interval)
    assert (by_group.groups, by_tile.groups) == (40, None)


def width(interval: Sequence[float] | None) -> float:
    assert interval is not None
    return interval[1] - interval[0]


def test_the_interval_of_a_mean_is_that_of_drawn_tiles() -> None:
    hits = (np.arange(200) < 163).astype(np.float64)
    means = np.random.default_rng(1).choice(hits, (4000, 200)).mean(1)
    assert mean_interval(hits) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.011)
    assert interval_of(np.array([np.nan, np.nan])) is None
    assert mean_interval(hits, groups=np.arange(200)) == pytest.approx(mean_interval(hits), abs=0.011)


def test_the_interval_of_a_mean_over_classes_is_that_of_drawn_tiles() -> None:
    labels = np.repeat([0, 1], (180, 20))
    hits = (np.arange(200) % 4 > 0).astype(np.float64)
    picks = np.random.default_rng(1).integers(0, 200, (4000, 200))
    means = [np.mean([hits[p][labels[p] == c].mean() for c in (0, 1)]) for p in picks]
    expected = pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)
    assert mean_interval(hits, labels=labels) == expected
    assert mean_interval(hits, groups=np.arange(200), labels=labels) == expected


def test_of_one_group_no_interval_is_known() -> None:
    logits, labels = made()
    report = report_of(CLASSES, logits, labels, groups=np.zeros(len(labels)))
    assert report.interval == (0, 1)
    assert report.measures is not None
    assert report.measures.brier.value is not None
    assert report.measures.brier.interval is None
    rows = {name: cells for name, *cells in measure_rows(report.to_dict())}
    assert rows["Brier score (0 to 2)"] == [f"{report.measures.brier.value:.3f}", "unknown"]


def test_what_is_undefined_is_none() -> None:
    logits, labels = made(30)
    found = report_of((*CLASSES, "d"), np.pad(logits, ((0, 0), (0, 1))), labels).measures
    assert found is not None
    assert found.roc_auc[3] == found.average_precision[3] == Measure(None, None)
    assert found.roc_auc[0].value is not None
    one = report_of(CLASSES, logits, np.zeros(30, np.int64)).measures
    assert one is not None
    assert {measure.value for measure in one.roc_auc} == {None}
    assert one.balanced_accuracy.value is not None
    assert report_of(CLASSES, np.where(labels[:, None] == 1, np.nan, logits), labels).measures is None


def test_without_scikit_learn_the_counts_remain(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made()
    full = report_of(CLASSES, logits, labels)
    monkeypatch.setattr(metrics, "installed", lambda module: module != "sklearn")
    light = report_of(CLASSES, logits, labels)
    assert light.measures is None
    assert light.to_dict() == full.to_dict() | {"measures": None}


def test_more_tiles_and_classes_take_fewer_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made()
    monkeypatch.setattr(measures, "MOST_WEIGHTS", 80 * 3 * 500)
    found = report_of(CLASSES, logits, labels).measures
    assert found is not None
    assert found.resamples == 500


@pytest.mark.parametrize(
    ("tiles", "classes", "resamples"),
    [(1000, 9, 1000), (25_000, 9, 444), (200_000, 9, 150), (100_000, 9, 200), (1_000_000, 9, 30), (100_000_000, 9, 20)],
)
def test_the_work_of_the_bootstrap_is_bounded(tiles: int, classes: int, resamples: int) -> None:
    assert measures.resamples_of(tiles * classes) == resamples


def test_tiles_are_ranked_once_for_all_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    logits, labels = made()
    ranked: list[int] = []
    sort = np.argsort

    def spy(*args: Any, **settings: Any) -> Any:
        ranked.append(1)
        return sort(*args, **settings)

    monkeypatch.setattr(measures, "AT_ONCE", 400)
    monkeypatch.setattr(measures.np, "argsort", spy)
    tiles = measures._Tiles(probabilities_of(logits), labels, log_losses(logits, labels))
    for weights in resample_weights(len(labels), 12, at_once=400):
        measures._Resampled(tiles, None).add(weights)
    assert len(ranked) == 3


@pytest.mark.parametrize("asked", [0.0, 0.5, 0.9, 0.95, 1.0])
@pytest.mark.parametrize("positive", ["a", "b"])
def test_the_sensitivity_at_a_specificity_is_that_of_its_threshold(asked: float, positive: str) -> None:
    logits, labels = made(120, classes=2)
    found = report_of(("a", "b"), logits, labels, positive=Positive(positive, asked)).measures
    assert found is not None
    point = found.operating_point
    assert point is not None
    column = ("a", "b").index(positive)
    scores, truth = probabilities_of(logits)[:, column], labels == column

    def at(threshold: float) -> tuple[float, float]:
        return float((scores[truth] >= threshold).mean()), float((scores[~truth] < threshold).mean())

    possible = [at(threshold) for threshold in [*scores, 2.0] if at(threshold)[1] >= asked]
    assert point.sensitivity.value == pytest.approx(max(sensitivity for sensitivity, _ in possible))
    assert point.specificity >= asked
    assert (point.sensitivity.value, point.specificity) == pytest.approx(
        (0, 1) if point.threshold is None else at(point.threshold)
    )
    assert (point.positive, point.asked) == (positive, asked)
    assert point.sensitivity.interval is not None


def test_no_threshold_reaches_a_specificity_of_saturated_tiles() -> None:
    """Two tiles of the other class have a probability of exactly 1, too, so that at 1 the specificity is 80 %."""
    labels = np.array([0] * 10 + [1] * 10)
    logits = np.where(labels[:, None] == [0, 1], 50, 0).astype(np.float32)
    logits[:2] = [0, 50]
    report = report_of(("a", "b"), logits, labels, positive=Positive("b", 0.95))
    assert report.measures is not None
    point = report.measures.operating_point
    assert point is not None
    assert (point.threshold, point.sensitivity.value, point.specificity) == (None, 0, 1)
    record = checked_training({"test": json.loads(json.dumps(report.to_dict()))})["test"]
    assert measure_rows(record)[-1][0] == "sensitivity for b at specificity 100.0 % (no threshold reaches it)"


@pytest.mark.parametrize("negatives", [100, 1000])
def test_a_specificity_is_not_missed_by_rounding(negatives: int) -> None:
    """7 % of the other tiles above all positive ones: 93 % is reached, though 1 - 0.07 is less than 0.93."""
    labels = np.array([0] * negatives + [1] * 10)
    scores = np.where(np.arange(len(labels)) < 7 * negatives // 100, 2.0, 0.0)
    logits = np.stack([np.zeros(len(labels)), np.where(labels == 1, 1.0, scores)], 1)
    found = report_of(("a", "b"), logits.astype(np.float32), labels, positive=Positive("b", 0.93)).measures
    assert found is not None
    assert found.operating_point is not None
    assert found.operating_point.sensitivity.value == 1


def test_no_operating_point_without_tiles_of_both_classes() -> None:
    logits, _ = made(20, classes=2)
    found = report_of(("a", "b"), logits, np.ones(20, np.int64), positive=Positive("b")).measures
    assert found is not None
    assert found.operating_point is None


def test_calibration_error_of_sure_and_right_tiles_is_what_is_missing() -> None:
    probabilities: npt.NDArray[np.float64] = np.array([[0.9, 0.1]] * 10)
    assert calibration_error(probabilities, np.zeros(10, np.int64)) == pytest.approx(0.1)
    assert calibration_error(probabilities, np.ones(10, np.int64)) == pytest.approx(0.9)
    assert calibration_error(np.eye(2)[[0, 1]], np.array([0, 1])) == 0
