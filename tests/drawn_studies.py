"""Outcomes of a study's runs that are drawn instead of trained."""

from __future__ import annotations

import numpy as np

from histo_export.data import TileData
from histo_export.study.design import Arm
from histo_export.study.outcome import Outcome


def drawn_outcome(data: TileData, arm: Arm, seed: int, accuracy: float) -> Outcome:
    """About so many of the test tiles are right; which ones depends on the tile, the arm and the seed."""
    labels, classes = data.test.labels, len(data.classes)
    hard = np.random.default_rng(1).normal(size=len(labels))
    own = np.random.default_rng([arm.pool, len(arm.recipe), seed]).normal(size=len(labels))
    order = np.argsort(hard + 0.3 * own)
    answers = labels.copy()
    wrong = order[round(accuracy * len(labels)) :]
    answers[wrong] = (answers[wrong] + 1) % classes
    logits = 2 * np.eye(classes, dtype=np.float32)[answers]
    history = [
        {
            "epoch": epoch + 1,
            "lr": 1e-3,
            "train_loss": 1 / (epoch + 1),
            "train_accuracy": 0.5 + 0.1 * epoch,
            "val_loss": 1.1 / (epoch + 1),
            "val_accuracy": accuracy - 0.1 + 0.05 * epoch,
        }
        for epoch in range(3)
    ]
    return Outcome(arm, seed, history, 3, history[2]["val_accuracy"], logits, 10.0)
