"""Temperature scaling: one number by which all logits are divided, so that probabilities say how often they are right.

It is fitted here, where the validation tiles are at hand, and recorded in best.ckpt. The weights there stay as they
were trained, so that a run can go on. `Checkpoint.calibrated` divides the head at export: one place for all formats.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.measures import Labels, calibration_error, log_losses, probabilities_of

LIMITS = (0.05, 20.0)
"""Of the temperature. Where every validation tile is right, the best one is 0, which no network can have."""
LEAST_LOSS = 1e-6
"""Nats. Below, all low temperatures are as good."""


@dataclass(frozen=True)
class Reliability:
    """How far probabilities are from the truth, see `measures.Measures`."""

    calibration_error: float
    log_loss: float
    brier: float


@dataclass(frozen=True)
class Calibrated:
    """A temperature and what it changes.

    Attributes:
        temperature: by which the logits are divided; above 1 it lowers the probability of the top class.
        tiles: validation tiles that it was fitted on.
        val_before, val_after: on these tiles, so that `val_after` is optimistic.
        test_before, test_after: on the test tiles, which the fit has not seen.
    """

    temperature: float
    tiles: int
    val_before: Reliability
    val_after: Reliability
    test_before: Reliability
    test_after: Reliability

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def remark(self) -> str | None:
        """A sentence where the tiles do not determine the temperature; None elsewhere."""
        at_limit = any(abs(self.temperature / limit - 1) < 0.01 for limit in LIMITS)
        if not at_limit and self.val_after.log_loss > LEAST_LOSS:
            return None
        return (
            f"the temperature {self.temperature:.3g} is not to be trusted: the {self.tiles:,} validation tiles are too "
            "few or too easy to tell how sure the network may be"
        )


def fit_temperature(logits: npt.NDArray[np.floating], labels: Labels) -> float:
    """The temperature of the lowest log loss (Guo et al. 2017, arXiv:1706.04599), within `LIMITS`.

    Args:
        logits: `(n, classes)`, finite.
        labels: `(n,)`.
    """
    from scipy.optimize import minimize_scalar

    exact = logits.astype(np.float64)
    # The loss is convex in 1/T; its logarithm spaces small and large temperatures alike, and keeps one minimum.
    found = minimize_scalar(
        lambda log: float(log_losses(exact / np.exp(log), labels).mean()),
        bounds=np.log(LIMITS),
        method="bounded",
        options={"xatol": 1e-8},
    )
    return float(np.exp(found.x))


def calibrate(
    val_logits: npt.NDArray[np.floating],
    val_labels: Labels,
    test_logits: npt.NDArray[np.floating],
    test_labels: Labels,
) -> Calibrated:
    """Fits on validation, and tells what that changes there and on test; logits `(n, classes)`, labels `(n,)`."""
    temperature = fit_temperature(val_logits, val_labels)
    return Calibrated(
        temperature=temperature,
        tiles=len(val_labels),
        val_before=reliability(val_logits, val_labels),
        val_after=reliability(val_logits / temperature, val_labels),
        test_before=reliability(test_logits, test_labels),
        test_after=reliability(test_logits / temperature, test_labels),
    )


def reliability(logits: npt.NDArray[np.floating], labels: Labels) -> Reliability:
    """The figures of logits `(n, classes)` against labels `(n,)`."""
    probabilities = probabilities_of(logits)
    truth = labels[:, None] == np.arange(logits.shape[1])
    return Reliability(
        calibration_error=calibration_error(probabilities, labels),
        log_loss=float(log_losses(logits, labels).mean()),
        brier=float(((probabilities - truth) ** 2).sum(1).mean()),
    )
