"""JSON as RFC 8259 has it: no NaN, no infinity, no key twice. Python's own module writes and reads all three."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

MOST_BYTES = 64_000_000
"""Of a file that is read: a config.json has some 20 kB."""


def dump_json(value: Any, indent: int | None = None, ascii_only: bool = False) -> str:
    """The text of plain values: dicts with string keys, lists, tuples, strings, numbers, booleans, None.

    A number that is not finite is an unknown one, so it becomes null.
    """
    return json.dumps(_finite(value), indent=indent, ensure_ascii=ascii_only, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def load_json(content: str | bytes) -> Any:
    """The value of a text in UTF-8.

    Raises:
        ValueError: it is not JSON, it holds a number that is not finite or a key twice, or it is nested too deeply. The
            message is one line.
    """
    try:
        text = content.decode("utf-8") if isinstance(content, bytes) else content
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_number, parse_float=_number)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_json(path: Path) -> Any:
    """The value of a file; ValueError as `load_json`, or if it is larger than `MOST_BYTES`; OSError if unreadable."""
    with path.open("rb") as file:
        content = file.read(MOST_BYTES + 1)
    if len(content) > MOST_BYTES:
        raise ValueError(f"it has more than {MOST_BYTES / 1e6:.0f} MB")
    return load_json(content)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for name, value in pairs:
        if name in values:
            raise ValueError(f"it has the key {name[:80]!r} twice")
        values[name] = value
    return values


def _number(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"it holds {text[:20]}, which is not a finite number")
    return number
