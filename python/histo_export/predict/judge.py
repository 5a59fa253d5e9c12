"""How good a network is on tiles whose folders are named like classes: accuracy and pictures, split by split.

A tile counts in the split in which training used it, whatever its folder is called. Otherwise it counts in the split
that its folders name, or else as a test. Where it is unknown on which tiles the network was trained, tiles without such
a folder are no test: they are reported as "labelled".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from histo_export.data.images import center_crop
from histo_export.extras import installed
from histo_export.measures import probabilities_of
from histo_export.metrics import SPLIT_TILES, AccuracyReport, report_of
from histo_export.predict.inputs import TileSetInput
from histo_export.predict.labels import Label
from histo_export.predict.loop import Logits, Pixels, softmax
from histo_export.spec import ModelSpec

MISTAKES = 24
"""Tiles in mistakes.png."""


class Judge:
    """Collects the results of a set's tiles.

    Args:
        spec: of the model.
        labels: of all tiles of the set; those of the class "" are not judged.
        groups: `(n,)`, the slide or patient of each tile, by which intervals are made; None where they are unknown.
    """

    def __init__(self, spec: ModelSpec, labels: Sequence[Label], groups: npt.NDArray[np.str_] | None = None) -> None:
        self.spec, self.groups = spec, groups
        place = {name: i for i, name in enumerate(spec.classes)} | {"": -1}
        self.truth = np.array([place[name] for name, _ in labels], np.int64)
        self.named = np.array([split for _, split in labels])
        self.splits = np.full(len(labels), "", "<U8")  # stays "" where a tile could not be used
        self.rows: list[Logits] = []
        self.unknown = False

    def add(self, indices: npt.NDArray[np.int64], logits: Logits, roles: npt.NDArray[np.str_] | None) -> list[Label]:
        """Takes the next usable tiles.

        Args:
            indices: int64 `(n,)`, of the tiles in the set, in rising order.
            logits: float32 `(n, classes)`.
            roles: `(n,)`, the split in which training used each tile, or ""; None where that is unknown.

        Returns:
            The class and the split of each tile.
        """
        self.unknown = roles is None
        named = self.named[indices]
        splits = np.where(named == "", "labelled" if roles is None else "test", named)
        if roles is not None:
            splits = np.where(roles == "", splits, roles)
        judged = self.truth[indices] >= 0
        splits = np.where(judged, splits, "")
        self.splits[indices] = splits
        self.rows.append(logits[judged])
        names = [self.spec.classes[i] if i >= 0 else "" for i in self.truth[indices].tolist()]
        return list(zip(names, splits.tolist(), strict=True))

    def write(self, folder: Path, tiles: TileSetInput, read: Callable[[int], Pixels]) -> dict[str, Any]:
        """Draws confusion.png, probabilities.png and mistakes.png, or one of each for each split (confusion-test.png).

        Without matplotlib nothing is drawn, and without scikit-learn no probabilities.png.

        Args:
            folder: exists.
            tiles: the set.
            read: gives tile `i` of the set as uint8 `(side, side, 3)`.

        Returns:
            Plain values for summary.json: "splits", "warnings", and "test" where the set is a test and nothing else.
        """
        usable = self.splits[self.splits != ""]
        present = [split for split in SPLIT_TILES if (usable == split).any()]
        reports = {}
        for split in present:
            indices, logits = self._of(split)
            groups = None if self.groups is None else self.groups[indices]
            reports[split] = report_of(self.spec.classes, logits, self.truth[indices], groups=groups)
        if installed("matplotlib"):
            self._draw(folder, tiles, read, reports)
        splits = {split: report.to_dict() for split, report in reports.items()}
        if "test" in splits:
            splits["test"]["left_out"] = int(self._moved("").sum() + self._moved("test").sum())
        parts: dict[str, Any] = {"splits": splits, "warnings": self._warnings()}
        return parts | ({"test": splits["test"]} if present == ["test"] else {})

    def _of(self, split: str) -> tuple[npt.NDArray[np.int64], Logits]:
        """The usable tiles of a split: their indices in the set, and their logits."""
        usable = self.splits[self.splits != ""]
        return np.flatnonzero(self.splits == split), np.concatenate(self.rows)[usable == split]

    def _draw(
        self, folder: Path, tiles: TileSetInput, read: Callable[[int], Pixels], reports: Mapping[str, AccuracyReport]
    ) -> None:
        """Draws the pictures of each split; the arguments are those of `write`."""
        from histo_export.figures import save_confusion, save_probabilities, shown

        for split, report in reports.items():
            end = "" if len(reports) == 1 else f"-{split}"
            title = shown(tiles.name)
            save_confusion(folder / f"confusion{end}.png", report, title=title, split=split)
            if report.measures is not None:
                indices, logits = self._of(split)
                figures = probabilities_of(logits), self.truth[indices]
                save_probabilities(folder / f"probabilities{end}.png", report, *figures, title=title, split=split)
            self._draw_mistakes(folder / f"mistakes{end}.png", tiles, read, split)

    def _draw_mistakes(self, path: Path, tiles: TileSetInput, read: Callable[[int], Pixels], split: str) -> None:
        """Draws the surest mistakes among the tiles of one split, if there are any."""
        from histo_export.figures import shown
        from histo_export.predict.pictures import Mistake, save_mistakes

        indices, logits = self._of(split)
        classes, truth, chosen = self.spec.classes, self.truth[indices], logits.argmax(1)
        surest = softmax(logits).max(1)
        wrong = np.flatnonzero(chosen != truth)
        if not len(wrong):
            return
        mistakes = [
            Mistake(
                center_crop(read(int(indices[i])), self.spec.crop),
                tiles.label(int(indices[i])).rpartition("/")[2],
                classes[truth[i]],
                classes[chosen[i]],
                float(surest[i]),
            )
            for i in wrong[np.argsort(-surest[wrong], kind="stable")][:MISTAKES]
        ]
        which = f"the {len(mistakes)} surest" if len(mistakes) < len(wrong) else "all"
        title = f"{shown(tiles.name)}: {which} of {len(wrong):,} mistakes in {len(indices):,} {SPLIT_TILES[split]}"
        save_mistakes(path, mistakes, title=title)

    def _moved(self, named: str) -> npt.NDArray[np.bool_]:
        """The tiles in folders of the split `named` ("": of none) that count in another split."""
        there = ("", named or "test", "labelled")
        moved: npt.NDArray[np.bool_] = (self.named == named) & ~np.isin(self.splits, there)
        return moved

    def _warnings(self) -> list[str]:
        warnings = []
        for named, tiles, kind in (
            ("test", "tiles in test folders", "a test"),
            ("val", "tiles in validation folders", "validation"),
            ("", "tiles", "a test"),
        ):
            if count := int(self._moved(named).sum()):
                total = int(((self.named == named) & (self.splits != "")).sum())
                used = f"{count:,} of {total:,} {tiles} were used in training or validation"
                warnings.append(f"{used}: they count there, and not as {kind}")
        if self.unknown:
            warnings.append(
                "the bundle does not record the tiles of its training, so these may be among them: export the "
                "checkpoint again, unless the network was trained elsewhere"
            )
        return warnings
