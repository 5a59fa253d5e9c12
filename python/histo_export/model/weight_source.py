"""What `--weights` names, judged without torch, so that a misspelt word is told before anything is read."""

from __future__ import annotations

import difflib
import os
from pathlib import Path

from histo_export.errors import UsageError

WORDS = ("none", "imagenet")


def weight_file(source: str) -> Path | None:
    """The file that `source` names; None for one of `WORDS`. UsageError where it is neither."""
    if source in WORDS:
        return None
    if not os.path.lexists(source):
        near = difflib.get_close_matches(source, WORDS, n=1)
        hint = f"Did you mean {near[0]}?" if near else "Use none, imagenet, or the path of a .pth or .safetensors file"
        raise UsageError(f"--weights {source}", "is not a file", hint)
    return Path(source)
