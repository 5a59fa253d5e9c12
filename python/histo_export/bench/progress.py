"""How far a run is, and how long the rest will take."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from histo_export.bench.settings import Settings

OPEN_S, WARM_S, CLOSE_S = 4.0, 2.0, 1.0
"""Rough seconds of the steps whose length is unknown beforehand; only the time left is estimated from them."""

SLICE_OVERHEAD_S = 0.3
"""Rough seconds of a slice of a round beside its timed calls, as long as no call has been timed."""


@dataclass(frozen=True)
class Progress:
    """What is being done, how much of the work is done (0 to 1), and the seconds left."""

    doing: str
    done: float
    left_s: float


OnProgress = Callable[[Progress], None]


class ProgressEstimate:
    """The steps left and their rough length.

    Args:
        subjects: number of models.
        settings: of the run.
        report: called at each step.
    """

    def __init__(self, subjects: int, settings: Settings, report: OnProgress) -> None:
        self.report = report
        self.start = time.monotonic()
        self.blocks_left = len(settings.threads)
        workers = subjects * len(settings.runtimes) * self.blocks_left
        rows = workers * len(settings.batches)
        self.steps_left = {"opened": float(workers), "warmed": float(rows), "closed": float(rows)}
        self.step_s = {"opened": OPEN_S, "warmed": WARM_S, "closed": CLOSE_S}
        self.rounds = settings.rounds
        self.rounds_left = float(settings.rounds * self.blocks_left)
        self.round_s = rows / self.blocks_left * (settings.seconds / settings.rounds + SLICE_OVERHEAD_S)

    def rounds_begin(self, round_s: float) -> None:
        """The rounds of a block begin. Calls have been timed, so the true length of a round is known.

        Runtimes that were left out need no more steps.
        """
        self.round_s = round_s
        if self.blocks_left == 1:
            self.steps_left["opened"] = self.steps_left["warmed"] = 0
        self.blocks_left -= 1

    def step(self, doing: str, *, rounds_done: float | None = None, **begun: int) -> None:
        """Reports that a step begins.

        Args:
            doing: for a person to read.
            rounds_done: of this block.
            **begun: the kind of the step (a key of `steps_left`) → how many of them begin.
        """
        if rounds_done is not None:
            self.rounds_left = self.blocks_left * self.rounds + self.rounds - rounds_done
        steps_s = sum(count * self.step_s[kind] for kind, count in self.steps_left.items())
        left_s = self.rounds_left * self.round_s + steps_s
        for kind, count in begun.items():
            self.steps_left[kind] = max(0.0, self.steps_left[kind] - count)
        spent = time.monotonic() - self.start
        self.report(Progress(doing, spent / max(spent + left_s, 1e-9), left_s))
