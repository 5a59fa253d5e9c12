"""Train ResNet34 histology-tile classifiers, export them with proven parity, and measure every runtime."""

from histo_export.errors import HistoError, UsageError

__version__ = "0.1.0"

__all__ = ["HistoError", "UsageError", "__version__"]
