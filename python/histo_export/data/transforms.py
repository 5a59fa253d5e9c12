"""From uint8 tiles to the uint8 squares a model is trained on. The only module of `data` with torch.

Augmented pixels depend on the seed, the epoch, the tile and how often it came before in this epoch alone, so neither
the number of loading workers nor a resumed run changes them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2

from histo_export.data.images import center_crop
from histo_export.data.tiles import TileSet

# Optical densities per unit of haematoxylin, eosin and DAB in the R, G and B channels, rows of unit
# length up to rounding: Ruifrok AC, Johnston DA. Quantification of histochemical staining by color
# deconvolution. Anal Quant Cytol Histol 23(4):291-299, 2001. skimage.color.rgb_from_hed is the same.
RGB_FROM_HED = ((0.65, 0.70, 0.29), (0.07, 0.99, 0.11), (0.27, 0.57, 0.78))


class QuarterTurn(v2.Transform):
    """Turn a square `(..., s, s)` image by 0, 90, 180 or 270 degrees, each as likely."""

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        return {"turns": int(torch.randint(4, ()))}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return torch.rot90(inpt, params["turns"], (-2, -1))


class HEDJitter(v2.Transform):
    """Vary the amounts of haematoxylin, eosin and residual stain.

    Absorbance is `-ln((v + 1) / 256)` per channel for a byte `v`, unmixed by the inverse of
    `RGB_FROM_HED` into stain amounts `s`; each becomes `s * alpha + beta` with one alpha from
    `[1 - strength, 1 + strength]` and one beta from `[-strength, strength]` per stain and image, all
    uniform, and is mixed back. So `strength` 0.05 means 5 % more or less stain, plus an offset of 0.05
    in natural-log absorbance units (a 5 % change of transmitted light where the stain absorbs most).
    Formula: Tellez D, et al. Whole-slide mitosis detection in H&E breast histology using PHH3 as a
    reference. IEEE TMI 37(9):2126-2136, 2018. Units differ there (scikit-image of that time).

    Input and output: uint8 `(3, h, w)`.
    """

    _rgb_from_hed: Tensor
    _hed_from_rgb: Tensor

    def __init__(self, strength: float = 0.05) -> None:
        super().__init__()
        if not 0 <= strength < 1:
            raise ValueError(f"stain jitter strength {strength} is not in [0, 1)")
        self.strength = strength
        mix = torch.tensor(RGB_FROM_HED, dtype=torch.float64)
        self._rgb_from_hed = mix.float()
        self._hed_from_rgb = torch.linalg.inv(mix).float()

    def make_params(self, flat_inputs: list[Any]) -> dict[str, Any]:
        alpha = 1 + self.strength * (2 * torch.rand(3) - 1)
        beta = self.strength * (2 * torch.rand(3) - 1)
        return {"alpha": alpha, "beta": beta}

    def transform(self, inpt: Any, params: dict[str, Any]) -> Any:
        return self.restain(inpt, params["alpha"], params["beta"])

    def restain(self, image: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
        """Scale the three stains of uint8 `(3, h, w)` by `alpha` and add `beta`, float32 `(3,)` each."""
        if image.dtype != torch.uint8 or image.ndim != 3 or image.shape[0] != 3:
            raise ValueError(f"HEDJitter takes uint8 (3, h, w), not {image.dtype} {tuple(image.shape)}")
        # Unmix, scale and mix are linear, so they are one 3x3 matrix and one offset in absorbance.
        matrix = self._hed_from_rgb * alpha @ self._rgb_from_hed
        offset = beta @ self._rgb_from_hed
        absorbance = image.flatten(1).float().add_(1).div_(256).log_().neg_()
        light = torch.addmm(offset[:, None], matrix.T, absorbance).neg_().exp_()
        bytes_ = light.mul_(256).sub_(1).round_().clamp_(0, 255).to(torch.uint8)
        return bytes_.view_as(image)


class Augmentation(v2.Compose):
    """Random crop, flips, quarter turns, colour and stain jitter, grey: uint8 `(3, h, w)` to `(3, crop, crop)`.

    Args:
        crop: side in pixels.
        random_crop: the crop is at a random place within the tile; else in its centre.
        flips: mirrored each way with a probability of a half.
        turns: turned by 0, 90, 180 or 270 degrees.
        brightness: factor from `[1 - b, 1 + b]`; 0 switches it off, as for the next two.
        contrast: factor of the distance from the mean grey.
        saturation: factor of the distance from grey.
        hue: shift in turns of the colour circle, from `[-hue, hue]`. Off by default: converting to HSV
            and back costs more than all the rest, and stain jitter shifts hue already.
        stain: `HEDJitter` strength.
        grey: probability that the tile loses its colour, last of all. A network that sees only colour then learns
            nothing from these tiles, so it must look at shapes.
    """

    def __init__(
        self,
        crop: int,
        *,
        random_crop: bool = True,
        flips: bool = True,
        turns: bool = True,
        brightness: float = 0.1,
        contrast: float = 0.1,
        saturation: float = 0.1,
        hue: float = 0.0,
        stain: float = 0.05,
        grey: float = 0.0,
    ) -> None:
        steps: list[torch.nn.Module] = [v2.RandomCrop(crop) if random_crop else v2.CenterCrop(crop)]
        if flips:
            steps += [v2.RandomHorizontalFlip(), v2.RandomVerticalFlip()]
        if turns:
            steps.append(QuarterTurn())
        if stain:
            steps.append(HEDJitter(stain))
        if brightness or contrast or saturation or hue:
            steps.append(v2.ColorJitter(brightness, contrast, saturation, hue))
        if grey:
            steps.append(v2.RandomGrayscale(grey))
        super().__init__(steps)


class TorchTiles(Dataset[tuple[Tensor, int]]):
    """A `TileSet` for `torch.utils.data.DataLoader`.

    `self[i]` is a uint8 `(3, crop, crop)` tensor and its label. Call `set_epoch` before iterating. Loader processes own
    copies of this object: with `persistent_workers=False` they get new ones each epoch; processes that live longer must
    set the epoch themselves, as `training.module.EpochTiles` does for each tile.

    Args:
        tiles: the split.
        crop: side in pixels; central, unless the augmentation crops.
        augmentation: maps a uint8 `(3, h, w)` tensor to one of at least `crop` by `crop`; what is larger
            is cropped centrally. It may draw from torch's default CPU generator, and from nothing else.
        seed: of the augmentation.
    """

    def __init__(
        self,
        tiles: TileSet,
        crop: int,
        augmentation: Callable[[Tensor], Tensor] | None = None,
        seed: int = 0,
    ) -> None:
        tiles.preload()
        self.tiles = tiles
        self.crop = crop
        self.augmentation = augmentation
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.tiles)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (≥ 0) whose augmentation comes next."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.drawn(index)

    def drawn(self, index: int, occurrence: int = 0) -> tuple[Tensor, int]:
        """As `self[index]`, for a tile that has come `occurrence` times before in this epoch: it is augmented anew."""
        tile = self.tiles.tile(index)
        label = int(self.tiles.labels[index])
        if self.augmentation is None:
            return _to_chw(center_crop(tile, self.crop)), label
        image = _to_chw(tile)
        state = torch.default_generator.get_state()
        try:
            key = [self.seed, self.epoch, index, *([occurrence] if occurrence else [])]
            word = np.random.SeedSequence(key).generate_state(1, np.uint64)[0]
            # Not torch.manual_seed: it would reseed the GPUs too, and a model's dropout with them.
            torch.default_generator.manual_seed(int(word) >> 1)
            image = self.augmentation(image)
        finally:
            torch.default_generator.set_state(state)
        if image.shape[1:] != (self.crop, self.crop):
            image = v2.functional.center_crop(image, [self.crop, self.crop])
        return image.contiguous(), label


def _to_chw(tile: NDArray[np.uint8]) -> Tensor:
    # np.array copies, so the tensor owns writable memory whatever the tile came from.
    return torch.from_numpy(np.array(tile.transpose(2, 0, 1), order="C"))
