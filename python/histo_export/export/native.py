"""`model.safetensors`: the native engine's file, folded float32 weights and all that is needed to run them.

Keys are those of `LoweredNet.state_dict()` (`stem.conv.weight`, `layer1.0.conv1.bias`, …, `head.linear.weight`), plus
`stem.mean` and `stem.std`. The header's metadata makes the file self-sufficient:

- `histo.format`: "1";
- `histo.spec`: `ModelSpec.to_dict()` as JSON;
- `histo.head_pool`: the pool that the stored linear layer expects; n where n divides the map, else the map's side.
"""

import json
from pathlib import Path

import safetensors
import safetensors.torch

from histo_export.errors import HistoError
from histo_export.export.lowering import LoweredNet, head_pool
from histo_export.spec import ModelSpec

FORMAT = "1"


def native_bytes(lowered: LoweredNet, spec: ModelSpec) -> bytes:
    """The file's bytes."""
    metadata = {
        "histo.format": FORMAT,
        "histo.spec": json.dumps(spec.to_dict()),
        "histo.head_pool": str(head_pool(spec.pool, spec.map_size)),
    }
    tensors = {key: value.contiguous() for key, value in lowered.state_dict().items()}
    return safetensors.torch.save(tensors, metadata=metadata)


def read_native(path: Path) -> tuple[LoweredNet, ModelSpec]:
    """The lowered network, rebuilt from the file alone.

    Raises:
        HistoError: the file is damaged, of another format, or its tensors don't fit its spec.
    """
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (not a dict)
        if metadata.get("histo.format") != FORMAT:
            raise HistoError(path, f"has format {metadata.get('histo.format')!r}, not {FORMAT}", "Export again")
        spec = ModelSpec.from_dict(json.loads(metadata["histo.spec"]))
        lowered = LoweredNet(spec).eval()
        lowered.load_state_dict(tensors)
    except (safetensors.SafetensorError, OSError, RuntimeError, KeyError, TypeError, ValueError) as error:
        raise HistoError(path, f"is not a readable model ({str(error).splitlines()[0]})", "Export again") from error
    return lowered.requires_grad_(False), spec
