"""The colours of classes, the same in pictures, in pages and in GeoJSON. Needs no package for drawing."""

from __future__ import annotations

import colorsys

CLASS_COLOURS = (
    *("#2288DD", "#CC0000", "#AADD00", "#3311BB", "#EEBB88", "#772255", "#00EEEE", "#FF6699", "#778844", "#AA1199"),
    *("#AAAA22", "#22BBEE", "#227755", "#880011", "#4455DD", "#88EE66", "#EE2299", "#660099", "#DD8877", "#77AA44"),
)
"""Colours that are far apart, also over grey and for readers who are blind to red or green.

Chosen from a grid of sRGB so that the least CIELAB distance is large, with full colour vision and with protanopia and
deuteranopia as simulated by Machado et al. 2009; none is the pink or purple of a stain. The first seven were chosen
together, each further one for the rest.
"""


def class_colours(classes: int) -> list[tuple[float, float, float]]:
    """A colour for each class, as red, green and blue in [0, 1]; the same for a class in every output."""
    colours = [_rgb(colour) for colour in CLASS_COLOURS]
    # Steps of the golden ratio around the colour circle keep neighbours apart, however many follow.
    colours += [colorsys.hsv_to_rgb(0.618 * i % 1, 0.8, 0.85) for i in range(len(colours), classes)]
    return colours[:classes]


def hex_colours(classes: int) -> list[str]:
    """The same as "#rrggbb"."""
    return ["#" + "".join(f"{round(255 * part):02x}" for part in colour) for colour in class_colours(classes)]


def _rgb(colour: str) -> tuple[float, float, float]:
    red, green, blue = bytes.fromhex(colour.removeprefix("#"))
    return red / 255, green / 255, blue / 255
