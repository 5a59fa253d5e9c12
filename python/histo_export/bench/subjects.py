"""The models that are measured: bundles, or untrained networks.

The time of a network does not depend on what it has learned, so `--pools` needs no training: the networks share one
random trunk and differ in their heads alone.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from histo_export.bundle_files import GOLDEN, INT8_ONNX, NATIVE, ONNX
from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import open_bundle, spec_of
from histo_export.export.formats import FORMATS
from histo_export.spec import ModelSpec, Precision

if TYPE_CHECKING:
    from histo_export.model.arithmetic import Scales
    from histo_export.model.checkpoint import Checkpoint

TILES = 8
HEAD_SCALE = 100
"""Factor on the weights of the untrained head, so that logits are of the order of 1, in which errors are measured."""
CLASSES = tuple(f"class{i}" for i in range(6))


@dataclass(frozen=True)
class Subject:
    """One model.

    Attributes:
        label: its name in tables: the pool, or the bundle's name.
        folder: holds `golden.safetensors` and the model files.
        spec: of the model.
        accuracy: on the test set, and its 95 % interval; None where it is unknown.
    """

    label: str
    folder: Path
    spec: ModelSpec
    accuracy: tuple[float, float, float] | None = None

    def file(self, name: str) -> Path:
        """The path of a file of the folder; HistoError where there is no such file."""
        path = self.folder / name
        if not path.is_file():
            flag = next((flag for flag, entry in FORMATS.items() if entry.file == name), None)
            option = f"--formats …,{flag}" if flag else "--precision int8 and --formats …,onnx"
            raise HistoError(self.folder, f"holds no {name}", f"Export again with {option}")
        return path

    def rounding(self, precision: Precision) -> float:
        """The `Golden.spread_error` of `precision` in this model by its definition, `model.arithmetic`."""
        return _rounding(self.file(NATIVE), self.folder / GOLDEN, precision)


@functools.cache
def _rounding(file: Path, golden_file: Path, precision: Precision) -> float:
    import torch

    from histo_export.model.arithmetic import Simulation
    from histo_export.model.native_file import read_quantised
    from histo_export.parity import Golden

    lowered, _, scales = read_quantised(file)
    if precision == "int8" and not scales:
        raise HistoError(file.parent, "has no scales for int8", "Export it with --precision int8")
    golden = Golden.read(golden_file)
    tiles = torch.from_numpy(golden.tiles[: golden.real])
    return golden.spread_error(Simulation.of(lowered, precision, scales)(tiles).numpy())


def open_subjects(bundles: Sequence[Path], precisions: Collection[str] = ("fp32",)) -> list[Subject]:
    """The bundles, every file checked against its sha256. They must agree in tile size, crop and number of classes.

    Args:
        bundles: folders that `histo export` wrote.
        precisions: in which they are to run; for int8 they need scales.

    Raises:
        UsageError: a folder is not a bundle, two can't be compared, or one has no scales where int8 is wanted.
        HistoError: a bundle is damaged.
    """
    subjects = []
    names = [bundle.resolve().name for bundle in bundles]
    for bundle, name in zip(bundles, names, strict=True):
        opened = open_bundle(bundle)
        config = opened.config.histo
        if "int8" in precisions and (config.low_precision is None or config.low_precision.calibration is None):
            raise UsageError(bundle, "has no scales for int8", "Export it with --precision int8, or bench without int8")
        spec = spec_of(opened)
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
    int8: bool = False,
    crop: int = 128,
    tile_size: int = 150,
) -> list[Subject]:
    """Untrained networks, one for each pool, exported to `files` below `folder`; about ten seconds each.

    The reference logits come from float64 as those of a bundle do. Nothing is checked here: `measure` compares the
    logits of each file with them.

    Args:
        pools: of the networks.
        folder: gets a folder for each.
        files: names of model files.
        report: called with the name of each step.
        int8: with scales (`noise_scales`), which `model.safetensors` gets and `model-int8.onnx` is made with.
        crop, tile_size: side in pixels.
    """
    from histo_export.export.formats import Source, with_needs, write_formats
    from histo_export.parity import Golden, make_golden

    wanted = set(files)
    if INT8_ONNX in wanted:
        wanted.add(ONNX)
    formats = with_needs([flag for flag, entry in FORMATS.items() if entry.file in wanted])
    subjects: list[Subject] = []
    first: Checkpoint | None = None
    scales: Mapping[str, Scales] | None = None
    for pool in pools:
        report(f"making an untrained network with pool {pool}")
        spec = ModelSpec(pool, CLASSES, crop=crop, tile_size=tile_size)
        checkpoint = first = untrained_checkpoint(spec, first)
        home = folder / f"pool{pool}"
        home.mkdir(parents=True)
        golden = make_golden(checkpoint)
        few = Golden(golden.tiles[:TILES], golden.logits[:TILES], {}, TILES)
        (home / GOLDEN).write_bytes(few.to_bytes())
        if int8 and scales is None:  # the networks differ in their heads alone
            scales = noise_scales(checkpoint)
        write_formats(home, formats, Source(checkpoint, scales=scales))
        subjects.append(Subject(f"pool {pool}", home, spec))
    return subjects


def noise_scales(checkpoint: Checkpoint) -> dict[str, Scales]:
    """Scales by convolution, all of which run in int8: full ranges of the checkpoint's own tiles, no search.

    This is enough for timing: the time of int8 depends on which convolutions are int8, and not on their scales.
    """
    import torch

    from histo_export.export.quantise import activation_scale, largest_weight, map_histograms
    from histo_export.model.arithmetic import MAPS, Scales
    from histo_export.model.lowering import lower

    lowered = lower(checkpoint.net(), checkpoint.spec)
    with torch.inference_mode():
        _, largest = map_histograms(lowered, torch.from_numpy(checkpoint.golden))
        return {
            conv: Scales(activation_scale(largest[name]), largest_weight(lowered.get_parameter(f"{conv}.weight")))
            for name, convs in MAPS.items()
            for conv in convs
        }


def untrained_checkpoint(spec: ModelSpec, trunk: Checkpoint | None = None) -> Checkpoint:
    """Random weights and batch norms, scaled so that activations neither vanish nor explode.

    Args:
        trunk: a checkpoint whose weights are taken for all but the linear layer.
    """
    import torch

    from histo_export.model.checkpoint import Checkpoint
    from histo_export.model.net import TileNet

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
