"""The check finds what it is there to find: each planted fault, in the stage where it was planted."""

from __future__ import annotations

import importlib.util
import inspect
import json
import sys
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from histo_export import parity
from histo_export.errors import HistoError, UsageError
from histo_export.export.formats import FORMATS, Format, Source, Writer, format_of, with_needs, write_formats
from histo_export.export.run import ExportSettings, export_bundle
from histo_export.model import lowering
from histo_export.model.checkpoint import Checkpoint
from histo_export.model.lowering import LoweredNet, lower
from histo_export.model.net import TileNet
from histo_export.parity import BATCHES, FP32_TOLERANCE, TILES, Golden, check_file, compare, make_golden
from histo_export.runtimes import RUNTIMES, Variant, runtime_class
from histo_export.spec import STAGES


@pytest.fixture(scope="module")
def golden(checkpoint: Checkpoint) -> Golden:
    return make_golden(checkpoint)


def test_golden_survives_its_file(golden: Golden, tmp_path: Path) -> None:
    path = tmp_path / "golden.safetensors"
    path.write_bytes(golden.to_bytes())
    again = Golden.read(path)
    assert np.array_equal(again.tiles, golden.tiles)
    assert np.array_equal(again.logits, golden.logits)
    assert list(again.stages) == sorted(STAGES)
    assert again.real == golden.real == 5
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(HistoError, match="not a readable golden file"):
        Golden.read(path)


def test_golden_holds_real_noise_black_and_white(golden: Golden) -> None:
    assert golden.tiles.shape == (TILES, 75, 75, 3)
    assert not golden.tiles[-2].any()
    assert (golden.tiles[-1] == 255).all()
    assert golden.logits.dtype == np.float64


def reference_outputs(golden: Golden) -> dict[str, np.ndarray]:
    outputs = {f"batch.{n}": golden.logits.astype(np.float32) for n in BATCHES}
    return outputs | {f"stage.{name}": value.copy() for name, value in golden.stages.items()}


META = {"runtime_id": "made", "runtime": "Made", "executed": "here", "ms_per_tile": {"1": 1.0, "32": 1.0}}


def test_compare_accepts_the_reference(golden: Golden) -> None:
    result = compare("model.onnx", golden, reference_outputs(golden), META)
    assert result.passed
    assert result.agreement == 1
    assert result.max_relative < result.tolerance / 10


@pytest.mark.parametrize("batch", BATCHES)
def test_compare_finds_one_wrong_logit_at_one_batch(golden: Golden, batch: int) -> None:
    outputs = reference_outputs(golden)
    outputs[f"batch.{batch}"][TILES - 1, 0] += 2 * FP32_TOLERANCE * max(1, np.abs(golden.logits[-1]).max())
    assert compare("model.onnx", golden, outputs, META).diverges == "head"


def test_huge_logits_of_noise_excuse_nothing_on_a_real_tile(golden: Golden) -> None:
    wild = replace(golden, logits=golden.logits.copy())
    wild.logits[-1] *= 1e4
    outputs = reference_outputs(wild)
    outputs["batch.1"][0, 0] += 2 * FP32_TOLERANCE * max(1, np.abs(golden.logits[0]).max())
    assert not compare("model.onnx", wild, outputs, META).passed


def test_compare_finds_nan(golden: Golden) -> None:
    outputs = reference_outputs(golden)
    outputs["batch.7"][3] = np.nan
    assert not compare("model.onnx", golden, outputs, META).passed


def _scale(stage: str) -> Callable[[LoweredNet], None]:
    def fault(net: LoweredNet) -> None:
        with torch.no_grad():
            net.get_submodule(stage).weight.mul_(1.01)  # type: ignore[operator, union-attr]

    return fault


FAULTS = {
    "stem": _scale("stem.conv"),
    "layer1": _scale("layer1.0.conv1"),
    "layer2": _scale("layer2.3.conv2"),
    "layer3": _scale("layer3.0.shortcut"),
    "layer4": _scale("layer4.2.conv1"),
    "head": _scale("head.linear"),
}


@pytest.mark.parametrize("stage", STAGES)
def test_a_fault_is_found_in_its_stage(checkpoint: Checkpoint, golden: Golden, stage: str) -> None:
    """One per cent on one weight tensor, in the real network."""
    lowered = lower(checkpoint.net(), checkpoint.spec)
    FAULTS[stage](lowered)

    def tensor(tiles: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255

    outputs = {}
    with torch.inference_mode():
        logits = lowered(tensor(golden.tiles)).numpy()
        x = tensor(golden.stage_tiles)
        for name in STAGES:
            x = lowered.get_submodule(name)(x)
            outputs[f"stage.{name}"] = x.numpy()
    outputs |= {f"batch.{n}": logits for n in BATCHES}
    assert compare("model.safetensors", golden, outputs, META).diverges == stage


def test_a_fault_in_a_file_makes_no_bundle(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def faulty_lower(net: TileNet, spec: object, kind: object) -> LoweredNet:
        lowered = lower(net, checkpoint.spec)
        FAULTS["layer3"](lowered)
        return lowered

    monkeypatch.setattr(lowering, "lower", faulty_lower)
    with pytest.raises(
        HistoError, match=r"model\.safetensors in native \(C\+\+\): .*first diverging stage: layer3"
    ) as caught:
        export_bundle(checkpoint, tmp_path / "bundle", ExportSettings(["native"], threads=2))
    assert caught.value.exit_code == 1
    assert not list(tmp_path.iterdir())


def test_all_formats_agree_in_processes_of_their_own(bundle: Path) -> None:
    from histo_export.export.bundle import open_bundle

    block = open_bundle(bundle).config.histo
    ran = {
        name: {*results, *(id for id in format_of(name).checked_by if id in block.unchecked)}
        for name, results in block.parity.items()
    }
    assert ran == {entry.file: set(entry.checked_by) for entry in FORMATS.values() if entry.file in block.files}
    assert set(block.unchecked) <= {"libtorch"}
    for result in (result for results in block.parity.values() for result in results.values()):
        assert result["max_relative"] <= result["tolerance"]
        assert result["agreement"] == 1
        assert result["diverges"] is None
        assert set(result["ms_per_tile"]) == {"1", "32"}


def test_a_changed_weight_in_a_shipped_file_is_found(bundle: Path, tmp_path: Path) -> None:
    """Through the worker process and the real file, by each runtime that checks it."""
    with safe_open(bundle / "model.safetensors", framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors["layer2.1.conv1.bias"] += 0.1
    changed = tmp_path / "model.safetensors"
    save_file(tensors, changed, metadata=metadata)
    golden_path = bundle / "golden.safetensors"
    for runtime_id in FORMATS["native"].checked_by:
        result = check_file(changed, runtime_id, golden_path, Golden.read(golden_path), 2)
        assert result.diverges == "layer2"


def test_a_file_that_cannot_be_opened_is_named(bundle: Path, tmp_path: Path) -> None:
    golden_path = bundle / "golden.safetensors"
    for runtime_id in ("onnxruntime", "torchscript", "native", "torch"):
        name = Variant(runtime_id).file
        (tmp_path / name).write_bytes((bundle / name).read_bytes()[:100_000])
        with pytest.raises(HistoError, match=rf"{name}: .* [eE]xport (the file |the model )?again"):
            check_file(tmp_path / name, runtime_id, golden_path, Golden.read(golden_path), 2)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_the_worker_passes_on_what_is_wrong(bundle: Path) -> None:
    golden_path = bundle / "golden.safetensors"
    with pytest.raises(UsageError, match=r"PyTorch eager, --device cuda: torch .* finds no GPU\. Use --device cpu"):
        check_file(bundle / "model.safetensors", "torch", golden_path, Golden.read(golden_path), 2, "cuda")


def test_a_dead_worker_is_told_by_its_end(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    golden_path = bundle / "golden.safetensors"
    golden = Golden.read(golden_path)
    for program, reason in (
        ("import os; os.kill(os.getpid(), 9)", r"signal 9 ended it\). See whether memory ran out"),
        ("raise MemoryError", r"MemoryError\). See histo doctor"),
        ("raise SystemExit(7)", r"exit status 7\). See histo doctor"),
    ):
        monkeypatch.setattr(parity, "WORKER", ("-c", program))
        with pytest.raises(HistoError, match=rf"model\.onnx: could not be run by onnxruntime \({reason}"):
            check_file(bundle / "model.onnx", "onnxruntime", golden_path, golden, 2)


def test_a_worker_that_cannot_write_its_result_says_so(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Stub:
        name = executed = "stub"
        stages = staticmethod(lambda tiles: {})
        warmup = staticmethod(lambda batch, side: None)
        run = staticmethod(lambda tiles: np.zeros((len(tiles), 6), np.float32))

    monkeypatch.setattr(parity, "open_runtime", lambda *_, **__: Stub())
    with pytest.raises(HistoError, match=r"/proc: could not be written \(No such file .*\)\. Set TMPDIR"):
        parity._worker(["torch", "file", str(bundle / "golden.safetensors"), "/proc/result", "1", "cpu", "0"])


def test_a_network_of_another_shape_differs(golden: Golden) -> None:
    """Another crop gives maps of another size, and other classes give other logits; both ended in a traceback."""
    outputs = reference_outputs(golden)
    smaller = {name: value[..., 1:, 1:] for name, value in outputs.items() if name.startswith("stage.layer")}
    outputs["batch.1"] = outputs["batch.1"] + 1
    assert compare("model.onnx", golden, outputs | smaller, META).diverges == "layer1"
    fewer = {name: value[:, 1:] for name, value in outputs.items() if name.startswith("batch.")}
    with pytest.raises(HistoError, match=r"model\.onnx in Made: gives 5 logits for a tile, and golden.* has 6"):
        compare("model.onnx", golden, outputs | fewer, META)


def test_an_unavailable_runtime_is_reported_and_the_others_check(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    checks = export_bundle(checkpoint, tmp_path / "bundle", ExportSettings(["torchscript"], threads=2))
    assert [result.runtime_id for result in checks.results] == ["torchscript"]
    assert "needs a C++20 compiler, and no-such-compiler is not on the PATH" in checks.unchecked["libtorch"]
    assert "Not checked in libtorch: needs a C++20 compiler" in (tmp_path / "bundle" / "README.md").read_text()
    assert json.loads((tmp_path / "bundle" / "config.json").read_text())["histo"]["unchecked"] == checks.unchecked


@pytest.mark.parametrize("name", FORMATS)
def test_a_format_is_complete(name: str) -> None:
    """Its module has every function of `Writer`, and a model file is checked by runtimes that open this very file."""
    entry = FORMATS[name]
    for function in ("write", "usage", "next_step"):
        expected = list(inspect.signature(getattr(Writer, function)).parameters)[1:]  # without self
        assert list(inspect.signature(getattr(entry.writer, function)).parameters) == expected
    assert bool(entry.checked_by) == (entry.file is not None)
    assert {Variant(runtime_id).file for runtime_id in entry.checked_by} <= {entry.file}
    assert set(entry.needs) <= set(FORMATS)


@pytest.mark.parametrize("runtime_id", RUNTIMES)
def test_every_runtime_can_be_found(runtime_id: str) -> None:
    """And its class has the precisions that the registry promises without importing it."""
    extra, modules = RUNTIMES[runtime_id].needs or ("", ())
    if any(importlib.util.find_spec(module) is None for module in modules):
        with pytest.raises(HistoError, match=rf'pip install "histo-export\[{extra}\]"'):
            runtime_class(runtime_id)
    else:
        assert set(runtime_class(runtime_id).names) == set(RUNTIMES[runtime_id].files)


def test_a_new_format_is_a_module_and_a_line(
    checkpoint: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the line names is written, reported and accepted in a bundle, and nothing takes it for another format."""
    module = types.ModuleType("histo_export.export.made_up")

    def write(folder: Path, source: Source) -> list[str]:
        (folder / "model.made").write_text(str(source.spec.pool))
        return ["model.made"]

    module.write = write  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(FORMATS, "made-up", Format("made_up", "model.made", ("native",), own_tolerance=1e-3))
    steps: list[str] = []
    assert write_formats(tmp_path, ["made-up"], Source(checkpoint), steps.append) == ["model.made"]
    assert (tmp_path / "model.made").read_text() == "3"
    assert steps == ["writing model.made"]
    assert format_of("model.made").tolerance == 1e-3
    assert [name for name, entry in FORMATS.items() if entry.makes("model.made")] == ["made-up"]
    assert with_needs(["triton", "made-up"]) == ["onnx", "triton", "made-up"]
