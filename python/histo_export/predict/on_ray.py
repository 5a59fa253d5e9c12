"""The units of a run on the machines of a Ray cluster, with one open model in each actor.

Ray Data sends the units through a pool of actors. An actor reserves as many CPUs as the runtime has threads, or a GPU.
When an actor ends (killed, out of memory, its machine lost), Ray starts it again and repeats its unit, on the same
machine or another.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from histo_export.errors import HistoError
from histo_export.export.bundle import Bundle
from histo_export.predict.inputs import Failure
from histo_export.predict.loop import StageSeconds
from histo_export.predict.settings import PredictSettings
from histo_export.predict.work import TRIED, Work, WorkDone, Worker, named
from histo_export.spec import ModelSpec

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing here calls home

import ray

TRIES = 3
"""How often a unit is begun whose actor ends."""


class _Actor:
    """A worker in an actor, which Ray starts where resources are free."""

    def __init__(self, home: Path, bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings) -> None:
        os.chdir(home)  # so that the user's relative paths are valid
        self.worker = Worker(bundle, spec, out, settings)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Does the unit, unless it has ended its actor too often: Ray itself would repeat it for ever."""
        tries = self.worker.out / f"{TRIED}{row['number']}"
        with tries.open("ab") as file:
            file.write(b".")
            failed = file.tell() > TRIES
        done = None if failed else self.worker(row["work"])
        tries.unlink(missing_ok=True)
        return {"number": row["number"], "done": done}


def _given_up(unit: Work) -> WorkDone:
    reason = f"ended its worker {TRIES} times (killed, out of memory or a crash). Try it without --ray"
    return WorkDone(unit, 0, StageSeconds(), "", Failure(named(unit.item), reason))


@contextmanager
def _cluster(address: str) -> Iterator[Sequence[Mapping[str, float]]]:
    """Joins a cluster, or uses the one that this process has joined already; gives the resources of each machine."""
    mine = not ray.is_initialized()
    if mine:
        local = {"include_dashboard": False} if address == "local" else {}
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **local)
        except Exception as error:  # of many types, depending on the address
            cause = " ".join(str(error).split())
            step = "Start one with ray start --head, or use --ray local"
            raise HistoError(f"--ray {address}", f"reaches no cluster ({cause})", step) from error
    context = ray.data.DataContext.get_current().copy()
    context.enable_progress_bars = context.print_on_execution_start = False
    logging.getLogger("ray.data").setLevel(logging.CRITICAL)
    try:
        with ray.data.DataContext.current(context):
            yield [node["Resources"] for node in ray.nodes() if node["Alive"]]
    finally:
        if mine:
            ray.shutdown()


def on_ray(
    address: str, work: Sequence[Work], bundle: Bundle, spec: ModelSpec, out: Path, settings: PredictSettings
) -> Iterator[WorkDone]:
    """Yields the outcome of each unit, in the order in which they end.

    Args:
        address: "local" for a cluster of this machine's own, "auto" for the one it belongs to, or an address of one.

    Raises:
        HistoError: no cluster answers, or it has no room for a single actor.
    """
    if not work:
        return
    with _cluster(address) as machines:
        gpu = settings.device == "cuda"
        resource, each = ("GPU", 1) if gpu else ("CPU", settings.threads)
        room = sum(int(machine.get(resource, 0)) // each for machine in machines)
        if not room:
            need = "a GPU" if gpu else f"{settings.threads} CPUs on one machine"
            raise HistoError(f"--ray {address}", f"has no room for an actor with {need}", "Use fewer --threads")
        rows = [{"number": number, "work": unit} for number, unit in enumerate(work)]
        answers = ray.data.from_items(rows, override_num_blocks=len(rows)).map(
            _Actor,
            fn_constructor_args=(Path.cwd(), bundle, spec, out, settings),
            # One unit at a time: a second one would wait behind a slide while another actor is idle.
            compute=ray.data.ActorPoolStrategy(size=min(room, len(work)), max_tasks_in_flight_per_actor=1),
            **{f"num_{resource.lower()}s": each},
        )
        try:
            for answer in answers.iter_rows():
                yield answer["done"] or _given_up(work[answer["number"]])
        except ray.exceptions.RayError as error:
            cause = str(error).strip().splitlines()[-1]
            step = "Do all machines see the bundle at the same path, and have this package?"
            raise HistoError(f"--ray {address}", f"failed ({cause})", step) from error
