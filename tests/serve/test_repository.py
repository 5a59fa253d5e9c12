"""Bundles that change, or can't be opened, at the start and at a reload."""

from __future__ import annotations

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import pytest

from histo_export.bundle_files import CONFIG
from histo_export.errors import HistoError, UsageError
from histo_export.serve import models
from histo_export.serve.batching import Batcher
from histo_export.serve.settings import Limits, ServeSettings
from histo_export.serve.telemetry import Log

from .conftest import serving


def events(stream: io.StringIO) -> list[tuple[str, str]]:
    return [(each["event"], each.get("error", "")) for each in map(json.loads, stream.getvalue().splitlines())]


def out_of_memory(*_: object) -> None:
    raise MemoryError("a fault")


def test_a_reload_that_fails_unexpectedly_is_logged(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()

    async def reload() -> None:
        repository = await models.Repository.open([bundle], ServeSettings(threads=1), Log(stream))
        (before,) = repository.models
        with monkeypatch.context() as patch:
            patch.setattr(models, "_open", out_of_memory)
            repository.reload_all()
            await asyncio.sleep(0.05)
        repository.reload_all()
        await repository.close()
        assert repository.models != [before]

    asyncio.run(reload())
    (failed, error), loaded = events(stream)
    assert failed == "reload failed"
    assert error.startswith("MemoryError: a fault, serve/models.py:")
    assert loaded == ("loaded", "")


def test_a_load_that_fails_unexpectedly_is_logged_and_told(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving([bundle], threads=1) as server:
        monkeypatch.setattr(models, "_open", out_of_memory)
        answer = server.post("/v2/repository/models/bundle/load")
        assert (answer.status, answer.error.startswith("bundle: could not be opened. See the server's log")) == (
            500,
            True,
        )
        assert server.logged(event="reload failed")["error"].startswith("MemoryError: a fault")


def test_a_load_that_takes_too_long_goes_on(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = models.open_served

    async def slowly(*arguments: Any) -> models.Model:
        await asyncio.sleep(0.6)
        return await opened(*arguments)

    with serving([bundle], threads=1, limits=Limits(seconds=0.3)) as server:
        monkeypatch.setattr(models, "open_served", slowly)
        assert server.post("/v2/repository/models/bundle/load").status == 504
        assert server.logged(event="loaded")["model"] == "bundle"


def test_a_bundle_that_changes_while_it_is_read_is_refused(
    bundle: Path, copy_bundle: Any, own_file: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = copy_bundle(bundle, tmp_path / "bundle")
    opened = models.open_model

    def replaced(*arguments: Any) -> Any:
        config = own_file(folder / CONFIG)
        config.write_bytes(config.read_bytes() + b"\n")
        return opened(*arguments)

    monkeypatch.setattr(models, "open_model", replaced)
    with pytest.raises(HistoError, match="changed while it was read"), serving([folder], threads=1):
        pass


def test_models_that_were_opened_are_closed_where_a_later_one_cannot_be(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed = []
    close = Batcher.close

    async def counted(self: Batcher) -> None:
        closed.append(self)
        await close(self)

    monkeypatch.setattr(Batcher, "close", counted)
    with pytest.raises(HistoError, match="does not exist"), serving([bundle, tmp_path / "none"], threads=1):
        pass
    assert len(closed) == 1


def test_two_bundles_of_one_name_and_version_are_refused(bundle: Path, copy_bundle: Any, tmp_path: Path) -> None:
    same = copy_bundle(bundle, tmp_path / "bundle")
    with pytest.raises(UsageError, match="has the same name and version as"), serving([bundle, same], threads=1):
        pass
