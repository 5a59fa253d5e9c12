"""The mean of overlapping squares, against its definition point by point."""

from __future__ import annotations

import numpy as np
import pytest

from histo_export import HistoError, UsageError
from histo_export.predict.pictures import paint_cells
from histo_export.predict.settings import SlideSettings
from histo_export.predict.smooth import can_average, mean_at

from .test_geometry import ArraySlide, coloured, run


@pytest.mark.parametrize("settings", [{"overlap": 0.5}, {"overlap": 0.7}, {"stride_um": 20.0, "grid": "tile"}], ids=str)
def test_each_point_has_the_mean_of_the_squares_that_contain_it(settings) -> None:
    prediction = run(ArraySlide(coloured()), min_tissue=0.5, **settings)
    grid, probabilities = prediction.grid, prediction.probabilities
    assert can_average(grid)
    x, y = np.sort(np.random.default_rng(0).uniform(0, (690, 500), (40, 2)).T, axis=1)
    chosen, most = mean_at(grid, probabilities, x, y)
    width, height = grid.layout.square
    left, top = grid.columns.start[grid.column], grid.rows.start[grid.row]
    several = 0
    for row, at_y in enumerate(y):
        for column, at_x in enumerate(x):
            inside = (left <= at_x) & (at_x < left + width) & (top <= at_y) & (at_y < top + height)
            if not inside.any():
                assert (chosen[row, column], most[row, column]) == (-1, 0)
                continue
            mean = probabilities[inside].astype(np.float64).mean(0)
            several += inside.sum() > 3
            assert most[row, column] == pytest.approx(mean.max(), abs=1e-6)
            assert mean[chosen[row, column]] == pytest.approx(mean.max(), abs=1e-6)
    assert several > 100


def test_without_overlap_the_mean_is_the_square_itself() -> None:
    prediction = run(ArraySlide(coloured()))
    assert not can_average(prediction.grid)
    x, y = prediction.background.centres
    chosen, most = mean_at(prediction.grid, prediction.probabilities, x, y)
    index = prediction.grid.index_at(x, y)
    np.testing.assert_array_equal(chosen >= 0, index >= 0)
    used = index >= 0
    np.testing.assert_array_equal(chosen[used], prediction.probabilities.argmax(1)[index[used]])
    np.testing.assert_allclose(most[used], prediction.probabilities.max(1)[index[used]], atol=1e-6)


def test_smooth_changes_the_picture_and_no_figure() -> None:
    plain, smooth = (run(ArraySlide(coloured()), overlap=0.5, smooth=each) for each in (False, True))
    assert plain.summary() == smooth.summary()
    layers = [
        paint_cells(each.background, each.grid, each.tissue, each.probabilities, smooth=each.smooth)
        for each in (plain, smooth)
    ]
    assert (layers[0] != layers[1]).any()
    steps = [len(np.unique(layer[..., 3])) for layer in layers]
    assert steps[1] > steps[0], "the mean is finer"


def test_smooth_without_overlap_is_refused() -> None:
    with pytest.raises(UsageError, match="--smooth: is the mean of overlapping squares, and none overlap"):
        SlideSettings(smooth=True)
    with pytest.raises(HistoError, match="no squares that overlap"):
        run(ArraySlide(coloured()), smooth=True, stride_um=64.0)
