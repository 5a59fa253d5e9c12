"""The Open Inference Protocol (KServe v2): tensors as JSON, or as bytes behind it (the extension for binary tensors).

A model takes `tiles`, UINT8 `(n, side, side, 3)`, and gives `logits` and `probabilities`, FP32 `(n, classes)`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import BaseModel, Field, ValidationError

from histo_export import __version__
from histo_export.model.provenance import first_fault
from histo_export.predict.loop import softmax
from histo_export.serve.models import Model
from histo_export.serve.refusals import malformed, too_large
from histo_export.spec import ModelSpec
from histo_export.strict_json import dump_json, load_json

Pixels = npt.NDArray[np.uint8]
Logits = npt.NDArray[np.float32]

JSON_HEADER = "inference-header-content-length"
"""The header with the number of bytes of JSON before those of tensors."""
MOST_JSON = 16 << 20
"""Bytes of JSON: Python needs ten to thirty times as much for its values. Tensors as bytes have no such limit."""
MOST_TENSORS = 64
"""Inputs or outputs that are looked at: Pydantic describes every fault of each."""
INPUT, OUTPUTS = "tiles", ("logits", "probabilities")


class _Tensor(BaseModel):
    name: str
    shape: Annotated[list[Annotated[int, Field(strict=True, ge=0, le=1 << 40)]], Field(max_length=8)]
    datatype: str
    parameters: dict[str, Any] = {}
    data: Any = None


class _Output(BaseModel):
    name: str
    parameters: dict[str, Any] = {}


class _Request(BaseModel):
    id: Annotated[str, Field(max_length=256)] | None = None
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[_Tensor], Field(max_length=MOST_TENSORS)]
    outputs: Annotated[list[_Output], Field(max_length=MOST_TENSORS)] = []


@dataclass(frozen=True)
class InferRequest:
    """What a client asks for.

    Attributes:
        id: which the answer repeats; None for none.
        tiles: uint8 RGB `(n, side, side, 3)`.
        outputs: name of each output → whether it is sent as bytes.
    """

    id: str | None
    tiles: Pixels
    outputs: dict[str, bool]


def read_infer(body: bytes, header: str | None, spec: ModelSpec, most_tiles: int) -> InferRequest:
    """Reads the body of an inference request.

    Args:
        body: all of it.
        header: the value of `JSON_HEADER`; None where the body is JSON alone.
        spec: of the model.
        most_tiles: of a request.

    Raises:
        Refused: it is not a request that this model answers.
    """
    length = len(body)
    if header is not None:
        if not re.fullmatch(r"[0-9]{1,15}", header) or int(header) > length:
            cause = f"is {header[:40]!r}, and the body has {length:,} bytes"
            raise malformed(JSON_HEADER, cause, "Give the length of the JSON at its start")
        length = int(header)
    if length > MOST_JSON:
        step = "Send the tensor as bytes: binary_data_size, as tritonclient does"
        raise too_large("The JSON of the request", f"has {length:,} bytes, more than {MOST_JSON:,}", step)
    try:
        request = _Request.model_validate(load_json(body[:length]))
    except ValidationError as error:
        raise malformed(
            "The request", f"is not one of the protocol ({first_fault(error)})", "See docs/serve.md"
        ) from error
    except ValueError as error:
        raise malformed("The request", f"is not JSON ({error})", "See docs/serve.md") from error
    tiles = _tiles(request.inputs, body[length:], spec, most_tiles)
    return InferRequest(request.id, tiles, _outputs(request))


def _tiles(inputs: list[_Tensor], rest: bytes, spec: ModelSpec, most_tiles: int) -> Pixels:
    """The one input; `rest` are the bytes behind the JSON."""
    side = spec.tile_size
    step = f"Send one input {INPUT!r}, UINT8 (n, {side}, {side}, 3)"
    if len(inputs) != 1 or inputs[0].name != INPUT:
        names = ", ".join(repr(tensor.name[:40]) for tensor in inputs[:3])
        cause = f"are {len(inputs)}{f' ({names})' if names else ''}"
        raise malformed("The inputs", cause, step)
    (tensor,) = inputs
    shape = tuple(tensor.shape)
    if tensor.datatype != "UINT8" or len(shape) != 4 or shape[1:] != (side, side, 3) or not shape[0]:
        raise malformed(INPUT, f"is {tensor.datatype[:20]!r} {shape}", step)
    if shape[0] > most_tiles:
        raise too_large(INPUT, f"holds {shape[0]:,} tiles", f"Send at most {most_tiles} at a time")
    size = tensor.parameters.pop("binary_data_size", None)
    _refuse(tensor.parameters, INPUT)
    if size is not None:
        if tensor.data is not None or isinstance(size, bool) or size != len(rest) or size != math.prod(shape):
            cause = f"has a shape of {math.prod(shape):,} bytes, states {str(size)[:20]!r}, and {len(rest):,} came"
            raise malformed(INPUT, cause, "Make them equal, and send no data in the JSON")
        return np.frombuffer(rest, np.uint8).reshape(shape)
    if rest:
        raise malformed(INPUT, f"has no binary_data_size, and {len(rest):,} bytes follow the JSON", "State it")
    return _numbers(tensor.data, shape)


def _numbers(data: Any, shape: tuple[int, ...]) -> Pixels:
    """The integers of a JSON list, flat or nested."""
    step = "Give integers from 0 to 255 in row-major order"
    if not isinstance(data, list):
        raise malformed(INPUT, "has no list as data", step)
    # As Python's objects: numpy would give all elements the width of the longest string among them.
    array = np.asarray(data, dtype=object)
    if array.size != math.prod(shape) or array.shape not in (shape, (array.size,)):
        raise malformed(INPUT, f"holds data of shape {array.shape} for {shape}", step)
    kinds = {type(value) for value in array.flat}
    if kinds != {int}:
        raise malformed(INPUT, f"holds {', '.join(sorted(kind.__name__ for kind in kinds))}", step)
    wrong = next((value for value in array.flat if not 0 <= value <= 255), None)
    if wrong is not None:
        raise malformed(INPUT, f"holds {wrong if abs(wrong) < 1e9 else 'a number of many digits'}", step)
    return array.astype(np.uint8).reshape(shape)


def _outputs(request: _Request) -> dict[str, bool]:
    """The outputs that are asked for, all where none is named, and whether each is sent as bytes."""
    binary = _flag(request.parameters, "binary_data_output", False)
    _refuse(request.parameters, "The request")
    if not request.outputs:
        return dict.fromkeys(OUTPUTS, binary)
    wanted: dict[str, bool] = {}
    for output in request.outputs:
        if output.name not in OUTPUTS or output.name in wanted:
            cause = "is asked for twice" if output.name in wanted else "is not an output"
            raise malformed(f"output {output.name[:40]!r}", cause, f"Choose from {', '.join(OUTPUTS)}")
        wanted[output.name] = _flag(output.parameters, "binary_data", binary)
        _refuse(output.parameters, output.name)
    return wanted


def _flag(parameters: dict[str, Any], name: str, default: bool) -> bool:
    """Takes a parameter that is true or false."""
    value = parameters.pop(name, default)
    if not isinstance(value, bool):
        raise malformed(name, f"is {str(value)[:40]!r}", "Give true or false")
    return value


def _refuse(parameters: dict[str, Any], of: str) -> None:
    """Refuses what is left: a parameter that is ignored, such as a timeout or a shared memory, would mislead."""
    if parameters:
        raise malformed(of, f"has the parameter {next(iter(parameters))[:40]!r}, which is unknown here", "Leave it out")


def write_infer(request: InferRequest, logits: Logits, model: Model) -> tuple[bytes, dict[str, str]]:
    """The body of the answer, and its headers."""
    arrays = {"logits": logits, "probabilities": softmax(logits)}
    outputs: list[dict[str, Any]] = []
    tail: list[bytes] = []
    for name, binary in request.outputs.items():
        array = arrays[name]
        described = {"name": name, "datatype": "FP32", "shape": list(array.shape)}
        if binary:
            tail.append(array.astype("<f4").tobytes())
            outputs.append(described | {"parameters": {"binary_data_size": array.nbytes}})
        else:
            outputs.append(described | {"data": array.ravel().tolist()})
    answer = {"model_name": model.name, "model_version": model.version, "outputs": outputs}
    text = dump_json(answer | ({} if request.id is None else {"id": request.id})).encode()
    if not tail:
        return text, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_HEADER: str(len(text))}
    return b"".join([text, *tail]), headers


def server_metadata() -> dict[str, Any]:
    """The answer of GET /v2."""
    return {
        "name": "histo-export",
        "version": __version__,
        "extensions": ["binary_tensor_data", "model_repository"],
    }


def model_metadata(model: Model, versions: list[str]) -> dict[str, Any]:
    """The answer of GET /v2/models/NAME; `parameters` are what the protocol has no field for."""
    spec = model.spec
    outputs = [{"name": name, "datatype": "FP32", "shape": [-1, len(spec.classes)]} for name in OUTPUTS]
    return {
        "name": model.name,
        "versions": versions,
        "platform": "histo-export",
        "inputs": [{"name": INPUT, "datatype": "UINT8", "shape": [-1, spec.tile_size, spec.tile_size, 3]}],
        "outputs": outputs,
        "parameters": facts_of(model),
    }


def facts_of(model: Model) -> dict[str, Any]:
    """What a client must know of a model to use its answers."""
    spec = model.spec
    return {
        "version": model.version,
        "classes": list(spec.classes),
        "mpp": spec.mpp,
        "tile_size": spec.tile_size,
        "seen": {"left": spec.crop_offset, "top": spec.crop_offset, "side": spec.crop},
        "calibration": model.calibration,
        "synthetic": model.synthetic,
        "executed": model.executed,
    }
