import numpy as np
import pytest
import torch

from histo_export.data import TileData
from histo_export.data.transforms import Augmentation, TorchTiles
from histo_export.model.net import TileNet
from histo_export.spec import ModelSpec
from histo_export.training.module import EpochSampler, EpochTiles, make_optimizer
from histo_export.training.recipes import TrainConfig


def test_the_order_depends_on_seed_and_epoch_alone() -> None:
    sampler = EpochSampler(50, 8, seed=3)
    first = list(sampler)
    assert first == list(sampler)
    assert sorted(i for _, i, _ in first) == list(range(50))
    sampler.set_epoch(1)
    second = list(sampler)
    assert {epoch for epoch, _, _ in second} == {1}
    assert [i for _, i, _ in second] != [i for _, i, _ in first]
    assert list(EpochSampler(50, 8, seed=3, epoch=1)) == second
    assert list(EpochSampler(50, 8, seed=4)) != first


@pytest.mark.parametrize("tiles", [48, 50, 51, 7])
def test_processes_share_the_tiles_in_equal_steps(tiles: int) -> None:
    shares = [[i for _, i, _ in EpochSampler(tiles, 8, 0, rank, 4)] for rank in range(4)]
    assert len({len(share) for share in shares}) == 1
    assert {i for share in shares for i in share} == set(range(tiles))


def test_balanced_epochs_draw_each_class_equally_often() -> None:
    labels = np.repeat([0, 1, 2], [40, 8, 2])
    sampler = EpochSampler(50, 8, seed=3, balance=labels)
    first = [i for _, i, _ in sampler]
    assert first == [i for _, i, _ in sampler], "an epoch that is repeated after an interruption has the same order"
    assert sorted(np.bincount(labels[first])) == [16, 17, 17]
    times = np.bincount(first, minlength=50)
    assert times[:40].max() == 1, "no tile of a large class twice"
    assert np.ptp(times[40:48]) <= 1
    assert np.ptp(times[48:]) <= 1
    sampler.set_epoch(1)
    second = [i for _, i, _ in sampler]
    assert {*first} != {*second}, "an epoch draws other tiles of the large class"
    assert [i for _, i, _ in EpochSampler(50, 8, seed=3, epoch=1, balance=labels)] == second
    shares = [[i for _, i, _ in EpochSampler(50, 8, 3, rank, 2, 1, labels)] for rank in range(2)]
    assert [i for pair in zip(*shares, strict=True) for i in pair] == second[:48], "less a last batch of one tile"


def test_a_tile_that_an_epoch_repeats_is_augmented_anew(data: TileData) -> None:
    labels = np.repeat([0, 1], [45, 5])
    keys = [key for key in EpochSampler(50, 8, seed=3, balance=labels) if key[1] == 47]
    assert [occurrence for _, _, occurrence in keys] == list(range(5))
    tiles = TorchTiles(data.train, 32, Augmentation(32), seed=1)
    views = [EpochTiles(tiles)[key[0], 5, key[2]][0] for key in keys]
    assert len({view.numpy().tobytes() for view in views}) == len(views)
    assert torch.equal(views[0], tiles[5][0]), "without repeats, as ever"
    assert {occurrence for _, _, occurrence in EpochSampler(50, 8, 3, 1, 4)} == {0}


def test_a_single_tile_is_never_a_batch() -> None:
    sampler = EpochSampler(33, 8, seed=0)
    assert len(list(sampler)) == len(sampler) == 32
    left_out = set()
    for epoch in range(5):
        sampler.set_epoch(epoch)
        left_out |= set(range(33)) - {i for _, i, _ in sampler}
    assert len(left_out) > 1


def test_worker_processes_augment_as_the_epoch_says(data: TileData) -> None:
    tiles = EpochTiles(TorchTiles(data.train, 32, Augmentation(32), seed=1))
    ours = [tiles[(epoch, 5, 0)][0] for epoch in (0, 1)]
    assert not torch.equal(*ours)
    loader = torch.utils.data.DataLoader(tiles, 1, sampler=[(0, 5, 0), (1, 5, 0)], num_workers=1)
    theirs = [batch[0] for batch, _ in loader]
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_only_weights_decay(spec: ModelSpec) -> None:
    net = TileNet.of(spec)
    groups = make_optimizer(net, TrainConfig(recipe="strong")).param_groups
    assert {p.ndim for p in groups[0]["params"]} == {2, 4}
    assert groups[0]["weight_decay"] > 0
    assert {p.ndim for p in groups[1]["params"]} == {1}
    assert groups[1]["weight_decay"] == 0
    plain = make_optimizer(net, TrainConfig(recipe="report"))
    assert type(plain) is torch.optim.Adam
    assert plain.param_groups[0]["weight_decay"] == 0
    assert np.isclose(plain.param_groups[0]["lr"], 1e-3)
