"""Whether a run may begin with tiles that lie in two splits: a test on training tiles proves nothing."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from rich.console import Console

from histo_export.data.duplicates import duplicate_notes, duplicates_csv, identical_tiles, near_duplicates
from histo_export.data.rows import listed
from histo_export.errors import HistoError
from histo_export.training.folder import RunFolder

if TYPE_CHECKING:
    from histo_export.data import TileData


def judge_duplicates(data: TileData, allow: bool, folder: RunFolder | None, console: Console) -> TileData:
    """The data, with notes on near duplicates.

    Args:
        data: the tiles.
        allow: go on although tiles of different splits are identical or near duplicates.
        folder: of the run, where duplicates.csv is written; None writes none.
        console: shows what is found, and a line while tiles are compared.

    Raises:
        HistoError: tiles lie in two splits.
    """
    splits = (data.train, data.val, data.test)
    total = sum(map(len, splits))
    with console.status(f"comparing {total:,} tiles with each other") as status:

        def show(done: int) -> None:
            if done % 500 == 0:
                status.update(f"comparing {done:,} of {total:,} tiles with each other")

        near, flat = near_duplicates(data, show)
    twins = (*identical_tiles(splits), *near)
    if folder is not None:
        folder.write_duplicates(duplicates_csv(twins) if twins else None)
    across = [str(twin) for twin in twins if twin.across]
    if across and not allow:
        count = f"{len(across):,} tile{'' if len(across) == 1 else 's'}"
        place = f", all listed in {folder.duplicates}" if folder is not None else ""
        raise HistoError(
            data.name,
            f"tiles that lie in two splits:{listed(across)}{count}{place}",
            "Remove them, keep the tiles of a slide together with --groups, or add --allow-duplicates",
        )
    notes = duplicate_notes(near, [len(part) for part in splits])
    if flat:
        notes.append(
            f"{flat:,} of {total:,} tiles are flat, such as background: near duplicates among them are not looked for"
        )
    for note in notes:
        console.print(f"note: {note}", markup=False, highlight=False, soft_wrap=True)
    return replace(data, notes=(*data.notes, *notes))
