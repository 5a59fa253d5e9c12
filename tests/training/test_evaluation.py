from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from histo_export.figures import save_confusion, save_curves
from histo_export.metrics import chance_remark, report_of
from histo_export.statistics import bootstrap_interval

CLASSES = ("a", "b", "c")


def size_of(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


def logits_for(predicted: list[int]) -> np.ndarray:
    return np.eye(3, dtype=np.float32)[predicted]


def test_figures_of_a_hand_made_confusion() -> None:
    labels = np.array([0, 0, 0, 0, 1, 1, 2, 2])
    report = report_of(CLASSES, logits_for([0, 0, 0, 1, 1, 1, 1, 0]), labels)
    assert report.accuracy == 5 / 8
    assert report.confusion == ((3, 1, 0), (0, 2, 0), (1, 1, 0))
    assert report.support == (4, 2, 2)
    assert report.precision == pytest.approx((3 / 4, 2 / 4, 0))
    assert report.recall == pytest.approx((3 / 4, 1, 0))
    assert report.f1 == pytest.approx((3 / 4, 2 / 3, 0))
    assert report.to_dict()["macro_f1"] == pytest.approx((3 / 4 + 2 / 3) / 3)
    assert report.to_dict()["confusion"] == [[3, 1, 0], [0, 2, 0], [1, 1, 0]]


def test_figures_that_do_not_depend_on_how_many_tiles_a_class_has() -> None:
    labels = np.array([0] * 40 + [1] * 3 + [2] * 2)
    report = report_of(CLASSES, logits_for([0] * 40 + [1, 0, 0] + [0, 0]), labels)
    assert report.accuracy == 41 / 45
    assert report.majority_accuracy == 40 / 45
    assert report.balanced_accuracy == pytest.approx((1 + 1 / 3 + 0) / 3)
    assert report.remarks() == ["never predicted: c"]
    figures = report.to_dict()
    assert figures["balanced_accuracy"] == report.balanced_accuracy
    assert figures["majority_accuracy"] == report.majority_accuracy
    without_c = report_of(CLASSES, logits_for([0, 1]), np.array([0, 1]))
    assert (without_c.macro_f1, without_c.balanced_accuracy) == (1, 1)
    assert without_c.remarks() == []


def test_a_network_that_always_answers_one_class_is_remarked() -> None:
    report = report_of(CLASSES, logits_for([1, 1, 1, 1]), np.array([0, 1, 1, 2]))
    assert report.remarks() == ["the network answers b for every tile: it tells no classes apart"]
    assert report.accuracy == report.majority_accuracy == 0.5
    assert report_of(CLASSES, logits_for([0, 1, 2]), np.array([0, 1, 2])).remarks() == []


@pytest.mark.parametrize(
    ("correct", "tiles", "at_chance"),
    [
        (10, (10, 10, 10), True),  # a third
        (15, (10, 10, 10), True),  # 32 % to 67 %
        (16, (10, 10, 10), False),  # 36.7 % at least
        (2, (10, 10, 10), True),  # worse than chance
        (27, (27, 2, 1), True),  # always the largest class
        (50, (60, 20, 20), True),
        (500, (334, 333, 333), False),
    ],
)
def test_chance_is_the_share_of_the_largest_class(correct: int, tiles: tuple[int, ...], at_chance: bool) -> None:
    n = sum(tiles)
    remark = chance_remark("validation", np.arange(n) < correct, np.repeat([0, 1, 2], tiles), CLASSES)
    assert (remark is not None) == at_chance
    if remark is not None:
        share = f"{100 * max(tiles) / n:.1f} %"
        assert f"is not above chance: always answering a gives {share}. Train longer" in remark
        assert f" %, by tile, {n} tiles)" in remark


def test_a_balanced_network_is_judged_by_balanced_accuracy() -> None:
    labels = np.repeat([0, 1], (450, 50))
    right = np.arange(500) % 5 > 0  # 80 % of each class, below the 90 % of the largest one
    assert chance_remark("validation", right, labels, CLASSES) is not None
    assert chance_remark("validation", right, labels, CLASSES, balanced=True) is None
    remark = chance_remark("validation", labels == 0, labels, CLASSES, balanced=True)
    assert remark is not None
    assert remark.startswith("validation balanced accuracy 50.0 % (95 % interval 50.0 % to 50.0 %, by tile, 500 tiles)")
    assert "a guess gives 50.0 %" in remark


def test_chance_is_judged_by_group_where_there_are_groups() -> None:
    labels = np.arange(60) % 3
    right = np.arange(60) < 32
    assert chance_remark("validation", right, labels, CLASSES) is None
    remark = chance_remark("validation", right, labels, CLASSES, groups=np.arange(60) // 15)
    assert remark is not None, "two of the four slides are wholly wrong"
    assert ", by 4 groups, which says little, 60 tiles)" in remark
    one = np.zeros(60, np.int64)
    assert chance_remark("validation", right, labels, CLASSES, groups=one) is None
    remark = chance_remark("validation", right < 0, labels, CLASSES, groups=one)
    assert remark is not None
    assert "(one group, 60 tiles)" in remark


def test_the_interval_is_that_of_resampled_tiles() -> None:
    rng = np.random.default_rng(1)
    correct = np.arange(200) < 163
    means = rng.choice(correct, (4000, 200)).mean(1)
    low, high = bootstrap_interval(163, 200)
    assert (low, high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.011)
    assert bootstrap_interval(163, 200) == (low, high)
    assert bootstrap_interval(10, 10) == (1, 1)


def test_pictures_are_drawn_for_one_epoch_and_for_many(tmp_path) -> None:
    row = {"train_loss": 1.0, "val_loss": 2.0, "train_accuracy": 0.5, "val_accuracy": 0.4}
    for length in (1, 40):
        save_curves(
            tmp_path / "c.png", [{"epoch": e + 1, **row} for e in range(length)], title="t", chance=1 / 3, kept=1
        )
        width, height = size_of(tmp_path / "c.png")
        assert 1400 < width < 1500
        assert 600 < height < 700
    report = report_of(CLASSES, logits_for([0, 1, 2]), np.array([0, 1, 2]))
    save_confusion(tmp_path / "m.png", report, title="t", split="test")
    assert size_of(tmp_path / "m.png")[0] > 400
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.png", "m.png"]
