"""What a user may choose for `histo serve`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import get_args

from histo_export.errors import UsageError
from histo_export.predict.settings import Resample
from histo_export.spec import AskedPrecision

LOOPBACK = ("127.0.0.1", "localhost", "::1")
"""Hosts that only this machine reaches."""


@dataclass(frozen=True)
class Limits:
    """What one client may ask for. All are checked before images are decoded.

    Attributes:
        request_bytes: of the body of a request.
        upload_bytes: of the bodies of all requests that are being answered.
        images: tiles of a request.
        pixels: of an image, as its header states them.
        seconds: from the first byte of a request to its answer.
        connections: open at a time.
    """

    request_bytes: int = 64 << 20
    upload_bytes: int = 512 << 20
    images: int = 256
    pixels: int = 4096 * 4096
    seconds: float = 30.0
    connections: int = 1024


@dataclass(frozen=True)
class ServeSettings:
    """The choices of the command line, checked.

    Attributes:
        host, port: to listen on; port 0 takes a free one.
        threads: of each bundle's engine; as many others decode images. At least 1.
        batch: tiles per run of an engine, at most.
        max_wait: seconds that a tile may wait for a full batch.
        queue: tiles that may wait for each engine.
        precision: None is what each bundle is made for, "auto" the fastest that it allows on this CPU.
        resize: the filter for tiles of another size than the model's; None refuses them.
        limits: of requests.
        token: what clients must know; None for none.
        log_names: whether the log names the images.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    threads: int = 1
    batch: int = 32
    max_wait: float = 0.002
    queue: int = 1024
    precision: AskedPrecision | None = None
    resize: Resample | None = None
    limits: Limits = field(default_factory=Limits)
    token: str | None = field(default=None, repr=False)
    log_names: bool = False

    def __post_init__(self) -> None:
        if self.resize is not None and self.resize not in get_args(Resample):
            raise UsageError(f"--resample {self.resize}", "is unknown", f"Use {' or '.join(get_args(Resample))}")
        if self.queue < self.limits.images:
            cause = f"is less than a request may contain ({self.limits.images} images)"
            raise UsageError(f"--queue {self.queue}", cause, "Use a larger --queue, or a smaller --max-images")
        if self.limits.upload_bytes < self.limits.request_bytes:
            cause = f"is less than one request may have ({self.limits.request_bytes / (1 << 20):g} MiB)"
            step = "Use a larger --max-upload-mb, or a smaller --max-request-mb"
            raise UsageError(f"--max-upload-mb {self.limits.upload_bytes / (1 << 20):g}", cause, step)
        if self.token is not None and not (self.token.isascii() and self.token.isprintable() and self.token.strip()):
            raise UsageError("The token", "is empty or has characters that no HTTP header can carry", "Use ASCII")

    @property
    def loopback(self) -> bool:
        """Whether only this machine reaches the server."""
        return self.host in LOOPBACK
