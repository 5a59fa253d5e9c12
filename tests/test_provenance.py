"""The record of a training in checkpoints and bundles: what is wrong is named by its entry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from histo_export.errors import HistoError
from histo_export.model.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from histo_export.model.provenance import checked_training

TEST = {"accuracy": 0.9, "interval": [0.8, 1.0], "tiles": 9}
WRONG: list[tuple[Any, str]] = [
    *((value, "Input should be") for value in (None, "x", [], 5)),
    *(({"data": value}, "data: ") for value in (None, "x", [], 5)),
    *(({"data": {"synthetic": value}}, "data.synthetic: ") for value in ([], "yes", 1, None)),
    *(({"data": {"tiles": value}}, "data.tiles") for value in ([], 5, {"train": "x"}, {"train": -1})),
    *(({"test": TEST | {"accuracy": value}}, "test.accuracy: ") for value in (None, "x", -5, True, float("nan"))),
    *(({"test": TEST | {"interval": value}}, "test.interval") for value in (None, "x", [], [0.1], [["a"]], {})),
    *(({"test": TEST | {"tiles": value}}, "test.tiles: ") for value in (None, "x", -5, True)),
    ({"test": TEST | {"classes": ["A", "B"], "support": [1]}}, "test: classes, support differ in length"),
    ({"seed": "0"}, "seed: "),
]


@pytest.mark.parametrize("training", [{}, {"test": None}, {"test": TEST, "of a later version": [1]}])
def test_a_record_of_any_version(training: dict[str, Any]) -> None:
    assert checked_training(training) is training


def test_a_wrong_entry_is_named() -> None:
    for training, message in WRONG:
        with pytest.raises(ValueError, match=message):
            checked_training(training)


def test_a_checkpoint_is_refused_in_one_line(checkpoint: Checkpoint, tmp_path: Path) -> None:
    block = checkpoint.block() | {"training": {"data": {"synthetic": []}}}
    write_checkpoint(tmp_path / "a.ckpt", {"state_dict": checkpoint.state_dict, "histo": block})
    with pytest.raises(
        HistoError, match=r"a\.ckpt: has a wrong record of its training \(data\.synthetic: .*\)"
    ) as stop:
        read_checkpoint(tmp_path / "a.ckpt")
    assert "\n" not in str(stop.value)
