"""Numbers that no slide and no machine can have are refused in one line, wherever they come from."""

from __future__ import annotations

import math
from typing import Any

import pytest

from histo_export.errors import UsageError
from histo_export.predict.settings import PredictSettings, SlideSettings, TissueSettings

INF, NAN = math.inf, math.nan

IMPOSSIBLE: dict[tuple[type, str], tuple[Any, ...]] = {
    (SlideSettings, "mpp"): (0, -1, 0.001, 101, INF, NAN, True, "0.5"),
    (SlideSettings, "overlap"): (-0.1, 0.96, INF, NAN, True, "0.5", None),
    (SlideSettings, "stride_um"): (0, 1e6, INF, NAN, True, "5"),
    (SlideSettings, "min_tissue"): (-0.1, 1.1, INF, NAN, True, "x", None),
    (TissueSettings, "threshold"): (-1, 256, 3.5, INF, NAN, True, "3"),
    (TissueSettings, "closing_um"): (-1, 1001, INF, NAN, True, "3", None),
    (TissueSettings, "min_area_um2"): (-1, 1e13, INF, NAN, True, "3", None),
    (PredictSettings, "batch"): (0, -1, 2.5, 10**9, INF, True, "8", None),
    (PredictSettings, "threads"): (0, -1, 2.5, 10**9, INF, True, "8", None),
}


@pytest.mark.parametrize(("settings", "field"), IMPOSSIBLE, ids=lambda part: getattr(part, "__name__", part))
def test_impossible_numbers_are_refused(settings: type, field: str) -> None:
    for value in IMPOSSIBLE[settings, field]:
        with pytest.raises(UsageError, match=r"is not .*Use|is not .*Leave") as error:
            settings(**{field: value})
        assert str(error.value).startswith("--")
        assert str(error.value).isprintable()


def test_limits_themselves_are_possible() -> None:
    tissue = TissueSettings(threshold=0, closing_um=0, min_area_um2=1e12)
    assert SlideSettings(mpp=100, overlap=0.95, stride_um=0.001, min_tissue=1, tissue=tissue)
    assert PredictSettings(batch=1, threads=65536)
