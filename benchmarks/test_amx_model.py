"""The layers that amx_model.py counts are those of the engine, and its bounds are those of the kernels."""

from __future__ import annotations

import amx_model
import numpy as np
import pytest

from histo_export import Engine
from histo_export.bench.subjects import Subject


def test_the_counted_layers_are_those_of_the_engine(subjects: dict[int, Subject]) -> None:
    model = next(iter(subjects.values())).folder / "model.safetensors"
    engine = Engine(model, threads=1, crop=48)
    found = engine.layer_times(np.zeros((1, 48, 48, 3), np.uint8))
    assert found.pop()["name"] == "head"
    counted = list(amx_model.layers(48))
    assert [layer.name for layer in counted] == [layer["name"] for layer in found]
    for layer, real in zip(counted, found, strict=True):
        assert real["output"] == (layer.outputs, layer.side, layer.side)
        assert real["multiply_adds"] == layer.inputs * layer.outputs * layer.kernel**2 * layer.side**2


@pytest.mark.parametrize(("precision", "numbers"), [("int8", 64), ("bf16", 32), ("bf16x3", 32 / 3)])
def test_full_tiles_take_a_cycle_for_each_sixteenth_product(precision: str, numbers: float) -> None:
    layer = next(layer for layer in amx_model.layers(128) if layer.name == "layer3.2.conv1")
    bounds = amx_model.cycles(layer, precision, batch=8, memory_bytes=6.0)
    assert bounds.products == pytest.approx(9 * 256 * 256 * 64 / (16 * numbers))
    alone = amx_model.cycles(layer, precision, batch=1, memory_bytes=6.0)
    assert alone.products == bounds.products
    assert alone.memory == pytest.approx(8 * bounds.memory)
    assert alone.first_cache > bounds.first_cache  # eight pixels to a row: they are gathered
