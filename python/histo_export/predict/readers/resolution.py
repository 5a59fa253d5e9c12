"""µm per pixel of a plain TIFF, from its resolution tags and from what ImageJ and OME-TIFF add to them."""

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
    """µm per pixel in x and y; None where the file does not state it, or states the resolution of a screen or printer.

    Args:
        resolution: pixels per unit in x and y: the tags XResolution and YResolution.
        unit: of the tag ResolutionUnit: "inch" (also where the tag is absent, TIFF 6.0), "centimeter" or another word.
        description: the tag ImageDescription. ImageJ names the unit there, because TIFF has none for µm, and OME-TIFF
            (2016-06) the size of a pixel.
    """
    if "<OME" in description and (ome := _ome_mpp(description)):
        return plausible(*ome)
    if description.startswith("ImageJ="):
        named = re.search(r"^unit=(.+)$", description, re.MULTILINE)
        unit = named[1].strip() if named else unit
    um = MICROMETRES.get(unit.lower())
    x, y = resolution
    return plausible(um / x, um / y) if um and x > 0 and y > 0 else None


def _ome_mpp(description: str) -> Pair | None:
    """The size of a pixel in µm that the first image of an OME-XML states; the unit is µm where it states none."""
    sizes = []
    for axis in "XY":
        size = re.search(rf'\bPhysicalSize{axis}="([0-9.eE+-]+)"', description)
        unit = re.search(rf'\bPhysicalSize{axis}Unit="([^"]+)"', description)
        um = MICROMETRES.get(unit[1].lower()) if unit else 1.0
        try:
            sizes.append(float(size[1]) * um if size and um else 0.0)
        except ValueError:
            return None
    return (sizes[0], sizes[1]) if min(sizes) > 0 else None
