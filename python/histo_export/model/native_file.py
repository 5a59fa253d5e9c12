"""`model.safetensors`: the native engine's file, folded float32 weights and all that is needed to run them.

Keys are those of `LoweredNet.state_dict()` (`stem.conv.weight`, `layer1.0.conv1.bias`, …, `head.linear.weight`), plus
`stem.mean` and `stem.std`. The header's metadata makes the file self-sufficient:

- `histo.format`: "1", or "2" where there are scales;
- `histo.spec`: `ModelSpec.to_dict()` as JSON;
- `histo.head_pool`: the pool that the stored linear layer expects; n where n divides the map, else the map's side.

Format 2 holds for each convolution that may run in int8 also `NAME.input_scale` and `NAME.weight_scale`, see
`arithmetic.Scales`. The weights are float32 all the same, so that one file runs in every precision.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from histo_export.errors import HistoError
from histo_export.model.arithmetic import MAPS, Scales
from histo_export.model.lowering import LoweredNet, head_pool
from histo_export.spec import ModelSpec

FORMAT, QUANTISED = "1", "2"
INPUT_SCALE, WEIGHT_SCALE = ".input_scale", ".weight_scale"


def native_bytes(lowered: LoweredNet, spec: ModelSpec, scales: Mapping[str, Scales] | None = None) -> bytes:
    """The file's bytes; of format 2 where there are scales."""
    metadata = {
        "histo.format": QUANTISED if scales else FORMAT,
        "histo.spec": json.dumps(spec.to_dict()),
        "histo.head_pool": str(head_pool(spec.pool, spec.map_size)),
    }
    tensors = {key: value.contiguous() for key, value in lowered.state_dict().items()}
    for name, of in (scales or {}).items():
        # Convolutions that read one map share the tensor, which the library refuses to write twice.
        tensors |= {name + INPUT_SCALE: of.input.clone(), name + WEIGHT_SCALE: of.weight.clone()}
    return safetensors.torch.save(tensors, metadata=metadata)


def read_native(path: Path) -> tuple[LoweredNet, ModelSpec]:
    """The lowered network, rebuilt from the file alone.

    Raises:
        HistoError: the file is damaged, of another format, or its tensors don't fit its spec.
    """
    lowered, spec, _ = read_quantised(path)
    return lowered, spec


def read_quantised(path: Path) -> tuple[LoweredNet, ModelSpec, dict[str, Scales]]:
    """`read_native`, and the scales by convolution; none in format 1."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        version = metadata.get("histo.format")
        if version not in (FORMAT, QUANTISED):
            raise HistoError(path, f"has format {version!r}, not {FORMAT} or {QUANTISED}", "Export again")
        spec = ModelSpec.from_dict(json.loads(metadata["histo.spec"]))
        lowered = LoweredNet(spec).eval()
        scales = _take_scales(tensors, lowered) if version == QUANTISED else {}
        lowered.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HistoError(path, f"is not a readable model ({str(error).splitlines()[0]})", "Export again") from error
    return lowered.requires_grad_(False), spec, scales


def _take_scales(tensors: dict[str, Tensor], lowered: LoweredNet) -> dict[str, Scales]:
    """Moves the scales out of `tensors`; ValueError where one is missing or can't be right."""
    scales: dict[str, Scales] = {}
    for name, convs in MAPS.items():
        if not any(conv + ending in tensors for conv in convs for ending in (INPUT_SCALE, WEIGHT_SCALE)):
            continue
        for conv in convs:
            found = []
            outputs = len(lowered.get_parameter(f"{conv}.weight"))
            for key, count in ((conv + INPUT_SCALE, 1), (conv + WEIGHT_SCALE, outputs)):
                if key not in tensors:
                    raise ValueError(f"{key} is missing, and other scales of its map are not")
                scale = tensors.pop(key)
                if scale.dtype != torch.float32 or scale.shape != (count,):
                    raise ValueError(f"{key} is {scale.dtype} {tuple(scale.shape)}, not float32 ({count},)")
                # As the native engine: its reciprocal must be finite too, so subnormal ones are out.
                if not (torch.isfinite(scale).all() and (scale >= torch.finfo(scale.dtype).tiny).all()):
                    raise ValueError(f"{key} holds a value that is not finite or not above 0")
                found.append(scale)
            scales[conv] = Scales(*found)
        if any(not torch.equal(scales[conv].input, scales[name].input) for conv in convs):
            raise ValueError(f"{', '.join(convs)} read one map with different input scales")
    return scales
