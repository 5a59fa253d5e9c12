"""All runtimes refuse the same things in the same words, and say what helps."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from histo_export import _core
from histo_export.errors import HistoError, UsageError
from histo_export.runtimes import RUNTIMES, Variant, all_variants, open_runtime, runtime_class
from histo_export.runtimes.base import TileSide

WRONG_TILES = {
    "a sliver": (np.zeros((1, 63, 64, 3), np.uint8), "are 63 × 64 pixels"),
    "another sliver": (np.zeros((1, 64, 63, 3), np.uint8), "are 64 × 63 pixels"),
    "a pixel": (np.zeros((2, 1, 1, 3), np.uint8), "are 1 × 1 pixels"),
    "no tile": (np.zeros((0, 75, 75, 3), np.uint8), "are none"),
    "floats": (np.zeros((1, 75, 75, 3), np.float32), "are float32"),
    "planes": (np.zeros((1, 3, 75, 75), np.uint8), "are uint8"),
    "one image": (np.zeros((75, 75, 3), np.uint8), "are uint8"),
}


@pytest.mark.parametrize("runtime_id", RUNTIMES)
def test_wrong_tiles_are_refused_alike_in_every_runtime(bundle: Path, runtime_id: str) -> None:
    if "fp32" not in RUNTIMES[runtime_id].files:
        pytest.skip("has no fp32")
    if not (bundle / Variant(runtime_id).file).exists():
        pytest.skip("its file is not in this bundle; tests/test_converters.py opens it")
    if reason := runtime_class(runtime_id).unavailable("cpu"):
        pytest.skip(reason)
    runtime = open_runtime(runtime_id, bundle / Variant(runtime_id).file, threads=1)
    assert runtime.side == (TileSide(75, fixed=True) if runtime.side.fixed else TileSide(64, fixed=False))
    for tiles, message in WRONG_TILES.values():
        for call in (runtime.run, runtime.stages):
            with pytest.raises(UsageError, match=f"tiles: {message}"):
                call(tiles)
    if runtime.side.fixed:
        with pytest.raises(UsageError, match=r"tiles: are 75 × 76 pixels\. This model takes 75 × 75 pixels\."):
            runtime.run(np.zeros((1, 75, 76, 3), np.uint8))


NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@NO_GPU
@pytest.mark.parametrize("runtime_id", RUNTIMES)
def test_a_device_that_is_absent_is_wrong_use(bundle: Path, runtime_id: str) -> None:
    variant = next(variant for variant in all_variants() if variant.runtime == runtime_id)
    if not (bundle / variant.file).exists() and runtime_id in ("ncnn", "litert"):
        pytest.skip("is not installed")
    with pytest.raises(UsageError, match="--device cuda: ") as caught:
        open_runtime(runtime_id, bundle / variant.file, threads=1, device="cuda", precision=variant.precision)
    assert caught.value.exit_code == 2
    assert "xport" not in caught.value.next_step


@NO_GPU
@pytest.mark.parametrize("command", ["verify", "bench", "predict"])
def test_commands_say_that_there_is_no_such_device(
    command: str, bundle: Path, histo: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """`bench` ended in a traceback, and `verify` said to export again."""
    arguments = {"bench": ["--out", tmp_path / "out"], "predict": [tmp_path, "--out", tmp_path / "out"]}
    Image.new("RGB", (75, 75)).save(tmp_path / "tile.png")
    code, _, stderr = histo(command, bundle, *arguments.get(command, []), "--device", "cuda")
    assert code == 2
    assert "--device cuda: " in stderr
    assert "Use --device cpu" in stderr
    assert "xport" not in stderr
    assert not (tmp_path / "out").exists()


NATIVE = "model.safetensors"


def test_a_setting_of_the_engine_is_no_fault_of_the_file(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It said "Export again"."""
    with pytest.raises(UsageError, match=r"The native engine: .*10000.*") as caught:
        open_runtime("native", bundle / NATIVE, threads=10_000)
    assert "xport" not in str(caught.value)
    monkeypatch.setenv("HISTO_ISA", "sse9")
    with pytest.raises(UsageError, match=r"The native engine: .*sse9.*avx2") as caught:
        open_runtime("native", bundle / NATIVE, threads=1)
    assert "xport" not in str(caught.value)


def test_a_damaged_file_is_to_be_exported_again(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / NATIVE).write_bytes((bundle / NATIVE).read_bytes()[:10_000])
    with pytest.raises(HistoError, match=r"model\.safetensors: could not be opened .* again\.") as caught:
        open_runtime("native", tmp_path / NATIVE, threads=1)
    assert not isinstance(caught.value, UsageError)


@pytest.mark.skipif("int8" not in _core.usable_precisions(), reason=str(_core.precision_support()["int8"].reason))
def test_int8_without_scales_names_what_runs_here(bundle: Path) -> None:
    with pytest.raises(UsageError) as caught:
        open_runtime("native", bundle / NATIVE, threads=1, precision="int8")
    others = ", ".join(name for name in _core.usable_precisions() if name != "int8")
    assert str(caught.value).endswith(f"has no scales for int8. Export it with --precision int8, or use {others}.")


def test_runtimes_for_a_precision_are_those_that_run_here(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match=r"precision foo: is unknown\. Choose from fp32, bf16x3, bf16, int8\.$"):
        Variant("native", "foo")  # type: ignore[arg-type]
    for usable, names in (
        (["fp32", "int8"], "native, native-latency, onnxruntime, openvino"),
        (["fp32"], "onnxruntime"),
    ):
        monkeypatch.setattr(_core, "usable_precisions", lambda usable=usable: usable)
        with pytest.raises(UsageError, match=rf"torch in int8: is unavailable\. These can: {names}") as caught:
            Variant("torch", "int8")
        assert str(caught.value).endswith("; or use fp32.")
        assert "onnxruntime-tool" not in str(caught.value), "no bundle has its file"
    with pytest.raises(UsageError, match=r"No runtime here can run bf16x3; or use fp32\.$"):
        Variant("torch", "bf16x3")


@pytest.mark.parametrize(
    ("name", "step"),
    [
        ("tensorrt", "Did you mean onnxruntime-tensorrt? histo doctor lists all"),
        ("onxruntime", "Did you mean onnxruntime"),
        ("int8", "Did you mean native-int8 or "),
        ("zzz", "histo doctor lists all"),
    ],
)
def test_an_unknown_runtime_is_answered_briefly(
    name: str, step: str, bundle: Path, histo: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    """It listed 27 ids."""
    with pytest.raises(UsageError, match="is unknown") as caught:
        Variant.parse(name)
    for command in (("predict", bundle, tmp_path, "--runtime", name), ("bench", bundle, "--runtimes", name)):
        code, _, stderr = histo(*command, "--out", tmp_path / "out")
        assert code == 2
        for message in (str(caught.value), stderr):
            assert step in message
            assert len(message) < 200
