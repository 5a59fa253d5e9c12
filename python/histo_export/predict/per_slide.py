"""Files beside the slides, one for each: `--coords`, `--roi` and `--mask` name one, or a folder of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from histo_export.errors import HistoError, UsageError


def check_files(option: str, place: str, slides: int, kind: str) -> list[Path]:
    """The files that an option names.

    Args:
        option: such as "--coords".
        place: its value.
        slides: how many there are.
        kind: of the file, for messages: "patch file".

    Raises:
        UsageError: nothing is there, or it is one file for several slides. No file has been read.
    """
    path = Path(place)
    if not path.exists():
        raise UsageError(f"{option} {place}", "does not exist", f"Name a {kind}, or a folder of them")
    if path.is_dir():
        return sorted(path.iterdir())
    if slides > 1:
        cause = f"is one {kind}, and there are {slides} slides"
        raise UsageError(f"{option} {place}", cause, f"Name the folder with a {kind} for each slide")
    return [path]


def file_of(place: str, slide: Path, endings: Sequence[str], kind: str) -> Path:
    """The file for a slide: `place` itself, or in this folder the one that is named like the slide.

    Args:
        place: a file or a folder.
        slide: the slide.
        endings: of the names, after that of the slide without its suffix; the first one that exists counts.
        kind: of the file, for messages.

    Raises:
        HistoError: the folder has none.
    """
    path = Path(place)
    if not path.is_dir():
        return path
    names = [slide.stem + ending for ending in endings]
    for name in names:
        if (path / name).is_file():
            return path / name
    raise HistoError(slide, f"has no {kind} in {place}", f"Put one there, e.g. {names[0]}")
