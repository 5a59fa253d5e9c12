"""The runtimes that only benchmarks open, and the layer tables, on a real bundle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from histo_export.bench.layers import head_share, layer_times
from histo_export.bench.measure import Settings, measure, precision_of, relative_error
from histo_export.bench.subjects import CLASSES, Subject, open_subjects, untrained_subjects
from histo_export.errors import HistoError, UsageError
from histo_export.export.native import read_native
from histo_export.parity import TOLERANCE, Golden
from histo_export.runtimes import RUNTIMES, Runtime, open_runtime, runtime_class
from histo_export.spec import STAGES

SLOW = pytest.mark.slow
BENCHED = ["openvino", "openvino-streams", "torch-channels-last", pytest.param("torch-compile", marks=SLOW)]


def opened(runtime: str, bundle: Path, device: str = "cpu") -> Runtime:
    if runtime.startswith("openvino"):
        pytest.importorskip("openvino")
    return open_runtime(runtime, bundle / RUNTIMES[runtime].file, 2, device)


@pytest.mark.parametrize("runtime", BENCHED)
def test_logits_and_stages_are_the_reference(bundle: Path, runtime: str) -> None:
    golden = Golden.read(bundle / "golden.safetensors")
    run = opened(runtime, bundle)
    allowed = TOLERANCE[RUNTIMES[runtime].file]
    for size in (1, 3):
        logits = np.concatenate([run.run(golden.tiles[i : i + size]) for i in range(0, len(golden.tiles), size)])
        assert logits.dtype == np.float32
        assert relative_error(logits, golden) < allowed
    stages = run.stages(golden.stage_tiles)
    assert list(stages) == list(STAGES)
    for stage, output in stages.items():
        scale = np.abs(golden.stages[stage]).max()
        assert np.abs(output - golden.stages[stage]).max() < allowed * scale


@pytest.mark.parametrize("runtime", BENCHED)
def test_logits_stay_when_the_next_batch_comes(bundle: Path, runtime: str) -> None:
    golden = Golden.read(bundle / "golden.safetensors")
    run = opened(runtime, bundle)
    first = run.run(golden.tiles[:2])
    kept = first.copy()
    run.run(golden.tiles[2:4])
    np.testing.assert_array_equal(first, kept)


def test_openvino_executes_fp32_where_its_default_is_bf16(bundle: Path) -> None:
    ov = pytest.importorskip("openvino")
    run = opened("openvino", bundle)
    assert precision_of(run.executed) == "fp32"
    core = ov.Core()
    default = core.compile_model(bundle / "model.onnx", "CPU")
    if "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        pytest.skip("OpenVINO knows no bf16 on this CPU, so its default is fp32 as well")
    # The same reading of the same graph compiled without the pin: what it says is what was compiled.
    run.compiled = default  # type: ignore[attr-defined]
    assert precision_of(run.executed) == "bf16"


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime-tensorrt", "torch-cuda-graph", "torch-compile"])
def test_a_device_that_is_absent_is_an_error(bundle: Path, runtime: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(HistoError, match="--device cuda"):
        opened(runtime, bundle, "cuda")


@pytest.mark.parametrize("runtime", ["torch-cuda-graph", "onnxruntime-tensorrt"])
def test_gpu_runtimes_are_no_cpu_runtimes(bundle: Path, runtime: str) -> None:
    assert runtime_class(runtime).unavailable("cpu")
    with pytest.raises(HistoError, match="--device cpu"):
        opened(runtime, bundle, "cpu")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch", "torch-channels-last"])
def test_layer_tables_name_every_layer_once(bundle: Path, runtime: str) -> None:
    tiles = Golden.read(bundle / "golden.safetensors").tiles[:2]
    file = bundle / RUNTIMES[runtime].file
    layers = layer_times(opened(runtime, bundle), file, tiles)
    assert layers is not None
    names = [layer for _, layer, _ in layers]
    assert len(set(names)) == len(names)
    net, _ = read_native(bundle / "model.safetensors")
    weighted = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    assert weighted <= set(names)
    assert [s for i, s in enumerate(stage for stage, _, _ in layers) if i == 0 or layers[i - 1][0] != s] == list(STAGES)
    assert all(seconds >= 0 for _, _, seconds in layers)
    assert 0 < head_share(layers) < 0.3


class KeepsTimes:
    """A runtime that names its layers itself."""

    def layer_times(self, tiles: np.ndarray) -> list[tuple[str, float]]:
        return [("stem", 0.3), ("layer1.0.conv1", 0.6), ("head", 0.1)]


def test_a_runtime_may_keep_its_own_times(tmp_path: Path) -> None:
    layers = layer_times(KeepsTimes(), tmp_path, np.zeros((1, 8, 8, 3), np.uint8))
    assert layers == [("stem", "stem", 0.3), ("layer1", "layer1.0.conv1", 0.6), ("head", "head", 0.1)]
    assert head_share(layers) == pytest.approx(0.1)


def test_runtimes_without_a_profile_have_no_table(bundle: Path) -> None:
    tiles = Golden.read(bundle / "golden.safetensors").tiles[:1]
    file = bundle / "torchscript_model.pt"
    assert layer_times(open_runtime("torchscript", file, 2), file, tiles) is None


def test_a_bundle_becomes_a_subject(bundle: Path, tmp_path: Path) -> None:
    (subject,) = open_subjects([bundle])
    assert (subject.label, subject.spec.pool, subject.accuracy) == (bundle.name, 3, None)
    assert subject.file("model.onnx").is_file()
    bare = Subject("bare", tmp_path, subject.spec)
    with pytest.raises(HistoError, match=r"holds no model\.onnx\. Export again with --formats …,onnx"):
        bare.file("model.onnx")


def test_bundles_of_unlike_tiles_are_not_measured_together(bundle: Path, tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "other"
    shutil.copytree(bundle, other)
    config = (other / "config.json").read_text()
    assert '"crop": 64' in config
    (other / "config.json").write_text(config.replace('"crop": 64', '"crop": 48'))
    with pytest.raises(UsageError, match="differ in crop, tiles or classes"):
        open_subjects([bundle, other])


@pytest.mark.slow
def test_untrained_networks_differ_in_their_heads_alone_and_are_measured(tmp_path: Path) -> None:
    files = ["model.safetensors", "model.onnx"]
    subjects = untrained_subjects((1, 8), tmp_path, files, crop=64, tile_size=70)
    (one, _), (eight, _) = (read_native(subject.file("model.safetensors")) for subject in subjects)
    for (name, a), (_, b) in zip(one.named_parameters(), eight.named_parameters(), strict=True):
        assert name.startswith("head.") or torch.equal(a, b)
    assert one.head.linear.out_features == len(CLASSES)
    logits = Golden.read(tmp_path / "pool1" / "golden.safetensors").logits
    assert 0.1 < np.abs(logits).max() < 1000, "or the comparison with the reference would be vacuous"
    settings = Settings(("native", "onnxruntime"), (1,), (1,), rounds=7, seconds=0.5)
    rows, _ = measure(subjects, settings)
    assert {row.precision for row in rows} == {"fp32"}
    assert all(row.idle_cpu < 0.1 for row in rows)
