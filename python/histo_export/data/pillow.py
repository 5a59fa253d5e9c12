"""Pillow without its warnings and with our own limits of size, for everything that decodes images."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

from PIL import Image

_lock = threading.Lock()
_users = 0
_changes = ExitStack()


@contextmanager
def quiet_pillow() -> Iterator[None]:
    """While any thread is inside, Pillow prints no warnings and has no limit of pixels. The caller checks the size.

    Filters of warnings and Pillow's limit belong to the process. So the first thread changes them for all, and the
    last one restores them.
    """
    global _users
    with _lock:
        if _users == 0:
            _changes.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", module=r"PIL\.")
            _changes.callback(setattr, Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
            Image.MAX_IMAGE_PIXELS = None
        _users += 1
    try:
        yield
    finally:
        with _lock:
            _users -= 1
            if _users == 0:
                _changes.close()
