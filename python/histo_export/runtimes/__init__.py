"""One small file per runtime, all with one interface: uint8 tiles in, float32 logits out.

`base` is the interface, `registry` the one list of runtimes. A runtime is opened from one file of a bundle, in one
precision, and belongs in a process of its own: the thread pools of different runtimes disturb each other.

To add a runtime, write its file with a subclass of `Runtime` and add one line to `registry.RUNTIMES`.
"""

from histo_export.runtimes.base import LayerTime, Runtime, Tiles, to_float
from histo_export.runtimes.registry import (
    NATIVE_RUNTIMES,
    RUNTIMES,
    RuntimeEntry,
    Variant,
    all_variants,
    check_installed,
    default_variants,
    one_device,
    open_runtime,
    runtime_class,
    variants,
)

__all__ = [
    "NATIVE_RUNTIMES",
    "RUNTIMES",
    "LayerTime",
    "Runtime",
    "RuntimeEntry",
    "Tiles",
    "Variant",
    "all_variants",
    "check_installed",
    "default_variants",
    "one_device",
    "open_runtime",
    "runtime_class",
    "to_float",
    "variants",
]
