import csv
import io
import json
import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from torchvision.models import resnet34

from drawn_tiles import coloured_data
from histo_export import files
from histo_export.data import TileData, TileSet
from histo_export.errors import HistoError, UsageError
from histo_export.model.checkpoint import read_checkpoint, write_checkpoint
from histo_export.model.provenance import best_row
from histo_export.spec import ModelSpec
from histo_export.trained_on import tile_hash
from histo_export.training import provenance, recipes, run
from histo_export.training.folder import RunFolder
from histo_export.training.module import TileTraining
from histo_export.training.recipes import RECIPES, TrainConfig, rate_factor
from histo_export.training.result import TrainResult
from histo_export.training.run import golden_tiles, train
from histo_export.training.starts import Start

HERE = Path(__file__).parent
# fp32 by name: "auto" times the precisions, and which wins is the machine's business.
CONFIG = TrainConfig(recipe="strong", epochs=3, batch_size=16, device="cpu", seed=7, autocast="fp32")


def weights(path: Path) -> dict[str, torch.Tensor]:
    return read_checkpoint(path).state_dict


def same_bits(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory, data: TileData) -> TrainResult:
    """A run that nothing interrupted."""
    spec = ModelSpec(pool=2, classes=data.classes, crop=32, tile_size=36, mpp=0.5, dropout=0.1)
    return train(data, spec, CONFIG, tmp_path_factory.mktemp("whole") / "run", progress=False)


def test_checkpoints_hold_all_that_an_export_needs(whole: TrainResult, spec: ModelSpec, data: TileData) -> None:
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(whole.out / name, weights_only=True)
        net = resnet34(num_classes=3)
        theirs = {key: value for key, value in net.state_dict().items() if not key.startswith("fc.")}
        net.load_state_dict({key: content["state_dict"][key] for key in theirs}, strict=False)
        assert content["state_dict"].keys() == theirs.keys() | {"fc.weight", "fc.bias"}
        assert all(value.is_contiguous() for value in content["state_dict"].values())
        checkpoint = read_checkpoint(whole.out / name)
        assert checkpoint.spec == spec
        assert checkpoint.golden.shape == (16, 36, 36, 3)
        facts = checkpoint.training
        assert facts["recipe"] == "strong"
        assert facts["data"]["fingerprint"] == data.fingerprint
        assert facts["data"]["synthetic"] is True
        assert facts["versions"]["torch"] == torch.__version__
        assert facts["notes"] == [
            "tiles of 36 pixels: the network sees the centre 32 pixels, 79 % of the area; --crop 36 uses all"
        ]
        assert checkpoint.trained_on is not None
        for split, tiles in (("train", data.train), ("val", data.val)):
            hashes = sorted(tile_hash(tiles.tile(i)) for i in range(len(tiles)))
            assert getattr(checkpoint.trained_on, split).tolist() == hashes
        assert len(facts["history"]) == facts["epoch"]
    assert read_checkpoint(whole.out / "last.ckpt").training["epoch"] == 3
    best = read_checkpoint(whole.checkpoint).training
    assert best["epoch"] == whole.best_epoch == best_row(whole.history)["epoch"]
    assert best["test"]["accuracy"] == whole.test.accuracy
    assert best["test"]["interval"] == list(whole.test.interval)


def test_what_a_run_leaves(whole: TrainResult) -> None:
    names = {path.name.split(".tfevents")[0] for path in whole.out.iterdir()}
    expected = (
        "best.ckpt last.ckpt metrics.csv report.json starts.json curves.png confusion.png probabilities.png events.out"
    )
    assert names == set(expected.split())
    with (whole.out / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    assert float(rows[1]["val_loss"]) == pytest.approx(whole.history[1]["val_loss"], rel=1e-5)
    report = json.loads((whole.out / "report.json").read_text())
    assert report == json.loads(json.dumps(whole.to_dict()))
    assert report["test"]["tiles"] == 24
    assert len(report["seconds_per_epoch"]) == 3
    assert report["training"]["settings"]["augmentation"] is True
    assert "epochs" not in report["training"]["settings"], "those of the recipe would contradict the run's"


@pytest.mark.parametrize(
    ("crop", "tile_size", "share"), [(128, 224, "33 %"), (64, 224, "8 %"), (128, 150, "73 %"), (32, 1024, "0.0977 %")]
)
def test_a_crop_smaller_than_the_tiles_is_told(crop: int, tile_size: int, share: str) -> None:
    even = np.array([0, 1])
    (note,) = provenance.run_notes(ModelSpec(1, ("a", "b"), crop=crop, tile_size=tile_size), even)
    assert note.startswith(
        f"tiles of {tile_size} pixels: the network sees the centre {crop} pixels, {share} of the area"
    )
    assert note.endswith(f"--crop {tile_size} uses all")
    assert provenance.run_notes(ModelSpec(1, ("a", "b"), crop=tile_size, tile_size=tile_size), even) == []


def with_leaked_test(data: TileData, leaked: int) -> TileData:
    """The data with a training tile of the same class in place of each of the first test tiles."""
    chosen = [int(np.flatnonzero(data.train.labels == label)[0]) for label in data.test.labels[:leaked]]

    def tile(i: int) -> np.ndarray:
        return data.train.tile(chosen[i]) if i < leaked else data.test.tile(i)

    return replace(data, test=TileSet(data.classes, data.test.labels, data.test.names, tile))


def test_the_test_leaves_out_what_was_trained_on(few: TileData, spec: ModelSpec, tmp_path: Path) -> None:
    text = io.StringIO()
    leaked = with_leaked_test(few, 2)  # both tiles of the first class
    console = Console(file=text, width=300)
    config = replace(CONFIG, epochs=1, allow_duplicates=True)
    result = train(leaked, spec, config, tmp_path / "run", progress=console)
    assert "duplicates.csv" in RunFolder(tmp_path / "run").contents()
    assert result.test.tiles == len(few.test) - 2
    assert result.test.support == (0, 2, 2)
    assert "the network sees the centre 32 pixels, 79 % of the area; --crop 36 uses all" in text.getvalue()


def test_a_test_of_training_tiles_alone_is_refused(few: TileData, spec: ModelSpec, tmp_path: Path) -> None:
    config = replace(CONFIG, allow_duplicates=True)
    with pytest.raises(HistoError, match="every test tile is identical to a training or validation tile"):
        train(with_leaked_test(few, len(few.test)), spec, config, tmp_path / "run", progress=False)
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["duplicates.csv"]


def test_the_events_are_tensorboards(whole: TrainResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(whole.out)).Reload()
    assert [e.step for e in events.Scalars("val/accuracy")] == [1, 2, 3]
    assert events.Scalars("lr")[-1].value == pytest.approx(whole.history[-1]["lr"])


def test_a_killed_run_continues_to_the_same_bits(whole: TrainResult, data: TileData, spec: ModelSpec, tmp_path) -> None:
    out = tmp_path / "run"
    code = f"""
import os, signal, sys
os.fsync = lambda fd: None
sys.path[:0] = {[str(HERE), str(HERE.parent)]}
from drawn_tiles import coloured_data
from pathlib import Path
import torch
from histo_export.training import module, run
from test_train import CONFIG
from histo_export.spec import ModelSpec
torch.set_num_threads(1)
step = module.TileTraining.training_step
def deadly(self, batch, batch_idx):
    if len(self.history) == 1 and batch_idx == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, batch_idx)
module.TileTraining.training_step = deadly
data = coloured_data()
spec = ModelSpec(pool=2, classes=data.classes, crop=32, tile_size=36, mpp=0.5, dropout=0.1)
run.train(data, spec, CONFIG, Path({str(out)!r}), progress=False)
"""
    killed = subprocess.run([sys.executable, "-c", code], cwd=HERE, check=False)
    assert killed.returncode == -signal.SIGKILL
    assert read_checkpoint(out / "last.ckpt").training["epoch"] == 1
    result = train(data, spec, replace(CONFIG, epochs=None), out, existing="resume", progress=False)
    assert same_bits(weights(out / "last.ckpt"), weights(whole.out / "last.ckpt"))
    assert same_bits(weights(out / "best.ckpt"), weights(whole.out / "best.ckpt"))
    for ours, theirs in zip(result.history, whole.history, strict=True):
        assert {**ours, "seconds": 0} == {**theirs, "seconds": 0}
    assert result.test == whole.test
    killed_start, this = json.loads((out / "report.json").read_text())["run"]["starts"]
    assert [(start["after_epoch"], start["to_epoch"]) for start in (killed_start, this)] == [(0, 1), (1, 3)]
    facts = json.loads((out / "report.json").read_text())["run"]
    assert facts["seconds"] == pytest.approx(killed_start["seconds"] + this["seconds"], abs=0.1)
    assert (facts["began"], facts["finished"]) == (killed_start["began"], this["finished"])


def test_a_complete_run_is_only_tested_again(whole: TrainResult, data: TileData, spec: ModelSpec) -> None:
    before = weights(whole.out / "last.ckpt")
    again = train(data, spec, CONFIG, whole.out, existing="resume", progress=False)
    assert again.test == whole.test
    assert again.history == whole.history
    assert same_bits(weights(whole.out / "last.ckpt"), before)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"recipe": "report"}, "recipe is report now, but was strong"),
        (
            {"epochs": 2},
            "--epochs 2: is less than the run has .3 of the 3 epochs of the run in .*run are done., and a run can only "
            "grow. Leave --epochs out for 3, or start a new run with another --out",
        ),
        ({"seed": 8}, "seed is 8 now, but was 7"),
        ({"batch_size": 8}, "batch_size is 8"),
        ({"lr": 0.01}, "lr is 0.01"),
        ({"autocast": "bf16"}, "autocast is bf16 now, but was fp32"),
    ],
)
def test_another_run_is_not_resumed(
    whole: TrainResult, data: TileData, spec: ModelSpec, change: dict[str, Any], named: str
) -> None:
    with pytest.raises(UsageError, match=named):
        train(data, spec, replace(CONFIG, **change), whole.out, existing="resume", progress=False)


def test_a_run_with_other_augmentation_strengths_is_not_resumed(
    whole: TrainResult, data: TileData, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(recipes.RECIPES, "strong", replace(recipes.RECIPES["strong"], stain=0.2))
    with pytest.raises(
        UsageError, match=r"augmentation is \{.*'stain': 0.2, .*\} now, but was \{.*'stain': 0.05, .*\}"
    ):
        train(data, spec, CONFIG, whole.out, existing="resume", progress=False)


def test_a_run_of_version_0_1_0_is_resumed(
    whole: TrainResult, data: TileData, spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its checkpoints do not record the strengths of the augmentation."""
    checkpoint = read_checkpoint(whole.out / "last.ckpt")
    old = {key: value for key, value in checkpoint.training.items() if key != "augmentation"}
    old["settings"] = old["settings"] | {"epochs": 30}
    monkeypatch.setattr(provenance, "read_checkpoint", lambda path: replace(checkpoint, training=old))
    recorded = provenance.run_to_resume(data, spec, CONFIG, whole.out / "last.ckpt")
    assert recorded == old
    assert "augmentation" in checkpoint.training


def test_other_tiles_or_another_network_are_not_resumed(
    whole: TrainResult, data: TileData, other_data: TileData, spec: ModelSpec
) -> None:
    with pytest.raises(
        UsageError, match=r"the tiles of drawn \(48 train, 18 val, 24 test\) are as many as before, but oth"
    ):
        train(other_data, spec, CONFIG, whole.out, existing="resume", progress=False)
    fewer = coloured_data(4, 2, 2)
    message = (
        r"are drawn \(12 train, 6 val, 6 test\) now, but were drawn \(48 train, 18 val, 24 test\)\. Use the same tiles"
    )
    with pytest.raises(UsageError, match=message) as caught:
        train(fewer, spec, CONFIG, whole.out, existing="resume", progress=False)
    assert data.fingerprint not in str(caught.value)
    with pytest.raises(UsageError, match="pool is 3 now, but was 2"):
        train(data, replace(spec, pool=3), CONFIG, whole.out, existing="resume", progress=False)


def test_a_run_is_not_overwritten_unasked(whole: TrainResult, data: TileData, spec: ModelSpec) -> None:
    with pytest.raises(UsageError, match=r"already holds a training run.*--resume.*--force"):
        train(data, spec, CONFIG, whole.out, progress=False)


def test_there_must_be_a_run_to_resume(data: TileData, spec: ModelSpec, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"last.ckpt: does not exist.*without --resume"):
        train(data, spec, CONFIG, tmp_path, existing="resume", progress=False)


def test_a_folder_that_cannot_be_made(data: TileData, spec: ModelSpec, tmp_path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(HistoError, match="could not be written"):
        train(data, spec, CONFIG, tmp_path / "file" / "run", progress=False)


def test_classes_must_agree(data: TileData, spec: ModelSpec, tmp_path) -> None:
    with pytest.raises(UsageError, match="are not those of drawn"):
        train(data, replace(spec, classes=("x", "y")), CONFIG, tmp_path, progress=False)


def test_fp32_is_not_tf32(
    data: TileData, spec: ModelSpec, tmp_path, monkeypatch: pytest.MonkeyPatch, tf32_settings: tuple[Any, Any]
) -> None:
    seen = []

    def fit(_: object) -> None:
        seen.extend(setting.allow_tf32 for setting in tf32_settings)
        raise KeyboardInterrupt

    monkeypatch.setattr("histo_export.training.run._Run.fit", fit)
    with pytest.raises(KeyboardInterrupt):
        train(data, spec, CONFIG, tmp_path, progress=False)
    assert (seen, [setting.allow_tf32 for setting in tf32_settings]) == ([False, False], [True, True])


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_not_replaced(data: TileData, spec: ModelSpec, tmp_path) -> None:
    with pytest.raises(UsageError, match=r"--device cuda: .*finds no GPU"):
        train(data, spec, replace(CONFIG, device="cuda"), tmp_path, progress=False)


def test_the_report_recipe_learns_and_its_rate_falls_by_half_a_cosine(
    make_data: Callable[..., TileData], spec: ModelSpec, tmp_path, monkeypatch
) -> None:
    rates: list[float] = []
    step = TileTraining.training_step

    def watched(self: TileTraining, batch: Any, batch_idx: int) -> torch.Tensor:
        rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TileTraining, "training_step", watched)
    config = TrainConfig(recipe="report", epochs=5, batch_size=8, device="cpu")
    result = train(make_data(13, 6, 16), replace(spec, dropout=0.0), config, tmp_path, progress=False)
    factor = rate_factor(5 * 5, warmup=0.0)
    assert rates == pytest.approx([1e-3 * factor(i) for i in range(25)], rel=1e-9)
    assert rates[0] == 1e-3
    assert rates[-1] < 4e-6
    assert result.history[-1]["lr"] == pytest.approx(rates[-1])
    assert result.test.interval[0] > 1 / 3, "not better than chance"
    assert result.history[-1]["train_loss"] < result.history[0]["train_loss"]


def test_a_loss_that_explodes_is_named_and_the_last_checkpoint_kept(
    few: TileData, spec: ModelSpec, tmp_path, monkeypatch
) -> None:
    forward = TileTraining.forward

    def exploding(self: TileTraining, tiles: torch.Tensor) -> torch.Tensor:
        logits = forward(self, tiles)
        return logits * float("nan") if len(self.history) == 1 and self.training else logits

    monkeypatch.setattr(TileTraining, "forward", exploding)
    with pytest.raises(HistoError, match=r"epoch 2, step 1: the loss is no longer finite.*lower --lr"):
        train(few, spec, CONFIG, tmp_path, progress=False)
    assert read_checkpoint(tmp_path / "last.ckpt").training["epoch"] == 1


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_an_interruption_is_the_callers_to_handle(
    few: TileData, spec: ModelSpec, tmp_path, monkeypatch, request, name: str
) -> None:
    step = TileTraining.training_step

    def interrupted(self: TileTraining, batch: Any, batch_idx: int) -> torch.Tensor:
        if len(self.history) == 1:
            os.kill(os.getpid(), getattr(signal, name))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(TileTraining, "training_step", interrupted)
    # A shell's background jobs ignore Ctrl-C, and the tests may be one.
    inherited = signal.signal(signal.SIGINT, signal.default_int_handler)
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, inherited))
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt):
        train(few, spec, CONFIG, tmp_path, progress=False)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == handlers
    assert read_checkpoint(tmp_path / "last.ckpt").training["epoch"] in (1, 2)  # SIGTERM waits for the step


def test_output_goes_to_stderr_and_only_when_wanted(few: TileData, spec: ModelSpec, tmp_path, capfd) -> None:
    config = replace(CONFIG, epochs=1, recipe="report")
    train(few, spec, config, tmp_path)
    said = capfd.readouterr()
    assert said.out == ""
    lines = said.err.splitlines()
    assert lines[0].startswith("training on drawn (12 tiles, synthetic), recipe report, 1 epoch, cpu")
    assert lines[1].startswith("tiles of 36 pixels: the network sees the centre 32 pixels, 79 % of the area")
    assert lines[2].startswith("epoch 1/1  train loss")
    assert len(lines) == 3, said.err


def test_a_silent_run_leaves_the_callers_random_numbers_alone(few: TileData, spec: ModelSpec, tmp_path, capfd) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    train(few, spec, replace(CONFIG, epochs=1), tmp_path, progress=False)
    assert torch.equal(torch.rand(3), expected)
    assert tuple(capfd.readouterr()) == ("", "")


def test_a_failed_write_keeps_the_previous_checkpoint(tmp_path, monkeypatch) -> None:
    path = tmp_path / "last.ckpt"
    write_checkpoint(path, {"a": 1})
    before = path.read_bytes()

    def full(content: Any, file: Any) -> None:
        file.write(b"half a check")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(HistoError, match="No space left on device"):
        write_checkpoint(path, {"a": 2})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_golden_tiles_are_spread_over_the_classes(data: TileData) -> None:
    golden = golden_tiles(data.test, 34)
    assert golden.shape == (16, 34, 34, 3)
    assert golden.dtype == np.uint8
    assert (golden[0] == data.test.tile(0)[1:35, 1:35]).all()
    assert len({tile.tobytes() for tile in golden}) == 16


def test_the_best_epoch_breaks_ties_by_loss() -> None:
    rows = [(1, 0.8, 0.5), (2, 0.9, 0.6), (3, 0.9, 0.4), (4, 0.9, 0.4), (5, 0.7, 0.1)]
    assert best_row([{"epoch": e, "val_accuracy": a, "val_loss": v} for e, a, v in rows])["epoch"] == 3


def test_low_precision_is_kept_only_if_it_is_faster(data: TileData, spec: ModelSpec, monkeypatch) -> None:
    from histo_export.model.net import TileNet
    from histo_export.training import precision

    net, cpu = TileNet.of(spec), torch.device("cpu")
    batch = (torch.zeros(4, 3, 32, 32, dtype=torch.uint8), torch.zeros(4, dtype=torch.int64))
    auto = replace(CONFIG, autocast="auto")
    monkeypatch.setattr(precision, "low_precision", lambda device: "bf16")
    timed = precision.choose_precision(net, spec, auto, cpu, batch)
    assert timed["seconds_per_step"].keys() == {"fp32", "bf16"}
    for fp32, bf16, chosen in ((1.0, 0.5, "bf16"), (1.0, 0.95, "fp32")):
        monkeypatch.setattr(precision, "step_seconds", lambda *a, t=(fp32, bf16): {"fp32": t[0], "bf16": t[1]})
        assert precision.choose_precision(net, spec, auto, cpu, batch)["executed"] == chosen
    with pytest.raises(UsageError, match="fp16"):
        precision.choose_precision(net, spec, replace(CONFIG, autocast="fp16"), cpu, batch)


def test_bf16_trains_on_from_given_weights(whole: TrainResult, few: TileData, spec: ModelSpec, tmp_path) -> None:
    config = replace(CONFIG, epochs=1, autocast="bf16", weights=str(whole.checkpoint))
    result = train(few, spec, config, tmp_path, progress=False)
    assert result.training["weights_report"] == f"218 tensors copied from {whole.checkpoint}"
    assert result.precision["executed"] == "bf16"
    assert {value.dtype for value in weights(result.checkpoint).values()} == {torch.float32, torch.int64}


def test_a_wrong_request_costs_no_run(whole: TrainResult, data: TileData, spec: ModelSpec, tmp_path) -> None:
    absent = replace(CONFIG, weights=str(tmp_path / "absent.pth"))
    with pytest.raises(UsageError, match=r"absent.pth: is not a file"):
        train(data, spec, absent, whole.out, existing="replace", progress=False)
    assert whole.checkpoint.exists()
    with pytest.raises(UsageError, match="tile size 40: is larger than the smallest tile of drawn"):
        train(data, replace(spec, tile_size=40), CONFIG, tmp_path / "run", progress=False)
    with pytest.raises(UsageError, match="--batch 1: leaves batch norm one value"):
        train(data, spec, replace(CONFIG, batch_size=1), tmp_path / "run", progress=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_loader_processes_change_no_bit(few: TileData, spec: ModelSpec, tmp_path) -> None:
    for workers in (0, 2):
        config = replace(CONFIG, epochs=2, workers=workers)
        train(few, spec, config, tmp_path / str(workers), progress=False)
    assert same_bits(weights(tmp_path / "0" / "last.ckpt"), weights(tmp_path / "2" / "last.ckpt"))


@pytest.mark.slow
def test_two_processes_train_together(tmp_path) -> None:
    script = tmp_path / "two.py"
    script.write_text(f"""
import os, sys
os.fsync = lambda fd: None
sys.path[:0] = {[str(HERE), str(HERE.parent)]}
from pathlib import Path
import torch
from drawn_tiles import coloured_data
from histo_export.spec import ModelSpec
from histo_export.training.run import TrainConfig, is_main_process, train
torch.set_num_threads(1)
data = coloured_data(4, 3, 3)
spec = ModelSpec(pool=1, classes=data.classes, crop=32, tile_size=36)
config = TrainConfig(recipe="report", epochs=2, batch_size=4, device="cpu", devices=2, strategy="ddp")
result = train(data, spec, config, Path({str(tmp_path / "run")!r}), progress=is_main_process())
print(is_main_process(), result.test.accuracy, flush=True)
""")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    lines = sorted(done.stdout.splitlines())
    assert [line.split()[0] for line in lines] == ["False", "True"]
    assert lines[0].split()[1] == lines[1].split()[1]
    history = read_checkpoint(tmp_path / "run" / "last.ckpt").training["history"]
    assert len(history) == 2
    assert (history[0]["val_accuracy"] * 9) % 1 == pytest.approx(0, abs=1e-9), "each of nine tiles counts once"


@pytest.fixture(scope="session")
def short(tmp_path_factory: pytest.TempPathFactory, few: TileData) -> TrainResult:
    """One epoch on few tiles; no test may change it."""
    spec = ModelSpec(pool=2, classes=few.classes, crop=32, tile_size=36, mpp=0.5, dropout=0.1)
    options = {"data": "drawn"}
    out = tmp_path_factory.mktemp("short") / "run"
    return train(few, spec, SHORT, out, options=options, command="histo train drawn", progress=False)


SHORT = replace(CONFIG, epochs=1)
OWNER = """
import sys, time
from pathlib import Path
from histo_export import files
files.LEASE_S, files.HEARTBEAT_S = 2.0, 0.2
with files.own_folder(Path(sys.argv[1])):
    print("ready", flush=True)
    time.sleep(600)
"""


def copy_run(run: Path, target: Path) -> Path:
    return Path(shutil.copytree(run, target))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


@pytest.mark.parametrize("existing", ["refuse", "replace", "resume", "reuse"])
def test_a_folder_in_which_another_run_works_is_refused(
    few: TileData, spec: ModelSpec, tmp_path, monkeypatch, existing: Any
) -> None:
    monkeypatch.setattr(files, "LEASE_S", 2.0)
    monkeypatch.setattr(files, "HEARTBEAT_S", 0.2)
    out = tmp_path / "run"
    with subprocess.Popen([sys.executable, "-c", OWNER, str(out)], stdout=subprocess.PIPE) as owner:
        try:
            assert owner.stdout is not None
            assert owner.stdout.readline() == b"ready\n"
            with pytest.raises(UsageError, match=r"run: is in use by another run \(process \d+ on .*another --out"):
                train(few, spec, SHORT, out, existing=existing, progress=False)
            assert names(out) == {files.OWNER}
        finally:
            owner.kill()


def test_a_run_whose_folder_is_taken_over_stops(few: TileData, spec: ModelSpec, tmp_path, monkeypatch) -> None:
    """Not even the epoch that it has done is written among the files of the other run."""

    def check(module: TileTraining) -> None:
        if len(module.history) == 2:
            raise HistoError("run", "has been taken over by another run", "Wait")

    seen: list[TileTraining] = []
    fit_end = TileTraining.on_train_epoch_end
    monkeypatch.setattr(TileTraining, "on_train_epoch_end", lambda self: (fit_end(self), seen.append(self))[0])

    @contextmanager
    def lost(folder: Path) -> Iterator[Callable[[], None]]:
        folder.mkdir()
        yield lambda: check(seen[-1])

    monkeypatch.setattr(run, "own_folder", lost)
    with pytest.raises(HistoError, match="has been taken over by another run"):
        train(few, spec, CONFIG, tmp_path / "run", progress=False)
    assert read_checkpoint(tmp_path / "run" / "last.ckpt").training["epoch"] == 1


def test_an_interrupted_first_epoch_leaves_nothing(few: TileData, spec: ModelSpec, tmp_path, monkeypatch) -> None:
    def interrupted(self: TileTraining, batch: Any, batch_idx: int) -> torch.Tensor:
        raise KeyboardInterrupt

    monkeypatch.setattr(TileTraining, "training_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(few, spec, SHORT, tmp_path / "new" / "run", options={"data": "drawn"}, progress=False)
    assert not list(tmp_path.iterdir())


def test_a_report_tells_what_when_and_where(short: TrainResult, few: TileData) -> None:
    report = json.loads((short.out / "report.json").read_text())
    assert report["format"] == 2
    assert report["spec"]["pool"] == 2
    assert report["spec"]["classes"] == list(few.classes)
    assert (report["spec"]["crop"], report["spec"]["tile_size"], report["spec"]["mpp"]) == (32, 36, 0.5)
    facts = report["run"]
    (start,) = facts["starts"]
    assert start["command"] == "histo train drawn"
    assert start["host"] == platform.node()
    assert start["versions"] == report["training"]["versions"]
    assert (start["after_epoch"], start["to_epoch"]) == (0, 1)
    assert start["seconds"] == facts["seconds"]
    began, finished = (datetime.fromisoformat(facts[key]) for key in ("began", "finished"))
    assert began.utcoffset() == timedelta(0)
    assert began <= finished <= datetime.now(UTC)
    assert facts["seconds"] >= 0
    assert report["training"]["versions"]["torch"] == torch.__version__
    assert {"macro_f1", "balanced_accuracy", "majority_accuracy"} <= report["test"].keys()


def test_tensorboard_shows_the_options(short: TrainResult) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams import plugin_data_pb2

    events = EventAccumulator(str(short.out)).Reload()
    (text,) = events.Tensors("options/text_summary")
    rows = text.tensor_proto.string_val[0].decode().splitlines()
    assert {"| recipe | strong |", "| lr | 0.001 |", "| pool | 2 |", "| classes | pink, blue, striped |"} <= set(rows)
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    values = plugin_data_pb2.HParamsPluginData.FromString(content).session_start_info.hparams
    assert values["batch_size"].number_value == 16
    assert values["recipe"].string_value == "strong"


def test_all_differences_from_the_run_to_resume_are_named(short: TrainResult, few: TileData, spec: ModelSpec) -> None:
    other = replace(SHORT, recipe="report", seed=8, autocast="bf16")
    for existing in ("resume", "reuse"):
        with pytest.raises(UsageError) as caught:
            train(few, replace(spec, pool=3), other, short.out, existing=existing, progress=False)  # type: ignore[arg-type]
        for text in (
            "pool is 3 now, but was 2",
            "recipe is report now, but was strong",
            "seed is 8 now, but was 7",
            "autocast is bf16 now, but was fp32",
            "replace the run with --force, or choose another --out",
        ):
            assert text in str(caught.value)


def test_a_run_with_the_same_options_is_used_again(
    short: TrainResult, few: TileData, spec: ModelSpec, tmp_path, monkeypatch
) -> None:
    out = copy_run(short.out, tmp_path / "run")
    text = io.StringIO()
    console = Console(file=text, width=300)
    monkeypatch.setattr(TileTraining, "training_step", lambda *args: pytest.fail("it is trained again"))
    again = train(few, spec, SHORT, out, existing="reuse", progress=console)
    line = f"{out} holds this run, complete (1 epoch): it is not trained again, only tested"
    assert text.getvalue().splitlines() == [line], "nothing of training"
    assert [(start.after_epoch, start.to_epoch) for start in again.starts] == [(0, 1), (1, 1)]
    assert again.test == short.test
    assert again.history == short.history
    # Not even a longer run is taken for a shorter one, nor the length of a recipe for that of the run.
    for epochs, shown in ((2, 2), (None, 30)):
        with pytest.raises(UsageError, match=f"epochs is {shown} now, but was 1"):
            train(few, spec, replace(SHORT, epochs=epochs), out, existing="reuse", progress=False)


def test_a_damaged_run_tells_what_is_left_of_it(short: TrainResult, few: TileData, spec: ModelSpec, tmp_path) -> None:
    out = copy_run(short.out, tmp_path / "my run")
    best, last = out / "best.ckpt", out / "last.ckpt"
    kept = best.rename(tmp_path / "kept")
    message = (
        rf"best.ckpt: is missing, .* best epoch so far \(1\)\. Copy it back, .*\(histo export '{last}'\), or train"
    )
    with pytest.raises(HistoError, match=message):
        train(few, spec, SHORT, out, existing="resume", progress=False)
    kept.rename(best)
    last.write_bytes(last.read_bytes()[:100_000])
    message = rf"last.ckpt: is an incomplete or damaged archive.*; best.ckpt can be exported: histo export '{out}'\.$"
    with pytest.raises(HistoError, match=message):
        train(few, spec, SHORT, out, existing="resume", progress=False)


def test_a_record_of_starts_that_is_damaged_stops_no_run(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    assert folder.read_starts() == []
    start = Start("histo train x", "b", "f", 1.5, "host", {"torch": "2"}, 0, 2)
    folder.write_starts([start, start])
    assert folder.read_starts() == [start, start]
    for content in ("", "[]", '{"starts": [{"command": 3}]}', '{"starts": 7}'):
        folder.starts.write_text(content)
        assert folder.read_starts() == []


def test_files_of_a_run_that_cannot_go_on_are_not_overwritten(few: TileData, spec: ModelSpec, tmp_path) -> None:
    (tmp_path / "best.ckpt").touch()
    with pytest.raises(UsageError, match=r"already holds a training run \(best.ckpt\)\. Replace it with --force"):
        train(few, spec, SHORT, tmp_path, existing="reuse", progress=False)


def test_an_extended_run_has_the_rate_of_a_longer_run_and_resumes_to_the_same_bits(
    short: TrainResult, few: TileData, spec: ModelSpec, tmp_path, monkeypatch
) -> None:
    longer = replace(SHORT, epochs=3)
    at_once = train(few, spec, longer, copy_run(short.out, tmp_path / "a"), existing="resume", progress=False)
    step = TileTraining.training_step
    with monkeypatch.context() as patch:

        def interrupted(self: TileTraining, batch: Any, batch_idx: int) -> torch.Tensor:
            if len(self.history) == 2:
                raise KeyboardInterrupt
            return step(self, batch, batch_idx)

        patch.setattr(TileTraining, "training_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(few, spec, longer, copy_run(short.out, tmp_path / "b"), existing="resume", progress=False)
    open_end = replace(SHORT, epochs=None)
    in_two = train(few, spec, open_end, tmp_path / "b", existing="resume", progress=False)
    assert same_bits(weights(at_once.out / "last.ckpt"), weights(in_two.out / "last.ckpt"))
    for result in (at_once, in_two):
        assert result.epochs == 3
        assert result.training["epochs"] == 3
        assert read_checkpoint(result.checkpoint).training["epochs"] == 3, "also where the best epoch is an earlier one"
        assert read_checkpoint(result.checkpoint).training["extended"] == [{"after_epoch": 1, "from": 1, "to": 3}]
        assert read_checkpoint(result.out / "last.ckpt").training["extended"] == [
            {"after_epoch": 1, "from": 1, "to": 3}
        ]
        factor = rate_factor(3, RECIPES["strong"].warmup)
        assert [row["lr"] for row in result.history[1:]] == pytest.approx([1e-3 * factor(1), 1e-3 * factor(2)])
    first = torch.load(short.out / "last.ckpt", weights_only=True)["optimizer_states"][0]["param_groups"][0]["lr"]
    assert first == 0, "where the shorter run had ended"


def test_small_classes_are_told_before_training(data: TileData, spec: ModelSpec) -> None:
    spec = replace(spec, crop=36)
    assert provenance.run_notes(spec, np.array([0] * 40 + [1] * 9 + [2] * 30)) == []
    (note,) = provenance.run_notes(spec, np.array([0] * 40 + [1] * 3 + [2] * 8))
    assert note.startswith("imbalance: pink has 40 training tiles, but blue 3, striped 8. A network can ignore small")
    assert note.endswith("judge by balanced accuracy and F1")


def test_how_tiles_were_split_is_told(few: TileData) -> None:
    assert provenance.split_facts(few) == "synthetic tiles, each made for itself: there are no slides"
    real = replace(few, synthetic=False)
    assert provenance.split_facts(real) == (
        "tiles without groups: tiles of one slide may be on both sides; the interval is too narrow"
    )
    sets = {}
    for name, slides in (("train", 4), ("val", 2), ("test", 1)):
        tiles = getattr(few, name)
        own = np.array([f"{name} {i % slides}" for i in range(len(tiles))])
        sets[name] = TileSet(tiles.classes, tiles.labels, tiles.names, tiles.tile, groups=own)
    facts = provenance.data_facts(replace(real, **sets, groups_from="slides.csv"))
    assert facts["groups"] == {"train": 4, "val": 2, "test": 1}
    assert facts["split"] == (
        "by 7 groups (slides.csv): 4 in train, 2 in val, 1 in test; an interval over 1 group says little"
    )


def test_a_balanced_run_is_another_run(short: TrainResult, few: TileData, spec: ModelSpec) -> None:
    """Also where the record is of a version without --balance."""
    with pytest.raises(UsageError, match="balance is True now, but was False"):
        train(few, spec, replace(SHORT, balance=True), short.out, existing="resume", progress=False)


def test_what_balance_does_is_told_with_the_imbalance(spec: ModelSpec) -> None:
    labels = np.repeat([0, 1, 2], [60, 20, 2])
    (_, without), (_, with_balance) = (provenance.run_notes(spec, labels, balance) for balance in (False, True))
    assert "draw each class equally often with --balance" in without
    assert "Each class is drawn equally often (--balance)" in with_balance
