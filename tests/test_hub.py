"""histo push, and bundles at hf:// addresses, with a fake of the hub's HTTP interface."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

import histo_export
from fake_hub import TOKEN, FakeHub, Repo, fake_hub
from histo_export.bundle_files import CARD, CONFIG, GOLDEN, NATIVE, TRAINED_ON, hub_origin, model_name
from histo_export.errors import HistoError, UsageError

pytest.importorskip("huggingface_hub", reason='needs pip install "histo-export[hub]"')

from histo_export.export.formats import FORMATS
from histo_export.export.hub import local_bundle, push

Histo = Callable[..., tuple[int, str, str]]
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
"""How huggingface_hub 2.4 uploads through LFS; through Xet, as to the hub itself, it does not."""


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    from huggingface_hub import constants

    with fake_hub() as server:
        # huggingface_hub reads HF_ENDPOINT, HF_HUB_CACHE and HF_HUB_DISABLE_XET when it is imported.
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


@pytest.fixture(scope="module")
def native_bundle(
    bundle: Path, copy_bundle: Callable[[Path, Path], Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A bundle of the native file alone: 85 MB, which each test here may read."""
    folder = copy_bundle(bundle, tmp_path_factory.mktemp("hub") / "native")
    config = json.loads((folder / CONFIG).read_text())
    kept = {NATIVE, GOLDEN, TRAINED_ON}
    for part in ("files", "parity"):
        config["histo"][part] = {name: value for name, value in config["histo"][part].items() if name in kept}
    (folder / CONFIG).unlink()
    (folder / CONFIG).write_text(json.dumps(config))
    return folder


def small_bundle(folder: Path, **files: bytes) -> Any:
    """What `push` takes for a bundle; its files are not those of a network."""
    folder.mkdir(exist_ok=True)
    names = {NATIVE: b"w" * 2000, GOLDEN: b"g"} | files
    for name, content in ({CONFIG: b"{}", CARD: b"---\nlicense: unknown\n---\n"} | names).items():
        (folder / name).write_bytes(content)
    block = SimpleNamespace(files=dict.fromkeys(names))
    return SimpleNamespace(path=folder, config=SimpleNamespace(histo=block), models=[NATIVE])


@pytest.fixture
def tile(tmp_path: Path) -> Path:
    pixels = np.random.default_rng(0).integers(0, 256, (75, 75, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "tile.png")
    return tmp_path / "tile.png"


def test_a_bundle_goes_to_the_hub_and_comes_back(
    histo: Histo, hub: FakeHub, native_bundle: Path, tile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    code, out, err = histo("push", native_bundle, "lab/crc", "--create", "--private", "--json")
    assert (code, err) == (0, "")
    repo = hub.repos["lab/crc"]
    commit = json.loads(out)["commit"]
    assert (repo.private, repo.branches["main"], len(repo.commits)) == (True, commit, 2)
    assert repo.commits[commit].keys() == {".gitattributes", CONFIG, CARD, NATIVE, GOLDEN, TRAINED_ON}

    local, remote = tmp_path / "local", tmp_path / "remote"
    assert histo("predict", native_bundle, tile, "--out", local)[0] == 0
    assert histo("predict", "hf://lab/crc", tile, "--out", remote)[0] == 0
    name = "tile.png" if (local / "tile.png").is_dir() else next(p.name for p in local.iterdir() if p.is_dir())
    assert (remote / name / "tiles.csv").read_bytes() == (local / name / "tiles.csv").read_bytes()
    record = json.loads((remote / "run.json").read_text())["bundle"]
    assert record["hub"] == {"repository": "lab/crc", "commit": commit}
    assert json.loads((local / "run.json").read_text())["bundle"]["hub"] is None
    assert histo("inspect", "hf://lab/crc")[0] == 0

    # Without a network: by branch and by commit, from the cache.
    hub.refuse = {"": 503}
    asked = len(hub.asked)
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert histo("verify", f"hf://lab/crc@{commit}", "--runtimes", "native", "--quiet")[0] == 0
    classifier = histo_export.load("hf://lab/crc")
    assert classifier.spec.tile_size == 75
    assert len(hub.asked) == asked

    # A file that was changed is found before it is loaded.
    folder = local_bundle("hf://lab/crc")
    file = (folder / NATIVE).resolve()
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    code, _, err = histo("verify", "hf://lab/crc", "--quiet")
    assert (code, NATIVE in err, "sha256" in err) == (1, True, True)


def test_an_update_is_one_commit(hub: FakeHub, tmp_path: Path) -> None:
    """What the bundle lacks now is removed in it; what the owner has added stays."""
    hub.repos["lab/crc"] = repo = Repo()
    repo.commit("main", {"LICENSE": b"mine", "model.onnx": b"old", CONFIG: b"old", "triton/crc/config.pbtxt": b"old"})
    pushed = push(small_bundle(tmp_path / "b"), "lab/crc", create=False)
    assert len(repo.commits) == 2
    assert repo.commits[pushed.commit].keys() == {"LICENSE", CONFIG, CARD, NATIVE, GOLDEN}
    assert pushed.url.endswith(f"/lab/crc/commit/{pushed.commit}")


def test_a_branch(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["lab/crc"] = repo = Repo()
    first = repo.commit("main", {CONFIG: b"old"})
    made = small_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match=r"lab/crc: has no such revision. .*--create"):
        push(made, "lab/crc", revision="v2", create=False)
    pushed = push(made, "lab/crc", revision="v2", create=True)
    assert repo.branches == {"main": first, "v2": pushed.commit}
    folder = local_bundle("hf://lab/crc@v2")
    assert (folder / CONFIG).read_bytes() == b"{}"
    assert hub_origin(folder) == {"repository": "lab/crc", "commit": pushed.commit}
    assert model_name(folder) == "crc"
    assert (local_bundle("hf://lab/crc") / CONFIG).read_bytes() == b"old"


@pytest.mark.parametrize(
    ("refused", "status", "message"),
    [
        ("PUT /lfs/", 500, "lab/crc: was refused by the hub .500"),
        ("POST /lab/crc.git/info/lfs", 403, "lab/crc: was refused by the hub .403.: the token may not do this"),
        ("POST /api/models/lab/crc/commit/", 412, "lab/crc: has changed meanwhile .412."),
        ("POST /api/models/lab/crc/commit/", 403, "the token may not do this"),
    ],
)
def test_a_push_that_fails_publishes_nothing(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: str, status: int, message: str
) -> None:
    import time

    monkeypatch.setattr(time, "sleep", lambda seconds: None)  # huggingface_hub tries again
    hub.repos["lab/crc"] = repo = Repo()
    first = repo.commit("main", {CONFIG: b"old"})
    hub.refuse = {refused: status}
    with pytest.raises(HistoError, match=message) as caught:
        push(small_bundle(tmp_path / "b"), "lab/crc", create=False)
    assert "\n" not in str(caught.value)
    assert repo.branches == {"main": first}


def test_what_a_push_needs(histo: Histo, hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = small_bundle(tmp_path / "b")
    with pytest.raises(UsageError, match=r"lab/crc: does not exist on the hub.*--create"):
        push(made, "lab/crc", create=False)
    with pytest.raises(UsageError, match="The repository crc: is not of the form org/name"):
        push(made, "crc", create=True)
    code, _, err = histo("push", tmp_path, "lab/crc", "--private")
    assert (code, "--private: is for a repository that is made now. Add --create" in err) == (2, True)
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UsageError, match=r"lab/crc: .*Log in with hf auth login, or set HF_TOKEN"):
        push(made, "lab/crc", create=True)
    assert hub.repos == {}


def test_only_files_of_a_bundle_are_downloaded(hub: FakeHub) -> None:
    """A pickle beside them is never fetched."""
    hub.repos["lab/crc"] = repo = Repo()
    repo.commit("main", {CONFIG: b"{}", NATIVE: b"w", "pytorch_model.bin": b"pickle", "handler.py": b"code"})
    assert {file.name for file in local_bundle(Path("hf://lab/crc")).iterdir()} == {CONFIG, NATIVE}


FOREIGN = {"pytorch_model.bin", "timm/pytorch_model.bin", "triton/m/1/model.py", "handler.py"}
OURS = {
    *("model.xml", "model.bin", "model.ncnn.param", "model.ncnn.bin", "model.tflite", "model.onnx", "model-int8.onnx"),
    *("model-fp16.onnx", "model-fixed.onnx", "model.pt2", "torchscript_model.pt", "model.mlpackage/Manifest.json"),
    *("model.mlpackage/Data/com.apple.CoreML/weights/weight.bin", "triton/m/config.pbtxt", "triton/m/labels.txt"),
    *("triton/m/1/model.onnx", "timm/config.json", "timm/model.safetensors", NATIVE),
}
"""At least one file of each format that writes one."""


def test_all_files_of_all_formats_and_no_others(hub: FakeHub, tmp_path: Path) -> None:
    """They are downloaded, and removed where a later bundle lacks them; code that others run is neither."""
    without = {name for name, row in FORMATS.items() if not any(row.makes(file) for file in OURS)}
    assert without == {"tensorrt"}, "it is refused, and makes no file"
    hub.repos["lab/crc"] = repo = Repo()
    repo.commit("main", dict.fromkeys({CONFIG, *OURS, *FOREIGN}, b"1"))
    folder = local_bundle("hf://lab/crc")
    assert {f.relative_to(folder).as_posix() for f in folder.rglob("*") if not f.is_dir()} == {CONFIG, *OURS}
    pushed = push(small_bundle(tmp_path / "b"), "lab/crc", create=False)
    left = set(repo.commits[pushed.commit])
    assert left == {CONFIG, CARD, NATIVE, GOLDEN, *FOREIGN}


@pytest.mark.parametrize(
    "name", ["model.mlpackage/Data/com.apple.CoreML/../../../x", "model.mlpackage/Data/com.apple.CoreML//etc/x"]
)
def test_no_file_of_a_bundle_lies_outside_of_it(name: str) -> None:
    assert not any(row.makes(name) for row in FORMATS.values())
    assert FORMATS["coreml"].makes("model.mlpackage/Data/com.apple.CoreML/weights/weight.bin")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("hf://crc", "is not the address of a bundle"),
        ("hf://lab/crc/model.onnx", "is not the address of a bundle"),
        ("hf://lab/../etc", "is not the address of a bundle"),
        ("hf://lab/other", "does not exist on the hub"),
        ("hf://lab/crc@v9", "has no such revision"),
        ("hf://lab/weights", "holds no bundle"),
    ],
)
def test_wrong_addresses(histo: Histo, hub: FakeHub, tile: Path, address: str, message: str) -> None:
    for name, file in (("lab/crc", CONFIG), ("lab/weights", "pytorch_model.bin")):
        hub.repos[name] = Repo()
        hub.repos[name].commit("main", {file: b"{}"})
    code, out, err = histo("predict", address, tile)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message in err


def test_no_network_and_no_cache(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(HistoError, match="hf://lab/crc: is not completely in the cache, and the hub can't be reached"):
        local_bundle("hf://lab/crc")


def test_a_folder_is_itself(tmp_path: Path) -> None:
    assert local_bundle(tmp_path) == tmp_path
    assert hub_origin(tmp_path) is None
