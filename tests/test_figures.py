"""Pictures: names of any characters and any length, any number of classes, and colours that all readers tell apart."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import matplotlib.mathtext
import numpy as np
import numpy.typing as npt
import pytest
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen
from matplotlib import font_manager
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.offsetbox import AnchoredText
from matplotlib.text import Text
from PIL import Image

from histo_export import figures
from histo_export.figures import new_figure, save_confusion, save_curves, save_figure, shown
from histo_export.metrics import SPLIT_TILES, AccuracyReport, report_of
from histo_export.predict.colours import class_colours

MISSING = "\u9b31"
"""A character that none of the tests' fonts has, until a test makes one."""


@pytest.fixture
def only_matplotlibs_fonts(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Hides the fonts of this machine; the function that it gives makes figures look for fonts again."""
    home = str(Path(font_manager.__file__).parent)
    own = [font for font in font_manager.fontManager.ttflist if font.fname.startswith(home)]
    monkeypatch.setattr(font_manager.fontManager, "ttflist", own)

    def forget() -> None:
        figures._family_with.cache_clear()

    forget()
    yield forget
    forget()


def make_font(path: Path, character: str) -> str:
    """A font of a black square for one character; returns the path."""
    pen = TTGlyphPen(None)
    pen.moveTo((0, 0))
    for corner in ((0, 800), (800, 800), (800, 0)):
        pen.lineTo(corner)
    pen.closePath()
    glyph = pen.glyph()
    builder = FontBuilder(1000, isTTF=True)
    builder.setupGlyphOrder([".notdef", "square"])
    builder.setupCharacterMap({ord(character): "square"})
    builder.setupGlyf({".notdef": glyph, "square": glyph})
    builder.setupHorizontalMetrics({".notdef": (1000, 0), "square": (1000, 0)})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Made Sans", "styleName": "Regular"})
    builder.setupOS2(usWeightClass=400)
    builder.setupPost()
    builder.save(path)
    return str(path)


def draw_name(name: str, path: Path) -> npt.NDArray[np.uint8]:
    figure = new_figure(3, 1)
    axes = figure.subplots()
    axes.set_xticks([0.5], [shown(name)])
    save_figure(figure, path)
    with Image.open(path) as image:
        return np.asarray(image.convert("L"))


def test_a_character_without_a_font_is_written_out(only_matplotlibs_fonts, tmp_path: Path) -> None:
    assert shown(f"a{MISSING}b") == r"a\u9b31b"
    assert shown("Müller ± µm") == "Müller ± µm"
    assert shown("a\nb\tc") == r"a\nb\tc"
    assert shown("caf\udce9.png") == r"caf\udce9.png"
    draw_name(f"a{MISSING}b\udce9", tmp_path / "a.png")  # a warning of a missing glyph would fail the test


def test_an_installed_font_that_has_a_character_is_used(only_matplotlibs_fonts, tmp_path: Path) -> None:
    without = draw_name(f"a{MISSING}b", tmp_path / "without.png")
    font_manager.fontManager.addfont(make_font(tmp_path / "made.ttf", MISSING))
    only_matplotlibs_fonts()
    assert shown(f"a{MISSING}b") == f"a{MISSING}b"
    drawn = draw_name(f"a{MISSING}b", tmp_path / "with.png")
    assert drawn.shape != without.shape or (drawn != without).any()
    # A square of 0.8 em of a font of 10 points at 200 dpi, which no letter fills.
    rows, columns = np.nonzero(drawn < 40)
    solid = max(
        (drawn[y : y + 18, x : x + 18] < 60).all() for y, x in zip(rows.tolist(), columns.tolist(), strict=True)
    )
    assert solid


FORMULAS = ("m$$1", "cost$5^^6$", r"$\frac$", "$x$")
"""Read as formulas, the first three are errors, and the last one is another text."""


@pytest.fixture
def no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Matplotlib takes for a formula is an error."""

    def parse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a name was read as a formula")

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", parse)


@pytest.mark.usefixtures("no_formula")
def test_classes_with_dollar_signs(tmp_path: Path) -> None:
    labels = np.arange(len(FORMULAS))
    report = report_of(FORMULAS, np.eye(len(FORMULAS), dtype=np.float32), labels)
    save_confusion(tmp_path / "m.png", report, title=FORMULAS[1], split="test")
    with Image.open(tmp_path / "m.png") as image:
        assert min(image.size) > 400


@pytest.mark.usefixtures("no_formula")
@pytest.mark.parametrize("name", FORMULAS)
def test_a_name_is_never_a_formula(name: str, tmp_path: Path) -> None:
    """At every place where a figure may have a text."""
    figure = new_figure(4, 4)
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], label=name)
    axes.set_xticks([0, 1], [name, name])
    axes.set_ylabel(name)
    axes.set_title(name)
    axes.text(0.5, 0.5, name)
    axes.annotate(name, (0, 0))
    axes.add_artist(AnchoredText(name, loc="lower left"))
    figure.legend(title=name)
    figure.suptitle(name)
    save_figure(figure, tmp_path / "f.png")
    assert (tmp_path / "f.png").is_file()


def test_a_long_name_loses_its_middle() -> None:
    name = "TUMOR/" + "a" * 300 + "_x12_y7.png"
    assert len(shown(name, 30)) == 30
    assert shown(name, 30).startswith("TUMOR/")
    assert shown(name, 30).endswith("_x12_y7.png")
    assert shown("a" * 30, 30) == "a" * 30
    assert len(shown(MISSING * 300, 30)) <= 30
    assert "…" in shown(MISSING * 300, 30)


def report(classes: int, name: str = "class {}", tiles: int = 3000) -> AccuracyReport:
    truth = np.arange(tiles) % classes
    predicted = np.where(np.arange(tiles) % 7, truth, (truth + 1) % classes)
    return report_of(tuple(name.format(i) for i in range(classes)), np.eye(classes, dtype=np.float32)[predicted], truth)


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The figures that are saved."""
    saved: list[Figure] = []
    save = figures.save_figure
    monkeypatch.setattr(figures, "save_figure", lambda figure, path: (saved.append(figure), save(figure, path)))
    return saved


def history(losses: list[float], accuracies: list[float]) -> list[dict[str, float]]:
    return [
        {"epoch": i + 1, "train_loss": loss, "val_loss": loss, "train_accuracy": accuracy, "val_accuracy": accuracy}
        for i, (loss, accuracy) in enumerate(zip(losses, accuracies, strict=True))
    ]


@pytest.mark.parametrize(
    ("losses", "scale"),
    [
        ([2.0, 0.5, 0.1], "linear"),
        ([2.0, 0.5, 0.05], "log"),
        ([1e4, 1.0, 1e-3], "log"),
        ([2.0, 0.0, 0.0], "linear"),
        ([float("nan")] * 3, "linear"),
        ([float("inf"), 2.0, 0.05], "log"),
    ],
)
def test_the_axis_of_losses_that_span_decades_is_logarithmic(
    losses: list[float], scale: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    save_curves(tmp_path / "c.png", history(losses, [0.2, 0.5, 0.9]), title="t", chance=1 / 6, kept=3)
    accuracy, loss = drawn[0].axes
    assert loss.get_yscale() == scale
    low, high = loss.get_ylim()
    labels = [label.get_text() for label in loss.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert len(labels) >= 2
    assert all(float(label) >= 0 for label in labels)
    [chance] = [line for line in accuracy.lines if line.get_label() == "chance: 16.7 %"]
    assert set(chance.get_ydata()) == {1 / 6}
    assert accuracy.get_ylim()[0] < 1 / 6


@pytest.mark.parametrize(
    ("keep", "kept", "label"),
    [
        ("best", 2, "best epoch: 2 (90.0 % validation accuracy, optimistic)"),
        ("last", 3, "kept, the last epoch: 3 (50.0 % validation accuracy)"),
        ("ema", 3, "kept, the moving average after epoch 3 (50.0 % validation accuracy)"),
    ],
)
def test_the_curves_mark_the_epoch_that_is_kept(
    keep: str, kept: int, label: str, tmp_path: Path, drawn: list[Figure]
) -> None:
    save_curves(tmp_path / "c.png", history([1.0] * 3, [0.2, 0.9, 0.5]), title="t", chance=0.1, keep=keep, kept=kept)
    for axes in drawn[0].axes:
        [mark] = [line for line in axes.lines if line.get_label() == label]
        assert list(mark.get_xdata()) == [kept]


@pytest.mark.parametrize("accuracies", [[0.225, 0.25, 0.28], [0.1, 0.5, 0.99], [0.9871, 0.9874, 0.9879], [0.5] * 3])
def test_ticks_of_accuracy_are_what_they_say(accuracies: list[float], tmp_path: Path, drawn: list[Figure]) -> None:
    save_curves(tmp_path / "c.png", history([1.0] * 3, accuracies), title="t", chance=1 / 4, kept=3)
    axis = drawn[0].axes[0].yaxis
    labels = [label.get_text() for label in axis.get_ticklabels()]
    assert [float(label.removesuffix(" %")) / 100 for label in labels] == pytest.approx(axis.get_ticklocs(), abs=1e-9)
    assert len({len(label.partition(".")[2]) for label in labels}) == 1, "as many decimals at each tick"


@pytest.mark.parametrize("accuracies", [[0.5, 0.51, 0.505], [1.0] * 3, [0.002, 0.0, 0.001]])
def test_small_changes_of_accuracy_do_not_look_steep(
    accuracies: list[float], tmp_path: Path, drawn: list[Figure]
) -> None:
    save_curves(tmp_path / "c.png", history([1.0] * 3, accuracies), title="t", chance=1 / 2, kept=2)
    low, high = drawn[0].axes[0].get_ylim()
    assert high - low >= 0.1 - 1e-9
    assert low <= min(accuracies) <= max(accuracies) <= high
    lines = drawn[0].axes[0].lines
    [chance] = [line for line in lines if str(line.get_label()).startswith("chance")]
    assert chance.get_zorder() > max(line.get_zorder() for line in lines if line is not chance)


@pytest.mark.parametrize("split", SPLIT_TILES)
def test_a_confusion_matrix_names_its_split_once(split: str, tmp_path: Path, drawn: list[Figure]) -> None:
    save_confusion(tmp_path / "c.png", report(3), title="set", split=split)
    words = " ".join(text.get_text() for text in drawn[0].findobj(Text))  # type: ignore[attr-defined]
    assert [words.count(name) for name in SPLIT_TILES.values()] == [name == split for name in SPLIT_TILES]
    assert ("test" in words) == (split == "test")


def test_a_confusion_matrix_has_counts_and_their_share_of_the_true_class(tmp_path: Path, drawn: list[Figure]) -> None:
    truth = np.repeat([0, 1], [400, 3])
    predicted = np.r_[np.repeat([0, 1], [399, 1]), np.repeat([0, 1], [1, 2])]
    made = report_of(("a", "b"), np.eye(2, dtype=np.float32)[predicted], truth)
    save_confusion(tmp_path / "c.png", made, title="set", split="test")
    cells = [text.get_text() for text in drawn[0].axes[0].texts]
    assert cells == ["399\n99.8 %", "1\n0.2 %", "1\n33.3 %", "2\n66.7 %"]


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[], float]:
    """The largest number of pixels that a figure was drawn in so far."""
    largest = 0.0
    make = FigureCanvasAgg.get_renderer

    def get_renderer(canvas: FigureCanvasAgg) -> object:
        nonlocal largest
        renderer = make(canvas)
        largest = max(largest, renderer.width * renderer.height)
        return renderer

    monkeypatch.setattr(FigureCanvasAgg, "get_renderer", get_renderer)
    return lambda: largest


@pytest.mark.parametrize(("classes", "numbers"), [(2, True), (60, True), (61, False), (300, False)])
def test_many_classes_make_no_absurd_picture(
    classes: int, numbers: bool, tmp_path: Path, drawn: list[Figure], memory: Callable[[], float]
) -> None:
    save_confusion(tmp_path / "c.png", report(classes, "{:03}" + "long name " * 30), title="set", split="test")
    with Image.open(tmp_path / "c.png") as image:
        assert max(image.size) < 3500
    assert 1e5 < memory() < 3500**2  # 49 MB in RGBA
    axes = drawn[0].axes[0]
    assert bool(axes.texts) == numbers
    assert len(axes.get_xticklabels()) <= 150
    assert max(len(label.get_text()) for label in axes.get_xticklabels()) <= 24


# Machado GM, Oliveira MM, Fernandes LAF. A physiologically-based model for simulation of color vision deficiency. IEEE
# TVCG 15(6):1291-1298, 2009: matrices for linear RGB at severity 1.
VISION = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
}
XYZ = np.array(
    [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
)


def cielab(rgb: npt.NDArray[np.float64], vision: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """CIELAB (D65) of sRGB colours `(n, 3)` in [0, 1], as seen with this vision."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4) @ np.transpose(vision)
    ratio = linear.clip(0, 1) @ XYZ.T / XYZ.sum(1)
    f = np.where(ratio > (6 / 29) ** 3, np.cbrt(ratio), ratio / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], 1)


@pytest.mark.parametrize("vision", VISION)
@pytest.mark.parametrize(("classes", "least", "over_grey"), [(7, 38, 17), (12, 18, 8), (20, 13, 5.5)])
def test_class_colours_differ_for_all_readers(vision: str, classes: int, least: float, over_grey: float) -> None:
    """Units of CIELAB. Okabe and Ito's seven colours reach 17, and 6.6 where they cover grey by 45 %."""
    colours = np.array(class_colours(classes))
    for cover, limit in ((1.0, least), (0.45, over_grey)):
        seen = cielab(cover * colours + (1 - cover) * 0.78, VISION[vision])
        assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > limit


def test_a_class_keeps_its_colour() -> None:
    assert len(set(class_colours(300))) == 300
    assert class_colours(300)[:5] == class_colours(5)


@pytest.mark.parametrize("vision", VISION)
def test_the_colours_of_lines_differ_for_all_readers(vision: str) -> None:
    """Markers or line styles repeat the difference; the first two, training and validation, are far apart."""
    rgb = np.array([to_rgb(colour) for colour in figures.COLOURS])
    seen = cielab(rgb, VISION[vision])
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen[:7], 2)) > 15
    assert min(np.linalg.norm(a - b) for a, b in combinations(seen, 2)) > 9
    assert np.linalg.norm(seen[0] - seen[1]) > 50
    assert len(figures.MARKERS) == len(figures.COLOURS)


LOOK = re.compile(r"fontsize=\d|labelsize=\d|\"#[0-9a-f]{6}\"|frameon|\.suptitle\(|\.supxlabel\(|savefig\(|dpi=")


def test_the_look_of_pictures_is_decided_in_one_place() -> None:
    """Sizes of text, colours, titles and legends are those of `figures`, in the package and in its benchmarks."""
    root = Path(__file__).parents[1]
    allowed = {"figures.py", "predict/pictures.py", "html_page.py", "predict/colours.py"}
    drawing = [
        path
        for folder in ("python/histo_export", "benchmarks")
        for path in sorted((root / folder).rglob("*.py"))
        if "new_figure" in path.read_text(encoding="utf-8") and not str(path).endswith(tuple(allowed))
    ]
    assert {"bench/plots.py", "study/plots.py"} <= {"/".join(path.parts[-2:]) for path in drawing}
    found = {path.name: LOOK.findall(path.read_text(encoding="utf-8")) for path in drawing}
    assert {name: what for name, what in found.items() if what} == {}
