"""The runtimes that only benchmarks open, and the layer tables, on a real bundle."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from onnxruntime.capi.onnxruntime_pybind11_state import EPFail

from histo_export._core import precision_support
from histo_export.bench import subjects
from histo_export.bench.contestants import ROUNDINGS, precision_of
from histo_export.bench.measure import measure
from histo_export.bench.sections import head_share
from histo_export.bench.settings import Settings
from histo_export.bench.subjects import CLASSES, Subject, open_subjects, untrained_subjects
from histo_export.errors import HistoError, UsageError
from histo_export.export.bundle import Bundle, open_bundle
from histo_export.export.torch_program import exported_program
from histo_export.model.arithmetic import Simulation
from histo_export.model.lowering import Stem
from histo_export.model.native_file import read_native
from histo_export.parity import FP32_TOLERANCE, Golden
from histo_export.runtimes import Runtime, Variant, all_variants, open_runtime, runtime_class, variants
from histo_export.runtimes.layers import by_layer
from histo_export.runtimes.onnxruntime import OnnxRuntime, TensorRtRuntime
from histo_export.runtimes.torch_export import TorchExportRuntime
from histo_export.spec import STAGES, ModelSpec, Precision

SLOW = pytest.mark.slow
BENCHED = ["openvino", "openvino-streams", "torch-channels-last", pytest.param("torch-compile", marks=SLOW)]


def opened(runtime: str, bundle: Path, device: str = "cpu") -> Runtime:
    if runtime.startswith("openvino"):
        pytest.importorskip("openvino")
    return open_runtime(runtime, bundle / Variant(runtime).file, threads=2, device=device)


@pytest.mark.parametrize("runtime", BENCHED)
def test_logits_and_stages_are_the_reference(bundle: Path, runtime: str) -> None:
    golden = Golden.read(bundle / "golden.safetensors")
    run = opened(runtime, bundle)
    allowed = FP32_TOLERANCE
    for size in (1, 3):
        logits = np.concatenate([run.run(golden.tiles[i : i + size]) for i in range(0, len(golden.tiles), size)])
        assert logits.dtype == np.float32
        assert golden.relative_error(logits) < allowed
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


CLOSED_OLDEST_FIRST = """
import signal, sys
from pathlib import Path
from histo_export.runtimes import open_runtime

first, second = (open_runtime("openvino", Path(sys.argv[1]), threads=1) for _ in range(2))
del first, second
signal.signal(signal.SIGUSR1, lambda *_: print("received"))
signal.raise_signal(signal.SIGUSR1)
"""


def test_signals_arrive_after_openvino_models_were_closed_oldest_first(bundle: Path) -> None:
    pytest.importorskip("openvino")
    command = [sys.executable, "-c", CLOSED_OLDEST_FIRST, str(bundle / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "received\n"), done.stderr


@pytest.mark.parametrize("runtime", ["openvino", "openvino-streams"])
def test_a_runtime_that_nobody_uses_is_freed(bundle: Path, runtime: str) -> None:
    run = opened(runtime, bundle)
    run.run(Golden.read(bundle / "golden.safetensors").tiles[:3])
    alive = weakref.ref(run)
    del run
    assert alive() is None


@pytest.mark.parametrize("runtime", ["openvino", "onnxruntime-tensorrt", "torch-cuda-graph", "torch-compile"])
def test_a_device_that_is_absent_is_an_error(bundle: Path, runtime: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(HistoError, match="--device cuda"):
        opened(runtime, bundle, "cuda")


@pytest.mark.parametrize("runtime", ["torch-cuda-graph", "onnxruntime-tensorrt"])
def test_gpu_runtimes_are_not_cpu_runtimes(bundle: Path, runtime: str) -> None:
    assert runtime_class(runtime).unavailable("cpu")
    with pytest.raises(HistoError, match="--device cpu"):
        opened(runtime, bundle, "cpu")


@pytest.mark.parametrize("runtime", ["torch", "torchscript"])
def test_torch_computes_in_fp32_and_not_in_tf32(bundle: Path, runtime: str, tf32_settings: tuple[Any, Any]) -> None:
    opened(runtime, bundle)
    assert [setting.allow_tf32 for setting in tf32_settings] == [False, False]


def test_an_exported_program_may_run_on_another_device_than_that_of_the_export(tmp_path: Path) -> None:
    spec = ModelSpec(1, CLASSES, crop=32, tile_size=40)
    program: Any = exported_program(Stem(spec, "uint8"), spec, "uint8")  # type: ignore[arg-type]  # enough of a network
    bound = [node for node in program.graph.nodes if "device" in node.kwargs]
    assert bound, "or torch no longer notes the device, and nothing is left to test"
    torch.export.save(program, tmp_path / "model.pt2")
    run: Any = TorchExportRuntime(tmp_path / "model.pt2", threads=1)
    assert not [node for node in run.module.graph.nodes if "device" in node.kwargs]
    tiles = torch.zeros(3, 40, 40, 3, dtype=torch.uint8)
    assert torch.equal(run.module(tiles), program.module()(tiles))


def test_tensorrt_computes_in_fp32_and_not_in_tf32(monkeypatch: pytest.MonkeyPatch) -> None:
    variable = "NVIDIA_TF32_OVERRIDE"
    monkeypatch.setenv(variable, "1")
    monkeypatch.setattr(OnnxRuntime, "_session", lambda *_: os.environ[variable])
    assert TensorRtRuntime._session(object.__new__(TensorRtRuntime), b"") == "0"


def test_onnxruntime_never_goes_on_on_another_provider(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run: Any = opened("onnxruntime", bundle)
    assert not run.session._enable_fallback

    def fail(*_: object, **__: object) -> None:
        raise EPFail("CUDA failure 2: out of memory")

    monkeypatch.setattr("onnxruntime.InferenceSession", fail)
    monkeypatch.setattr("onnxruntime.preload_dlls", lambda: None)
    run.device = "cuda"
    message = r"--device cuda: ONNX Runtime could not start its CUDAExecutionProvider \(CUDA failure 2: out of memory\)"
    with pytest.raises(UsageError, match=message):
        run._session(b"")


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino", "torch", "torch-channels-last"])
def test_layer_tables_name_every_layer_once(bundle: Path, runtime: str) -> None:
    tiles = Golden.read(bundle / "golden.safetensors").tiles[:2]
    layers = opened(runtime, bundle).layers(tiles)
    assert layers is not None
    names = [layer for _, layer, _ in layers]
    assert len(set(names)) == len(names)
    net, _ = read_native(bundle / "model.safetensors")
    weighted = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d | torch.nn.Linear)}
    assert weighted <= set(names)
    assert [s for i, s in enumerate(stage for stage, _, _ in layers) if i == 0 or layers[i - 1][0] != s] == list(STAGES)
    assert all(seconds >= 0 for _, _, seconds in layers)
    assert 0 < head_share(layers) < 0.3


# Below fp32.

LOW = [
    pytest.param(str(variant), marks=SLOW if variant.runtime == "torch-compile" else ())
    for variant in all_variants()
    if variant.precision != "fp32" and variant.runtime != "onnxruntime-tool"  # its file is made by a benchmark
]
CROP, SIDE = 64, 75


@pytest.fixture(scope="module")
def low(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    """An untrained network with scales."""
    files = {variant.file for variant in all_variants() if variant.precision != "fp32"}
    folder = tmp_path_factory.mktemp("low")
    (subject,) = untrained_subjects([2], folder, files, int8=True, crop=CROP, tile_size=SIDE)
    return subject


@pytest.fixture(scope="module")
def open_low(low: Subject) -> Callable[[str], Runtime]:
    def call(runtime_id: str) -> Runtime:
        variant = Variant.parse(runtime_id)
        if variant.entry.package == "openvino":
            pytest.importorskip("openvino")
        if variant.entry.package == "histo-export" and (reason := precision_support()[variant.precision].reason):
            pytest.skip(reason)
        try:
            return open_runtime(variant.runtime, low.file(variant.file), threads=2, precision=variant.precision)
        except HistoError as error:
            if "AVX-512 BF16 or AMX" not in str(error):  # OpenVINO in bf16
                raise
            pytest.skip(str(error))

    return call


def test_onnxruntimes_own_tool_makes_a_model_all_int8(
    low: Subject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    from low_precision_table import TOOL, quantise_with_onnxruntime

    golden = Golden.read(low.folder / "golden.safetensors")
    file = tmp_path / Variant.parse(TOOL).file
    quantise_with_onnxruntime(low.file("model.onnx"), file, golden.tiles)
    run = open_runtime("onnxruntime-tool", file, threads=2, precision="int8")
    assert run.executed == "CPUExecutionProvider int8"
    error = golden.spread_error(run.run(golden.tiles))
    assert low.rounding("int8") / 2 < error <= ROUNDINGS * low.rounding("int8")
    plain = open_runtime("onnxruntime", low.file("model-int8.onnx"), threads=2, precision="int8")
    assert plain.executed.endswith("int8+fp32")


def test_an_id_names_a_runtime_and_its_precision() -> None:
    for variant in all_variants():
        assert Variant.parse(str(variant)) == variant
        assert (variant.precision == "fp32") == (not str(variant).endswith(("-bf16x3", "-bf16", "-int8")))
        assert variant.in_precision(variant.precision) == variant
    assert len({str(variant) for variant in all_variants()}) == len(all_variants())
    assert str(Variant("native-latency", "bf16x3")) == "native-latency-bf16x3"
    assert Variant.parse("onnxruntime-tool-int8") == Variant("onnxruntime-tool", "int8")
    assert str(Variant.parse("openvino-streams-int8").in_precision("bf16")) == "openvino-streams-bf16"
    assert str(Variant.parse("torch-compile-bf16").in_precision("fp32")) == "torch-compile"
    with pytest.raises(UsageError, match=r"torchscript in int8: is unavailable\. These can: .*onnxruntime, "):
        Variant("torchscript", "int8")
    for text in ("native-fp32", "native-int4", "torchscript-int8", "onnxruntime-tool"):
        with pytest.raises(UsageError, match=rf"runtime {text}: is unknown\. .*histo doctor lists all"):
            Variant.parse(text)


@pytest.mark.parametrize("runtime", LOW)
def test_a_lower_precision_is_executed_and_errs_by_its_rounding(
    low: Subject, open_low: Callable[[str], Runtime], runtime: str
) -> None:
    golden = Golden.read(low.folder / "golden.safetensors")
    precision = Variant.parse(runtime).precision
    run = open_low(runtime)
    before = run.executed  # asked before any run, it must tell the truth too
    logits = np.concatenate([run.run(golden.tiles[i : i + 3]) for i in range(0, len(golden.tiles), 3)])
    assert logits.dtype == np.float32
    assert before == run.executed
    assert precision_of(run.executed) == precision
    allowed = ROUNDINGS * low.rounding(precision)
    assert golden.spread_error(logits) <= allowed
    # It does round: fp32 is nearer to float64 than half of what the precision errs by its definition.
    assert golden.spread_error(logits) > low.rounding(precision) / 2
    stages = run.stages(golden.tiles[:2])
    assert list(stages) == list(STAGES)
    assert all(output.dtype == np.float32 for output in stages.values())
    np.testing.assert_allclose(stages["head"], logits[:2], atol=10 * allowed)


def test_a_wrong_layer_is_more_than_is_allowed(low: Subject) -> None:
    """The branch of each block left out in turn, each shortcut, and the stem, in a network that is exact otherwise."""
    golden = Golden.read(low.folder / "golden.safetensors")
    lowered, _ = read_native(low.file("model.safetensors"))
    tiles = torch.from_numpy(golden.tiles[:4])
    allowed = [ROUNDINGS * low.rounding(precision) for precision in ("bf16x3", "bf16", "int8")]
    assert golden.spread_error(Simulation(lowered)(tiles).numpy()) < min(allowed) / 2
    for name, layer in lowered.named_modules():
        if isinstance(layer, torch.nn.Conv2d) and name.endswith((".conv2", ".shortcut", "stem.conv")):
            kept = layer.weight.clone()
            layer.weight.zero_()
            assert golden.spread_error(Simulation(lowered)(tiles).numpy()) > max(allowed), name
            layer.weight.copy_(kept)


def test_an_unavailable_precision_is_refused_in_the_engines_words(
    low: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HISTO_ISA", "portable")
    file = low.file("model.safetensors")
    needs: dict[Precision, str] = {"int8": "AVX2 with VNNI, AVX-512 with VNNI"}
    needs |= dict.fromkeys(("bf16", "bf16x3"), "AVX-512 with BF16")
    for precision, needed in needs.items():
        message = rf"precision {precision} needs {needed}, or AMX, and .*\. Use fp32"
        with pytest.raises(HistoError, match=message):
            open_runtime("native", file, threads=1, precision=precision)


def test_int8_without_scales_is_refused(bundle: Path) -> None:
    reason = precision_support()["int8"].reason or "has no scales for int8"
    with pytest.raises(HistoError, match=re.escape(reason)):
        open_runtime("native", bundle / "model.safetensors", threads=1, precision="int8")
    with pytest.raises(HistoError, match=r"has no scales for int8\. Export it with --precision int8"):
        Subject("b", bundle, ModelSpec(3, CLASSES)).rounding("int8")


@pytest.mark.parametrize("runtime", ["native-int8", "onnxruntime-int8", "openvino-int8", "torch-channels-last-bf16"])
def test_layer_tables_of_lower_precisions_name_the_layers(
    low: Subject, open_low: Callable[[str], Runtime], runtime: str
) -> None:
    tiles = Golden.read(low.folder / "golden.safetensors").tiles[:2]
    layers = open_low(runtime).layers(tiles)
    assert layers is not None
    net, _ = read_native(low.file("model.safetensors"))
    convolutions = {name for name, module in net.named_modules() if isinstance(module, torch.nn.Conv2d)}
    found = {layer for _, layer, _ in layers}
    assert len(convolutions & {name.removesuffix(".conv") if name == "stem" else name for name in found}) >= 35
    assert {stage for stage, _, _ in layers} == set(STAGES)


def test_times_of_one_layer_are_added_up_under_its_stage() -> None:
    times = [("stem", 0.1), ("layer1.0.conv1", 0.6), ("stem", 0.2), ("head", 0.1)]
    layers = by_layer(times)
    assert [(stage, layer) for stage, layer, _ in layers] == [
        ("stem", "stem"),
        ("layer1", "layer1.0.conv1"),
        ("head", "head"),
    ]
    assert [seconds for _, _, seconds in layers] == pytest.approx([0.3, 0.6, 0.1])
    assert head_share(layers) == pytest.approx(0.1)


def test_runtimes_without_a_profile_have_no_table(bundle: Path) -> None:
    tiles = Golden.read(bundle / "golden.safetensors").tiles[:1]
    assert open_runtime("torchscript", bundle / "torchscript_model.pt", threads=2).layers(tiles) is None


def test_a_bundle_becomes_a_subject(bundle: Path, tmp_path: Path) -> None:
    (subject,) = open_subjects([bundle])
    assert (subject.label, subject.spec.pool, subject.accuracy) == (bundle.name, 3, None)
    assert subject.file("model.onnx").is_file()
    bare = Subject("bare", tmp_path, subject.spec)
    with pytest.raises(HistoError, match=r"holds no model\.onnx\. Export again with --formats …,onnx"):
        bare.file("model.onnx")


def test_bundles_of_unlike_tiles_are_not_measured_together(
    bundle: Path, copy_bundle: Callable[[Path, Path], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = copy_bundle(bundle, tmp_path / "other")

    def opened(path: Path) -> Bundle:
        """As if the other bundle were of another crop."""
        found = open_bundle(path)
        if path == other:
            found.config.histo.spec["crop"] = 48
        return found

    monkeypatch.setattr(subjects, "open_bundle", opened)
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
    settings = Settings(variants("native", "onnxruntime"), (1,), (1,), rounds=7, seconds=0.5)
    rows, _ = measure(subjects, settings)
    assert {row.precision for row in rows} == {"fp32"}
    assert all(row.idle_cpu < 0.1 for row in rows)
