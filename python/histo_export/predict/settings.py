"""What a user may choose for `histo predict`. Plain values, from the command line to the worker on another machine."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, get_args

from histo_export.errors import UsageError
from histo_export.spec import MPP_LIMITS, AskedPrecision, is_number

GridUnit = Literal["seen", "tile"]
"""The square that a grid consists of, and that areas and pictures are about: what the network sees, or the tile."""

Resample = Literal["bilinear", "bicubic"]
"""PIL's filters, both antialiased."""

SlideResample = Literal["bilinear", "bicubic", "dct"]
"""For slides. "dct" decodes JPEG at a half, a quarter or an eighth where the model is coarser; the rest is bilinear."""

Reader = Literal["auto", "direct", "openslide"]
"""What reads slides. "auto" takes "direct" where it is proven to have OpenSlide's pixels."""

GeoJsonOrigin = Literal["bounds", "level0"]
"""The point that is (0, 0) in GeoJSON: the corner of the slide's bounds, as in QuPath, or that of level 0."""

TileFormat = Literal["png", "webp"]
"""Of the pictures of tiles; both keep each pixel."""

FeatureFormat = Literal["h5", "parquet"]
"""Of the file of feature vectors: HDF5 as CLAM and TRIDENT write it, or Parquet."""

TableFormat = Literal["h5ad", "zarr"]
"""Of the table for AnnData."""

WARN_ENLARGED, MAX_ENLARGED = 1.1, 5.0
"""How many times pixels may be enlarged for the model: from the first on with a warning. Above the second, tiles hold
less than a twenty-fifth of the pixels that the model learned from, and a wrong µm per pixel is the likely cause."""

STRIDE_LIMITS = (0.001, 100_000.0)
"""µm. A larger stride than a slide takes one square, as this one does."""

MAX_CLOSING_UM = 1000.0
"""A wider gap is not a gap within a tissue, and closing it would take minutes and gigabytes."""

MAX_AREA_UM2 = 1e12
"""A square of a metre; larger than any slide, and finite."""

MAX_COUNT = 65536
"""Of tiles in a batch, which are 4 GB at 150 pixels, and of threads."""


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
        if self.threshold is not None and not _is_integer(self.threshold, (0, 255)):
            cause = "is not an integer in 0 to 255"
            raise UsageError(f"--tissue-threshold {self.threshold}", cause, "Leave it out for Otsu's")
        _check_range("--closing", self.closing_um, (0, MAX_CLOSING_UM), "µm", "50")
        _check_range("--min-area", self.min_area_um2, (0, MAX_AREA_UM2), "µm²", "40000")


@dataclass(frozen=True)
class SlideSettings:
    """How a slide is cut into squares.

    Attributes:
        mpp: µm per pixel of level 0 in x and y, where the slide's file lacks it or is wrong.
        grid: the unit of the grid; `overlap`, `stride_um` and `min_tissue` are about this square.
        overlap: of neighbouring squares, as a fraction of their side, 0 to 0.95.
        stride_um: from square to square in µm, in place of `overlap`.
        min_tissue: fraction of a square that must be tissue.
        everything: take every square of the slide and look for no tissue.
        resample: the filter for tiles of another resolution than the model's.
        geojson_origin: the origin of the coordinates in tiles.geojson.
        tissue: how tissue is found.
        smooth: whether the heat map shows the mean of overlapping squares at each point.
        roi: path of a GeoJSON file with the areas to look at, or of a folder of them; None for the complete slide.
        mask: the same of an image that is 0 where not to look; with `roi`, both must say so.
        coords: path of a patch file, or of a folder of them, that says where the squares are, in place of a grid on the
            tissue.

    Raises:
        UsageError: a value is impossible, `smooth` is set and no square can overlap another one, or `coords` is set
            with a value that is about a grid.
    """

    mpp: float | None = None
    grid: GridUnit = "seen"
    overlap: float = 0.0
    stride_um: float | None = None
    min_tissue: float = 0.1
    everything: bool = False
    resample: SlideResample = "bilinear"
    geojson_origin: GeoJsonOrigin = "bounds"
    tissue: TissueSettings = field(default_factory=TissueSettings)
    smooth: bool = False
    coords: str | None = None
    roi: str | None = None
    mask: str | None = None

    @property
    def everywhere(self) -> bool:
        """Whether no region of the slide is chosen."""
        return self.roi is None and self.mask is None

    def __post_init__(self) -> None:
        _check_range("--overlap", self.overlap, (0, 0.95), "", "0.5")
        if self.stride_um is not None:
            _check_range("--stride", self.stride_um, STRIDE_LIMITS, "µm", "50")
        _check_range("--min-tissue", self.min_tissue, (0, 1), "", "0.1")
        if self.mpp is not None:
            _check_range("--mpp", self.mpp, MPP_LIMITS, "µm per pixel", "0.25")
        _check("--grid", self.grid, get_args(GridUnit))
        _check("--resample", self.resample, get_args(SlideResample))
        _check("--geojson-origin", self.geojson_origin, get_args(GeoJsonOrigin))
        if self.coords is not None and (self.overlap or self.stride_um is not None or self.everything):
            raise UsageError(
                "--coords",
                "says where the tiles are, as --overlap, --stride and --everything do",
                "Leave one of them out",
            )
        if self.coords is not None and (self.roi is not None or self.mask is not None):
            raise UsageError("--coords", "says where the tiles are, as --roi and --mask do", "Leave one of them out")
        if self.smooth and not self.overlap and self.stride_um is None and self.coords is None:
            raise UsageError("--smooth", "is the mean of overlapping squares, and none overlap", "Add --overlap 0.5")


@dataclass(frozen=True)
class PredictSettings:
    """How inputs are run. `batch`, `threads` and `reader` change the speed only, the others may change a result.

    Attributes:
        runtime: the id of a `runtimes.Variant`, e.g. "native" or "native-int8".
        precision: in which it is to run; None for the one that the bundle is made for, "auto" for the fastest that
            its measurement allows on this CPU.
        device: "cpu" or "cuda".
        resize: the filter that resamples tiles of other sizes than the model's; None refuses them.
        slide: how slides are cut.
        batch: tiles per call of the runtime.
        threads: of the runtime; as many others read.
        tiles_out: the folder that gets the tiles of slides as pictures, in a folder for each slide; None for none.
        tiles_format: of these pictures, "png" or "webp".
        features: the format of the file of feature vectors that each slide gets; None for no file.
        reader: what reads slides.
        class_map: label or folder of a tile → its true class, "" where it has none; None where all are called alike.
        table: the format of a further table, for AnnData; None for no such table.

    Raises:
        UsageError: an unknown filter or reader, or an impossible number.
    """

    runtime: str = "native"
    precision: AskedPrecision | None = None
    device: str = "cpu"
    resize: Resample | None = None
    slide: SlideSettings = field(default_factory=SlideSettings)
    batch: int = 32
    threads: int = 1
    tiles_out: str | None = None
    tiles_format: TileFormat = "png"
    features: FeatureFormat | None = None
    reader: Reader = "auto"
    class_map: dict[str, str] | None = None
    table: TableFormat | None = None

    def __post_init__(self) -> None:
        _check("--reader", self.reader, get_args(Reader))
        if self.resize is not None:
            _check("--resample", self.resize, get_args(Resample))
        if self.features is not None:
            _check("--features", self.features, get_args(FeatureFormat))
        if self.table is not None:
            _check("--table", self.table, get_args(TableFormat))
        _check("--tiles-format", self.tiles_format, get_args(TileFormat))
        for option, value in (("--batch", self.batch), ("--threads", self.threads)):
            if not _is_integer(value, (1, MAX_COUNT)):
                cause = f"is not an integer in 1 to {MAX_COUNT:,}"
                raise UsageError(f"{option} {value}", cause, f"Use e.g. {option} 8")


def _check_range(option: str, value: float, limits: tuple[float, float], unit: str, example: str) -> None:
    low, high = limits
    if not is_number(value, limits):
        shown = f"{value:g}" if isinstance(value, float) else str(value)
        cause = f"is not in {low:g} to {high:,g} {unit}".rstrip()
        raise UsageError(f"{option} {shown}", cause, f"Use e.g. {option} {example}")


def _is_integer(value: object, limits: tuple[int, int]) -> bool:
    return isinstance(value, int) and is_number(value, limits)


def _check(option: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UsageError(f"{option} {value}", "is unknown", f"Use {' or '.join(known)}")
