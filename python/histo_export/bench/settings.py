"""How `histo bench` measures, as its options say."""

from __future__ import annotations

from dataclasses import dataclass

from histo_export.errors import UsageError
from histo_export.runtimes import NATIVE_RUNTIMES, Variant
from histo_export.statistics import MIN_ROUNDS


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        runtimes: each in the precision that it is asked for.
        batches: tiles per call.
        threads: numbers of threads, each measured in a block of its own.
        rounds: of every row, at least.
        seconds: of timed calls of every row in all, at least.
        device: "cpu" or "cuda".
        seed: of the order within rounds.
        may_lack: leave out and report the runtimes that are unavailable here, rather than fail.
        stages: also time the native engine's stages.

    Raises:
        UsageError: too few rounds for an interval, or no time.
    """

    runtimes: tuple[Variant, ...]
    batches: tuple[int, ...]
    threads: tuple[int, ...]
    rounds: int = 15
    seconds: float = 3.0
    device: str = "cpu"
    seed: int = 0
    may_lack: bool = False
    stages: bool = False

    def __post_init__(self) -> None:
        if self.rounds < MIN_ROUNDS:
            raise UsageError(
                f"--rounds {self.rounds}", "are too few for an interval", f"Use --rounds {MIN_ROUNDS} or more"
            )
        if self.stages and not any(runtime.runtime in NATIVE_RUNTIMES for runtime in self.runtimes):
            cause = "is about the native engine, which is not among the runtimes"
            raise UsageError("--stages", cause, f"Add {NATIVE_RUNTIMES[0]} to --runtimes")
        if not self.seconds > 0:
            raise UsageError(f"--time {self.seconds:g}", "is not a positive number of seconds", "Use e.g. --time 3")
