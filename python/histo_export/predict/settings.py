"""What a user may choose for `histo predict`. Plain values, from the command line to the worker on another machine."""

from __future__ import annotations

from dataclasses import dataclass, field

from histo_export.errors import UsageError
from histo_export.spec import Precision


@dataclass(frozen=True)
class TissueSettings:
    """How tissue is separated from glass.

    Attributes:
        threshold: on saturation, 0 to 255; None: Otsu's.
        closing_um: gaps up to this width in µm are closed.
        min_area_um2: smaller pieces of tissue (µm²) are dropped, and smaller holes filled.

    Raises:
        UsageError: a value is impossible.
    """

    threshold: int | None = None
    closing_um: float = 50.0
    min_area_um2: float = 40_000.0

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 <= self.threshold <= 255:
            raise UsageError(f"--tissue-threshold {self.threshold}", "is not in 0 to 255", "Leave it out for Otsu's")
        if not (self.closing_um >= 0 and self.min_area_um2 >= 0):
            raise UsageError("--closing and --min-area", "are not 0 or more", "Use e.g. --closing 50 --min-area 40000")


@dataclass(frozen=True)
class SlideSettings:
    """How a slide is cut into tiles.

    Attributes:
        mpp: µm per pixel of level 0, where the slide's file lacks it or is wrong.
        overlap: of neighbouring tiles, as a fraction of their side, 0 to 0.95.
        stride_um: from tile to tile in µm, in place of `overlap`.
        min_tissue: fraction of a tile that must be tissue.
        everything: take every tile of the slide and look for no tissue.
        tissue: how tissue is found.

    Raises:
        UsageError: a value is impossible.
    """

    mpp: float | None = None
    overlap: float = 0.0
    stride_um: float | None = None
    min_tissue: float = 0.1
    everything: bool = False
    tissue: TissueSettings = field(default_factory=TissueSettings)

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= 0.95:
            raise UsageError(f"--overlap {self.overlap:g}", "is not in 0 to 0.95", "Use e.g. --overlap 0.5")
        if self.stride_um is not None and not self.stride_um > 0:
            raise UsageError(f"--stride {self.stride_um:g}", "is not a positive number of µm", "Use e.g. --stride 50")
        if not 0 <= self.min_tissue <= 1:
            raise UsageError(f"--min-tissue {self.min_tissue:g}", "is not in 0 to 1", "Use e.g. --min-tissue 0.1")
        if self.mpp is not None and not self.mpp > 0:
            raise UsageError(f"--mpp {self.mpp:g}", "is not a positive number of µm", "Use e.g. --mpp 0.25")


@dataclass(frozen=True)
class PredictSettings:
    """How inputs are run. `batch` and `threads` change the speed only, the others may change a result.

    Attributes:
        runtime: the id of a `runtimes.Variant`, e.g. "native" or "native-int8".
        precision: in which it is to run; None for the one that the bundle is made for.
        device: "cpu" or "cuda".
        resize: resample tiles of other sizes than the model's.
        slide: how slides are cut.
        batch: tiles per call of the runtime.
        threads: of the runtime; as many others read.
    """

    runtime: str = "native"
    precision: Precision | None = None
    device: str = "cpu"
    resize: bool = False
    slide: SlideSettings = field(default_factory=SlideSettings)
    batch: int = 32
    threads: int = 1
