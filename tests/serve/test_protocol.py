"""The Open Inference Protocol: what a model is, and tensors as JSON and as bytes."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from histo_export import __version__

from .conftest import SIDE, Answer, Pixels, Server

INFER = "/v2/models/bundle/infer"
HEADER = "Inference-Header-Content-Length"


def tensor(tiles: Pixels, **changes: Any) -> dict[str, Any]:
    return {"name": "tiles", "shape": list(tiles.shape), "datatype": "UINT8", "data": tiles.ravel().tolist()} | changes


def infer(server: Server, request: dict[str, Any] | bytes, tail: bytes | None = None, path: str = INFER) -> Answer:
    text = request if isinstance(request, bytes) else json.dumps(request).encode()
    headers = {} if tail is None else {HEADER: str(len(text))}
    return server.post(path, text + (tail or b""), **headers)


def array(output: dict[str, Any]) -> npt.NDArray[np.float32]:
    assert output["datatype"] == "FP32"
    return np.array(output["data"], np.float32).reshape(output["shape"])


def test_health_and_metadata(server: Server) -> None:
    assert server.get("/v2/health/live").json == {"live": True}
    assert server.get("/v2/health/ready").json == {"ready": True}
    assert server.get("/v2/models/bundle/ready").json == {"name": "bundle", "ready": True}
    assert server.get("/v2").json["version"] == __version__
    model = server.get("/v2/models/bundle").json
    (version,) = model["versions"]
    assert model["inputs"] == [{"name": "tiles", "datatype": "UINT8", "shape": [-1, SIDE, SIDE, 3]}]
    assert [(each["name"], each["shape"]) for each in model["outputs"]] == [
        ("logits", [-1, 6]),
        ("probabilities", [-1, 6]),
    ]
    assert model["parameters"]["seen"] == {"left": 6, "top": 6, "side": 64}
    assert server.get(f"/v2/models/bundle/versions/{version}").json == model
    assert server.get(f"/v2/models/bundle/versions/{version}/ready").status == 200
    assert server.post("/v2/repository/index").json == [
        {"name": "bundle", "version": version, "state": "READY", "reason": ""}
    ]
    for path in ("/v2/models/other", "/v2/models/bundle/versions/2", "/v2/models/bundle/versions/2/ready", "/v3"):
        assert server.get(path).status == 404
        assert server.get(path).error


@pytest.mark.parametrize("nested", [False, True])
def test_json_in_and_out(server: Server, tiles: Pixels, logits: Any, probabilities: Any, nested: bool) -> None:
    data = tiles[:2].tolist() if nested else tiles[:2].ravel().tolist()
    answer = infer(server, {"id": "seven", "inputs": [tensor(tiles[:2], data=data)]})
    assert (answer.status, answer.json["id"], answer.json["model_name"]) == (200, "seven", "bundle")
    first, second = answer.json["outputs"]
    assert (first["name"], second["name"]) == ("logits", "probabilities")
    assert array(first).tobytes() == logits[:2].tobytes()
    assert array(second).tobytes() == probabilities[:2].tobytes()


def test_bytes_in_and_out(server: Server, tiles: Pixels, logits: Any, probabilities: Any) -> None:
    described = {"name": "tiles", "shape": list(tiles.shape), "datatype": "UINT8"}
    described["parameters"] = {"binary_data_size": tiles.nbytes}  # type: ignore[assignment]
    answer = infer(server, {"inputs": [described], "parameters": {"binary_data_output": True}}, tiles.tobytes())
    length = int(answer.headers[HEADER])
    assert [each["parameters"]["binary_data_size"] for each in json.loads(answer.body[:length])["outputs"]] == [
        144,
        144,
    ]
    assert answer.body[length:] == logits.tobytes() + probabilities.tobytes()
    wanted = [{"name": "probabilities", "parameters": {"binary_data": False}}]
    answer = infer(server, {"inputs": [described], "outputs": wanted}, tiles.tobytes())
    (output,) = answer.json["outputs"]
    assert array(output).tobytes() == probabilities.tobytes()


TILE = np.zeros((1, SIDE, SIDE, 3), np.uint8)
BINARY = {"data": None, "parameters": {"binary_data_size": TILE.nbytes}}


@pytest.mark.parametrize(
    ("request_of", "status", "words"),
    [
        (b"", 400, "is not JSON"),
        (b"\xff", 400, "is not JSON"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"inputs":[],"inputs":[]}', 400, "the key 'inputs' twice"),
        (b"[]", 400, "is not one of the protocol"),
        (b'{"inputs":[{"name":"tiles","shape":[1],"datatype":"UINT8","data":[NaN]}]}', 400, "holds NaN"),
        (b'{"inputs":[{"name":"tiles","shape":[1],"datatype":"UINT8","data":[1e999]}]}', 400, "not a finite number"),
        (b" " * (16 << 20) + b"{}", 413, "Send the tensor as bytes"),
        ({"inputs": []}, 400, "The inputs: are 0. Send one input 'tiles'"),
        ({"inputs": [tensor(TILE, data=[])] * 2}, 400, "The inputs: are 2"),
        ({"inputs": [1] * 1_000_000}, 400, "at most 64 items"),
        ({"inputs": [tensor(TILE)], "outputs": [1] * 1_000_000}, 400, "at most 64 items"),
        (("{" + ",".join(f'"{i}":1' for i in range(100_000)) + ',"99999":1}').encode(), 400, "the key '99999' twice"),
        ({"inputs": [tensor(TILE, name="x")]}, 400, "The inputs: are 1 ('x')"),
        ({"inputs": [tensor(TILE, datatype="FP32")]}, 400, "tiles: is 'FP32' (1, 75, 75, 3). Send one input"),
        ({"inputs": [tensor(TILE, shape=[1, 64, 64, 3])]}, 400, "tiles: is 'UINT8' (1, 64, 64, 3)"),
        ({"inputs": [tensor(TILE, shape=[0, SIDE, SIDE, 3], data=[])]}, 400, "tiles: is 'UINT8' (0,"),
        ({"inputs": [tensor(TILE, shape=[-1, SIDE, SIDE, 3])]}, 400, "greater than or equal to 0"),
        ({"inputs": [tensor(TILE, shape=[1.0, SIDE, SIDE, 3])]}, 400, "valid integer"),
        ({"inputs": [tensor(TILE, shape=[2**39, SIDE, SIDE, 3])]}, 413, "tiles: holds 549,755,813,888 tiles"),
        ({"inputs": [tensor(TILE, data=None)]}, 400, "tiles: has no list as data"),
        ({"inputs": [tensor(TILE, data=[1])]}, 400, "tiles: holds data of shape (1,)"),
        ({"inputs": [tensor(TILE, data=[[1, 2], [3]])]}, 400, "tiles: holds data of shape (2,)"),
        ({"inputs": [tensor(TILE, data=[0.5] * TILE.size)]}, 400, "tiles: holds float"),
        ({"inputs": [tensor(TILE, data=[True] * TILE.size)]}, 400, "tiles: holds bool"),
        ({"inputs": [tensor(TILE, data=[[]] * (TILE.size - 1) + [[1]])]}, 400, "tiles: holds list"),
        ({"inputs": [tensor(TILE, data=[{}, *[1] * (TILE.size - 1)])]}, 400, "tiles: holds dict, int"),
        ({"inputs": [tensor(TILE, data=[256] * TILE.size)]}, 400, "tiles: holds 256. Give integers"),
        ({"inputs": [tensor(TILE, data=[-1] * TILE.size)]}, 400, "tiles: holds -1. Give integers"),
        ({"inputs": [tensor(TILE, data=[2**70] * TILE.size)]}, 400, "tiles: holds a number of many digits"),
        ({"inputs": [tensor(TILE, **BINARY)]}, 400, "states '16875', and 0 came"),
        ({"inputs": [tensor(TILE, parameters={"shared_memory_region": "x"})]}, 400, "parameter 'shared_memory_region'"),
        ({"inputs": [tensor(TILE)], "parameters": {"timeout": 1}}, 400, "parameter 'timeout', which is unknown"),
        ({"inputs": [tensor(TILE)], "parameters": {"binary_data_output": 1}}, 400, "binary_data_output: is '1'"),
        ({"inputs": [tensor(TILE)], "outputs": [{"name": "x"}]}, 400, "output 'x': is not an output"),
        ({"inputs": [tensor(TILE)], "outputs": [{"name": "logits"}] * 2}, 400, "'logits': is asked for twice"),
        (
            {"inputs": [tensor(TILE)], "outputs": [{"name": "logits", "parameters": {"classification": 2}}]},
            400,
            "parameter 'classification'",
        ),
    ],
)
def test_what_is_no_request_is_refused(server: Server, request_of: Any, status: int, words: str) -> None:
    answer = infer(server, request_of)
    assert (answer.status, words in answer.error) == (status, True), answer.error
    assert "\n" not in answer.error


def test_a_long_string_among_numbers_costs_no_memory(server: Server) -> None:
    tracemalloc.start()
    try:
        answer = infer(server, {"inputs": [tensor(TILE, data=["x" * 10_000, *[1] * (TILE.size - 1)])]})
        assert tracemalloc.get_traced_memory()[1] < 50e6  # not 4 bytes for each letter of the string, for each number
    finally:
        tracemalloc.stop()
    assert (answer.status, "tiles: holds int, str" in answer.error) == (400, True)


@pytest.mark.parametrize("length", ["-1", "abc", "9" * 30, "100000", "1e1"])
def test_the_length_of_the_json_is_judged(server: Server, length: str) -> None:
    answer = server.post(INFER, b"{}", **{HEADER: length})
    assert (answer.status, "Give the length of the JSON" in answer.error) == (400, True)


def test_bytes_that_nobody_announced_are_refused(server: Server) -> None:
    answer = infer(server, {"inputs": [tensor(TILE)]}, b"more")
    assert (answer.status, "4 bytes follow the JSON" in answer.error) == (400, True)
    answer = infer(server, {"inputs": [tensor(TILE, **BINARY)]}, TILE.tobytes()[:-1])
    assert (answer.status, "16,874 came" in answer.error) == (400, True)


def test_tritons_own_client_is_served(server: Server, tiles: Pixels, logits: Any) -> None:
    pytest.importorskip("geventhttpclient", reason='needs pip install "tritonclient[http]"')
    triton = pytest.importorskip("tritonclient.http")
    client = triton.InferenceServerClient(f"127.0.0.1:{server.port}")
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("bundle")
    assert client.get_model_metadata("bundle")["inputs"][0]["shape"] == [-1, SIDE, SIDE, 3]
    for binary in (True, False):
        request = triton.InferInput("tiles", list(tiles.shape), "UINT8")
        request.set_data_from_numpy(tiles, binary_data=binary)
        outputs = [triton.InferRequestedOutput("logits", binary_data=binary)]
        found = client.infer("bundle", [request], outputs=outputs).as_numpy("logits")
        assert found.tobytes() == logits.tobytes()
    assert client.infer("bundle", [request]).as_numpy("probabilities").shape == (6, 6)
    client.load_model("bundle")
    client.close()
