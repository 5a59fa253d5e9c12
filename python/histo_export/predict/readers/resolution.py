"""µm per pixel of a plain TIFF, from its resolution tags and from what ImageJ adds to them."""

from __future__ import annotations

import re

from histo_export.predict.slide import Pair, plausible

MICROMETRES = {
    **dict.fromkeys(("inch", "inches", "in"), 25400.0),
    **dict.fromkeys(("centimeter", "cm"), 1e4),
    **dict.fromkeys(("millimeter", "mm"), 1e3),
    **dict.fromkeys(("micron", "microns", "micrometer", "um", "\u00b5m", "\u03bcm", r"\u00b5m"), 1.0),
    **dict.fromkeys(("nanometer", "nm"), 1e-3),
}
"""Names of units, as ImageJ and OpenSlide write them: µ as the micro sign, as the Greek letter, and as six letters."""


def tiff_mpp(resolution: Pair, unit: str, description: str = "") -> Pair | None:
    """µm per pixel in x and y; None where the tags do not state it, or state the resolution of a screen or printer.

    Args:
        resolution: pixels per unit in x and y: the tags XResolution and YResolution.
        unit: of the tag ResolutionUnit: "inch" (also where the tag is absent, TIFF 6.0), "centimeter" or another word.
        description: the tag ImageDescription. ImageJ names the unit there, because TIFF has none for µm.
    """
    if description.startswith("ImageJ="):
        named = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        unit = named[1].strip() if named else unit
    um = MICROMETRES.get(unit.lower())
    x, y = resolution
    return plausible(um / x, um / y) if um and x > 0 and y > 0 else None
