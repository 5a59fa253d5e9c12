"""The interface of a runtime."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import numpy.typing as npt

from histo_export.errors import UsageError
from histo_export.spec import Precision

if TYPE_CHECKING:
    from histo_export._core import Engine

Tiles = npt.NDArray[np.uint8]
"""`(n, side, side, 3)` RGB, as a decoder gives them."""


@dataclass(frozen=True)
class TileSide:
    """What a file demands of a tile's height and width.

    Attributes:
        pixels: of both.
        fixed: both must be exactly `pixels`. Otherwise they may be more, and the centre is cut out.
    """

    pixels: int
    fixed: bool


LayerTime = tuple[str, str, float]
"""Stage (one of `spec.STAGES`), layer, seconds."""


Names = Mapping[Precision, str]
"""The precisions that a runtime computes in → what reports call it there."""


class Runtime(ABC):
    """A model file opened for inference on the CPU or one GPU.

    Args:
        file: the model file, of the kind that `registry.RUNTIMES` names.
        threads: that compute.
        device: "cpu" or "cuda".
        precision: a key of `names`. If it is unavailable, opening fails; there is no fallback. What really runs is told
            by `executed`.

    Raises:
        UsageError: the device or the precision is unavailable.
        HistoError: the file is unreadable.
    """

    names: ClassVar[Names]

    def __init__(self, file: Path, *, threads: int, device: str = "cpu", precision: Precision = "fp32") -> None:
        self.file, self.threads, self.device, self.precision = file, threads, device, precision

    @property
    def name(self) -> str:
        """What reports call it."""
        return self.names[self.precision]

    @classmethod
    def unavailable(cls, device: str, precision: Precision = "fp32") -> str | None:
        """Why this runtime cannot run any file on this machine, device and precision; None where it can.

        Only for what a user may well lack, such as a compiler. The first call may take as long as it takes to compile
        the runtime.
        """
        return None

    @property
    @abstractmethod
    def executed(self) -> str:
        """What really ran, for reports: device or provider, then precision."""

    @property
    def isa(self) -> str:
        """The instruction set of the kernels; "" where the runtime does not tell it."""
        return ""

    def devices(self, tiles: Tiles) -> list[str]:
        """The devices or providers that computed something in one run over `tiles`.

        Where the library can tell it, this is observed and not read from the settings. It may open the model a second
        time under a profiler, so it belongs after all that is measured.
        """
        return [self.executed.split()[0]]

    def batch_target(self) -> Engine | Runtime:
        """What `_core.BatchRunner` is given to run batches: this object, or one that needs no Python to run."""
        return self

    def warmup(self, batch: int, side: int) -> None:
        """Runs black tiles, so that the first real ones find everything compiled, allocated and loaded."""
        self.run(np.zeros((batch, side, side, 3), np.uint8))

    @property
    @abstractmethod
    def side(self) -> TileSide:
        """The side of the tiles that the file takes."""

    def run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Logits `(n, classes)`, in memory of their own. It returns when they are in host memory.

        Raises:
            UsageError: `tiles` are not what the file takes, see `check_tiles`.
        """
        check_tiles(tiles, self.side)
        return self._run(tiles)

    @property
    def features(self) -> int:
        """Floats of a tile's feature vector, which is what the linear layer gets; 0 if the runtime gives none."""
        return 0

    def run_with_features(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """Logits and, after them, the feature vector: `(n, classes + features)`.

        Raises:
            UsageError: as `run`, or the runtime gives no feature vectors.
        """
        check_tiles(tiles, self.side)
        return self._run_with_features(tiles)

    def stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """The outputs of `spec.STAGES` in their order, each `(n, channels, h, w)`; the head's are the logits.

        Raises:
            UsageError: as `run`.
        """
        check_tiles(tiles, self.side)
        return self._stages(tiles)

    @abstractmethod
    def _run(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """`run` for tiles that have been checked."""

    def _run_with_features(self, tiles: Tiles) -> npt.NDArray[np.float32]:
        """`run_with_features` for tiles that have been checked."""
        raise UsageError(self.name, "gives logits only, and no feature vectors", "Use --runtime native")

    @abstractmethod
    def _stages(self, tiles: Tiles) -> Mapping[str, npt.NDArray[np.float32]]:
        """`stages` for tiles that have been checked."""

    def layers(self, tiles: Tiles) -> list[LayerTime] | None:
        """The time of each layer in one run over `tiles`, in the order of execution, under the runtime's own profiler.

        The profiler slows what it watches, so these are shares and not speeds. None where there is no profiler.
        """
        return None


def check_tiles(tiles: Tiles, side: TileSide) -> None:
    """Judges tiles for all runtimes alike.

    Left to themselves, some would compute logits of a sliver from tiles that are smaller than the crop, some would fail
    with a text about their own operators, and some would return nothing for no tile.

    Raises:
        UsageError: `tiles` are not uint8 `(n, height, width, 3)` with n of at least 1 and sides as `side` says.
    """
    if tiles.dtype != np.uint8 or tiles.ndim != 4 or tiles.shape[3] != 3:
        shape = "×".join(map(str, tiles.shape))
        raise UsageError("tiles", f"are {tiles.dtype} {shape}", "Give uint8 RGB (n, height, width, 3)")
    n, height, width, _ = tiles.shape
    if n == 0:
        raise UsageError("tiles", "are none", "Give at least one")
    if (height, width) != (side.pixels,) * 2 if side.fixed else min(height, width) < side.pixels:
        takes = f"{side.pixels} × {side.pixels} pixels" + ("" if side.fixed else " or more")
        raise UsageError("tiles", f"are {height} × {width} pixels", f"This model takes {takes}")


def to_float(tiles: Tiles) -> npt.NDArray[np.float32]:
    """What ToTensor does: `(n, 3, side, side)` float32 in [0, 1]."""
    return np.ascontiguousarray(tiles.transpose(0, 3, 1, 2)).astype(np.float32) / np.float32(255)
