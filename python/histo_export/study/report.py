"""The answer of a study: `study.json`, `study.md`, `study.html` and the pictures.

`study.json` holds nothing that depends on time, so that two studies of the same seeds on one machine have the same
bytes, and so has one that was killed and went on. Times are in `timings.json`; the page and the text show both.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from histo_export.bench.document import Document
from histo_export.bench.render import to_html, to_markdown
from histo_export.bench.sections import Section
from histo_export.errors import HistoError, UsageError, not_written, one_line
from histo_export.files import write_atomic
from histo_export.measures import calibration_error, log_losses, probabilities_of
from histo_export.spec import percent
from histo_export.statistics import FEW_GROUPS
from histo_export.strict_json import dump_json, read_json
from histo_export.study.design import Arm
from histo_export.study.outcome import Outcome
from histo_export.study.runs import BACKBONE_PARAMETERS, Answer, Study, StudyFolder, in_words
from histo_export.study.verdicts import Comparison, probability
from histo_export.training.recipes import RECIPES

if TYPE_CHECKING:
    from histo_export.statistics import Ratio, Summary

SCHEMA = 1
"""Of study.json."""
MOST = 1_000_000
"""Seeds and pools are below it."""


def write_report(study: Study, answer: Answer, timings: Mapping[str, Any]) -> list[Path]:
    """Writes the pictures, the text, the page and, last, study.json; HistoError where one can't be written."""
    from histo_export.study.plots import draw

    folder = study.folder
    try:
        pictures = draw(study, answer, timings, folder.path)
        doc = document(study, answer, timings)
        write_atomic(folder.markdown, to_markdown(doc, pictures))
        write_atomic(folder.html, to_html(doc, pictures))
        write_atomic(folder.json, dump_json(content(study, answer), indent=1) + "\n")
    except OSError as error:
        raise not_written(folder.path, error) from error
    return [folder.html, folder.markdown, folder.json, folder.timings, *pictures]


def content(study: Study, answer: Answer) -> dict[str, Any]:
    """What study.json holds; docs/study.md explains each entry."""
    recommendation, design = answer.recommendation, study.design
    seed = shipped_seed(study, recommendation.arm)
    checkpoint = None
    if seed is not None and not design.quick:
        checkpoint = str(study.folder.checkpoint(recommendation.arm, seed).relative_to(study.folder.path).as_posix())
    return {
        "schema": SCHEMA,
        "answer": sentences(study, answer),
        "recommendation": {
            **asdict(recommendation.arm),
            "seed": seed,
            "checkpoint": checkpoint,
            "sure": recommendation.sure,
            "decided": recommendation.decided,
        },
        "stopped": study.stopped,
        "design": design.record(),
        "test": {"tiles": len(study.labels), "groups": int(study.groups.max()) + 1, "groups_from": _groups_are(study)},
        "arms": [_arm(study, arm) for arm in design.arms],
        "comparisons": [asdict(each) for each in answer.comparisons.values() if each is not None],
        "runs": [_run(study, outcome) for _, outcome in sorted(study.outcomes.items())],
        "failed": [asdict(each) for each in sorted(study.failed, key=lambda each: (each.arm, each.seed))],
    }


def shipped_seed(study: Study, arm: Arm) -> int | None:
    """The seed of the highest validation accuracy, the first of equals: the test chooses the pool, not the seed."""
    own = [outcome for (each, _), outcome in sorted(study.outcomes.items()) if each == arm]
    return max(own, key=lambda outcome: (outcome.val_accuracy, -outcome.seed)).seed if own else None


def _groups_are(study: Study) -> str:
    return study.data.groups_from or "each tile"


def _run(study: Study, outcome: Outcome) -> dict[str, Any]:
    logits = study.logits(outcome)
    probabilities = probabilities_of(logits)
    return {
        **asdict(outcome.arm),
        "seed": outcome.seed,
        "best_epoch": outcome.best_epoch,
        "val_accuracy": outcome.val_accuracy,
        "test_accuracy": float((logits.argmax(1) == study.labels).mean()),
        "test_loss": float(log_losses(logits, study.labels).mean()),
        "calibration_error": calibration_error(probabilities, study.labels),
        "history": outcome.history,
    }


def _arm(study: Study, arm: Arm) -> dict[str, Any]:
    runs = [_run(study, outcome) for (each, _), outcome in sorted(study.outcomes.items()) if each == arm]
    head = study.design.head_parameters(arm.pool)
    last = [run["history"][-1] for run in runs]
    means = {
        **{name: [run[name] for run in runs] for name in RUN_FIGURES},
        **{f"last_{name}": [row[name] for row in last] for name in CURVES},
        "least_val_loss": [min(row["val_loss"] for row in run["history"]) for run in runs],
    }
    return {
        **asdict(arm),
        "seeds": [run["seed"] for run in runs],
        "head_parameters": head,
        "head_bytes": 4 * head,
        "head_share": head / (head + BACKBONE_PARAMETERS),
        **{name: float(np.mean(values)) if values else None for name, values in means.items()},
    }


RUN_FIGURES = ("val_accuracy", "test_accuracy", "test_loss", "calibration_error")
CURVES = ("train_accuracy", "val_accuracy", "train_loss", "val_loss")


def sentences(study: Study, answer: Answer) -> list[str]:
    """What to ship, how sure that is, and what would make it surer; without times."""
    design, recommendation = study.design, answer.recommendation
    arm = recommendation.arm
    which = f"pool {arm.pool}" + (f" with recipe {arm.recipe}" if len(design.recipes) > 1 else "")
    seeds = len([1 for each, _ in study.outcomes if each == arm])
    count = len(np.unique(study.groups))
    known = study.data.test.groups is not None
    basis = f"{seeds} seeds, {len(study.labels):,} test tiles" + (f" of {count:,} groups" if known else "")
    lines = [
        f"Ship {which}." if recommendation.decided else f"Not decided. Ship {which} as long as nothing else is known."
    ]
    lines += [f"How sure: {_how_sure(study, answer, basis)}", _surer(study, answer)]
    if without := study.without_runs():
        names = " and of ".join(_short(each, study) for each in without)
        lines.append(f"Nothing is known of {names}, because no run of it is complete.")
    if known and count < FEW_GROUPS:
        lines.append(f"The test has {count} groups only, so that all intervals say little about other ones.")
    if not known and not study.data.synthetic:
        lines.append("Groups (slides, patients) are unknown: tiles of one slide are alike, so that this is less sure.")
    if design.quick:
        lines.append("This is a quick study: heads on frozen feature maps of a backbone that was trained with pool "
                     f"{design.pools[0]}, which favours that pool.")  # fmt: skip
    if note := design.map_note():
        lines.append(note[0].upper() + note[1:] + ".")
    if study.failed:
        lines.append(f"{len(study.failed)} run{'s' * (len(study.failed) > 1)} failed; see below.")
    return lines


def _how_sure(study: Study, answer: Answer, basis: str) -> str:
    """What the rule's answer rests on."""
    design, arm, sure = study.design, answer.recommendation.arm, answer.recommendation.sure
    better = f"better by more than {_margin(study)} ({basis})"
    if sure is None:
        return "unknown, because some pairs have fewer than two seeds."
    rivals = [each for each, baseline in design.pairs if baseline == arm]
    if rivals:
        larger = ["no larger pool"] if any(each.recipe == arm.recipe for each in rivals) else []
        other = ["no other recipe"] if any(each.recipe != arm.recipe for each in rivals) else []
        what = " and ".join(larger + other)
        return f"with a probability of at least {probability(sure)}, {what} is {better}."
    reasons = []
    if arm.pool > design.pools[0]:
        reasons.append("for each smaller pool, a larger one is better")
    won = [each for each in answer.comparisons.values() if each and each.verdict == "better"]
    beaten = {each.baseline.recipe for each in won if each.arm.recipe == arm.recipe} - {arm.recipe}
    if beaten:
        names = " and than ".join(recipe for recipe in design.recipes if recipe in beaten)
        reasons.append(f"recipe {arm.recipe} is better than {names}")
    needed = next(each.needed for each in answer.comparisons.values() if each)
    why = f"{' and '.join(reasons)} by more than {_margin(study)}"
    return f"with a probability of at least {percent(needed)} for each pair, {why} ({basis})."


def _margin(study: Study) -> str:
    points = 100 * study.design.margin
    return f"{points:g} point{'' if points == 1 else 's'}"


def _surer(study: Study, answer: Answer) -> str:
    """What would be needed to decide, or that nothing is."""
    if answer.recommendation.decided:
        return (
            "To be surer: nothing is needed for the rule. More seeds and more test tiles make the intervals narrower."
        )
    stopped = f" ({study.stopped})" if study.stopped else ""
    blocking = next(iter(answer.recommendation.open), None)
    if blocking is None:
        return f"To be surer: more seeds{stopped}."
    names = [_short(each, study) for each in (blocking.arm, blocking.baseline)]
    pair = f"{names[0]} is {100 * blocking.difference:+.1f} points from {names[1]}"
    ways = []
    if blocking.more_seeds is not None:
        ways.append(f"about {blocking.more_seeds} seeds")
    if blocking.more_tiles is not None:
        what = "groups" if study.data.test.groups is not None else "tiles"
        times = f"{blocking.more_tiles:.1f}" if blocking.more_tiles < 10 else f"{blocking.more_tiles:.0f}"
        ways.append(f"about {times} times as many test {what} with these seeds")
    if not ways:
        return f"To be surer{stopped}: more seeds and more test tiles together; {pair}, too close to the margin."
    only = "" if blocking.more_seeds is not None else ", because more seeds alone do not help"
    return f"To be surer{stopped}: {' or '.join(ways)}{only}, if what was found is true: {pair}."


def _short(arm: Arm, study: Study) -> str:
    return str(arm) if len(study.design.recipes) > 1 else f"pool {arm.pool}"


def document(study: Study, answer: Answer, timings: Mapping[str, Any]) -> Document:
    """The report as text."""
    lines = sentences(study, answer)
    design = study.design
    cost = _cost(study, answer, timings)
    data = study.data
    sections = [_arms(study), _pairs(answer), _overfitting(study), *_times(timings), _runs(study)]
    if study.failed:
        rows = [[str(each.arm), str(each.seed), each.reason] for each in study.failed]
        sections.append(Section("Runs that failed", ["<run", "seed", "<reason"], rows, brief=True))
    kind = "heads on frozen feature maps" if design.quick else "whole trainings"
    lead = [
        f"{data.name}: {data.description}",
        f"{kind}, {len(study.outcomes)} runs, {in_words(study.spent_s)} of training",
        f"Rule: ship the smallest pool unless a larger one is better by more than {_margin(study)} of test accuracy, "
        "and the first recipe unless another one is",
    ]
    if "machine" in timings:
        lead.append(f"Times: {timings['machine']}")
    return Document(
        title=f"Which pool size: {data.name}{' (synthetic tiles)' if data.synthetic else ''}",
        warnings=[],
        conclusions=[*lines[:2], *([cost] if cost else []), *lines[2:]],
        lead=lead,
        sections=sections,
    )


def _cost(study: Study, answer: Answer, timings: Mapping[str, Any]) -> str:
    """What the recommended pool costs, in a sentence."""
    from histo_export.study.timings import rounds_of, summaries

    pool, design = answer.recommendation.arm.pool, study.design
    head = design.head_parameters(pool)
    share = percent(head / (head + BACKBONE_PARAMETERS), 2)
    text = f"What it costs: a linear layer of {head:,} numbers ({4 * head / 1e3:,.0f} kB, {share} of the network)"
    if "training" not in timings or "inference" not in timings:
        return f"{text}."
    first = design.pools[0]
    batch, part = min(timings["inference"]["batches"].items(), key=lambda item: int(item[0]))
    latency, ratio = summaries(rounds_of(part))[pool]
    _, step = summaries(rounds_of(timings["training"]))[pool]
    ms = f"{1e3 * latency.median / int(batch):.2f} ms for a tile in the native engine"
    if ratio is None or step is None:
        return f"{text}; {ms}. It is the smallest one that was tried."
    return f"{text}; {ms}, {_ratio(ratio)} of pool {first}'s; a training step {_ratio(step)} of pool {first}'s."


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.ratio:.3f} ({ratio.low:.3f} to {ratio.high:.3f})"


def _arms(study: Study) -> Section:
    rows = []
    for arm in study.design.arms:
        facts = _arm(study, arm)
        own = [float(right.mean()) for right in study.right()[arm].values()]
        spread = f"{percent(min(own))} to {percent(max(own))}" if own else ""
        means = [facts["test_accuracy"], spread, facts["val_accuracy"]]
        cells = [value if isinstance(value, str) else "" if value is None else percent(value) for value in means]
        loss = "" if facts["test_loss"] is None else f"{facts['test_loss']:.3f}"
        error = "" if facts["calibration_error"] is None else percent(facts["calibration_error"])
        head = [f"{facts['head_parameters']:,}", f"{percent(facts['head_share'], 2)}"]
        rows.append([str(arm), str(len(own)), *cells, loss, error, *head])
    columns = ["<", "seeds", "test accuracy", "least to most", "validation", "test loss", "calibration error"]
    return Section(
        "Pools and recipes",
        [*columns, "head's numbers", "share"],
        rows,
        "Means over the seeds. The validation accuracy is optimistic where the epoch was chosen by it.",
        brief=True,
    )


def _pairs(answer: Answer) -> Section:
    rows = []
    for (arm, baseline), pair in answer.comparisons.items():
        name = f"{arm} against {baseline}"
        rows.append([name, *(_pair(pair) if pair else ["", "", "", "", "", "", "not decided (too few seeds)", ""])])
    columns = ["<pair", "points", "95 % interval", "bootstrap", "P(worse)", "P(equal)", "P(better)", "<verdict"]
    needed = next((pair.needed for pair in answer.comparisons.values() if pair), None)
    note = "" if needed is None else (
        f"Better and worse need a probability of {percent(needed, 2)}, so that 95 % hold for all pairs together; equal "
        "within the margin needs 95 %. Visible: the smallest difference that would have been found to be better with a "
        "probability of about 80 %."
    )  # fmt: skip
    return Section("Paired differences of test accuracy", [*columns, "visible"], rows, note, brief=True)


def _pair(pair: Comparison) -> list[str]:
    low, high, least, most = (100 * value for value in (*pair.interval, *pair.bootstrap))
    return [
        f"{100 * pair.difference:+.2f}",
        f"{low:+.1f} to {high:+.1f}",
        f"{least:+.1f} to {most:+.1f}",
        *(probability(value) for value in (pair.worse, pair.equal, pair.better)),
        pair.verdict,
        f"{100 * pair.visible:.1f}",
    ]


def _overfitting(study: Study) -> Section:
    rows = []
    for arm in study.design.arms:
        facts = _arm(study, arm)
        if not facts["seeds"]:
            continue
        train, val = facts["last_train_accuracy"], facts["last_val_accuracy"]
        losses = [facts["last_train_loss"], facts["last_val_loss"], facts["least_val_loss"]]
        gap = f"{100 * (train - val):+.1f}"
        rows.append([str(arm), percent(train), percent(val), gap, *(f"{loss:.3f}" for loss in losses)])
    columns = ["<", "training", "validation", "gap", "training loss", "validation loss", "its least"]
    note = (
        "Of the last epoch, means over the seeds. Training is measured while it trains, on augmented tiles where the "
        "recipe augments. A validation loss well above its least one tells overfitting."
    )
    return Section("Overfitting", columns, rows, note)


def _times(timings: Mapping[str, Any]) -> list[Section]:
    from histo_export.study.timings import rounds_of, summaries

    parts = {}
    if training := timings.get("training"):
        parts[f"training step, batch {training['batch']}"] = (rounds_of(training), training["batch"])
    if inference := timings.get("inference"):
        for batch, part in inference["batches"].items():
            name = f"native engine, batch {batch}, {inference['threads']} threads"
            parts[name] = (rounds_of(part), int(batch))
    rows = []
    for name, (rounds, batch) in parts.items():
        for pool, (summary, ratio) in summaries(rounds).items():
            rows.append([f"{name}, pool {pool}", *_time(summary, batch), _ratio(ratio) if ratio else "1"])
            rows[-1].append(ratio.verdict if ratio else "")
    if not rows:
        return []
    columns = ["<", "ms", "95 % interval", "ms per tile", "ratio to the smallest pool", "<verdict"]
    return [Section("Time", columns, rows, "Interleaved: each round runs every pool once.", brief=True)]


def _time(summary: Summary, batch: int) -> list[str]:
    median, low, high = (1e3 * value for value in (summary.median, summary.low, summary.high))
    return [f"{median:.2f}", f"{low:.2f} to {high:.2f}", f"{median / batch:.3f}"]


def _runs(study: Study) -> Section:
    rows = []
    for _, outcome in sorted(study.outcomes.items()):
        facts = _run(study, outcome)
        figures = [percent(facts["val_accuracy"]), percent(facts["test_accuracy"]), f"{facts['test_loss']:.3f}"]
        rows.append([str(outcome.arm), str(outcome.seed), str(outcome.best_epoch), *figures])
        rows[-1].append(in_words(outcome.seconds))
    return Section("Runs", ["<", "seed", "epoch", "validation", "test", "test loss", "time"], rows)


def _recommended(found: Any) -> tuple[Arm, int, bool]:
    """Arm, seed and whether the study had decided; LookupError, TypeError or ValueError for another content."""
    if found["schema"] != SCHEMA:
        raise ValueError(f"schema {found['schema']!r}, this version reads {SCHEMA}")
    entry = found["recommendation"]
    recipe, pool, seed, decided = (entry[name] for name in ("recipe", "pool", "seed", "decided"))
    if recipe not in RECIPES:
        raise ValueError(f"recipe {recipe!r} is unknown")
    for name, value, least in (("pool", pool, 1), ("seed", seed, 0)):
        if type(value) is not int or not least <= value < MOST:
            raise ValueError(f"{name} {value!r} is not a number from {least} to {MOST - 1}")
    if not isinstance(decided, bool):
        raise ValueError(f"decided {decided!r} is neither true nor false")
    return Arm(recipe, pool), seed, decided


def recommended_checkpoint(folder: Path) -> tuple[Path, bool]:
    """The checkpoint that a study recommends, and whether the study had decided.

    Raises:
        UsageError: the folder has no study that is complete, or one of heads alone.
        HistoError: study.json is damaged, or the checkpoint is missing.
    """
    files = StudyFolder(folder)
    if not files.json.is_file():
        step = "Complete it with the same histo study command" if files.design.is_file() else "Check the path"
        raise UsageError(folder, f"holds no complete study (no {files.json.name})", step)
    try:
        found = read_json(files.json)
        arm, seed, decided = _recommended(found)
        quick = bool(found["design"]["quick"])
    except (OSError, LookupError, TypeError, ValueError) as error:
        raise HistoError(
            files.json, f"is not the answer of a study ({one_line(error)})", "Run the study again"
        ) from error
    if quick:
        step = f"Train pool {arm.pool} with histo train, or run the study without --quick into another --out"
        raise UsageError(folder, "is a quick study, whose heads are not whole models", step)
    checkpoint = files.checkpoint(arm, seed)
    if not checkpoint.is_file():
        step = f"Delete {checkpoint.parent} and repeat the histo study command: it trains this network again"
        raise HistoError(checkpoint, "is missing", step)
    return checkpoint, decided
