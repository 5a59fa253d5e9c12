"""Train ResNet34 histology-tile classifiers, export them with proven parity, and measure every runtime."""

import importlib
import os
from typing import TYPE_CHECKING, Any

from histo_export.embedding import cmake_prefix
from histo_export.errors import HistoError, UsageError

if TYPE_CHECKING:
    from histo_export._core import BatchRunner, Engine, FusedHead, Model, TileQueue
    from histo_export.predict import load

__version__ = "0.1.0"

# Nothing here calls home. ONNX Runtime from 1.29 on sends names and hashes of models to its maker, and Ray sends facts
# about its use. Both read these variables when they are imported or started; a value that the user has set stays.
for _variable, _off in {"ORT_DISABLE_TELEMETRY": "1", "RAY_USAGE_STATS_ENABLED": "0"}.items():
    os.environ.setdefault(_variable, _off)

__all__ = [
    "BatchRunner",
    "Engine",
    "FusedHead",
    "HistoError",
    "Model",
    "TileQueue",
    "UsageError",
    "__version__",
    "cmake_prefix",
    "load",
]


def __dir__() -> list[str]:
    return list(__all__)


def __getattr__(name: str) -> Any:
    """What needs the compiled core, loaded when it is asked for: the sources can be imported without it."""
    if name in ("BatchRunner", "Engine", "FusedHead", "Model", "TileQueue"):
        return getattr(importlib.import_module("histo_export._core"), name)
    if name == "load":
        return importlib.import_module("histo_export.predict").load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
