"""What is measured: bundles, or untrained networks that are made for the purpose.

How long a network takes does not depend on what it has learned, so `--pools` needs no training: the networks share one
random trunk and differ in their heads alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import FORMATS, GOLDEN, open_bundle
from histo_export.spec import ModelSpec

if TYPE_CHECKING:
    from histo_export.training.checkpoint import Checkpoint

TILES = 8
HEAD_SCALE = 100
"""Brings the untrained logits to the order of 1, the unit in which they are compared with the reference."""
CLASSES = tuple(f"class{i}" for i in range(6))


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        label: what tables call it: the pool, or the bundle's name.
        folder: holds `golden.safetensors` and the model files.
        spec: of the model.
        accuracy: on the test set, and its 95 % interval; None where the bundle doesn't tell or nothing was learned.
    """

    label: str
    folder: Path
    spec: ModelSpec
    accuracy: tuple[float, float, float] | None = None

    def file(self, name: str) -> Path:
        """A file of the folder; HistoError where it has none of this name."""
        path = self.folder / name
        if not path.is_file():
            flag = next(flag for flag, file in FORMATS.items() if file == name)
            raise HistoError(self.folder, f"holds no {name}", f"Export again with --formats …,{flag}")
        return path


def open_subjects(bundles: Sequence[Path]) -> list[Subject]:
    """The bundles, every file checked against its sha256. Their tiles and crops must be of one size.

    Raises:
        UsageError: no bundle there, or two that can't be compared.
        HistoError: a bundle is damaged.
    """
    subjects = []
    names = [bundle.resolve().name for bundle in bundles]
    for bundle, name in zip(bundles, names, strict=True):
        config = open_bundle(bundle).config.histo
        spec = ModelSpec.from_dict(config.spec)
        test = config.training.get("test")
        accuracy = (test["accuracy"], *test["interval"]) if test else None
        label = name if names.count(name) == 1 else str(bundle)
        subjects.append(Subject(label, bundle, spec, accuracy))
    sizes = {(subject.spec.crop, subject.spec.tile_size, len(subject.spec.classes)) for subject in subjects}
    if len(sizes) > 1:
        listed = "; ".join(f"{s.label}: crop {s.spec.crop}, tiles {s.spec.tile_size}" for s in subjects)
        raise UsageError("The bundles", f"differ in crop, tiles or classes ({listed})", "Bench them one by one")
    return subjects


def untrained_subjects(
    pools: Iterable[int],
    folder: Path,
    files: Iterable[str],
    report: Callable[[str], None] = lambda step: None,
    *,
    crop: int = 128,
    tile_size: int = 150,
) -> list[Subject]:
    """Untrained networks, one for each pool, exported to `files` below `folder`; about ten seconds each.

    The reference logits come from float64 as those of a bundle do; that each file agrees with them is checked by
    whoever times it.
    """
    from histo_export.export.run import model_files
    from histo_export.parity import Golden, make_golden

    formats = [flag for flag, file in FORMATS.items() if file in set(files)]
    subjects: list[Subject] = []
    first: Checkpoint | None = None
    for pool in pools:
        report(f"making an untrained network with pool {pool}")
        spec = ModelSpec(pool, CLASSES, crop=crop, tile_size=tile_size)
        checkpoint = first = untrained_checkpoint(spec, first)
        home = folder / f"pool{pool}"
        home.mkdir(parents=True)
        golden = make_golden(checkpoint)
        few = Golden(golden.tiles[:TILES], golden.logits[:TILES], {}, TILES)
        (home / GOLDEN).write_bytes(few.to_bytes())
        for name, content in model_files(checkpoint, formats):
            (home / name).write_bytes(content)
        subjects.append(Subject(f"pool {pool}", home, spec))
    return subjects


def untrained_checkpoint(spec: ModelSpec, trunk: Checkpoint | None = None) -> Checkpoint:
    """Random weights and batch norms, of sizes with which activations neither vanish nor explode.

    Args:
        trunk: a checkpoint whose weights are taken for all but the linear layer.
    """
    import torch

    from histo_export.model import TileNet
    from histo_export.training.checkpoint import Checkpoint

    torch.manual_seed(0)
    net = TileNet.of(spec)
    tiles = np.random.default_rng(0).integers(0, 256, (TILES, spec.tile_size, spec.tile_size, 3), dtype=np.uint8)
    with torch.no_grad():
        net.fc.weight.mul_(HEAD_SCALE)
    state = dict(net.state_dict())
    if trunk is not None:
        state = dict(trunk.state_dict) | {key: value for key, value in state.items() if key.startswith("fc.")}
    else:
        for module in net.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                assert module.running_var is not None
                torch.nn.init.uniform_(module.weight, 0.3, 0.7)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
    return Checkpoint(spec, state, tiles, {"data": {"name": "untrained", "synthetic": True}})
