"""What every class and function of the compiled module refuses: objects without contents, and absurd numbers."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from histo_export import _core
from histo_export._core import BatchRunner, Engine, FusedHead

CLASSES = [value for value in vars(_core).values() if inspect.isclass(value)]
ARGUMENTS = {
    "tensor": ("fc.weight",),
    "run": (np.zeros((1, 1, 1, 3), np.uint8), print),
    "results": ([],),
    "outputs_of_regions": (np.zeros((1, 1, 3), np.uint8), np.zeros((1, 2), np.int64), 1),
}
OF_ITSELF = {f"{name}.{m}" for name in ("BatchResults", "TileQueue") for m in ("__iter__", "__enter__")}
"""They return the object itself, whatever is in it."""
PYTHONS = {"__init__", "__new__", "_pybind11_conduit_v1_"}


def uses() -> dict[str, Callable[[Any], Any]]:
    """By "class.member": a call of each method, or a look at each property, of a given object."""

    def call(name: str, count: int) -> Callable[[Any], Any]:
        arguments = ARGUMENTS.get(name, (np.zeros((1, 1, 1, 3), np.uint8),))[:count]
        return lambda instance: getattr(type(instance), name)(instance, *arguments)

    found: dict[str, Callable[[Any], Any]] = {}
    for owner in CLASSES:
        for name, member in vars(owner).items():
            if isinstance(member, property):
                found[f"{owner.__name__}.{name}"] = member.__get__
            elif inspect.isroutine(member) and not isinstance(member, staticmethod) and name not in PYTHONS:
                signature = str(member.__doc__).partition("(")[2].partition(")")[0]
                required = [part for part in signature.split("*, ")[0].split(", ") if part and "=" not in part]
                found[f"{owner.__name__}.{name}"] = call(name, len(required) - 1)
    return found


USES = uses()


@pytest.mark.parametrize("use", sorted(USES.keys() - OF_ITSELF))
def test_an_object_whose_init_never_ran_is_refused(use: str) -> None:
    owner = getattr(_core, use.partition(".")[0])
    with pytest.raises(TypeError, match=r"not initialised: its __init__\(\) never ran"):
        USES[use](owner.__new__(owner))


def test_so_it_is_as_an_argument_and_in_a_subclass() -> None:
    class Early(FusedHead):
        def __init__(self) -> None:
            self.pool  # noqa: B018

    for use in (Early, lambda: BatchRunner(Engine.__new__(Engine)), lambda: Engine(_core.Model.__new__(_core.Model))):
        with pytest.raises(TypeError, match="not initialised"):
            use()


def head(**given: Any) -> FusedHead:
    return FusedHead(np.zeros((2, 4), np.float32), np.zeros(2, np.float32), **{"pool": 1, **given})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: head(pool=2**70), "pool is 1180591620717411303424; it must be at most 9223372036854775807"),
        (lambda: head(pool=-(2**70)), "pool is -1180591620717411303424; it must be at least 1"),
        (lambda: head(pool=10**5000), "pool is an integer of 16610 bits; it must be at most"),
        (lambda: head(threads=2**32), "threads is 4294967296; give a number of threads"),
        (lambda: head(threads=2**70), "threads is 1180591620717411303424; give a number of threads"),
        (lambda: head(threads=-(2**70)), "threads is -1180591620717411303424; give a number of threads"),
        (lambda: BatchRunner(print, 10**12), "classes is 1000000000000; it must be at most 1000000"),
        (lambda: BatchRunner(print, 2, batch=2**70), "batch is 1180591620717411303424; it must be at most"),
    ],
)
def test_a_number_is_named_as_it_was_given(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        make()
