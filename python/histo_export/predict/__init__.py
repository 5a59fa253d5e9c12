"""Predictions for tiles and slides: `histo predict`, and `histo_export.load(bundle)` for programs.

`inputs` finds slides and sets of tiles in what the user named: `formats` judges files, and `lists` reads lists. `names`
names the results, and `settings` holds the user's choices. `run` divides the inputs into units, which `work` does in
this process or `on_ray` on other machines, and continues an interrupted run; `preconditions` judges what is no input's
fault, `record` keeps what failed, `messages` what libraries tell. `tile_set` and `whole_slide` do one input; both send
its tiles through `loop`. `tiles` takes what programs give as tiles. `readers` open slides (`slide` is their interface);
`tissue` and `grid` belong to slides, `labels` and `judge` to sets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import numpy as np
import numpy.typing as npt

from histo_export._core import usable_cpus
from histo_export.errors import UsageError
from histo_export.extras import needs
from histo_export.predict.loop import TileLoop, softmax
from histo_export.predict.settings import Reader, Resample, SlideSettings
from histo_export.predict.tiles import Tile, check_options, is_count, named, path_of, pixels_of
from histo_export.runtimes import Runtime, one_device
from histo_export.runtimes.native import NativeRuntime
from histo_export.spec import AskedPrecision, ModelSpec

if TYPE_CHECKING:
    from histo_export.predict.whole_slide import SlidePrediction

Pixels = npt.NDArray[np.uint8]
"""RGB `(n, height, width, 3)`."""


@dataclass(frozen=True, repr=False)
class TilePrediction:
    """The predictions for some tiles; `len()` is their number.

    Attributes:
        classes: names, in the order of `probabilities`.
        logits, probabilities: float32 `(n, classes)`.
    """

    classes: tuple[str, ...]
    logits: npt.NDArray[np.float32]
    probabilities: npt.NDArray[np.float32]

    @property
    def labels(self) -> list[str]:
        """The most probable class of each tile."""
        return [self.classes[i] for i in self.logits.argmax(1).tolist()]

    def __len__(self) -> int:
        return len(self.logits)

    def __repr__(self) -> str:
        return f"<TilePrediction: {len(self):,} tiles, {len(self.classes)} classes>"


class Classifier:
    """A bundle, opened in one runtime: `histo_export.load(...)` makes it.

    Attributes:
        spec: classes, crop, tile size and µm per pixel of the model.
        runtime: what runs it.
        threads: of the runtime; as many others read slides.
    """

    def __init__(self, spec: ModelSpec, runtime: Runtime, threads: int) -> None:
        self.spec, self.runtime, self.threads = spec, runtime, threads

    @property
    def classes(self) -> tuple[str, ...]:
        """Names, in the order of logits and probabilities."""
        return self.spec.classes

    def __repr__(self) -> str:
        side = self.spec.tile_size
        return f"<Classifier: {len(self.classes)} classes, tiles of {side}×{side} pixels, {self.runtime.name}>"

    def predict(
        self, tiles: Tile | Iterable[Tile], *, resize: Resample | None = None, batch: int = 32
    ) -> TilePrediction:
        """Runs tiles, of which a batch at a time is in memory.

        Args:
            tiles: one tile or several, each as a path, a PIL image or uint8 RGB `(side, side, 3)`; several may also be
                one array `(n, side, side, 3)`. At the model's µm per pixel; side is `spec.tile_size`. The network sees
                the centre `spec.crop` × `spec.crop` pixels and nothing else of a tile.
            resize: "bilinear" or "bicubic", the filter for tiles of another size; None refuses them, except those of
                the size that the training tiles had before `histo train --resize`: they are resized as those were.
            batch: tiles per call of the runtime.

        Raises:
            UsageError: no tile, another dtype or shape, or an impossible argument.
            HistoError: a file or an image can't be a tile, or has another size.
        """
        logits = self._run(self.runtime.run, tiles, resize, batch)
        return TilePrediction(self.spec.classes, logits, softmax(logits))

    def embedding(
        self, tiles: Tile | Iterable[Tile], *, resize: Resample | None = None, batch: int = 32
    ) -> npt.NDArray[np.float32]:
        """What the trained linear layer reads: the last feature map after adaptive pooling.

        Args, errors: as `predict`. UsageError also where the runtime is not a native one.

        Returns:
            `(n, channels * pool * pool)`, in the order channel, bin row, bin column.
        """
        return self._run(self._output("embedding"), tiles, resize, batch)

    def contributions(
        self, tiles: Tile | Iterable[Tile], *, resize: Resample | None = None, batch: int = 32
    ) -> npt.NDArray[np.float32]:
        """The share of each cell of the last feature map in each logit; with the bias they add up to it.

        docs/pooling.md tells what such a share means, and what it does not mean.

        Args, errors: as `predict`. UsageError also where the runtime is not a native one.

        Returns:
            `(n, classes, map side, map side)`.
        """
        return self._run(self._output("contributions"), tiles, resize, batch)

    def _output(self, name: str) -> Callable[[Pixels], npt.NDArray[np.float32]]:
        if not isinstance(self.runtime, NativeRuntime):
            raise UsageError(self.runtime.name, f"gives logits only, and no {name}", 'Load the bundle with "native"')
        engine = self.runtime.engine
        return lambda pixels: engine.outputs(pixels, (name,))[name]

    def _run(
        self,
        run: Callable[[Pixels], npt.NDArray[np.float32]],
        tiles: Tile | Iterable[Tile],
        resize: Resample | None,
        batch: int,
    ) -> npt.NDArray[np.float32]:
        """What `run` makes of the tiles, of which a batch at a time is in memory."""
        from histo_export.predict.tile_set import fitted

        check_options(resize, batch)
        pixels = (
            fitted(pixels_of(tile, name), self.spec, resize, name, 'Give resize="bilinear"')
            for name, tile in named(tiles)
        )
        parts = []
        while chunk := list(islice(pixels, batch)):
            parts.append(run(np.stack(chunk)))
        if not parts:
            raise UsageError("tiles", "is empty", "Give at least one tile")
        return np.concatenate(parts)

    def predict_slide(
        self, path: str | Path, *, batch: int = 32, reader: Reader = "auto", **settings: Any
    ) -> SlidePrediction:
        """Runs a slide.

        Args:
            path: of a format that OpenSlide reads, or a TIFF.
            batch: tiles per call of the runtime.
            reader: "auto", "direct" or "openslide".
            **settings: fields of `predict.settings.SlideSettings`: mpp, grid, overlap, stride_um, min_tissue,
                everything, resample, geojson_origin, tissue, smooth, coords, roi, mask.

        Returns:
            Grid, probabilities, areas, mask and warnings; `write(folder)` writes what `histo predict` does.

        Raises:
            UsageError: an impossible setting.
            MissingExtraError: the packages that read slides are not installed.
            HistoError: not a slide, no µm per pixel or an absurd one, no tissue, too many squares, or a damaged part.
        """
        needs("Reading slides", "slides")
        from histo_export.predict.readers import open_slide
        from histo_export.predict.whole_slide import predict_slide

        chosen = SlideSettings(**settings)
        if reader not in get_args(Reader):
            raise UsageError(f"reader={reader!r}", "is unknown", f"Choose from {', '.join(get_args(Reader))}")
        file = path_of("path", path, "Name the file of a slide")
        slide = open_slide(file, reader, shrinks=chosen.resample == "dct")
        try:
            loop = TileLoop(self.runtime, self.spec, batch=batch, readers=self.threads)
            return predict_slide(slide, loop, chosen)
        finally:
            slide.close()


def load(
    bundle: str | Path,
    *,
    runtime: str = "native",
    precision: AskedPrecision | None = None,
    threads: int = 0,
    device: str = "cpu",
) -> Classifier:
    """Opens a bundle after checking every file against its sha256.

    Args:
        bundle: a folder that `histo export` wrote, or `hf://org/name[@revision]`.
        runtime: a key of `histo_export.runtimes.RUNTIMES`.
        precision: "fp32", "bf16x3", "bf16" or "int8"; default: what the bundle is made for. "auto" is the fastest that
            the bundle's measurement allows on this CPU. `runtime.executed` of the result tells what runs.
        threads: 0 means the CPUs that this process may use, as everywhere in this package.
        device: "cpu" or "cuda".

    Raises:
        UsageError: `bundle` is not a bundle, or there is no such runtime, or not in this precision.
        HistoError: the bundle is damaged or lacks the runtime's file, or the runtime or the precision is unavailable.
    """
    from histo_export.export.hub import local_bundle
    from histo_export.predict.work import check_model, open_model

    folder = path_of("bundle", bundle, "Name a folder that histo export wrote")
    if not is_count(threads) or threads < 0:
        raise UsageError(f"threads={threads!r}", "is not 0 or more", "Give a number, or 0 for all usable CPUs")
    one_device(device)
    threads = int(threads) or usable_cpus()
    checked, spec, chosen = check_model(local_bundle(folder), runtime, precision)
    return Classifier(spec, open_model(checked, chosen, threads, device), threads)
