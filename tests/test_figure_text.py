"""Pictures show names as they are, whatever the user has called a class, a file or a model."""

from __future__ import annotations

from pathlib import Path

import matplotlib.mathtext
import numpy as np
import pytest
from matplotlib.offsetbox import AnchoredText
from PIL import Image

from histo_export.figures import new_figure, save_confusion, save_figure
from histo_export.metrics import report_of

NAMES = ("m$$1", "cost$5^^6$", r"$\frac$", "$x$")
"""Read as formulas, the first three are errors, and the last one is another text."""


@pytest.fixture(autouse=True)
def no_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """What Matplotlib takes for a formula is an error."""

    def parse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a name was read as a formula")

    monkeypatch.setattr(matplotlib.mathtext.MathTextParser, "parse", parse)


def test_classes_with_dollar_signs(tmp_path: Path) -> None:
    labels = np.arange(len(NAMES))
    report = report_of(NAMES, np.eye(len(NAMES), dtype=np.float32), labels)
    save_confusion(tmp_path / "m.png", report, title=NAMES[1])
    with Image.open(tmp_path / "m.png") as image:
        assert min(image.size) > 400


@pytest.mark.parametrize("name", NAMES)
def test_text_at_every_place(name: str, tmp_path: Path) -> None:
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
