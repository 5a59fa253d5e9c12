"""What libraries tell about files and fonts: collected for run.json, and kept off the user's screen.

Pillow, tifffile, Matplotlib and NumPy warn of oddities for the people who program with them, once for a file or for a
process, between the lines of a progress bar. What matters to a user is an input's failure or a warning in its summary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

LIMIT = 100
"""Different messages that are kept."""


class _Collector(logging.Handler):
    """Keeps each message once, in the order of appearance."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        text = f"{record.name}: {' '.join(record.getMessage().split())}"
        if text not in self.messages and len(self.messages) < LIMIT:
            self.messages.append(text)


@contextmanager
def collected_messages() -> Iterator[list[str]]:
    """Collects all warnings and messages of libraries in the block, in every thread; none is printed."""
    collector = _Collector()
    root = logging.getLogger()
    root.addHandler(collector)
    logging.captureWarnings(True)
    try:
        yield collector.messages
    finally:
        logging.captureWarnings(False)
        root.removeHandler(collector)
