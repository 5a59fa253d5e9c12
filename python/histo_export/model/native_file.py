"""`model.safetensors`, the native engine's file: folded float32 weights, and all that is needed to run them.

Keys are those of `LoweredNet.state_dict()` (`stem.conv.weight`, `layer1.0.conv1.bias`, …, `head.linear.weight`), plus
`stem.mean` and `stem.std`. The metadata in its header makes the file complete in itself:

- `histo.format`: "1", or "2" where there are scales;
- `histo.spec`: `ModelSpec.to_dict()` as JSON;
- `histo.head_pool`: the pool that the stored linear layer expects; n where n divides the map, else the map's side;
- `histo.precision`: that the bundle is made for; not in files of older versions.

Format 2 also holds `NAME.input_scale` and `NAME.weight_scale` for each convolution that may run in int8, see
`arithmetic.Scales`. The weights are float32 in both formats, so that one file runs in every precision.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from histo_export.errors import HistoError, one_line
from histo_export.model.arithmetic import MAPS, Scales
from histo_export.model.lowering import LoweredNet
from histo_export.model.tensor_file import check_values
from histo_export.spec import ModelSpec, Precision, head_pool

FORMAT, QUANTISED = "1", "2"
INPUT_SCALE, WEIGHT_SCALE = ".input_scale", ".weight_scale"


def native_bytes(
    lowered: LoweredNet, spec: ModelSpec, scales: Mapping[str, Scales] | None = None, precision: Precision | None = None
) -> bytes:
    """The content of the file; format 2 where there are scales. `precision` is that of its bundle, if it has one."""
    metadata = {
        "histo.format": QUANTISED if scales else FORMAT,
        "histo.spec": json.dumps(spec.to_dict()),
        "histo.head_pool": str(head_pool(spec.pool, spec.map_size)),
    }
    if precision is not None:
        metadata["histo.precision"] = precision
    tensors = {key: value.contiguous() for key, value in lowered.state_dict().items()}
    for name, scale in (scales or {}).items():
        # Copies, because convolutions that read one map share a tensor, and the library refuses to write one twice.
        tensors |= {name + INPUT_SCALE: scale.input.clone(), name + WEIGHT_SCALE: scale.weight.clone()}
    return safetensors.torch.save(tensors, metadata=metadata)


def read_native(path: Path) -> tuple[LoweredNet, ModelSpec]:
    """The lowered network, rebuilt from the file alone.

    Raises:
        HistoError: the file is damaged, of another format, or its tensors don't fit its spec.
    """
    lowered, spec, _ = read_quantised(path)
    return lowered, spec


def read_quantised(path: Path) -> tuple[LoweredNet, ModelSpec, dict[str, Scales]]:
    """As `read_native`, and the scales by convolution; format 1 has none.

    Raises:
        HistoError: as `read_native`; or a scale is missing or impossible.
    """
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
        check_values(path, tensors)
        lowered.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HistoError(path, f"is not a readable model ({one_line(error)})", "Export again") from error
    return lowered.requires_grad_(False), spec, scales


def _take_scales(tensors: dict[str, Tensor], lowered: LoweredNet) -> dict[str, Scales]:
    """Removes the scales from `tensors` and returns them; ValueError where one is missing or impossible."""
    scales: dict[str, Scales] = {}
    for name, convs in MAPS.items():
        if not any(conv + ending in tensors for conv in convs for ending in (INPUT_SCALE, WEIGHT_SCALE)):
            continue
        for conv in convs:
            pair = []
            outputs = len(lowered.get_parameter(f"{conv}.weight"))
            for key, count in ((conv + INPUT_SCALE, 1), (conv + WEIGHT_SCALE, outputs)):
                if key not in tensors:
                    raise ValueError(f"{key} is missing, and other scales of its map are not")
                scale = tensors.pop(key)
                if scale.dtype != torch.float32 or scale.shape != (count,):
                    raise ValueError(f"{key} is {scale.dtype} {tuple(scale.shape)}, not float32 ({count},)")
                # As in the native engine. Subnormal values are refused, because their reciprocals may be infinite.
                if not (torch.isfinite(scale).all() and (scale >= torch.finfo(scale.dtype).tiny).all()):
                    raise ValueError(f"{key} holds a value that is not finite or not above 0")
                pair.append(scale)
            scales[conv] = Scales(*pair)
        if any(not torch.equal(scales[conv].input, scales[name].input) for conv in convs):
            raise ValueError(f"{', '.join(convs)} read one map with different input scales")
    return scales
