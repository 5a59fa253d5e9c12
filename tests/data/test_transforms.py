from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from histo_export.data import open_data
from histo_export.data.tiles import TileSet
from histo_export.data.transforms import (
    RGB_FROM_HED,
    Augmentation,
    HEDJitter,
    QuarterTurn,
    TorchTiles,
    center_crop,
)

from .conftest import noise_tile


class Tiles:
    """Random tiles of one size; a class of its own so that it can be pickled."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, i: int) -> np.ndarray:
        return noise_tile(i, side=self.side)


def some_tiles(n: int = 12, side: int = 40) -> TileSet:
    return TileSet(("A", "B"), np.arange(n) % 2, [f"t{i}" for i in range(n)], Tiles(side))


@pytest.mark.parametrize("h", range(128, 140))
@pytest.mark.parametrize("w", [128, 131, 150, 224])
def test_center_crop_is_torchvisions(h: int, w: int) -> None:
    y, x = np.mgrid[:h, :w]
    tile = np.stack([y % 256, x % 256, (y + x) % 256], -1).astype(np.uint8)
    expected = v2.CenterCrop(128)(torch.from_numpy(tile).permute(2, 0, 1)).permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(center_crop(tile, 128), expected)


def test_center_crop_does_not_pad() -> None:
    with pytest.raises(ValueError, match="does not fit"):
        center_crop(noise_tile(0, side=20), 21)


def image(side: int = 40) -> torch.Tensor:
    return torch.from_numpy(noise_tile(3, side=side)).permute(2, 0, 1).contiguous()


def test_quarter_turn() -> None:
    turned = [QuarterTurn()(image()) for _ in range(60)]
    seen = {next(k for k in range(4) if torch.equal(t, torch.rot90(image(), k, (1, 2)))) for t in turned}
    assert seen == {0, 1, 2, 3}


def test_hed_jitter_of_zero_changes_nothing() -> None:
    every_byte = torch.arange(256, dtype=torch.uint8).repeat(3, 1).view(3, 16, 16)
    for picture in (image(), every_byte):
        assert torch.equal(HEDJitter(0.0)(picture), picture)


def test_hed_jitter_follows_its_formula() -> None:
    """Unmixed, scaled, shifted and mixed step by step in float64."""
    jitter = HEDJitter(0.2)
    alpha, beta = torch.tensor([1.2, 0.9, 1.05]), torch.tensor([0.1, -0.05, 0.02])
    mix = np.array(RGB_FROM_HED)
    absorbance = -np.log((image().numpy().astype(float).transpose(1, 2, 0) + 1) / 256)
    stains = absorbance @ np.linalg.inv(mix) * alpha.numpy() + beta.numpy()
    expected = np.clip(np.rint(np.exp(-(stains @ mix)) * 256 - 1), 0, 255).transpose(2, 0, 1)
    got = jitter.restain(image(), alpha, beta)
    assert got.dtype == torch.uint8
    difference = np.abs(got.numpy().astype(int) - expected)
    assert difference.max() <= 1
    assert (difference > 0).mean() < 1e-3


def test_more_haematoxylin_is_darker_and_bluer() -> None:
    grey = torch.full((3, 8, 8), 150, dtype=torch.uint8)
    more = HEDJitter().restain(grey, torch.ones(3), torch.tensor([0.3, 0.0, 0.0])).float().mean((1, 2))
    assert torch.all(more < 150)
    assert more[2] > more[0]


def test_hed_jitter_stays_within_its_strength() -> None:
    params = [HEDJitter(0.1).make_params([]) for _ in range(200)]
    for key, middle in (("alpha", 1.0), ("beta", 0.0)):
        values = torch.stack([p[key] for p in params]) - middle
        assert values.abs().max() <= 0.1 + 1e-6
        assert values.min() < -0.08
        assert values.max() > 0.08
    with pytest.raises(ValueError, match="strength"):
        HEDJitter(1.0)
    with pytest.raises(ValueError, match="uint8"):
        HEDJitter()(image().float())


def test_augmentation_keeps_type_and_crops() -> None:
    for _ in range(5):
        out = Augmentation(32, hue=0.02)(image())
        assert out.shape == (3, 32, 32)
        assert out.dtype == torch.uint8
    plain = Augmentation(40, brightness=0, contrast=0, saturation=0, stain=0)(image())
    assert torch.equal(plain.flatten().sort().values, image().flatten().sort().values)


def test_without_augmentation_it_is_the_centre() -> None:
    data = TorchTiles(some_tiles(side=41), 32)
    picture, label = data[3]
    assert (picture.shape, picture.dtype, label, type(label)) == ((3, 32, 32), torch.uint8, 1, int)
    assert picture.is_contiguous()
    np.testing.assert_array_equal(picture.permute(1, 2, 0), center_crop(noise_tile(3, side=41), 32))


def test_augmentation_that_does_not_crop() -> None:
    data = TorchTiles(some_tiles(), 32, v2.RandomHorizontalFlip(1.0))
    np.testing.assert_array_equal(data[0][0].permute(1, 2, 0), center_crop(noise_tile(0, side=40), 32)[:, ::-1])


def test_randomness_depends_on_seed_epoch_and_index_only() -> None:
    data = TorchTiles(some_tiles(), 32, Augmentation(32), seed=5)
    first = [data[i][0] for i in range(12)]
    torch.manual_seed(99)
    assert all(torch.equal(a, data[i][0]) for i, a in reversed(list(enumerate(first))))
    data.set_epoch(1)
    assert not any(torch.equal(a, data[i][0]) for i, a in enumerate(first))
    data.set_epoch(0)
    assert torch.equal(data[7][0], first[7])
    other = TorchTiles(some_tiles(), 32, Augmentation(32), seed=6)
    assert not torch.equal(other[0][0], first[0])


def test_global_generators_are_left_alone() -> None:
    data = TorchTiles(some_tiles(), 32, Augmentation(32))
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    data[0]
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_worker_count_does_not_matter() -> None:
    data = TorchTiles(some_tiles(), 32, Augmentation(32))
    seen = []
    for workers in (0, 2):
        loader = DataLoader(data, batch_size=5, num_workers=workers)
        epochs = []
        for epoch in range(2):
            data.set_epoch(epoch)
            epochs.append(torch.cat([batch for batch, _ in loader]))
        seen.append(torch.stack(epochs))
    assert torch.equal(seen[0], seen[1])
    assert not torch.equal(seen[0][0], seen[0][1])


def test_demo_tiles_are_made_before_workers_start() -> None:
    tiles = open_data("demo", demo_size=(1, 1, 1)).train
    TorchTiles(tiles, 128)
    assert len(tiles._source._made) == 6  # type: ignore[attr-defined]
