"""What report.json tells of the processes that made a run. Imports nothing heavy: commands read run folders quickly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Start:
    """One of the processes that made a run: the first one, or one that resumed it.

    Attributes:
        command: as the user typed it; "" where Python called `train`.
        began: UTC, ISO 8601.
        finished: likewise; where the process was killed, the end of its last complete epoch.
        seconds: between them.
        host: name of the machine.
        versions: package → version of what computed.
        after_epoch: epochs that were complete when it began.
        to_epoch: epochs that were complete when it ended; the same as `after_epoch` where it only tested.
    """

    command: str
    began: str
    finished: str
    seconds: float
    host: str
    versions: dict[str, str]
    after_epoch: int
    to_epoch: int


def run_facts(starts: Sequence[Start]) -> dict[str, Any]:
    """When, where and how a run was made, as plain values; `seconds` is the sum over all starts."""
    return {
        "began": starts[0].began,
        "finished": starts[-1].finished,
        "seconds": round(sum(start.seconds for start in starts), 1),
        "starts": [asdict(start) for start in starts],
    }
