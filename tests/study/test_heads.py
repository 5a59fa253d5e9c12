"""Heads on frozen feature maps."""

from __future__ import annotations

import errno
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from histo_export.data import TileData
from histo_export.errors import HistoError
from histo_export.spec import CHANNELS
from histo_export.study import heads
from histo_export.study.design import Arm, Design
from histo_export.study.heads import _array, _Maps
from histo_export.study.runs import StudyFolder


def placed(count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Maps of 2×2 cells, of which the class tells the cell that is high, so that their mean tells nothing."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    maps = random.normal(0, 0.3, (count, CHANNELS, 4)).astype(np.float32)
    maps[np.arange(count), :, labels] += 1
    return maps.reshape(count, CHANNELS, 2, 2), labels


@pytest.fixture(scope="module")
def maps() -> _Maps:
    counts = {"train": 48, "val": 24, "test": 30}
    drawn = {split: placed(count, seed) for seed, (split, count) in enumerate(counts.items())}
    return _Maps({k: v[0] for k, v in drawn.items()}, {k: v[1] for k, v in drawn.items()}, torch.device("cpu"))


def test_a_head_of_a_larger_pool_learns_what_places_tell(maps: _Maps, design: Design) -> None:
    labels = np.arange(30) % 3
    accuracies = {}
    for pool in (1, 2):
        outcome = maps.train(design, Arm("report", pool), 0)
        accuracies[pool] = (outcome.test_logits.argmax(1) == labels).mean()
        assert outcome.test_logits.shape == (30, 3)
        assert outcome.test_logits.dtype == np.float32
        assert [row["epoch"] for row in outcome.history] == list(range(1, heads.EPOCHS + 1))
        assert outcome.val_accuracy == max(row["val_accuracy"] for row in outcome.history)
        assert "seconds" not in outcome.history[0]
    assert accuracies[2] > 0.95
    assert accuracies[1] < 0.7


def test_heads_are_the_same_again_and_others_for_another_seed(maps: _Maps, design: Design) -> None:
    first, again, other = (maps.train(design, Arm("report", 2), seed).test_logits for seed in (0, 0, 1))
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_last_epoch_is_kept_where_it_is_asked_for(maps: _Maps, design: Design) -> None:
    last = replace(design, config=replace(design.config, keep="last"))
    assert maps.train(last, Arm("report", 2), 0).best_epoch == heads.EPOCHS


def test_large_maps_are_in_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heads, "IN_MEMORY_BYTES", 1000)
    with ExitStack() as stack:
        array = _array((10, 512, 2, 2), stack)
        assert isinstance(array, np.memmap)
        array[3] = 1
        assert array.sum() == 2048
        assert not isinstance(_array((10, 2), stack), np.memmap)


def test_a_full_temporary_disk_is_told_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    """Writing to a map of a file without room would end the process."""

    def full(*args: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(heads, "IN_MEMORY_BYTES", 1000)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with ExitStack() as stack, pytest.raises(HistoError, match=r"A temporary file of feature maps.*set TMPDIR"):
        _array((10, 512, 2, 2), stack)


def test_a_backbone_that_fails_is_trained_once_a_seed(
    monkeypatch: pytest.MonkeyPatch, design: Design, data: TileData, tmp_path: Path
) -> None:
    seeds = []

    def fail(design: Design, data: TileData, folder: StudyFolder, recipe: str, seed: int, stack: ExitStack) -> None:
        seeds.append(seed)
        raise HistoError("epoch 1", "the loss is no longer finite", "Train again")

    monkeypatch.setattr(heads, "_backbone_maps", fail)
    with heads.head_runner(design, data, StudyFolder(tmp_path)) as runner:
        for seed in (0, 1):
            for arm in design.arms:
                with pytest.raises(HistoError, match="the loss is no longer finite"):
                    runner(arm, seed)
    assert seeds == [0, 1]
