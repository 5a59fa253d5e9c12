"""`histo data`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape

from histo_export.cli import show
from histo_export.cli.options import AsJson
from histo_export.errors import HistoError, UsageError, nearest

if TYPE_CHECKING:
    from histo_export.data.public_sets import PublicSet


def data(
    name: Annotated[str | None, typer.Argument(metavar="[NAME]", help="A public set: it is fetched.")] = None,
    verify: Annotated[
        bool, typer.Option("--verify", metavar="", help="Read every file of NAME, or of all sets here, instead.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove", metavar="", help="Remove NAME from the cache instead of fetching it.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the public sets of H&E tiles that --data takes, or fetch one.

    A set is downloaded once, to $HISTO_CACHE or ~/.cache/histo-export; an interrupted download goes on where it
    stopped. Its md5 is compared with the publisher's, where one is stated, before anything is unpacked. Licence and
    citation go into the model card.
    """
    from histo_export.data.public_sets import SETS

    if name is not None and name not in SETS:
        raise UsageError(f"The set {name}", "is unknown", _meant(name, list(SETS)))
    if verify and remove:
        raise UsageError("--verify", "contradicts --remove", "Leave one of them out")
    if remove:
        if name is None:
            raise UsageError("--remove", "needs the name of a set", "Use e.g. histo data --remove kather2016")
        _remove(SETS[name], as_json)
    elif verify:
        _verify([SETS[name]] if name else list(SETS.values()), name is not None, as_json)
    elif name is None:
        _list(list(SETS.values()), as_json)
    else:
        _fetch(SETS[name], as_json)


def _meant(name: str, known: list[str]) -> str:
    return nearest(name, known).replace("histo doctor lists all", "histo data lists all")


def _facts(record: PublicSet) -> dict[str, Any]:
    """Plain values of a set and its state."""
    from histo_export.data.public import state_of
    from histo_export.files import cache_folder

    cache = cache_folder()
    state, arrived = state_of(record, cache)
    return {
        "name": record.name,
        "state": state,
        "bytes": record.size,
        "bytes_here": arrived,
        "tiles": record.tiles,
        "tile_size": record.tile_size,
        "mpp": record.mpp,
        "classes": list(record.classes),
        "licence": record.licence,
        "citation": record.citation,
        "about": record.about,
        "note": record.note,
        "by_hand": any(archive.url is None for archive in record.archives),
        "archives": [{"file": a.file, "page": a.page, "md5": a.md5} for a in record.archives],
        "paths": [str(cache / archive.folder) for archive in record.archives],
    }


def _list(records: list[PublicSet], as_json: bool) -> None:
    facts = [_facts(record) for record in records]
    if as_json:
        show.print_json({"sets": facts})
        return
    table = show.table("Public sets of H&E tiles")
    for heading in ("--data", "state", "download", "tiles", "classes", "px", "µm/px", "licence"):
        table.add_column(
            heading, justify="right" if heading in ("download", "tiles", "classes", "px", "µm/px") else "left"
        )
    for each in facts:
        size = "?" if each["bytes"] is None else _megabytes(each["bytes"])
        state = each["state"]
        if state == "part":
            state = f"part ({_megabytes(each['bytes_here'])})"
        elif state == "missing" and each["by_hand"]:
            state = "missing, by hand"
        mpp = "" if each["mpp"] is None else f"{each['mpp']:g}"
        sizes = (size, f"{each['tiles']:,}", str(len(each["classes"])), str(each["tile_size"]), mpp)
        table.add_row(each["name"], state, *sizes, escape(each["licence"]))
    show.print_table(table)
    show.out_console.print("\nhisto data NAME fetches one, and tells where it lies and what to cite.")


def _megabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.0f} MB"


def _fetch(record: PublicSet, as_json: bool) -> None:
    from histo_export.data.public import fetch

    fetch(record)
    facts = _facts(record)
    if as_json:
        show.print_json(facts)
        return
    table = show.table(record.name, show_header=False)
    rows = {
        "tiles": f"{record.tiles:,} of {record.tile_size} px",
        "classes": ", ".join(record.classes),
        "scale": "not stated by the publisher" if record.mpp is None else f"{record.mpp:g} µm per pixel",
        "place": "\n".join(facts["paths"]),
        "checked by": "; ".join(
            f"{a.file}: " + ("no checksum is published" if a.md5 is None else f"md5 {a.md5}") for a in record.archives
        ),
        "licence": record.licence,
        "cite": record.citation,
        "note": record.note,
    }
    for label, text in rows.items():
        table.add_row(f"[b]{label}[/b]", escape(text))
    show.print_table(table)
    show.out_console.print(f"\nTrain on it: histo train --data {record.name}")


def _verify(records: list[PublicSet], named: bool, as_json: bool) -> None:
    """Reads every file; exit code 1 where one is not as it was unpacked."""
    from histo_export.data.public import state_of, verify
    from histo_export.files import cache_folder

    cache = cache_folder()
    here = [record for record in records if state_of(record, cache)[0] in ("complete", "damaged")]
    if named and not here:
        raise HistoError(f"The set {records[0].name}", "is not in the cache", f"Run histo data {records[0].name}")
    found = {}
    for record in here:
        with show.status(f"reading {record.name}", as_json):
            found[record.name] = verify(record, cache)
    if as_json:
        show.print_json({"faults": found})
    else:
        for name, faults in found.items():
            text = f"{len(faults):,} faults" if faults else "every file is as it was unpacked"
            show.out_console.print(f"{name}: {text}", markup=False, soft_wrap=True)
            for fault in faults[:20]:
                show.log.print(f"  {fault}", markup=False, soft_wrap=True)
        if not found:
            show.out_console.print("No public set is in the cache.")
    if bad := [name for name, faults in found.items() if faults]:
        step = f"Run histo data --remove {bad[0]}, and then histo data {bad[0]}"
        raise HistoError(f"The set {bad[0]}", f"is not as it was unpacked ({found[bad[0]][0]})", step)


def _remove(record: PublicSet, as_json: bool) -> None:
    from histo_export.data.public import remove
    from histo_export.files import cache_folder

    lost = remove(record, cache_folder())
    if as_json:
        show.print_json({"removed": record.name, "also": lost})
        return
    also = f"; {', '.join(lost)} used the same archive, and will fetch it again" if lost else ""
    show.out_console.print(f"Removed {record.name} from the cache{also}.", markup=False, soft_wrap=True)
