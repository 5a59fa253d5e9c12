"""`histo serve`."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from histo_export.cli import show
from histo_export.cli.options import one_of, usable_cpus
from histo_export.errors import UsageError
from histo_export.extras import needs
from histo_export.spec import PRECISIONS

if TYPE_CHECKING:
    from histo_export.serve.models import Model
    from histo_export.serve.settings import ServeSettings

TOKEN = "HISTO_SERVE_TOKEN"
"""The environment variable of the token. No option holds it: all users of a machine see the options of its programs."""
MOST_TOKEN = 4096
"""Bytes of a file that holds a token."""


@dataclass(frozen=True)
class AddressOptions:
    """Where the server listens, and to whom."""

    host: Annotated[
        str, typer.Option(metavar="HOST", help="Address to listen on; 0.0.0.0 is every network of this machine.")
    ] = "127.0.0.1"
    port: Annotated[int, typer.Option(metavar="N", min=0, max=65535, help="Port to listen on; 0 takes a free one.")] = (
        8000
    )
    token_file: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help=f"Clients must send the token in this file.  [dim]\\[default: that in {TOKEN}, or none][/dim]",
        ),
    ] = None
    log_names: Annotated[
        bool, typer.Option("--log-names", metavar="", help="Write the names of images into the log, too.")
    ] = False


@dataclass(frozen=True)
class EngineOptions:
    """How tiles of many requests run together."""

    batch: Annotated[int, typer.Option(metavar="N", min=1, help="Tiles per run of the engine, at most.")] = 32
    max_wait_ms: Annotated[
        float, typer.Option(metavar="MS", min=0, max=10_000, help="Time that a tile may wait for a full batch.")
    ] = 2
    queue: Annotated[
        int, typer.Option(metavar="N", min=1, help="Tiles that may wait for each model; more are told to come later.")
    ] = 1024
    threads: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            min=1,
            help="Of each model; as many others decode images.  [dim]\\[default: all usable CPUs][/dim]",
        ),
    ] = None
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="P",
            help="fp32, bf16x3, bf16 or int8, never another one; or [b]auto[/b]: the fastest that each bundle allows "
            "on this CPU.  [dim]\\[default: what each bundle is made for][/dim]",
        ),
    ] = None
    resize: Annotated[
        bool, typer.Option("--resize", metavar="", help="Resample tiles of another size than the model's.")
    ] = False
    resample: Annotated[
        str, typer.Option(metavar="F", help="Filter of --resize: [b]bilinear[/b] or [b]bicubic[/b].")
    ] = "bilinear"


@dataclass(frozen=True)
class LimitOptions:
    """What one request may ask for."""

    max_request_mb: Annotated[int, typer.Option(metavar="MIB", min=1, max=4096, help="Size of a request, at most.")] = (
        64
    )
    max_images: Annotated[int, typer.Option(metavar="N", min=1, help="Tiles of a request, at most.")] = 256
    max_megapixels: Annotated[
        float, typer.Option(metavar="MP", min=0.001, max=64, help="Size of an image, at most.")
    ] = 16
    timeout: Annotated[
        float, typer.Option(metavar="S", min=0.1, max=3600, help="Seconds for a request and its answer.")
    ] = 30
    max_upload_mb: Annotated[
        int, typer.Option(metavar="MIB", min=1, help="Size of all requests that are being answered together.")
    ] = 512


def serve(
    *,
    bundles: Annotated[
        list[Path],
        typer.Argument(
            metavar="BUNDLE…", help="Folders that [b]histo export[/b] wrote, or [b]hf://[/b]ORG/NAME\\[@REV]."
        ),
    ],
    address: AddressOptions,
    engine: EngineOptions,
    limits: LimitOptions,
) -> None:
    """Answer requests over HTTP with the native engine: for programs, for curl, and for a browser.

    Images go to POST /classify, tensors to the Open Inference Protocol (KServe v2), and people to the page at /. Tiles
    of many requests run together. SIGTERM ends the server when all requests are answered, SIGHUP reads the bundles
    again. The log is JSON on stderr, metrics are at /metrics. Without --host only this machine reaches the server.
    """
    needs("histo serve", "serve")
    settings = _settings(address, engine, limits)
    from histo_export.export.hub import local_bundle
    from histo_export.serve.run import serve as run

    if not settings.loopback and settings.token is None:
        show.log.print(
            "[yellow]warning:[/] no token is set, so everybody who reaches this machine may use the server. Set one "
            f"with --token-file or {TOKEN}.",
            soft_wrap=True,
        )
    run(list(map(local_bundle, bundles)), settings, started=_started)


def _started(address: str, models: Sequence[Model], stop: Callable[[], None]) -> None:
    names = ", ".join(dict.fromkeys(model.name for model in models))
    for model in models:
        if model.remark:
            show.log.print(f"note: {model.name}: {model.remark}", markup=False, soft_wrap=True)
    show.out_console.print(f"Serving {names} at {address}/ (Ctrl-C ends)", markup=False, soft_wrap=True)


def _settings(address: AddressOptions, engine: EngineOptions, limits: LimitOptions) -> ServeSettings:
    from histo_export.serve.settings import Limits, ServeSettings

    if engine.precision is not None:
        one_of("--precision", engine.precision, (*PRECISIONS, "auto"))
    one_of("--resample", engine.resample, ("bilinear", "bicubic"))
    return ServeSettings(
        host=address.host,
        port=address.port,
        threads=engine.threads or usable_cpus(),
        batch=engine.batch,
        max_wait=engine.max_wait_ms / 1000,
        queue=engine.queue,
        precision=engine.precision,  # type: ignore[arg-type]  # checked above
        resize=engine.resample if engine.resize else None,  # type: ignore[arg-type]  # checked above
        limits=Limits(
            request_bytes=limits.max_request_mb << 20,
            upload_bytes=limits.max_upload_mb << 20,
            images=limits.max_images,
            pixels=int(limits.max_megapixels * 1e6),
            seconds=limits.timeout,
        ),
        token=_token(address.token_file),
        log_names=address.log_names,
    )


def _token(file: Path | None) -> str | None:
    """The token of the file, or of the environment; None where neither has one."""
    if file is None:
        token = os.environ.get(TOKEN)
        return None if token is None else token.strip()  # an empty one is refused, not taken for none
    try:
        with file.open("rb") as stream:
            content = stream.read(MOST_TOKEN + 1)
        if len(content) <= MOST_TOKEN:
            return content.decode().strip()
        reason = f"it has more than {MOST_TOKEN:,} bytes"
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not text"
    raise UsageError(f"--token-file {file}", f"can't be read ({reason})", "Name a file with one line")
