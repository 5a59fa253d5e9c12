"""Which parts of a recipe earn their place: each is changed alone, over several seeds, and judged on several beds.

    python benchmarks/ablation.py --data crc-polyps --steps 3000 --seeds 0,1,2 --out ablation.json
    python benchmarks/ablation.py --data crc-polyps --steps 3000 --seeds 0,1,2 --out ablation.json --final --parts base
    python benchmarks/ablation.py --out ablation.json --table          # prints what is there

A run trains one part with one seed in one world:

- `plain`: the tiles as they are;
- `normalised`: the stain of each tile is normalised (`normalise_stain`), so that colour says little.

The validation split is halved tile by tile within each class. One half chooses epochs, the other one judges, so that no
figure is of tiles by which it was chosen. The beds:

- `val`: the judging half. Its slides are in training too, so it rewards learning their colour: for comparison only.
- `shifted`: the same tiles under a fixed shift of the stain (`SHIFT`), which no training tile has.
- `normalised`: the judging half, normalised, by networks of the world `normalised`.
- `test`, `test-normalised`: the test folder, only with `--final`. Nothing else looks at its labels or trains on it.

Each finished run is a row of the file. A command that is repeated does what is missing: finished rows are kept, and an
interrupted run goes on from its last epoch. With `--final` the test beds are added to finished rows, whose best.ckpt
must still be there. The colour floor of each bed is kept, too.

The table shows each part's mean over its seeds, and its difference from the first part over the seeds that both have: a
95 % t interval over paired seeds. Three seeds give a wide one; it tells nothing about other tiles than these.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from rich.console import Console

from histo_export.data import TileData, TileSet, open_data
from histo_export.data.transforms import HEDJitter, TorchTiles
from histo_export.files import write_atomic
from histo_export.model.checkpoint import read_checkpoint
from histo_export.spec import ModelSpec
from histo_export.training.evaluation import predict
from histo_export.training.floors import colours_of, fit_trees
from histo_export.training.recipes import Keep, TrainConfig
from histo_export.training.run import train
from histo_export.training.trainer import choose_device

Tile = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Part:
    """A change of the base recipe.

    Attributes:
        changes: fields of `Recipe` → values.
        keep: which weights.
        recipe: another recipe than the base.
        longer: factor of the steps.
        flips: the test is the mean over the eight flips and turns of a tile.
    """

    changes: Mapping[str, Any] = field(default_factory=dict)
    keep: Keep = "best"
    recipe: str | None = None
    longer: int = 1
    flips: bool = False


def _colour(strength: float) -> dict[str, float]:
    return dict.fromkeys(("brightness", "contrast", "saturation"), strength)


PARTS: Mapping[str, Part] = {
    "base": Part(),
    "report": Part(recipe="report"),
    "stain 0": Part({"stain": 0.0}),
    "stain 0.1": Part({"stain": 0.1}),
    "stain 0.2": Part({"stain": 0.2}),
    "stain 0.4": Part({"stain": 0.4}),
    "colour 0": Part(_colour(0.0)),
    "colour 0.3": Part(_colour(0.3)),
    "colour 0.3, hue 0.1": Part({**_colour(0.3), "hue": 0.1}),
    "grey 0.2": Part({"grey": 0.2}),
    "grey 0.5": Part({"grey": 0.5}),
    "stain 0.2, colour 0.3, grey 0.2": Part({"stain": 0.2, **_colour(0.3), "grey": 0.2}),
    "no flips, no turns": Part({"flips": False, "turns": False}),
    "centre crop": Part({"random_crop": False}),
    "smoothing 0": Part({"label_smoothing": 0.0}),
    "decay 0": Part({"weight_decay": 0.0}),
    "warm-up 0": Part({"warmup": 0.0}),
    "one cycle": Part({"schedule": "onecycle", "warmup": 0.3}),
    "last": Part(keep="last"),
    "ema": Part(keep="ema"),
    "twice as long": Part(longer=2),
    "flips at test": Part(flips=True),
}
"""The first one is what the others are compared with."""

WORLDS = ("plain", "normalised")
BEDS: Mapping[str, tuple[str, ...]] = {"plain": ("val", "shifted"), "normalised": ("normalised",)}
FINAL_BEDS: Mapping[str, tuple[str, ...]] = {"plain": ("test",), "normalised": ("test-normalised",)}

SHIFT = ((1.3, 0.7, 1.0), (0.05, -0.05, 0.0))
"""Of the bed `shifted`: factor and offset of haematoxylin, eosin and the residual, as in `HEDJitter.restain`: a third
more haematoxylin, a third less eosin."""

TARGET = ((0.38, 0.62, 0.40), (0.26, 0.30, 0.22))
"""Mean and deviation of the optical density (natural logarithm) of red, green and blue in a normalised tile: about
those of an H&E tile."""


def normalise_stain(tile: Tile) -> Tile:
    """Reinhard's normalisation (IEEE CG&A 21(5):34-41, 2001) in optical density: each tile gets the same mean and
    deviation in each channel, `TARGET`. uint8 `(h, w, 3)` → the same."""
    density = -np.log((tile.reshape(-1, 3).astype(np.float64) + 1) / 256)
    mean, deviation = (np.array(values) for values in TARGET)
    even = (density - density.mean(0)) / np.maximum(density.std(0), 1e-3) * deviation + mean
    return np.clip(np.round(256 * np.exp(-even) - 1), 0, 255).astype(np.uint8).reshape(tile.shape)


def shift_stain(tile: Tile) -> Tile:
    """The stain of `SHIFT`. uint8 `(h, w, 3)` → the same."""
    alpha, beta = (torch.tensor(values) for values in SHIFT)
    chw = torch.from_numpy(np.ascontiguousarray(tile.transpose(2, 0, 1)))
    return np.ascontiguousarray(HEDJitter().restain(chw, alpha, beta).numpy().transpose(1, 2, 0))


class Resize:
    """Scales a tile so that its shorter side has that many pixels."""

    def __init__(self, side: int) -> None:
        self.side = side

    def __call__(self, tile: Tile) -> Tile:
        scale = self.side / min(tile.shape[:2])
        size = [max(self.side, round(length * scale)) for length in (tile.shape[1], tile.shape[0])]
        return np.asarray(Image.fromarray(tile).resize(size, Image.Resampling.BILINEAR))


class Changed:
    """The source of a `TileSet`: some tiles of another one, changed, and kept in memory once they are read."""

    def __init__(self, tiles: TileSet, chosen: Sequence[int], changes: Sequence[Callable[[Tile], Tile]]) -> None:
        self.tiles, self.chosen, self.changes = tiles, list(chosen), changes
        self.made: dict[int, Tile] = {}

    def __call__(self, i: int) -> Tile:
        if i not in self.made:
            tile = self.tiles.tile(self.chosen[i])
            for change in self.changes:
                tile = change(tile)
            self.made[i] = tile
        return self.made[i].copy()


def changed(tiles: TileSet, changes: Sequence[Callable[[Tile], Tile]], chosen: Sequence[int] | None = None) -> TileSet:
    """Some of the tiles (default: all), changed."""
    some = range(len(tiles)) if chosen is None else chosen
    names = [tiles.names[i] for i in some]
    return TileSet(tiles.classes, tiles.labels[list(some)], names, Changed(tiles, some, changes))


def halves(labels: npt.NDArray[np.int64]) -> tuple[list[int], list[int]]:
    """Every other tile of each class, and the rest."""
    by_class = [np.flatnonzero(labels == label).tolist() for label in np.unique(labels).tolist()]
    return [i for own in by_class for i in own[::2]], [i for own in by_class for i in own[1::2]]


class Beds:
    """The tiles of each world and bed, made when first asked for."""

    def __init__(self, data: TileData, resize: int | None) -> None:
        self.data = data
        self.scale: list[Callable[[Tile], Tile]] = [] if resize is None else [Resize(resize)]
        self.side = data.tile_size if resize is None else resize
        self.choosing, self.judging = halves(data.val.labels)
        self.made: dict[str, TileSet] = {}

    def world(self, name: str) -> TileData:
        """What a run trains on. Its test is the bed of the world, so that `train` sees no tile of the test folder."""
        key = f"world {name}"
        own = self.scale + ([normalise_stain] if name == "normalised" else [])
        if key not in self.made:
            self.made[key] = changed(self.data.train, own)
        choosing = changed(self.data.val, own, self.choosing)
        fingerprint = f"{self.data.fingerprint} {name} {self.side}"
        test = self.bed(BEDS[name][0])
        return replace(
            self.data, train=self.made[key], val=choosing, test=test, tile_size=self.side, fingerprint=fingerprint
        )

    def bed(self, name: str) -> TileSet:
        """The tiles on which networks are judged."""
        if name not in self.made:
            own = self.scale + ([normalise_stain] if name.endswith("normalised") else [])
            if name.startswith("test"):
                self.made[name] = changed(self.data.test, own)
            else:
                extra = [shift_stain] if name == "shifted" else []
                self.made[name] = changed(self.data.val, own + extra, self.judging)
        return self.made[name]


class Results:
    """The file: `{"settings": …, "rows": {"world/part/seed": {bed: accuracy}}, "floors": {bed: accuracy}}`."""

    def __init__(self, file: Path, settings: dict[str, Any] | None) -> None:
        self.file = file
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
        self.settings: dict[str, Any] = content.get("settings", settings)
        if settings is not None and self.settings != settings:
            raise SystemExit(f"{file} is of other settings: {self.settings}, now {settings}. Choose another --out")
        self.rows: dict[str, dict[str, float]] = content.get("rows", {})
        self.floors: dict[str, float] = content.get("floors", {})

    def save(self) -> None:
        content = {"settings": self.settings, "rows": self.rows, "floors": self.floors}
        write_atomic(self.file, json.dumps(content, indent=1) + "\n")


def accuracy(net: torch.nn.Module, spec: ModelSpec, tiles: TileSet, device: torch.device, flips: bool) -> float:
    """On the centre of each tile, or the mean of the probabilities over its eight flips and turns."""
    views: list[Callable[[Tile], Tile]] = [
        (lambda tile, turn=turn, mirror=mirror: np.ascontiguousarray(np.rot90(tile[:, ::-1] if mirror else tile, turn)))
        for turn in range(4)
        for mirror in (False, True)
    ]
    total = sum(
        torch.from_numpy(predict(net, spec, TorchTiles(changed(tiles, [view]), spec.crop), device)).softmax(1)
        for view in (views if flips else views[:1])
    )
    return float((total.argmax(1).numpy() == tiles.labels).mean())  # type: ignore[union-attr]


def run_row(args: argparse.Namespace, beds: Beds, results: Results, world: str, name: str, seed: int) -> None:
    """Trains where need be, and judges on the beds that the row lacks."""
    part, key = PARTS[name], f"{world}/{name}/{seed}"
    row = results.rows.get(key, {})
    wanted = [*BEDS[world], *(FINAL_BEDS[world] if args.final else ())]
    lacking = [bed for bed in wanted if bed not in row]
    if not lacking:
        return
    data = beds.world(world)
    spec = ModelSpec(args.pool, data.classes, crop=args.crop, tile_size=beds.side, mpp=None)
    config = TrainConfig(
        recipe=part.recipe or args.base,
        parts={} if part.recipe else part.changes,
        steps=args.steps * part.longer,
        keep=part.keep,
        batch_size=args.batch,
        lr=args.lr,
        seed=seed,
        device=args.device,
    )
    # Test-time flips need no training of their own.
    folder = args.runs / f"{world}-{'base' if part.flips else name}-{seed}".replace(" ", "_").replace(",", "")
    best, last = folder / "best.ckpt", folder / "last.ckpt"
    if last.exists() or not (folder / "report.json").exists():  # the report is the last file of a run
        console = Console(stderr=True, width=200)
        console.print(f"{key}: {folder}", highlight=False)
        train(data, spec, config, folder, existing="reuse", progress=console)
        last.unlink()  # 255 MB, needed no more
    net, device = read_checkpoint(best).net(), choose_device(args.device)
    figures = {bed: accuracy(net, spec, beds.bed(bed), device, part.flips) for bed in lacking}
    results.rows[key] = row | figures
    results.save()
    print(key, {bed: f"{100 * value:.1f} %" for bed, value in results.rows[key].items()}, flush=True)


def add_floors(args: argparse.Namespace, beds: Beds, results: Results) -> None:
    """The colour floor of each bed."""
    for world in args.worlds:
        wanted = [*BEDS[world], *(FINAL_BEDS[world] if args.final else ())]
        if all(bed in results.floors for bed in wanted):
            continue
        tiles = beds.world(world).train
        trees = fit_trees(colours_of(tiles, args.crop, np.arange(len(tiles))), tiles.labels)
        for bed in wanted:
            judged = beds.bed(bed)
            answers = trees(colours_of(judged, args.crop, np.arange(len(judged))))
            results.floors[bed] = float((answers == judged.labels).mean())
    results.save()


def paired(own: Mapping[int, float], base: Mapping[int, float]) -> str:
    """The mean difference over the seeds of both, in points, with its 95 % t interval."""
    from scipy.stats import t

    differences = [100 * (own[seed] - base[seed]) for seed in sorted(own.keys() & base.keys())]
    if not differences:
        return ""
    mean = statistics.fmean(differences)
    if len(differences) < 2:
        return f"{mean:+.1f} (one seed)"
    half = t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / math.sqrt(len(differences))
    return f"{mean:+.1f} ({mean - half:+.1f} to {mean + half:+.1f})"


def table(results: Results) -> str:
    """Markdown: for each bed the mean accuracy of each part, and its difference from the base."""
    found: dict[str, dict[str, dict[int, float]]] = {}
    for key, row in results.rows.items():
        _, name, seed = key.split("/")
        for bed, value in row.items():
            found.setdefault(bed, {}).setdefault(name, {})[int(seed)] = value
    order = [bed for world in WORLDS for bed in (*BEDS[world], *FINAL_BEDS[world]) if bed in found]
    lines = ["| part | " + " | ".join(order) + " |", "|---" * (len(order) + 1) + "|"]
    floors = [f"{100 * results.floors[bed]:.1f} %" if bed in results.floors else "" for bed in order]
    lines.append(f"| *colour floor* | {' | '.join(floors)} |")
    first = next(iter(PARTS))
    for name in PARTS:
        cells = []
        for bed in order:
            own = found[bed].get(name, {})
            mean = f"{100 * statistics.fmean(own.values()):.1f} %" if own else ""
            base = found[bed].get(first, {}) if name != first else {}
            cells.append(f"{mean} {paired(own, base)}".strip())
        if any(cells):
            lines.append(f"| {name} | {' | '.join(cells)} |")
    settings = ", ".join(f"{name} {value}" for name, value in results.settings.items())
    return "\n".join([f"{settings}; in brackets: 95 % t interval of the difference from {first} over paired seeds",
                      "", *lines])  # fmt: skip


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="folder with train, val and test")
    parser.add_argument("--out", type=Path, default=Path("ablation.json"), help="the rows")
    parser.add_argument("--runs", type=Path, help="folder of the runs; default: beside --out")
    parser.add_argument("--base", default="strong", help="recipe whose parts are changed")
    parser.add_argument("--parts", default=";".join(PARTS), help="names, separated by semicolons")
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--worlds", default=",".join(WORLDS))
    parser.add_argument("--steps", type=int, default=3000, help="optimiser steps, rounded up to whole epochs")
    parser.add_argument("--pool", type=int, default=2)
    parser.add_argument("--crop", type=int, default=64)
    parser.add_argument("--resize", type=int, help="side in pixels to which tiles are scaled before the crop")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--final", action="store_true", help="judge on the test folder, too: once, at the end")
    parser.add_argument("--table", action="store_true", help="only print what --out holds")
    args = parser.parse_args()
    args.runs = args.runs or args.out.with_suffix("")
    args.seeds = [int(seed) for seed in args.seeds.split(",")]
    args.worlds = args.worlds.split(",")
    args.parts = args.parts.split(";")
    if unknown := (set(args.parts) - set(PARTS)) | (set(args.worlds) - set(WORLDS)):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; parts are {'; '.join(PARTS)}")
    if not args.table and args.data is None:
        parser.error("--data is missing")
    return args


def main() -> None:
    """Does what is missing, seed by seed, and prints the table."""
    args = arguments()
    if args.table:
        print(table(Results(args.out, None)))
        return
    names = ("base", "steps", "pool", "crop", "resize", "batch", "lr")
    data = open_data(args.data, crop=1 if args.resize else args.crop)
    settings = {name: getattr(args, name) for name in names} | {"data": data.fingerprint[:12]}
    results, beds = Results(args.out, settings), Beds(data, args.resize)
    add_floors(args, beds, results)
    for seed in args.seeds:  # a whole table of one seed first
        for name in sorted(args.parts, key=list(PARTS).index):
            for world in args.worlds:
                run_row(args, beds, results, world, name, seed)
    print(table(results))


if __name__ == "__main__":
    main()
