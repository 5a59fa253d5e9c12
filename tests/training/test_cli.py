"""`histo train` and the training of `histo export` as their users meet them; what they train is a stub."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from histo_export import cli
from histo_export.data import TileData
from histo_export.errors import HistoError, UsageError
from histo_export.measures import Positive
from histo_export.spec import ModelSpec
from histo_export.training import run
from histo_export.training.folder import RunFolder
from histo_export.training.recipes import TrainConfig

Histo = Callable[..., tuple[int, str, str]]
STOP = "the stub has not trained"


@dataclass
class Trained:
    """What the command asked `train` for; it leaves the files that a first epoch leaves, and fails."""

    error: BaseException = field(default_factory=lambda: HistoError("stub", STOP, "None"))
    calls: list[tuple[TileData, ModelSpec, TrainConfig, Path, dict[str, Any]]] = field(default_factory=list)

    def __call__(self, data: TileData, spec: ModelSpec, config: TrainConfig, out: Path, **rest: Any) -> Any:
        self.calls.append((data, spec, config, out, rest))
        out.mkdir(parents=True, exist_ok=True)
        RunFolder(out).write_options(rest["options"])
        RunFolder(out).last.touch()
        raise self.error

    @property
    def last(self) -> tuple[ModelSpec, TrainConfig, Path, str]:
        """Model, settings, folder, and what becomes of an earlier run, of the last call."""
        _, spec, config, out, rest = self.calls[-1]
        return spec, config, out, rest["existing"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trained:
    stub = Trained()
    monkeypatch.setattr(run, "train", stub)
    monkeypatch.chdir(tmp_path)
    return stub


def test_tiles_may_be_named_without_an_option(histo: Histo, trained: Trained) -> None:
    for arguments in (["demo"], ["--data", "demo"]):
        code, _, err = histo("train", *arguments, "--crop", 64)
        assert code == 1
        assert STOP in err
        spec, config, out, existing = trained.last
        assert (spec.crop, config.recipe, config.epochs) == (64, "short", 6)
        assert (out, existing) == (Path("runs/demo-pool1"), "refuse")
    code, _, err = histo("train", "demo", "--data", "demo")
    assert code == 2
    assert "names other tiles than demo" in err


def test_a_run_resumes_with_its_own_options(histo: Histo, trained: Trained, tmp_path: Path) -> None:
    options = ["--pool", 2, "--crop", 64, "--classes", "TUMOR,MUCOSA", "--lr", 0.01, "--batch", 8, "--dropout", 0.25]
    options += ["--seed", 5, "--autocast", "fp32", "--mpp", 0.25, "--recipe", "strong", "--epochs", 4]
    histo("train", "demo", *options, "--out", "my run")
    started = trained.last
    assert started[3] == "refuse"
    for again in (
        *(["--resume", "my run"], ["--resume", "--out", "my run"], ["demo", "--resume", "--out", "my run"]),
        ["--resume", "my run", "--out", "my run"],
    ):
        histo("train", *again)
        assert trained.last == (*started[:3], "resume")
    histo("train", "--resume", "my run", *options[:-2], "--epochs", 9, "--device", "cpu")
    assert trained.last == (started[0], replace(started[1], epochs=9, device="cpu"), Path("my run"), "resume")
    histo("train", "--data", "demo", "--pool", 2, "--resume", "--out", tmp_path / "my run")
    assert trained.last[:2] == (started[0], replace(started[1], epochs=9, device="cpu")), "the record is of the last"


def test_a_run_goes_on_without_its_first_weights(histo: Histo, trained: Trained, tmp_path: Path) -> None:
    weights = tmp_path / "w.pth"
    weights.touch()
    histo("train", "demo", "--weights", weights, "--out", "run")
    weights.unlink()
    histo("train", "--resume", "run")
    assert len(trained.calls) == 2


def test_all_changed_options_are_named_before_tiles_are_read(
    histo: Histo, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    histo("train", "demo", "--seed", 5, "--out", "run")
    monkeypatch.setattr("histo_export.cli.train.open_tiles", lambda *_, **__: pytest.fail("tiles are read"))
    code, _, err = histo(
        "train", "--resume", "run", "--seed", 0, "--pool", 2, "--lr", 1, "--classes", "TUMOR,MUCOSA", "--epochs", 9
    )
    assert code == 2
    for text in ("--seed 0 was 5", "--pool 2 was 1", "--lr 1.0 was 0.001", "--classes TUMOR,MUCOSA was not given"):
        assert text in err
    assert "epochs" not in err
    assert len(trained.calls) == 1


def test_paths_of_tiles_are_recorded_in_full_but_not_in_checkpoints(
    histo: Histo, trained: Trained, flat_tiles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(flat_tiles.parent)
    histo("train", flat_tiles.name, "--crop", 32, "--out", tmp_path / "run")
    monkeypatch.chdir("/")
    code, _, err = histo("train", "--resume", tmp_path / "run")
    assert STOP in err, code
    assert trained.calls[0][0].fingerprint == trained.calls[1][0].fingerprint


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--resume", "gone"], "gone: holds no run to resume (no last.ckpt)"),
        (["--resume"], "The tiles: are not given"),
        (["--resume", "old"], "old: does not record the options of its run (no options.json). Add --data and all"),
        (["--resume", "damaged"], "options.json: does not hold the options of a run (training.seed). Delete it"),
        (
            ["--resume", "old", "--out", "my other"],
            "--out my other: contradicts --resume: a run goes on in its own folder, old. Leave --out out, or start a "
            "new run from its weights: histo train TILES --weights old/best.ckpt --out 'my other'.",
        ),
        (["--resume", "old/last.ckpt", "--out", "other"], "--out other: contradicts --resume"),
        (["--resume", "old", "--out", "damaged"], "--out damaged: contradicts --resume"),
    ],
)
def test_what_cannot_be_resumed(histo: Histo, trained: Trained, arguments: list[str], message: str) -> None:
    for name in ("old", "damaged"):
        RunFolder(Path(name)).path.mkdir()
        RunFolder(Path(name)).last.touch()
    RunFolder(Path("damaged")).write_options({"data": "demo", "training": {"seed": "__import__('os')"}})
    code, out, err = histo("train", *arguments)
    assert (code in (1, 2), out) == (True, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not trained.calls


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "--epochs 0"),
        (["--batch", "0"], "--batch 0"),
        (["--lr", "nan"], "--lr nan"),
        (["--lr", "inf"], "--lr inf"),
        (["--seed", "-1"], "--seed -1"),
        (["--dropout", "1"], "dropout 1"),
        (["--dropout", "nan"], "dropout nan"),
        (["--crop", "0"], "crop 0"),
        (["--mpp", "-1"], "mpp -1"),
        (["--recipe", "storng"], "Did you mean strong?"),
        (["--autocast", "half"], "--autocast half"),
        (["--strategy", "foo"], "--strategy foo: is unknown. Use auto or ddp"),
        (["--strategy", "deepspeed"], "--strategy deepspeed: is unknown"),
        (["--devices", "0"], "--devices 0"),
        (["--devices", "-1"], "--devices -1"),
        (["--devices", "999", "--device", "cpu"], "--devices 999: is more than the"),
        (["--nodes", "2", "--device", "cpu"], "torchrun --nnodes 2"),
        (["--split", "1,2"], "is not three numbers"),
        (["--split", "0,1,1"], "every part must be above zero"),
        (["--weights", "imagnet"], "Did you mean imagenet?"),
        (["--out", "/"], "/: is the root of the file system"),
        (["--out", "file"], "file: is a file, not a folder"),
        (["--out", "tiles/A/run"], "lies in the folder of the tiles"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_are_judged_before_tiles_are_read(
    histo: Histo, trained: Trained, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    for name in ("RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("histo_export.cli.train.open_tiles", lambda *_, **__: pytest.fail("tiles are read"))
    Path("file").touch()
    Path("tiles/A").mkdir(parents=True)
    code, out, err = histo("train", "tiles", *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert len(err.strip().splitlines()) == 1
    assert not trained.calls


@pytest.mark.parametrize("out", [".", "..", "sub/.."])
def test_a_bundle_does_not_replace_the_folder_of_the_command(histo: Histo, trained: Trained, out: str) -> None:
    Path("sub").mkdir()
    code, _, err = histo("export", "--data", "demo", "--out", out)
    assert code == 2
    assert f"{out}: is or holds the folder that this command runs in. Name a new folder with --out" in err.replace(
        "sub: is", "sub/..: is"
    )
    assert not trained.calls


def test_export_goes_on_with_the_run_beside_its_bundle(histo: Histo, trained: Trained) -> None:
    for more, existing in (([], "reuse"), (["--force"], "replace")):
        code, _, err = histo("--data", "demo", "--pool", 2, "--crop", 64, *more, entry=cli.export_main)
        assert code == 1, err
        spec, config, out, asked = trained.last
        assert (spec.pool, spec.crop, config.epochs) == (2, 64, 6)
        assert (out, asked) == (Path("bundles/demo-pool2-run"), existing)


@pytest.mark.parametrize("command", ["train", "export"])
def test_an_interruption_tells_how_to_go_on(histo: Histo, trained: Trained, command: str) -> None:
    trained.error = KeyboardInterrupt()
    run_folder = "my run's"
    code, out, err = histo(command, "--data", "demo", "--out", run_folder)
    assert (code, out) == (130, "")
    if command == "train":
        kept = f"my run's. Go on with: histo train --resume {shlex.quote(run_folder)}\n"
    else:
        kept = "my run's-run. Go on with: the same command\n"
    assert f"The last complete epoch is kept in {kept}" in err
    assert "interrupted" in err.splitlines()[-1]


def test_export_takes_the_folder_of_a_run(
    histo: Histo, checkpoint_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its checkpoint, with or without --checkpoint."""
    taken: list[str] = []
    monkeypatch.setattr("histo_export.cli.export._export", lambda loaded, *_: taken.append(loaded.spec.pool) or _stop())
    folder = checkpoint_file.parent
    for arguments in ([folder], [checkpoint_file], ["--checkpoint", folder], ["--checkpoint", checkpoint_file]):
        assert STOP in histo("export", *arguments, "--out", tmp_path / "b")[2]
    assert taken == [3] * 4
    code, _, err = histo("export", folder, "--checkpoint", checkpoint_file)
    assert code == 2
    assert "names another model than" in err
    (tmp_path / "a folder").mkdir()
    code, _, err = histo("export", tmp_path / "a folder")
    assert code == 2
    assert "a folder: is not the folder of a training run (no best.ckpt). To train on the tiles in it: --data '" in err


def _stop() -> None:
    raise HistoError("stub", STOP, "None")


def test_the_record_is_plain(histo: Histo, trained: Trained) -> None:
    histo("train", "demo", "--out", "run")
    content = json.loads(Path("run/options.json").read_text(encoding="utf-8"))
    assert content["format"] == 1
    assert content["options"]["data"] == "demo"
    assert content["options"]["training"]["batch"] == 16, "as it was resolved for the demo"


def test_a_table_of_groups_is_recorded_in_full(
    histo: Histo, trained: Trained, flat_tiles: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rows = [f"{c}/{i}.png,slide {i}" for c in "AB" for i in range(6)]
    table = tmp_path / "slides.csv"
    table.write_text("\n".join(["path,group", *rows, ""]), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    histo("train", flat_tiles.name, "--groups", "slides.csv", "--crop", 32, "--out", "run")
    monkeypatch.chdir("/")
    _, _, err = histo("train", "--resume", tmp_path / "run")
    assert STOP in err
    moved = table.rename(tmp_path / "moved.csv")
    _, _, err = histo("train", "--resume", tmp_path / "run", "--groups", moved)
    assert STOP in err
    first, *others = [call[0].fingerprint for call in trained.calls]
    assert others == [first, first]
    _, _, err = histo("train", "--resume", tmp_path / "run", "--groups", r"/(\d)\.")
    assert trained.calls[-1][0].fingerprint != first, "which run_to_resume refuses"


@pytest.fixture
def flat_tiles(tmp_path: Path) -> Path:
    """A folder per class, to be split."""
    import numpy as np
    from PIL import Image

    for k, name in enumerate("AB"):
        (tmp_path / "tiles" / name).mkdir(parents=True)
        for i in range(6):
            tile = np.random.default_rng([k, i]).integers(0, 256, (36, 36, 3), dtype=np.uint8)
            Image.fromarray(tile).save(tmp_path / "tiles" / name / f"{i}.png")
    return tmp_path / "tiles"


def test_how_a_run_is_tested_may_change_and_its_length_may_be_in_steps(histo: Histo, trained: Trained) -> None:
    histo("train", "demo", "--classes", "TUMOR,MUCOSA", "--crop", 64, "--steps", 300, "--keep", "ema", "--out", "run")
    _, config, *_ = trained.last
    assert (config.steps, config.epochs, config.keep, config.calibrate, config.positive) == (
        300,
        None,
        "ema",
        False,
        None,
    )
    histo("train", "--resume", "run", "--calibrate", "--positive", "TUMOR", "--specificity", 0.9)
    assert trained.last[1] == replace(config, calibrate=True, positive=Positive("TUMOR", 0.9))
    histo("train", "--resume", "run", "--epochs", 7)
    later = replace(config, calibrate=True, positive=Positive("TUMOR", 0.9))
    assert trained.last[1] == replace(later, steps=None, epochs=7)
    histo("train", "--resume", "run", "--no-calibrate")
    assert trained.last[1] == replace(later, steps=None, epochs=7, calibrate=False)
    code, _, err = histo("train", "--resume", "run", "--keep", "best")
    assert code == 2
    assert "--keep best was ema" in err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "demo", "--steps", 5, "--epochs", 1], "--steps 5: contradicts --epochs. Leave one of them out"),
        (["train", "demo", "--specificity", 0.9], "--specificity: says at which point --positive is judged. Add --pos"),
        (
            ["train", "demo", "--positive", "TUMOR", "--specificity", 2],
            "--specificity 2.0: is not a number from 0 to 1",
        ),
        (["train", "demo", "--keep", "first"], "--keep first: is unknown. Use best or last or ema"),
        (["export", "run/last.ckpt", "--calibrate"], "Use histo train --resume RUN --calibrate, then export"),
    ],
)
def test_options_of_the_test_that_cannot_be(histo: Histo, trained: Trained, arguments: list[Any], message: str) -> None:
    code, _, err = histo(*arguments)
    assert (code, trained.calls) == (2, [])
    assert message in " ".join(err.split())


@pytest.mark.parametrize(
    ("classes", "positive", "message"),
    [
        (("pink", "blue", "striped"), "pink", "--positive pink: is for two classes, not 3. Leave it out, or choose"),
        (("pink", "blue"), "red", "--positive red: is not a class of drawn. Use pink or blue"),
    ],
)
def test_a_positive_class_is_one_of_two(
    few: TileData, tmp_path: Path, classes: tuple[str, ...], positive: str, message: str
) -> None:
    spec = ModelSpec(pool=1, classes=classes, crop=32, tile_size=36)
    config = TrainConfig(epochs=1, positive=Positive(positive))
    with pytest.raises(UsageError, match=message):
        run.train(replace(few, classes=classes), spec, config, tmp_path / "run", progress=False)


def test_groups_size_and_balance_reach_the_run_and_its_resumption(
    histo: Histo, trained: Trained, tmp_path: Path
) -> None:
    for k, c in enumerate("AB"):
        for slide in range(4):
            for i in range(2):
                path = tmp_path / "tiles" / c / f"s{slide}" / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                pixels = np.random.default_rng([k, slide, i]).integers(0, 256, (80, 80, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(path)
    options = ["--groups", "folder:1", "--resize", 64, "--crop", 32, "--mpp", 0.25, "--balance", "--allow-duplicates"]
    code, _, err = histo("train", "tiles", *options, "--out", "run")
    assert (code, STOP in err) == (1, True)
    data, spec, config, *_ = trained.calls[-1]
    assert data.groups is not None
    assert sum(data.groups) == 4
    assert (spec.tile_size, spec.resized_from, spec.mpp) == (64, 80, 0.3125)
    assert (config.balance, config.allow_duplicates) == (True, True)
    histo("train", "--resume", "run")
    again, *rest = trained.calls[-1]
    assert (again.fingerprint, rest[:3]) == (data.fingerprint, [spec, config, Path("run")])
    code, _, err = histo("train", "--resume", "run", "--groups", "folder:2", "--resize", 40)
    assert code == 2
    assert "other options: --resize 40 was 64. " in err
    for wrong, words in (
        (["--groups", "("], "--groups (: is not a regular expression"),
        (["--resize", 100], "--resize 100: is smaller than the crop of 128 pixels"),
        (["--groups", "folder:2", "--crop", 32], "train, val and test need a group each of every class"),
    ):
        code, _, err = histo("train", "tiles", *wrong, "--out", "other")
        assert code in (1, 2)
        assert words in err
    assert not Path("other").exists()
