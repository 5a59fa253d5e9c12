"""What is kept of a run that is complete: its test logits and learning curves in one small file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError, not_written, one_line
from histo_export.files import atomic_file
from histo_export.strict_json import dump_json, load_json
from histo_export.study.design import Arm
from histo_export.training.folder import COLUMNS

FORMAT = 1
LOGITS = "test_logits"


@dataclass(frozen=True)
class Outcome:
    """A run of a study, without anything that depends on time, but for `seconds`.

    Attributes:
        arm, seed: which run.
        history: a row an epoch, with the columns of metrics.csv but `seconds`.
        best_epoch: the epoch (from 1) that is kept.
        val_accuracy: of that epoch; optimistic where the epoch was chosen by it.
        test_logits: float32 `(tiles, classes)` of all test tiles.
        seconds: that the run took.

    Raises:
        ValueError: a number is not finite, or there is no epoch.
    """

    arm: Arm
    seed: int
    history: list[dict[str, Any]]
    best_epoch: int
    val_accuracy: float
    test_logits: npt.NDArray[np.float32]
    seconds: float

    def __post_init__(self) -> None:
        if not np.isfinite(self.test_logits).all():
            raise ValueError("a logit is not finite")
        if not self.history or not all(map(_is_row, self.history)):
            raise ValueError("a row of the learning curves lacks a finite number")
        if not 1 <= self.best_epoch <= len(self.history):
            raise ValueError(f"epoch {self.best_epoch} of {len(self.history)}")
        if not 0 <= self.val_accuracy <= 1 or not 0 <= self.seconds < math.inf:
            raise ValueError(f"accuracy {self.val_accuracy}, {self.seconds} s")

    def write(self, path: Path) -> None:
        """Writes the file atomically; HistoError where it can't be written."""
        from safetensors.numpy import save

        facts = {
            "format": FORMAT,
            "recipe": self.arm.recipe,
            "pool": self.arm.pool,
            "seed": self.seed,
            "history": self.history,
            "best_epoch": self.best_epoch,
            "val_accuracy": self.val_accuracy,
            "seconds": self.seconds,
        }
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_file(path) as partial:
                content = {LOGITS: np.ascontiguousarray(self.test_logits)}
                partial.write_bytes(save(content, metadata={"outcome": dump_json(facts)}))
        except OSError as error:
            raise not_written(path, error) from error

    @classmethod
    def read(cls, path: Path, arm: Arm, seed: int, shape: tuple[int, int]) -> Outcome:
        """The run of an arm and a seed in a file; HistoError where it is damaged, or another one.

        Args:
            path: the file.
            arm, seed: the run that belongs in this place.
            shape: of its logits.
        """
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, framework="numpy") as file:
                facts = load_json(file.metadata()["outcome"])
                logits = file.get_tensor(LOGITS)
            if facts["format"] != FORMAT or logits.shape != shape or logits.dtype != np.float32:
                raise ValueError(f"format {facts['format']}, logits {logits.shape} {logits.dtype}")
            if (found := (Arm(facts["recipe"], facts["pool"]), facts["seed"])) != (arm, seed):
                raise ValueError(f"it is that of {found[0]}, seed {found[1]}")
            return cls(
                arm,
                seed,
                facts["history"],
                facts["best_epoch"],
                facts["val_accuracy"],
                logits,
                facts["seconds"],
            )
        except (OSError, SafetensorError, LookupError, TypeError, ValueError) as error:
            step = "Delete it and repeat the command: the run is done again"
            raise HistoError(path, f"is not the outcome of a run of this study ({one_line(error)})", step) from error


def _is_row(row: Any) -> bool:
    """Whether it holds a finite number in each column of the learning curves."""
    numbers = [row.get(name) for name in COLUMNS if name != "seconds"] if isinstance(row, dict) else [None]
    return all(isinstance(number, int | float) and math.isfinite(number) for number in numbers)
