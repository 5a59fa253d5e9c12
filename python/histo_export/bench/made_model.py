"""A network of the right shape with random weights, made without torch: for timing only."""

from __future__ import annotations

import json

import numpy as np
import numpy.typing as npt
import safetensors.numpy

from histo_export._core import BLOCK_COUNTS
from histo_export.spec import CHANNELS, ModelSpec, head_pool


def made_model(spec: ModelSpec) -> bytes:
    """The content of a `model.safetensors` with scales for int8 in all convolutions that may have them."""
    random = np.random.default_rng(0)
    tensors: dict[str, npt.NDArray[np.float32]] = {
        "stem.mean": np.array(spec.mean, np.float32).reshape(3, 1, 1),
        "stem.std": np.array(spec.std, np.float32).reshape(3, 1, 1),
    }

    def add(name: str, inputs: int, outputs: int, kernel: int, *, int8: bool = True) -> None:
        # He's initialisation, halved so that the sums of the shortcuts do not grow from block to block.
        weight = random.standard_normal((outputs, inputs, kernel, kernel), np.float32)
        weight *= np.float32(np.sqrt(0.5 / (inputs * kernel**2)))
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = weight, np.full(outputs, 0.01, np.float32)
        if int8:
            tensors[f"{name}.input_scale"] = np.full(1, 0.02, np.float32)
            tensors[f"{name}.weight_scale"] = np.abs(weight).max((1, 2, 3)) / np.float32(127)

    add("stem.conv", 3, 64, 7, int8=False)
    inputs = 64
    for stage, blocks in enumerate(BLOCK_COUNTS):
        outputs = 64 << stage
        for index in range(blocks):
            block = f"layer{stage + 1}.{index}"
            add(f"{block}.conv1", inputs, outputs, 3)
            add(f"{block}.conv2", outputs, outputs, 3)
            if inputs != outputs:
                add(f"{block}.shortcut", inputs, outputs, 1)
            inputs = outputs
    kept = head_pool(spec.pool, spec.map_size)
    head = random.standard_normal((len(spec.classes), CHANNELS * kept**2), np.float32) / np.float32(100)
    tensors |= {"head.linear.weight": head, "head.linear.bias": np.zeros(len(spec.classes), np.float32)}
    metadata = {
        "histo.format": "2",
        "histo.spec": json.dumps(spec.to_dict()),
        "histo.head_pool": str(kept),
    }
    return safetensors.numpy.save(tensors, metadata=metadata)
