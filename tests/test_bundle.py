"""The bundle is whole or absent, checked before it is opened, and one that others can read."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import safetensors.numpy
import torch

from histo_export.bundle_files import CARD, CONFIG, TRAINED_ON
from histo_export.data.demo import CLASSES
from histo_export.errors import HistoError, UsageError
from histo_export.export.agreement import check_agreement, onnx_properties, statements
from histo_export.export.bundle import FORMAT_1_CHECKED_BY, BundleConfig, entry, open_bundle, staging, trained_on
from histo_export.export.run import ExportSettings, export_bundle
from histo_export.model.checkpoint import Checkpoint, read_checkpoint, write_checkpoint
from histo_export.spec import ModelSpec
from histo_export.trained_on import TrainedOn, tile_hash


@pytest.fixture
def copy(copy_bundle: Callable[[Path, Path], Path], bundle: Path, tmp_path: Path) -> Path:
    return copy_bundle(bundle, tmp_path / "copy")


def test_config_is_valid_for_wsinfer(bundle: Path) -> None:
    import wsinfer_zoo

    schema_file = Path(wsinfer_zoo.__file__).parent / "schemas" / "model-config.schema.json"
    config = json.loads((bundle / CONFIG).read_text())
    schema = json.loads(schema_file.read_text()) | {"$schema": "http://json-schema.org/draft-04/schema#"}
    jsonschema.validate(config, schema)
    assert config["num_classes"] == len(config["class_names"]) == 6
    assert config["patch_size_pixels"] == 75
    assert config["spacing_um_px"] == 0.495
    assert config["transform"] == [{"name": "Resize", "arguments": {"size": 75}}, {"name": "ToTensor"}]
    assert len(list(bundle.glob("*.pt"))) == 1, "QuPath takes exactly one"


def test_native_file_is_self_sufficient(bundle: Path) -> None:
    from histo_export.model.native_file import read_native

    lowered, spec = read_native(bundle / "model.safetensors")
    assert (spec.pool, spec.crop, spec.mpp) == (3, 64, 0.495)
    assert lowered.head.linear.in_features == 512 * 2 * 2  # pool 3 on a 2×2 map: folded to the map


def test_card_says_what_matters(bundle: Path) -> None:
    card = (bundle / "README.md").read_text()
    for word in (
        "synthetic",
        "0.495 µm/px",
        "TUMOR",
        "model.onnx",
        "QuPath",
        "softmax",
        "73 % of a tile's area",
        "histo predict",
    ):
        assert word in card


def test_bundle_opens(bundle: Path) -> None:
    assert open_bundle(bundle).models == [
        "model.onnx",
        "torchscript_model.pt",
        "model.safetensors",
        "model.pt2",
    ]


def test_a_default_bundle_has_no_field_that_version_0_1_0_refuses(bundle: Path) -> None:
    """Its reader forbids others in the block; in `spec` and `training` it leaves them alone."""
    block = json.loads((bundle / "config.json").read_text(encoding="utf-8"))["histo"]
    required = {"format", "spec", "head_pool", "input", "precision", "files", "parity", "training", "versions"}
    assert block.keys() == required | {"unchecked"}
    assert open_bundle(bundle).config.histo.opset == 13


def test_the_record_of_training_tiles_is_sealed(bundle: Path, checkpoint: Checkpoint, copy: Path) -> None:
    record = trained_on(open_bundle(bundle))
    assert record is not None
    assert record.splits(np.array([tile_hash(tile) for tile in checkpoint.golden])).tolist() == [
        *("train", "train", "val", "", "")
    ]
    content = bytearray((copy / TRAINED_ON).read_bytes())
    content[-1] ^= 1
    (copy / TRAINED_ON).unlink()
    (copy / TRAINED_ON).write_bytes(content)
    with pytest.raises(HistoError, match=r"trained_on\.safetensors: differs from its sha256"):
        open_bundle(copy)
    for damaged in (b"", b"no safetensors", record_of(np.zeros(2, np.float32)), record_of(np.zeros((1, 1), np.int64))):
        (copy / TRAINED_ON).write_bytes(damaged)
        with pytest.raises(HistoError, match="trained_on"):
            TrainedOn.read(copy / TRAINED_ON)


def record_of(hashes: np.ndarray) -> bytes:
    return safetensors.numpy.save({"train": hashes, "val": hashes})


def test_a_bundle_of_an_older_checkpoint_has_no_record(checkpoint: Checkpoint, tmp_path: Path) -> None:
    export_bundle(replace(checkpoint, trained_on=None), tmp_path / "old", ExportSettings(("native",)))
    assert not (tmp_path / "old" / TRAINED_ON).exists()
    assert trained_on(open_bundle(tmp_path / "old")) is None
    assert read_block(replace(checkpoint, trained_on=None), tmp_path) is None
    again = read_block(checkpoint, tmp_path)
    assert again is not None
    assert again.to_bytes() == checkpoint.trained_on.to_bytes()  # type: ignore[union-attr]


def read_block(checkpoint: Checkpoint, folder: Path) -> TrainedOn | None:
    """What a checkpoint file tells of the training tiles."""
    write_checkpoint(folder / "a.ckpt", {"state_dict": checkpoint.state_dict, "histo": checkpoint.block()})
    return read_checkpoint(folder / "a.ckpt").trained_on


def test_a_bundle_of_format_1_opens(copy: Path) -> None:
    """It had one result for each file, of the one runtime that there was."""
    config = json.loads((copy / CONFIG).read_text())
    block = config["histo"]
    results = {name: block["parity"][name][runtime_id] for name, runtime_id in FORMAT_1_CHECKED_BY.items()}
    del block["unchecked"]
    (copy / CONFIG).write_text(json.dumps(config | {"histo": block | {"format": 1, "parity": results}}))
    opened = open_bundle(copy).config.histo
    assert opened.format == 2
    assert opened.parity == {name: {FORMAT_1_CHECKED_BY[name]: result} for name, result in results.items()}
    assert opened.unchecked == {}


@pytest.mark.parametrize("version", [0, 3, "1", None])
def test_a_bundle_of_another_format_is_refused(copy: Path, version: object) -> None:
    config = json.loads((copy / CONFIG).read_text())
    config["histo"]["format"] = version
    (copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(HistoError, match=r"config\.json"):
        open_bundle(copy)


def test_truncated_file_is_named(copy: Path, own_file: Callable[[Path], Path]) -> None:
    file = own_file(copy / "model.onnx")
    os.truncate(file, file.stat().st_size - 1)
    with pytest.raises(HistoError, match=r"model\.onnx: has .* bytes"):
        open_bundle(copy)


def test_changed_byte_is_found(copy: Path, own_file: Callable[[Path], Path]) -> None:
    with own_file(copy / "torchscript_model.pt").open("r+b") as file:
        file.seek(50_000)
        byte = file.read(1)[0]
        file.seek(50_000)
        file.write(bytes([byte ^ 1]))
    with pytest.raises(HistoError, match=r"torchscript_model\.pt: differs from its sha256"):
        open_bundle(copy)


def test_the_model_card_may_be_edited(copy: Path) -> None:
    """Also in a bundle of an older version, which lists it with its sha256."""
    card = copy / CARD
    assert CARD not in json.loads((copy / CONFIG).read_text(encoding="utf-8"))["histo"]["files"]
    old = entry(card.read_bytes())
    card.write_text(card.read_text(encoding="utf-8") + "\n## Intended use\n", encoding="utf-8")
    open_bundle(copy)
    config = json.loads((copy / CONFIG).read_text(encoding="utf-8"))
    config["histo"]["files"][CARD] = old.model_dump()
    (copy / CONFIG).write_text(json.dumps(config), encoding="utf-8")
    open_bundle(copy)
    card.unlink()
    open_bundle(copy)


def test_missing_file_is_named(copy: Path) -> None:
    (copy / "golden.safetensors").unlink()
    with pytest.raises(HistoError, match=r"golden\.safetensors: is missing"):
        open_bundle(copy)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/model.onnx", "evil.pt"])
def test_foreign_file_names_are_refused(copy: Path, name: str) -> None:
    config = json.loads((copy / CONFIG).read_text())
    config["histo"]["files"][name] = {"sha256": "0" * 64, "bytes": 1}
    (copy / CONFIG).write_text(json.dumps(config))
    with pytest.raises(HistoError, match="lists a file that no bundle has"):
        open_bundle(copy)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"spec_version": "1.0"}', "\x00\xff"])
def test_broken_configuration_is_named(copy: Path, text: str) -> None:
    (copy / CONFIG).write_text(text)
    with pytest.raises(HistoError, match=r"config\.json"):
        open_bundle(copy)


@pytest.mark.parametrize("text", ['{"spec_version": "1.0", "spec_version": "1.0"}', '{"a": NaN}', "[" * 100_000])
def test_the_configuration_is_read_strictly(copy: Path, text: str) -> None:
    (copy / CONFIG).write_text(text)
    with pytest.raises(HistoError, match=r"config\.json: is not a bundle's configuration \(it (has|holds|is nested)"):
        open_bundle(copy)


EDITS: dict[str, tuple[object, str]] = {
    "num_classes": (7, "says num_classes is 7, and its own histo.spec says 6"),
    "class_names": (
        list(reversed(CLASSES)),
        "says class_names is MUCOSA, DEBRIS, .* own histo.spec says TUMOR, STROMA",
    ),
    "patch_size_pixels": (76, "says patch_size_pixels is 76, and its own histo.spec says 75"),
    "spacing_um_px": (
        0.25,
        r"says spacing_um_px is 0.25, and .* says 0.495\. .*histo export --checkpoint CKPT --mpp UM",
    ),
    "transform": ([{"name": "Resize", "arguments": {"size": 80}}, {"name": "ToTensor"}], "says transform is"),
    "architecture": ("resnet50", "architecture: "),
    "histo.head_pool": (1, "says head_pool is 1, and its own histo.spec says 2"),
    "histo.input": ("uint8", "says transform is"),
    "histo.precision": ("bf16", "says precision is bf16, and its own histo.low_precision says fp32"),
    "histo.spec.pool": (2, r"says spec.pool is 2, and model\.\w+ says 3"),
    "histo.spec.crop": (63, r"says spec.crop is 63, and model\.\w+ says 64"),
    "histo.spec.mean": ([0.5, 0.5, 0.5], r"says spec.mean is 0.5, 0.5, 0.5, and model\.\w+ says 0.485"),
    "histo.spec.std": ([0.5, 0.5, 0.5], r"says spec.std is 0.5, 0.5, 0.5, and model\.\w+ says 0.229"),
    "histo.training.data": (None, r"\(histo.training: data: "),
    "histo.training.data.synthetic": ([], r"\(histo.training: data.synthetic: "),
    "histo.training.test": ({"accuracy": "x", "interval": [0, 1]}, r"\(histo.training: test.accuracy: "),
    "histo.training.epochs": ("2", r"\(histo.training: epochs: "),
    "histo.spec.dropout": (0.5, r"says spec.dropout is 0.5, and model\.\w+ says 0.0"),
}


@pytest.mark.parametrize("field", EDITS)
def test_an_edited_configuration_is_refused(copy: Path, field: str) -> None:
    value, message = EDITS[field]
    edit_config(copy, {field: value})
    with pytest.raises(HistoError, match=rf"config\.json: .*{message}"):
        open_bundle(copy)


def edit_config(bundle: Path, fields: dict[str, object]) -> None:
    config = json.loads((bundle / CONFIG).read_text(encoding="utf-8"))
    for field, value in fields.items():
        *parents, last = field.split(".")
        place = config
        for name in parents:
            place = place[name]
        place[last] = value
    (bundle / CONFIG).write_text(json.dumps(config), encoding="utf-8")


@pytest.mark.parametrize(
    "file",
    [
        *("model.onnx", "torchscript_model.pt", "model.safetensors", "model.pt2"),
        *("golden.safetensors", "triton/bundle/labels.txt", "triton/bundle/1/model.onnx"),
    ],
)
def test_each_file_alone_refutes_a_consistent_edit(copy: Path, file: str) -> None:
    """Every field about the classes and the tiles was edited, so that config.json does not contradict itself."""
    block = json.loads((copy / CONFIG).read_text(encoding="utf-8"))["histo"]
    kept = {name: block["files"][name] for name in {file, "golden.safetensors", "model.onnx"}}
    if file == "golden.safetensors":
        edit, message = {"patch_size_pixels": 76, "histo.spec.tile_size": 76}, "spec.tile_size is 76, and .* says 75"
        edit["transform"] = [{"name": "Resize", "arguments": {"size": 76}}, {"name": "ToTensor"}]  # type: ignore[assignment]
    else:
        names = list(reversed(CLASSES))
        edit = {"class_names": names, "histo.spec.classes": names}  # type: ignore[dict-item]
        message = "spec.classes is MUCOSA, .* says TUMOR"
    edit_config(copy, edit | {"histo.files": kept})
    with pytest.raises(HistoError, match=rf"{message}"):
        open_bundle(copy)
    config = BundleConfig.model_validate(json.loads((copy / CONFIG).read_text(encoding="utf-8")))
    spec = ModelSpec.from_dict(config.histo.spec)
    with pytest.raises(HistoError, match=rf"config\.json: .* and {re.escape(file)} says"):
        check_agreement(copy, statements(spec, 2, "float", "fp32"), [file])


def test_the_input_is_stated_by_each_graph(copy: Path) -> None:
    spec = ModelSpec.from_dict(open_bundle(copy).config.histo.spec)
    for file in ("model.onnx", "torchscript_model.pt", "model.pt2"):
        with pytest.raises(HistoError, match=f"says input is uint8, and {file} says float"):
            check_agreement(copy, statements(spec, 2, "uint8", "fp32"), [file])
    with pytest.raises(HistoError, match=r"says precision is bf16, and model\.safetensors says fp32"):
        check_agreement(copy, statements(spec, 2, "float", "bf16"), ["model.safetensors"])
    with pytest.raises(HistoError, match=r"says spec\.crop, as .* is 12, and golden\.safetensors says 16"):
        check_agreement(copy, statements(replace(spec, crop=48), 2, "float", "fp32"), ["golden.safetensors"])
    with pytest.raises(HistoError, match=r"says spec\.classes, as .* is 5, and golden\.safetensors says 6"):
        check_agreement(
            copy, statements(replace(spec, classes=CLASSES[1:]), 2, "float", "fp32"), ["golden.safetensors"]
        )


def test_files_of_older_versions_state_less(copy: Path, bundle: Path) -> None:
    """TorchScript and .pt2 had no metadata, model.safetensors no precision, and config.json no Resize."""
    files = json.loads((copy / CONFIG).read_text(encoding="utf-8"))["histo"]["files"]
    for name in ("torchscript_model.pt", "model.pt2"):
        (copy / name).unlink()
        with zipfile.ZipFile(bundle / name) as old, zipfile.ZipFile(copy / name, "w") as new:
            for item in old.infolist():
                if "histo." not in item.filename:
                    new.writestr(item, old.read(item))
        files[name] = entry((copy / name).read_bytes()).model_dump()
    edit_config(copy, {"histo.files": files, "transform": [{"name": "ToTensor"}]})
    open_bundle(copy)


def test_opening_a_bundle_needs_neither_torch_nor_onnx(bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from histo_export.export.bundle import open_bundle\n"
        "open_bundle(Path(sys.argv[1])); sys.exit(bool({'torch', 'onnx', 'onnxruntime'} & set(sys.modules)))"
    )
    subprocess.run([sys.executable, "-c", code, str(bundle)], check=True)


def test_onnx_properties_are_those_of_the_onnx_package(bundle: Path, tmp_path: Path) -> None:
    import onnx

    file = bundle / "model.onnx"
    model = onnx.load(file)
    assert onnx_properties(file) == {item.key: item.value for item in model.metadata_props}
    for content in (b"\x3a", file.read_bytes()[:100_000], b"no protobuf", b"\xff" * 20):
        (tmp_path / "damaged.onnx").write_bytes(content)
        with pytest.raises(ValueError, match="it "):
            onnx_properties(tmp_path / "damaged.onnx")


def test_a_file_of_parity_must_be_listed(copy: Path) -> None:
    """Otherwise its sha256 could be removed, and the file changed."""
    files = json.loads((copy / CONFIG).read_text(encoding="utf-8"))["histo"]["files"]
    del files["model.onnx"]
    edit_config(copy, {"histo.files": files})
    with pytest.raises(HistoError, match=r"config\.json: names 'model\.onnx' in parity, but not in files"):
        open_bundle(copy)


@pytest.mark.parametrize("files", [{}, {"golden.safetensors"}])
def test_a_bundle_without_a_model_is_refused(copy: Path, files: set[str]) -> None:
    listed = json.loads((copy / CONFIG).read_text(encoding="utf-8"))["histo"]["files"]
    edit_config(copy, {"histo.files": {name: listed[name] for name in files}})
    with pytest.raises(HistoError, match=r"config\.json: lists no (model file|golden)"):
        open_bundle(copy)


def test_what_is_not_a_bundle_is_named(tmp_path: Path) -> None:
    run, inside = tmp_path / "a run", tmp_path / "bundle"
    for folder in (run, inside):
        folder.mkdir()
    for file in (run / "best.ckpt", inside / CONFIG, inside / "model.onnx"):
        file.touch()
    for path, message in {
        tmp_path: "is not a bundle (it has no config.json). Name a folder that histo export wrote",
        tmp_path / "nowhere": "does not exist",
        run: f"is a training run, not a bundle. Make a bundle of it: histo export '{run}'",
        run / "best.ckpt": f"is a checkpoint, not a bundle. Make a bundle of it: histo export '{run / 'best.ckpt'}'",
        inside / "model.onnx": f"is a file of a bundle. Name its folder, {inside}",
    }.items():
        with pytest.raises(UsageError, match=re.escape(f"{path}: {message}")):
            open_bundle(path)


def fill(folder: Path) -> None:
    (folder / CONFIG).write_text("{}")


def test_staging_makes_the_folder_whole(tmp_path: Path) -> None:
    out = tmp_path / "deep" / "bundle"
    with staging(out, force=False) as folder:
        fill(folder)
        assert not out.exists()
    assert [p.name for p in out.parent.iterdir()] == ["bundle"]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_staging_leaves_nothing_behind(tmp_path: Path, error: type[BaseException]) -> None:
    def export() -> None:
        with staging(tmp_path / "bundle", force=False) as folder:
            fill(folder)
            raise error

    with pytest.raises(error):
        export()
    assert not list(tmp_path.iterdir())


def test_an_existing_bundle_is_replaced_only_with_force(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with staging(out, force=False) as folder:
        fill(folder)
        (folder / "old").touch()
    with pytest.raises(UsageError, match="--force"), staging(out, force=False):
        pass
    with pytest.raises(ValueError, match="boom"), staging(out, force=True) as folder:
        raise ValueError("boom")
    assert (out / "old").exists(), "a failed export leaves the old bundle"
    with staging(out, force=True) as folder:
        fill(folder)
    assert [p.name for p in out.iterdir()] == [CONFIG]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_two_exports_at_once_never_mix(tmp_path: Path) -> None:
    """Without --force the first to end wins, with it the last; each bundle is complete."""
    out = tmp_path / "bundle"

    def export(name: str, force: bool) -> None:
        with staging(out, force) as folder:
            fill(folder)
            (folder / name).touch()
            if name == "second":
                export("first", force)

    with pytest.raises(UsageError, match=r"bundle: exists\. Add --force"):
        export("second", force=False)
    assert sorted(p.name for p in out.iterdir()) == [CONFIG, "first"]
    export("second", force=True)
    assert sorted(p.name for p in out.iterdir()) == [CONFIG, "second"]
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--opset", "12"], "--opset 12: is not from 13 to 22. Leave it out for 13"),
        (["--opset", "23"], "--opset 23: is not from 13 to 22."),
        (["--opset", "17", "--formats", "native"], "--opset 17: is for ONNX files. Add onnx to --formats"),
    ],
)
def test_an_impossible_opset_is_refused_at_once(
    options: list[str], message: str, histo: Callable[..., tuple[int, str, str]], tmp_path: Path
) -> None:
    code, _, stderr = histo("export", *options, "--out", tmp_path / "bundle")
    assert (code, message in stderr) == (2, True)
    assert not list(tmp_path.iterdir())


def test_a_link_is_followed_and_stays(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    out = tmp_path / "link"
    out.symlink_to("disk")
    for force in (False, True):
        with staging(out, force) as folder:
            fill(folder)
    assert out.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["disk", "link"]
    assert [p.name for p in (tmp_path / "disk").iterdir()] == [CONFIG]


def test_force_never_replaces_anything_else(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").touch()
    with pytest.raises(UsageError, match="is not a bundle"), staging(tmp_path, force=True):
        pass
    file = tmp_path / "thesis.txt"
    with pytest.raises(UsageError, match="is not a bundle"), staging(file, force=True):
        pass


def test_a_kill_leaves_no_half_bundle_and_the_next_run_cleans_up(tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    code = (
        "import sys, time; from pathlib import Path; from histo_export.export.bundle import staging\n"
        "with staging(Path(sys.argv[1]), False) as folder:\n"
        "    (folder / 'half').touch(); print('ready', flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(out)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    assert len(list(tmp_path.iterdir())) == 1
    with staging(out, force=False) as folder:
        fill(folder)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize(
    "write", [lambda path: path.write_bytes(bytes(20_000)), lambda path: torch.save(torch.zeros(20_000), path)]
)
def test_a_full_disk_is_said_and_leaves_nothing(write: Callable[[Path], None], tmp_path: Path) -> None:
    """A real failing write: the process may not write files of over 10,000 bytes."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with (
            pytest.raises(HistoError, match=r"could not be written .*\. Free some space"),
            staging(tmp_path / "bundle", force=False) as folder,
        ):
            write(folder / "model.onnx")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable_parent_is_said_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(HistoError, match="can be written to"), staging(tmp_path / "bundle", force=False):
        pass


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="needs /proc")
def test_a_place_where_even_root_may_not_write() -> None:
    with pytest.raises(HistoError, match=r"/proc.*written"), staging(Path("/proc/bundle"), force=False):
        pass


def test_a_file_as_parent_is_said_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoError, match="can be written to"), staging(tmp_path / "file" / "bundle", force=False):
        pass


STANDALONE = """
import json, sys
import numpy as np, onnxruntime, torch, torchvision
checkpoint = torch.load(sys.argv[1], weights_only=True)
spec, bundle = checkpoint["histo"]["spec"], sys.argv[2]
tiles = np.random.default_rng(3).integers(0, 256, (5, spec["tile_size"], spec["tile_size"], 3), dtype=np.uint8)
net = torchvision.models.resnet34(num_classes=len(spec["classes"]))
net.avgpool = torch.nn.AdaptiveAvgPool2d(spec["pool"])
net.fc = torch.nn.Linear(512 * spec["pool"] ** 2, len(spec["classes"]))
net.load_state_dict(checkpoint["state_dict"])
x = torch.from_numpy(tiles).permute(0, 3, 1, 2).float() / 255
f = torchvision.transforms.functional
cropped = f.normalize(f.center_crop(x, spec["crop"]), spec["mean"], spec["std"])
with torch.inference_mode():
    expected = net.eval()(cropped).numpy()
    scripted = torch.jit.load(bundle + "/torchscript_model.pt")(x).numpy()
session = onnxruntime.InferenceSession(bundle + "/model.onnx", providers=["CPUExecutionProvider"])
onnx = session.run(None, {"tiles": x.numpy()})[0]
assert not any(name.startswith("histo") for name in sys.modules)
print(json.dumps([float(abs(a).max()) for a in (expected, onnx - expected, scripted - expected)]))
"""


def test_files_run_without_us_and_agree_with_torchvision(bundle: Path, checkpoint_file: Path) -> None:
    """A script that does not import this package, against torchvision's own resnet34 with the same weights."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", STANDALONE, str(checkpoint_file), str(bundle)],
        capture_output=True,
        text=True,
        check=True,
    )
    scale, onnx, scripted = json.loads(done.stdout)
    assert onnx < 1e-5 * scale
    assert scripted < 1e-5 * scale


def test_termination_cleans_up(checkpoint_file: Path, tmp_path: Path) -> None:
    """SIGTERM in the middle of `histo export`."""
    command = [sys.executable, "-c", "from histo_export.cli import main; main()", "export", "--formats", "native"]
    out = tmp_path / "bundle"
    with subprocess.Popen(
        [*command, "--checkpoint", str(checkpoint_file), "--out", str(out)], stderr=subprocess.PIPE, text=True
    ) as process:
        while not list(tmp_path.glob(".bundle.partial-*")):
            assert process.poll() is None
            time.sleep(0.05)
        process.terminate()
        _, message = process.communicate(timeout=60)
    assert process.returncode == 143
    assert "interrupted" in message
    assert "Traceback" not in message
    assert not list(tmp_path.iterdir())
