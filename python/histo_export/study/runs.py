"""Runs what a study lacks, seed by seed, until the rule decides.

A study's folder:

- `design.json`   what is run; a command that goes on must agree with it.
- `runs/RECIPE-poolN-seedS/`  all that `histo train` leaves, while it is not complete; then `best.ckpt` and
                  `outcome.safetensors`. A quick study has `RECIPE-backbone-seedS` with the checkpoint, and outcomes
                  alone for its heads.
- `timings.json`  all that depends on time.
- `study.json`, `study.md`, `study.html` and pictures: the answer (`report`).

A run's outcome is written before the other files of the run are removed, and it is what tells that a run is complete.
So a study that is killed anywhere goes on with the run that was interrupted, from its last complete epoch.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from histo_export.errors import HistoError, UsageError, not_written, one_line, place_of
from histo_export.files import write_atomic
from histo_export.strict_json import dump_json, read_json
from histo_export.study.design import Arm, Design, differences
from histo_export.study.outcome import Outcome
from histo_export.study.verdicts import Comparison, Recommendation, compare, recommend
from histo_export.training.folder import RunFolder
from histo_export.training.recipes import RECIPES

if TYPE_CHECKING:
    from histo_export.data import TileData

FORMAT = 1
"""Of design.json."""
RUN_NAME = re.compile(rf"({'|'.join(RECIPES)})-(pool[0-9]+|backbone)-seed[0-9]+")
"""Of the folder of a run."""
BACKBONE_PARAMETERS = 21_284_672
"""Of ResNet34 without its linear layer."""
LAST_OVER_BEST = 3
"""Sizes of last.ckpt and best.ckpt: Adam keeps two more numbers of each weight."""
WRITTEN_AT_ONCE = 2
"""A new last.ckpt is written beside the old one."""
SPARE_BYTES = 200_000_000


class StudyFolder:
    """The files of a study in the folder `path`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.design, self.timings = path / "design.json", path / "timings.json"
        self.json, self.markdown, self.html = path / "study.json", path / "study.md", path / "study.html"
        self.pictures = [path / f"{name}.png" for name in ("curves", "differences", "accuracy", "calibration")]
        self.runs = path / "runs"

    def run(self, arm: Arm, seed: int) -> Path:
        """The folder of a run."""
        return self.runs / f"{arm.recipe}-pool{arm.pool}-seed{seed}"

    def backbone(self, recipe: str, seed: int) -> Path:
        """The folder of the run whose feature maps a quick study uses."""
        return self.runs / f"{recipe}-backbone-seed{seed}"

    def checkpoint(self, arm: Arm, seed: int) -> Path:
        """Of a complete run."""
        return RunFolder(self.run(arm, seed)).best

    def outcome(self, arm: Arm, seed: int) -> Path:
        """Exists if the run is complete."""
        return self.run(arm, seed) / "outcome.safetensors"

    def begin(self, design: Design) -> None:
        """Records the design, or checks that it is the one that was begun here, perhaps with a smaller `max_seeds`.

        Raises:
            UsageError: the folder holds another study.
            HistoError: the record is damaged, or can't be written.
        """
        now, before = design.record(), self._recorded()
        if before is not None:
            most = before.get("max_seeds")
            may_grow = {"max_seeds": now["max_seeds"]} if isinstance(most, int) and most < now["max_seeds"] else {}
            if changed := differences(before | may_grow, now):
                raise UsageError(
                    self.path,
                    f"holds a study of other options: {'; '.join(changed)}",
                    "Give the same options to go on, or choose another --out",
                )
        if before != now:
            self._write(self.design, {"format": FORMAT, "design": now})

    def _recorded(self) -> dict[str, Any] | None:
        """The design that was begun here; None where there is none; HistoError where the record is damaged."""
        step = "Choose another --out"
        try:
            content = read_json(self.design)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise HistoError(self.design, f"cannot be read ({one_line(error)})", step) from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise HistoError(self.design, "is not the design of a study", step)
        design = content.get("design")
        if not isinstance(design, dict):
            raise HistoError(self.design, "is not the design of a study", step)
        return design

    def read_timings(self) -> dict[str, Any]:
        """What depends on time; nothing where it is not known."""
        try:
            content = read_json(self.timings)
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def write_timings(self, content: Mapping[str, Any]) -> None:
        """HistoError where it can't be written."""
        self._write(self.timings, content)

    def remove(self) -> None:
        """Removes a study, and nothing else; HistoError where that is impossible, or what is here is no study."""
        if self._recorded() is None:
            return
        try:
            if self.runs.is_dir():
                for run in self.runs.iterdir():
                    if RUN_NAME.fullmatch(run.name) and run.is_dir():
                        shutil.rmtree(run)
                if not any(self.runs.iterdir()):
                    self.runs.rmdir()
            for file in (self.json, self.markdown, self.html, self.timings, *self.pictures, self.design):
                file.unlink(missing_ok=True)
        except OSError as error:
            raise not_written(self.path, error) from error

    def _write(self, file: Path, content: Mapping[str, Any]) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(file, dump_json(dict(content), indent=1) + "\n")
        except OSError as error:
            raise not_written(file, error) from error


def checkpoint_bytes(design: Design, pool: int) -> int:
    """About the size of best.ckpt."""
    return 4 * (BACKBONE_PARAMETERS + design.head_parameters(pool))


def check_disk(design: Design, folder: StudyFolder) -> None:
    """UsageError where the disk has no room for the checkpoints of `max_seeds` seeds."""
    missing = [
        arm.pool
        for arm in design.arms
        for seed in range(design.max_seeds)
        if not folder.outcome(arm, seed).exists() and (not design.quick or arm.pool == design.pools[0])
    ]
    largest = checkpoint_bytes(design, design.pools[-1])
    needed = sum(checkpoint_bytes(design, pool) for pool in missing) + WRITTEN_AT_ONCE * LAST_OVER_BEST * largest
    needed += SPARE_BYTES
    existing = next(path for path in (folder.path.absolute(), *folder.path.absolute().parents) if path.exists())
    free = shutil.disk_usage(existing).free
    if missing and free < needed:
        raise UsageError(
            folder.path,
            f"has {free / 1e9:.1f} GB left, and a study of up to {design.max_seeds} seeds needs "
            f"about {needed / 1e9:.1f} GB",
            "Free some space, use a smaller --max-seeds, or choose another --out",
        )


@dataclass(frozen=True)
class Failed:
    """A run that ended with an error."""

    arm: Arm
    seed: int
    reason: str


@dataclass(frozen=True)
class Answer:
    """What a study knows."""

    comparisons: dict[tuple[Arm, Arm], Comparison | None]
    recommendation: Recommendation


@dataclass(frozen=True)
class Progress:
    """Where a study stands.

    Attributes:
        doing: what is done now.
        done, left: runs; `left` as long as the rule needs no further seeds.
        left_s: seconds until then, about; None: unknown.
        answer: so far; None before there are two seeds.
    """

    doing: str
    done: int
    left: int
    left_s: float | None
    answer: Answer | None


Runner = Callable[[Arm, int], Outcome]
"""Does a run, or finishes it, and returns its outcome. What it leaves must let it go on after it was killed."""


@dataclass
class Study:
    """A study in progress.

    Args:
        design: what is run.
        data: the tiles.
        folder: where.
        runner: does a run.
        budget_s: seconds that all runs of the study may take together; None: no limit.
        estimate_s: seconds of a run of a pool, before any is complete; unknown for pools that it lacks.
        report: called before and after each run.
    """

    design: Design
    data: TileData
    folder: StudyFolder
    runner: Runner
    budget_s: float | None = None
    estimate_s: Mapping[int, float] | None = None
    report: Callable[[Progress], None] = lambda progress: None
    outcomes: dict[tuple[Arm, int], Outcome] = field(default_factory=dict)
    failed: list[Failed] = field(default_factory=list)
    stopped: str = ""
    """Why the study ended before the rule had decided; "" where it did not."""

    def __post_init__(self) -> None:
        test = self.data.test
        self.judged = self.data.trained_on.splits(test.hashes) == ""
        self.labels = test.labels[self.judged]
        if test.groups is None:
            self.groups = np.arange(len(self.labels))
        else:
            self.groups = np.unique(test.groups[self.judged], return_inverse=True)[1].reshape(-1)
        if len(self.labels) == 0 or self.groups.max() == 0:
            what = "groups (slides or patients)" if test.groups is not None else "tiles that are in no other split"
            cause = f"has fewer than two {what} in the test, so that nothing is known of others"
            raise UsageError(self.data.name, cause, "Put more of them into test")

    def run(self) -> Answer:
        """Runs what is missing.

        Raises:
            UsageError: the budget is too small for one run.
            HistoError: every run failed.
        """
        design = self.design
        self._read()
        for seed in range(design.max_seeds):
            for arm in design.arms:
                if (arm, seed) not in self.outcomes and not self._run(arm, seed):
                    return self._ended()
            if seed + 1 < design.seeds:
                continue
            if without := self.without_runs():
                self.stopped = f"all runs of {' and of '.join(map(str, without))} failed"
                return self._ended()
            # A later seed that was begun, before a kill, tells that the rule had not decided here.
            begun = any(later > seed for _, later in self.outcomes)
            if not begun and self.answer(brief=True).recommendation.decided:
                return self._ended()
        self.stopped = f"--max-seeds {design.max_seeds} was reached"
        return self._ended()

    def _read(self) -> None:
        shape = (len(self.data.test), len(self.design.spec.classes))
        for arm in self.design.arms:
            for seed in range(self.design.max_seeds):
                if (path := self.folder.outcome(arm, seed)).exists():
                    self.outcomes[arm, seed] = Outcome.read(path, arm, seed, shape)
                    keep_checkpoint_only(self.folder.run(arm, seed))  # a kill may have come before it

    def _run(self, arm: Arm, seed: int) -> bool:
        """Does a run; False where the budget is spent."""
        if self.budget_s is not None:
            spent, next_s = self.spent_s, self._seconds_of(arm) or 0.0
            if spent + next_s > self.budget_s:
                if not self.outcomes:
                    cause = f"is too little for one run of pool {arm.pool}, which takes about {in_words(next_s)}"
                    quicker = "" if self.design.quick else ", or --quick"
                    step = f"Use a larger --budget, or fewer --epochs{quicker}"
                    raise UsageError(f"--budget {in_words(self.budget_s)}", cause, step)
                self.stopped = f"the budget of {in_words(self.budget_s)} leaves no time for another run"
                return False
        self.report(self._progress(f"{arm}, seed {seed}"))
        try:
            outcome = self.runner(arm, seed)
        except UsageError:  # of the whole command, such as a folder in which another process works
            raise
        except (HistoError, ArithmeticError, LookupError, MemoryError, RuntimeError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, HistoError) else place_of(error)
            self.failed.append(Failed(arm, seed, reason))
        else:
            outcome.write(self.folder.outcome(arm, seed))
            keep_checkpoint_only(self.folder.run(arm, seed))
            self.outcomes[arm, seed] = outcome
        self.report(self._progress(f"{arm}, seed {seed}: done"))
        return True

    def _ended(self) -> Answer:
        if not self.outcomes:
            first = self.failed[0]
            cause = f"every run failed; the first one, {first.arm}, seed {first.seed}: {first.reason}"
            raise HistoError(self.folder.path, cause, "Correct this, and repeat the command")
        answer = self.answer()
        if answer.recommendation.decided:
            self.stopped = ""
        return answer

    @property
    def spent_s(self) -> float:
        """Seconds of all complete runs."""
        return sum(outcome.seconds for outcome in self.outcomes.values())

    def without_runs(self) -> list[Arm]:
        """Those of which no run is complete."""
        known = {arm for arm, _ in self.outcomes}
        return [arm for arm in self.design.arms if arm not in known]

    def right(self) -> dict[Arm, dict[int, npt.NDArray[np.bool_]]]:
        """Arm → seed → `(judged tiles,)`, whether the network is right."""
        found: dict[Arm, dict[int, npt.NDArray[np.bool_]]] = {arm: {} for arm in self.design.arms}
        for (arm, seed), outcome in self.outcomes.items():
            found[arm][seed] = self.logits(outcome).argmax(1) == self.labels
        return found

    def logits(self, outcome: Outcome) -> npt.NDArray[np.float32]:
        """Of the judged tiles: those of the test that are in no other split."""
        return np.asarray(outcome.test_logits[self.judged])

    def answer(self, brief: bool = False) -> Answer:
        """What the complete runs tell."""
        design, right = self.design, self.right()
        comparisons = {
            (arm, baseline): compare(
                arm,
                baseline,
                right,
                self.groups,
                margin=design.margin,
                comparisons=len(design.pairs),
                brief=brief,
            )
            for arm, baseline in design.pairs
        }
        return Answer(comparisons, recommend(design.recipes, design.pools, comparisons, self.without_runs()))

    def _progress(self, doing: str) -> Progress:
        ended = self.outcomes.keys() | {(each.arm, each.seed) for each in self.failed}
        seeds = max([self.design.seeds - 1, *(seed for _, seed in ended)]) + 1
        left = [arm for arm in self.design.arms for seed in range(seeds) if (arm, seed) not in ended]
        times = [self._seconds_of(arm) for arm in left]
        left_s = None if None in times else sum(time for time in times if time is not None)
        several = any(len(own) > 1 for own in self.right().values())
        return Progress(doing, len(ended), len(left), left_s, self.answer(brief=True) if several else None)

    def _seconds_of(self, arm: Arm) -> float | None:
        """About how long a run takes: the mean of this arm's, of those like it, or as was estimated."""
        own = [outcome.seconds for (each, _), outcome in self.outcomes.items() if each == arm]
        like = own or [outcome.seconds for (each, _), outcome in self.outcomes.items() if self._alike(each, arm)]
        if like:
            return float(np.mean(like))
        return None if self.estimate_s is None else self.estimate_s.get(arm.pool)

    def _alike(self, arm: Arm, other: Arm) -> bool:
        """Whether two runs take about as long. In a quick study, those of the smallest pool train the backbone, too."""
        smallest = self.design.pools[0]
        return not self.design.quick or (arm.pool == smallest) == (other.pool == smallest)


def keep_checkpoint_only(run: Path) -> None:
    """Removes the files of a complete run besides its best checkpoint and its outcome."""
    folder = RunFolder(run)
    try:
        for path in [*folder.existing(), folder.duplicates]:
            if path != folder.best:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise not_written(run, error) from error


def train_runner(design: Design, data: TileData, folder: StudyFolder) -> Runner:
    """Whole trainings, as `histo train` does them."""

    def run(arm: Arm, seed: int) -> Outcome:
        return trained(design, data, arm, seed, folder.run(arm, seed))

    return run


def trained(design: Design, data: TileData, arm: Arm, seed: int, out: Path) -> Outcome:
    """Trains a network into the folder `out`, or goes on there, and judges it."""
    from histo_export.data.transforms import TorchTiles
    from histo_export.model.checkpoint import read_checkpoint
    from histo_export.training.evaluation import predict
    from histo_export.training.run import train
    from histo_export.training.trainer import choose_device

    spec, config = design.spec_of(arm), design.config_of(arm, seed)
    result = train(data, spec, config, out, existing="reuse", progress=False)
    net = read_checkpoint(result.checkpoint).net()
    logits = predict(net, spec, TorchTiles(data.test, spec.crop), choose_device(config.device))
    history = [{name: value for name, value in row.items() if name != "seconds"} for row in result.history]
    seconds = sum(start.seconds for start in result.starts)
    return Outcome(arm, seed, history, result.best_epoch, result.val_accuracy, logits, seconds)


def in_words(seconds: float) -> str:
    """ "1 h 20 min", "5 min", "40 s"."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min"
