"""Options that several commands share: dataclasses that become what Typer reads."""

from __future__ import annotations

from dataclasses import dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from histo_export.cli.options import TRAINING_ORDER, TileOptions, TrainingOptions, expand_options, given
from histo_export.cli.train import train


@dataclass(frozen=True)
class GroupOptions:
    """Options of this test."""

    first: Annotated[str, typer.Option("--number-one", help="The first.")]
    second: Annotated[int | None, typer.Option(metavar="N", help="The second.")] = None
    third: Annotated[bool, typer.Option("--third", metavar="", help="The third.")] = False


def _command(calls: list[object]) -> typer.Typer:
    def command(source: Annotated[Path, typer.Argument()], group: GroupOptions, last: float = 0.5) -> None:
        """Does nothing."""
        calls.append((source, group, last))

    app = typer.Typer()
    app.command()(expand_options(command))
    return app


def test_a_dataclass_becomes_options_and_is_built_of_them() -> None:
    calls: list[object] = []
    app = _command(calls)
    assert CliRunner().invoke(app, ["a.txt", "--number-one", "x", "--second", "3", "--third"]).exit_code == 0
    assert CliRunner().invoke(app, ["a.txt", "--number-one", "x", "--last", "2"]).exit_code == 0
    assert calls == [(Path("a.txt"), GroupOptions("x", 3, True), 0.5), (Path("a.txt"), GroupOptions("x"), 2.0)]
    assert CliRunner().invoke(app, ["a.txt"]).exit_code == 2, "a field without a default is required"
    assert len(calls) == 2
    shown = CliRunner().invoke(app, ["--help"]).output
    assert "Does nothing." in shown
    assert shown.index("The first.") < shown.index("The second.") < shown.index("The third.")
    assert shown.index("--last") < shown.index("Group options") < shown.index("The first."), "a group is a panel"


def test_the_order_of_help_is_that_of_the_list_and_required_options_come_first() -> None:
    parameters = signature(expand_options(train, TRAINING_ORDER)).parameters
    assert list(parameters) == sorted(parameters, key=TRAINING_ORDER.index)

    def command(group: GroupOptions, last: float = 0.5) -> None:
        """Does nothing."""

    parameters = signature(expand_options(command, ["last", "third", "second", "first"])).parameters
    assert list(parameters) == ["first", "last", "third", "second"]
    assert parameters["first"].default is Parameter.empty


def test_an_option_without_a_place_or_with_another_ones_name_is_a_mistake_of_the_program() -> None:
    with pytest.raises(ValueError, match="seed"):
        expand_options(train, [name for name in TRAINING_ORDER if name != "seed"])

    def twice(tiles: TileOptions, crop: int = 1) -> None:
        """Has --crop twice."""

    with pytest.raises(ValueError, match="crop"):
        expand_options(twice)


def test_given_names_what_differs_from_its_default() -> None:
    assert given(TrainingOptions()) == []
    assert given(TrainingOptions(autocast="bf16", lr=0.1, seed=0)) == ["--lr", "--autocast"]
