"""What a study runs, that it goes on, and what it writes; runs are drawn, not trained."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from drawn_studies import drawn_outcome
from histo_export.data import TileData
from histo_export.errors import HistoError, UsageError
from histo_export.strict_json import dump_json
from histo_export.study import plots, report, runs, timings
from histo_export.study.design import Arm, Design, differences
from histo_export.study.outcome import Outcome
from histo_export.study.runs import Study, StudyFolder, check_disk, trained
from histo_export.training import run as training_run
from histo_export.training.module import TileTraining

Make = Callable[..., Study]


def test_backbone_order_and_augmentation_do_not_depend_on_the_pool(
    design: Design, data: TileData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the real runs of a study, up to their first step: the first weights, and the first augmented batch."""

    class BegunError(Exception):
        pass

    class Trainer:
        global_rank, world_size = 0, 1

        def fit(self, module: TileTraining, **options: Any) -> None:
            module.trainer = self  # type: ignore[assignment]
            batch, labels = next(iter(module.train_dataloader()))
            begun.append((module.state_dict(), batch, labels))
            raise BegunError

    begun: list[tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor]] = []
    monkeypatch.setattr(training_run, "make_trainer", lambda *args: Trainer())
    for arm in replace(design, recipes=("strong",)).arms:
        with pytest.raises(BegunError):
            trained(design, data, arm, 7, tmp_path / str(arm))
    (first, batch, labels), (second, other_batch, other_labels) = begun
    own = [key for key in first if not key.startswith("fc.")]
    assert len(own) > 200
    assert all(torch.equal(first[key], second[key]) for key in own)
    assert first["fc.weight"].shape != second["fc.weight"].shape
    assert torch.equal(batch, other_batch)
    assert torch.equal(labels, other_labels)


def test_pairs_are_larger_pools_and_later_recipes(design: Design) -> None:
    wide = replace(design, pools=(4, 1, 2), recipes=("strong", "report"))
    assert wide.pools == (1, 2, 4)
    assert len(wide.pairs) == 2 * 3 + 3
    for arm, baseline in wide.pairs:
        same = arm.recipe == baseline.recipe
        assert arm.pool > baseline.pool if same else (arm.recipe, baseline.recipe) == ("report", "strong")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pools": (2,)}, "--pools 2: leaves nothing to compare"),
        ({"pools": (2, 2)}, "names one twice"),
        ({"seeds": 1}, "--seeds 1: tells nothing about the spread"),
        ({"max_seeds": 1}, "--max-seeds 1: is below --seeds 2"),
        ({"margin": 0.0}, "--margin 0: is not a number of points"),
        ({"margin": float("nan")}, "--margin nan: is not"),
        ({"recipes": ("weak",)}, "recipe 'weak': is unknown"),
    ],
)
def test_impossible_designs_are_refused(design: Design, change: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        replace(design, **change)


def test_one_pool_and_two_recipes_is_a_study(design: Design) -> None:
    assert len(replace(design, pools=(2,), recipes=("strong", "report")).pairs) == 1


def test_a_pool_above_the_map_is_told(design: Design) -> None:
    assert design.spec.map_size == 1
    assert "pool 2 sees nothing that pool 1 does not" in str(design.map_note())
    assert replace(design, spec=replace(design.spec, crop=36, tile_size=36)).map_note() is None


def test_seeds_are_added_until_the_rule_decides(design: Design, make_study: Make) -> None:
    log: list[tuple[Arm, int]] = []
    study = make_study(design, {1: 0.9, 2: 0.5}, log)
    answer = study.run()
    assert [seed for _, seed in log] == [0, 0, 1, 1], "two seeds are enough"
    assert answer.recommendation.decided
    assert answer.recommendation.arm.pool == 1
    assert study.stopped == ""
    log.clear()
    shutil.rmtree(study.folder.path)
    undecided = make_study(replace(design, margin=0.001), {1: 0.7, 2: 0.7}, log)
    assert not undecided.run().recommendation.decided
    assert len(log) == 6
    assert undecided.stopped == "--max-seeds 3 was reached"


def test_what_is_done_is_not_done_again(design: Design, make_study: Make) -> None:
    log: list[tuple[Arm, int]] = []
    first = make_study(design, {1: 0.9, 2: 0.5}, log)
    before = json.dumps(report.content(first, first.run()))
    first.folder.outcome(Arm("report", 2), 1).unlink()
    log.clear()
    again = make_study(design, {1: 0.9, 2: 0.5}, log)
    assert json.dumps(report.content(again, again.run())) == before
    assert log == [(Arm("report", 2), 1)]


def test_a_kill_inside_an_extra_seed_changes_nothing(design: Design, make_study: Make) -> None:
    """With the runs of the fourth seed that are there the rule would decide already, without the last one."""
    three, accuracies = replace(design, pools=(1, 2, 4), max_seeds=6), {1: 0.8, 2: 0.79, 4: 0.5}
    whole = make_study(three, accuracies)
    before = dump_json(report.content(whole, whole.run()))
    assert max(seed for _, seed in whole.outcomes) == 3
    whole.folder.outcome(Arm("report", 4), 3).unlink()
    log: list[tuple[Arm, int]] = []
    again = make_study(three, accuracies, log)
    assert dump_json(report.content(again, again.run())) == before
    assert log == [(Arm("report", 4), 3)]


def test_a_kill_between_outcome_and_clearing_up_is_repaired(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    study.run()
    run = study.folder.run(Arm("report", 1), 0)
    for name in ("best.ckpt", "last.ckpt", "metrics.csv", "events.out.tfevents.1", "report.json", "duplicates.csv"):
        (run / name).touch()
    make_study(design, {1: 0.9, 2: 0.5}).run()
    assert sorted(path.name for path in run.iterdir()) == ["best.ckpt", "outcome.safetensors"]


def test_a_failed_run_is_listed_and_the_others_go_on(design: Design, make_study: Make, data: TileData) -> None:
    good = make_study(design, {1: 0.8, 2: 0.8}).runner

    def fail_once(arm: Arm, seed: int) -> Outcome:
        if (arm.pool, seed) == (2, 0):
            raise HistoError("epoch 1", "the loss is no longer finite", "Train again")
        if (arm.pool, seed) == (1, 1):
            raise RuntimeError("out of memory")
        return good(arm, seed)

    study = make_study(design, {}, runner=fail_once)
    answer = study.run()
    content = report.content(study, answer)
    assert [(each["arm"]["pool"], each["seed"]) for each in content["failed"]] == [(1, 1), (2, 0)]
    assert "RuntimeError: out of memory" in content["failed"][0]["reason"]
    assert content["failed"][1]["reason"].startswith("epoch 1: the loss is no longer finite")
    assert "2 runs failed; see below." in content["answer"]
    assert answer.comparisons[Arm("report", 2), Arm("report", 1)] is None, "one seed in common"
    again = make_study(design, {1: 0.8, 2: 0.8})
    again.run()
    assert not again.failed, "the same command tries them again"


def test_a_study_ends_where_all_runs_of_a_pool_fail(
    design: Design, make_study: Make, data: TileData, tmp_path: Path
) -> None:
    """After --seeds seeds; the pool is not shipped, and nothing is decided, because it might be the one to ship."""
    log = []

    def fail(arm: Arm, seed: int) -> Outcome:
        log.append((arm, seed))
        if arm == Arm("report", 1):
            raise HistoError("epoch 1", "the loss is no longer finite", "Train again")
        return drawn_outcome(data, arm, seed, 0.8)

    study = make_study(replace(design, max_seeds=6), {}, runner=fail)
    answer = study.run()
    assert len(log) == 4
    lines = report.sentences(study, answer)
    assert lines[0] == "Not decided. Ship pool 2 as long as nothing else is known."
    assert lines[2] == "To be surer: more seeds (all runs of report, pool 1 failed)."
    assert "Nothing is known of pool 1, because no run of it is complete." in lines
    content = report.content(study, answer)
    assert content["recommendation"]["seed"] == 0
    json.dumps(content)
    assert plots.draw_calibration(study, answer, tmp_path / "calibration.png").stat().st_size > 0


def test_a_recipe_of_which_all_runs_fail_is_not_shipped(design: Design, make_study: Make, data: TileData) -> None:
    def fail(arm: Arm, seed: int) -> Outcome:
        if arm.recipe == "report":
            raise HistoError("epoch 1", "the loss is no longer finite", "Train again")
        return drawn_outcome(data, arm, seed, 0.8)

    study = make_study(replace(design, recipes=("report", "strong")), {}, runner=fail)
    recommendation = study.run().recommendation
    assert (recommendation.arm, recommendation.decided) == (Arm("strong", 1), False)
    assert study.stopped == "all runs of report, pool 1 and of report, pool 2 failed"


def test_a_study_of_which_every_run_fails_is_an_error(design: Design, make_study: Make) -> None:
    def fail(arm: Arm, seed: int) -> Outcome:
        raise ValueError("no")

    with pytest.raises(HistoError, match=r"every run failed; the first one, report, pool 1, seed 0: ValueError: no"):
        make_study(design, {}, runner=fail).run()


def test_wrong_use_and_interruption_end_a_study(design: Design, make_study: Make) -> None:
    for error in (UsageError("folder", "is in use", "Wait"), KeyboardInterrupt()):

        def fail(arm: Arm, seed: int, error: BaseException = error) -> Outcome:
            raise error

        with pytest.raises(type(error)):
            make_study(design, {}, runner=fail).run()


def test_the_budget_ends_a_study(design: Design, make_study: Make) -> None:
    log: list[tuple[Arm, int]] = []
    study = make_study(replace(design, margin=0.001), {1: 0.7, 2: 0.7}, log, budget_s=45.0)
    study.run()
    assert len(log) == 4, "a drawn run counts 10 s"
    assert study.stopped == "the budget of 45 s leaves no time for another run"
    more = make_study(replace(design, margin=0.001), {1: 0.7, 2: 0.7}, log, budget_s=100.0)
    more.run()
    assert len(log) == 6
    shutil.rmtree(more.folder.path)
    small = make_study(design, {}, budget_s=45.0, estimate_s={1: 100.0, 2: 100.0})
    with pytest.raises(UsageError, match=r"--budget 45 s: is too little for one run of pool 1, .* about 2 min"):
        small.run()


def test_a_quick_study_counts_the_backbone_once_a_seed(design: Design, make_study: Make, data: TileData) -> None:
    """The first head of a seed takes long, because it waits for the backbone; the others do not."""
    log = []

    def run(arm: Arm, seed: int) -> Outcome:
        log.append((arm.pool, seed))
        return replace(drawn_outcome(data, arm, seed, 0.7), seconds=100.0 if arm.pool == 1 else 5.0)

    quick = replace(design, pools=(1, 2, 4), quick=True)
    seen: list[runs.Progress] = []
    study = make_study(quick, {}, runner=run, budget_s=160.0, report=seen.append)
    study.run()
    assert log == [(1, 0), (2, 0), (4, 0)]
    assert seen[3].left_s == pytest.approx(5 + 100 + 2 * 5)
    assert study.stopped == "the budget of 3 min leaves no time for another run"
    shutil.rmtree(study.folder.path)
    with pytest.raises(UsageError, match=r"about 2 min. Use a larger --budget, or fewer --epochs.$"):
        make_study(quick, {}, budget_s=1.0, estimate_s={1: 100.0}).run()


def test_progress_tells_runs_time_and_the_answer_so_far(design: Design, make_study: Make) -> None:
    seen: list[runs.Progress] = []
    make_study(replace(design, margin=0.001), {1: 0.7, 2: 0.7}, report=seen.append).run()
    assert [(each.done, each.left) for each in seen] == [
        *((0, 4), (1, 3), (1, 3), (2, 2), (2, 2), (3, 1), (3, 1), (4, 0)),
        *((4, 0), (5, 1), (5, 1), (6, 0)),
    ]
    assert seen[0].left_s is None
    assert seen[1].left_s == pytest.approx(30)
    assert seen[2].answer is None
    assert seen[-1].answer is not None


def test_another_study_in_the_folder_is_refused(design: Design, tmp_path: Path) -> None:
    folder = StudyFolder(tmp_path / "study")
    folder.begin(design)
    folder.begin(design)
    with pytest.raises(UsageError, match=r"holds a study of other options: pools 1,2,4 was 1,2; margin 0.02 was 0.01"):
        folder.begin(replace(design, pools=(1, 2, 4), margin=0.02))
    with pytest.raises(UsageError, match=r"runs.report.epochs 2 was 1"):
        folder.begin(replace(design, config=replace(design.config, epochs=2)))
    for change in ({"device": "auto"}, {"allow_duplicates": True}):
        name = next(iter(change))
        with pytest.raises(UsageError, match=f"holds a study of other options: {name} "):
            folder.begin(replace(design, config=replace(design.config, **change)))  # type: ignore[arg-type]
    folder.design.write_text("{", encoding="utf-8")
    with pytest.raises(HistoError, match="cannot be read"):
        folder.begin(design)
    assert differences({"a": {"b": 1}}, {"a": {"b": 1, "c": [1, 2]}}) == ["a.c 1,2 was None"]


def test_more_seeds_may_be_asked_for_later(design: Design, make_study: Make) -> None:
    close = replace(design, margin=0.001)
    study = make_study(close, {1: 0.7, 2: 0.7})
    study.folder.begin(close)
    study.run()
    larger = replace(close, max_seeds=4)
    log: list[tuple[Arm, int]] = []
    more = make_study(larger, {1: 0.7, 2: 0.7}, log)
    more.folder.begin(larger)
    more.run()
    assert [seed for _, seed in log] == [3, 3]
    with pytest.raises(UsageError, match="max_seeds 3 was 4"):
        more.folder.begin(close)


@pytest.mark.parametrize("content", ['{"tool": "another"}', '{"format": 1}', '{"format": 1, "design": 3}', "[]", "{"])
def test_force_removes_no_folder_of_another_program(tmp_path: Path, content: str) -> None:
    (tmp_path / "runs" / "report-pool1-seed0").mkdir(parents=True)
    (tmp_path / "design.json").write_text(content, encoding="utf-8")
    with pytest.raises(HistoError, match=r"design.json: (is not the design of a study|cannot be read)"):
        StudyFolder(tmp_path).remove()
    assert (tmp_path / "runs" / "report-pool1-seed0").is_dir()


def test_force_removes_the_study_alone(design: Design, make_study: Make) -> None:
    folder = make_study(design, {}).folder
    folder.begin(design)
    for name in ("report-pool1-seed0", "strong-backbone-seed12", "mine", "report-pool1-seed0-copy"):
        (folder.runs / name).mkdir(parents=True)
    (folder.path / "notes.txt").touch()
    folder.remove()
    left = sorted(path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*"))
    assert left == ["notes.txt", "runs", "runs/mine", "runs/report-pool1-seed0-copy"]
    folder.remove()


def test_a_disk_without_room_is_refused(design: Design, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = StudyFolder(tmp_path / "not" / "yet")
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_300_000_000))
    check_disk(design, folder)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1_000_000_000))
    with pytest.raises(UsageError, match=r"has 1.0 GB left, and a study of up to 3 seeds needs about 1.2 GB"):
        check_disk(design, folder)
    check_disk(replace(design, quick=True), folder)
    assert not folder.path.exists()


def test_a_test_of_one_group_is_refused(design: Design, data: TileData, tmp_path: Path) -> None:
    from histo_export.data import TileSet

    test = data.test
    one = TileSet(test.classes, test.labels, test.names, test.tile, test.hashes, np.full(len(test), "a"))
    with pytest.raises(UsageError, match=r"drawn: has fewer than two groups \(slides or patients\) in the test"):
        Study(design, replace(data, test=one), StudyFolder(tmp_path), lambda arm, seed: None)  # type: ignore[arg-type,return-value]


def test_a_damaged_outcome_is_one_line(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    study.run()
    path = study.folder.outcome(Arm("report", 1), 0)
    whole = path.read_bytes()
    for content in (
        whole[:-10],
        b"",
        b"\xff" * 200,
        whole.replace(b'"format":1', b'"format":7').replace(b'format\\": 1', b'format\\": 7'),
    ):
        path.write_bytes(content)
        with pytest.raises(HistoError, match=r"outcome.safetensors: is not the outcome of a run of this study"):
            make_study(design, {}).run()


def test_an_outcome_in_another_place_is_refused(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    study.run()
    first, second = (study.folder.outcome(Arm("report", pool), 0) for pool in (1, 2))
    shutil.copy(second, first)
    with pytest.raises(HistoError, match=r"report-pool1-seed0.*it is that of report, pool 2, seed 0"):
        make_study(design, {}).run()


@pytest.mark.parametrize(
    "change",
    [
        {"test_logits": np.array([[np.nan, 0, 0]], np.float32)},
        {"history": []},
        {"history": [{"epoch": 1}]},
        {"history": [[1, 2]]},
        {"best_epoch": 4},
        {"val_accuracy": 1.5},
        {"seconds": float("inf")},
    ],
    ids=str,
)
def test_a_run_without_finite_numbers_is_none(data: TileData, change: dict[str, Any]) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 (of any number)
        replace(drawn_outcome(data, Arm("report", 1), 0, 0.9), **change)
    history = drawn_outcome(data, Arm("report", 1), 0, 0.9).history
    with pytest.raises(ValueError, match="learning curves"):
        replace(
            drawn_outcome(data, Arm("report", 1), 0, 0.9), history=[row | {"val_loss": float("nan")} for row in history]
        )


TIMES = [[0.010 + 0.0001 * i] for i in range(9)]
TIMINGS = {
    "machine": "a machine",
    "training": {"batch": 8, "rounds": {"1": TIMES, "2": [[1.01 * call for call in calls] for calls in TIMES]}},
    "inference": {"threads": 2, "batches": {"1": {"rounds": {"1": TIMES, "2": TIMES}}}},
}


@pytest.mark.parametrize(
    ("known", "measured"),
    [
        ({}, ["training", "inference"]),
        ({"training": 3, "inference": []}, ["training", "inference"]),
        ({"training": TIMINGS["training"]}, ["training", "inference"]),
        ({"machine": "a", "training": {"batch": 8, "rounds": {"1": TIMES, "4": TIMES}}}, ["training", "inference"]),
        ({"machine": "a", "training": {"batch": 8, "rounds": {"1": TIMES, "2": TIMES[1:]}}}, ["training", "inference"]),
        ({"machine": "a", "training": {"batch": 8, "rounds": {"1": [], "2": []}}}, ["training", "inference"]),
        (TIMINGS, ["inference"]),
    ],
)
def test_times_of_another_form_are_measured_again(
    design: Design, data: TileData, monkeypatch: pytest.MonkeyPatch, known: dict[str, Any], measured: list[str]
) -> None:
    """In `TIMINGS` a batch is missing."""
    done = []
    rounds = {1: TIMES, 2: TIMES}
    monkeypatch.setattr(timings, "training_steps", lambda *args: done.append("training") or rounds)
    monkeypatch.setattr(
        timings, "inference", lambda *args, **options: done.append("inference") or {1: rounds, 32: rounds}
    )
    large = replace(design, config=replace(design.config, batch_size=50))
    content = timings.timed(large, data, 2, known, lambda content: None)
    assert done == measured
    assert content["training"]["batch"] == (len(data.train) if "training" in measured else 8)
    done.clear()
    assert timings.timed(large, data, 2, json.loads(dump_json(content)), lambda content: None) == json.loads(
        dump_json(content)
    )
    assert not done


def test_the_report_opens_offline_and_tells_the_answer_first(design: Design, make_study: Make) -> None:
    study = make_study(replace(design, recipes=("report", "strong")), {1: 0.6, 2: 0.95})
    answer = study.run()
    written = report.write_report(study, answer, TIMINGS)
    assert all(path.stat().st_size > 0 for path in written if path.name != "timings.json")
    names = {path.name for path in written}
    assert {"curves.png", "differences.png", "accuracy.png", "calibration.png", "study.html", "study.md"} <= names
    text = study.folder.markdown.read_text(encoding="utf-8")
    lines = [line for line in text.splitlines() if line.startswith("- ")]
    assert lines[0] == "- Ship pool 2 with recipe report."
    assert lines[1].startswith("- How sure: with a probability of at least 9")
    assert "at least 99.9 %, no other recipe is better by more than 1 point (2 seeds, 300 test tiles of" in lines[1]
    assert "What it costs: a linear layer of 6,147 numbers (25 kB, 0.03 % of the network); 10.40 ms" in lines[2]
    assert "a training step 1.010 (1.010 to 1.010) of pool 1's" in lines[2]
    page = study.folder.html.read_text(encoding="utf-8")
    assert "http" not in page.replace("http-equiv", "")
    assert page.count("data:image/png;base64,") == 4
    content = json.loads(study.folder.json.read_text(encoding="utf-8"))
    assert content["schema"] == report.SCHEMA
    assert content["recommendation"]["checkpoint"] == "runs/report-pool2-seed0/best.ckpt"
    assert len(content["comparisons"]) == 4
    assert "10.0" not in study.folder.json.read_text(encoding="utf-8"), "no seconds"
    again = make_study(replace(design, recipes=("report", "strong")), {})
    assert dump_json(report.content(again, again.run()), indent=1) + "\n" == study.folder.json.read_text("utf-8")


def test_what_would_make_it_surer(design: Design, make_study: Make) -> None:
    study = make_study(replace(design, max_seeds=2), {1: 0.70, 2: 0.705})
    lines = report.sentences(study, study.run())
    assert lines[0] == "Not decided. Ship pool 1 as long as nothing else is known."
    assert lines[2].startswith("To be surer (--max-seeds 2 was reached): ")
    assert "pool 2 is +" in lines[2]


@pytest.mark.parametrize(("times", "shown"), [(1.25, "1.2"), (9.9, "9.9"), (123.4, "123")])
def test_how_many_times_as_many_tiles_is_a_plain_number(
    design: Design, make_study: Make, times: float, shown: str
) -> None:
    study = make_study(replace(design, max_seeds=2), {1: 0.70, 2: 0.705})
    answer = study.run()
    blocking = replace(answer.recommendation.open[0], more_seeds=None, more_tiles=times)
    undecided = replace(answer, recommendation=replace(answer.recommendation, open=(blocking,)))
    assert f"about {shown} times as many test groups" in report.sentences(study, undecided)[2]


def test_the_recipe_that_is_better_is_named(design: Design, make_study: Make, data: TileData) -> None:
    def run(arm: Arm, seed: int) -> Outcome:
        return drawn_outcome(data, arm, seed, {"report": 0.6, "strong": 0.95}[arm.recipe])

    study = make_study(replace(design, pools=(1,), recipes=("report", "strong")), {}, runner=run)
    lines = report.sentences(study, study.run())
    assert lines[0] == "Ship pool 1 with recipe strong."
    assert lines[1] == (
        "How sure: with a probability of at least 95.0 % for each pair, recipe strong is better than report by more "
        "than 1 point (2 seeds, 300 test tiles of 30 groups)."
    )


def test_the_largest_pool_is_shipped_because_it_is_better(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.6, 2: 0.95})
    assert "for each pair, for each smaller pool, a larger one is better by" in report.sentences(study, study.run())[1]


def test_calibration_errors_of_picture_and_table_are_the_same(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    study.run()
    arm = Arm("report", 1)
    logits = study.outcomes[arm, 0].test_logits  # one seed too sure, one not sure enough: together they look right
    study.outcomes[arm, 0] = replace(study.outcomes[arm, 0], test_logits=5 * logits)
    study.outcomes[arm, 1] = replace(study.outcomes[arm, 1], test_logits=logits / 4)
    in_table = next(row for row in report.content(study, study.answer())["arms"] if row["pool"] == 1)
    assert plots.mean_calibration_error(study, arm) == pytest.approx(in_table["calibration_error"])


def test_the_seed_to_ship_is_chosen_by_validation(design: Design, make_study: Make) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    study.run()
    for seed, accuracy in ((0, 0.5), (1, 0.7)):
        key = (Arm("report", 1), seed)
        study.outcomes[key] = replace(study.outcomes[key], val_accuracy=accuracy)
    assert report.shipped_seed(study, Arm("report", 1)) == 1


def test_the_recommended_checkpoint(design: Design, make_study: Make, tmp_path: Path) -> None:
    study = make_study(design, {1: 0.9, 2: 0.5})
    folder = study.folder.path
    with pytest.raises(UsageError, match=r"holds no complete study .*Check the path"):
        report.recommended_checkpoint(folder)
    study.folder.begin(design)
    with pytest.raises(UsageError, match="Complete it with the same histo study command"):
        report.recommended_checkpoint(folder)
    report.write_report(study, study.run(), {})
    best = study.folder.checkpoint(Arm("report", 1), 0)
    with pytest.raises(HistoError, match=rf"best.ckpt: is missing. Delete {best.parent} and repeat the histo study"):
        report.recommended_checkpoint(folder)
    shutil.rmtree(best.parent)
    log: list[tuple[Arm, int]] = []
    make_study(design, {1: 0.9, 2: 0.5}, log).run()
    assert log == [(Arm("report", 1), 0)], "the step does what it says"
    best.touch()
    assert report.recommended_checkpoint(folder) == (best, True)
    good = study.folder.json.read_text(encoding="utf-8")
    for old, new in (
        ('"recipe": "report"', '"recipe": "../../x"'),
        ('"schema": 1', '"schema": 2'),
        *(
            ('"seed": 0', f'"seed": {seed}')
            for seed in ("null", '"x"', "[1]", '"../0"', "true", "-1", "0.5", "1000000")
        ),
        *(('"pool": 1', f'"pool": {pool}') for pool in ("null", '"1"', "true", "0", "-1", "1.7")),
        ('"decided": true', '"decided": null'),
        ("{", "["),
    ):
        study.folder.json.write_text(good.replace(old, new, 1), encoding="utf-8")
        with pytest.raises(HistoError, match="is not the answer of a study"):
            report.recommended_checkpoint(folder)
    study.folder.json.write_text(good.replace('"quick": false', '"quick": true'), encoding="utf-8")
    with pytest.raises(UsageError, match="is a quick study"):
        report.recommended_checkpoint(folder)


def test_pool_8_on_a_map_of_4_is_pool_4_with_larger_steps_of_its_head() -> None:
    """docs/study.md argues it: each cell is repeated four times, so that four equal steps of weights add up."""
    maps = torch.randn(5, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    four, eight = (torch.nn.functional.adaptive_avg_pool2d(maps, pool) for pool in (4, 8))
    assert torch.equal(eight, four.repeat_interleave(2, -1).repeat_interleave(2, -2))
    torch.manual_seed(0)
    large = torch.nn.Linear(3 * 64, 2)
    small = torch.nn.Linear(3 * 16, 2)

    def summed(weight: torch.Tensor) -> torch.Tensor:
        return weight.detach().view(2, 3, 4, 2, 4, 2).sum((3, 5)).flatten(1)

    with torch.no_grad():
        small.weight.copy_(summed(large.weight))
        small.bias.copy_(large.bias)
    torch.testing.assert_close(large(eight.flatten(1)), small(four.flatten(1)))
    steps = []
    for head, inputs in ((large, eight), (small, four)):
        optimizer = torch.optim.Adam(head.parameters(), lr=1e-3)
        before = head.weight.detach().clone()
        torch.nn.functional.cross_entropy(head(inputs.flatten(1)), torch.tensor([0, 1, 0, 1, 1])).backward()
        optimizer.step()
        steps.append(head.weight.detach() - before)
    torch.testing.assert_close(summed(steps[0]), 4 * steps[1], rtol=1e-3, atol=1e-6)
