"""Bodies of requests, within their limits and in memory alone: nothing that is sent is written to a disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import Request

from histo_export.data.images import BadImageError, decode_image
from histo_export.errors import HistoError, one_line
from histo_export.predict.pages.samples import seen_part
from histo_export.predict.tile_set import fitted
from histo_export.serve.refusals import Refused, busy, malformed, too_large
from histo_export.serve.settings import Limits, ServeSettings
from histo_export.spec import ModelSpec

Pixels = npt.NDArray[np.uint8]
MB = 1 << 20


class Upload:
    """The body of one request.

    Attributes:
        received: bytes so far.
        complete: whether all of it has come.
    """

    def __init__(self, request: Request, uploads: Uploads) -> None:
        self.request, self.received, self.complete = request, 0, False
        self._uploads = uploads

    async def chunks(self) -> AsyncGenerator[bytes]:
        """The body as it comes.

        Raises:
            Refused: it is too large, or all requests together are.
        """
        most = self._uploads.limits.request_bytes
        step = f"Send at most {most // MB} MiB at a time"
        declared = self.request.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared[:20]) > most:
            raise too_large("The request", f"has {int(declared[:20]):,} bytes", step)
        if (encoding := self.request.headers.get("content-encoding", "identity")) != "identity":
            raise Refused(415, "content-encoding", f"is {encoding[:40]!r}", "Send the body as it is: images are small")
        async for chunk in self.request.stream():
            self._uploads.take(len(chunk))
            self.received += len(chunk)
            if self.received > most:
                raise too_large("The request", f"has more than {most:,} bytes", step)
            yield chunk
        self.complete = True

    async def body(self) -> bytes:
        """All of it; errors as `chunks`."""
        return b"".join([chunk async for chunk in self.chunks()])

    async def images(self) -> list[tuple[str, bytes]]:
        """The files of a form (multipart/form-data) with the names that the client gave them, or one file as the body.

        Raises:
            Refused: the body is neither, is damaged, holds no file or too many, or is too large.
        """
        kind = self.request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind == "multipart/form-data":
            return await self._files()
        if not kind.startswith("image/") and kind != "application/octet-stream":
            step = "Send images as multipart/form-data (curl -F image=@tile.png), or one as image/png"
            raise Refused(415, "content-type", f"is {kind[:80]!r}" if kind else "is missing", step)
        body = await self.body()
        if not body:
            raise malformed("The request", "is empty", "Send an image")
        return [("", body)]

    async def _files(self) -> list[tuple[str, bytes]]:
        most = self._uploads.limits.images
        parser = _InMemory(self.request.headers, self.chunks(), max_files=most, max_fields=0)
        parser.spool_max_size = self._uploads.limits.request_bytes + 1  # so that no file reaches the disk
        step = "Send each image as a file of the form: curl -F image=@a.png -F image=@b.png"
        try:
            form = await parser.parse()
        except MultiPartException as error:
            if parser.too_many_files:
                raise too_large("The request", f"has more than {most} images", "Send fewer at a time") from error
            raise malformed("The form", f"can't be read ({one_line(error)})", step) from error
        try:
            parts = [part for _, part in form.multi_items() if isinstance(part, UploadFile)]
            files = [(part.filename or "", await part.read()) for part in parts]
        finally:
            await form.close()
        if not files:
            raise malformed("The form", "holds no file", step)
        return files


class _InMemory(MultiPartParser):
    """Starlette's parser, told how large a file may be in memory."""

    @property
    def too_many_files(self) -> bool:
        """Why it has failed."""
        return self._current_files > self.max_files


class Uploads:
    """The memory that all bodies together take."""

    def __init__(self, limits: Limits) -> None:
        self.limits, self.bytes = limits, 0

    @contextmanager
    def of(self, request: Request) -> Iterator[Upload]:
        """The body of a request, which counts until the block ends."""
        upload = Upload(request, self)
        try:
            yield upload
        finally:
            self.bytes -= upload.received

    def take(self, count: int) -> None:
        """Counts bytes that came; Refused where they are too many."""
        if self.bytes + count > self.limits.upload_bytes:
            raise busy("The server", f"holds {self.bytes // MB:,} MiB of other requests")
        self.bytes += count


def tile_of(data: bytes, number: int, spec: ModelSpec, settings: ServeSettings) -> tuple[Pixels, tuple[int, int]]:
    """What the network sees of an image, and the size of the image in pixels.

    Args:
        data: of a JPEG, PNG or TIFF file.
        number: of the image in its request, from 1, for messages: they hold no name.
        spec: of the model.
        settings: the filter for other sizes, and the most pixels.

    Returns:
        C-contiguous uint8 RGB `(crop, crop, 3)`; width and height.

    Raises:
        HistoError: it is not an image, or can't be a tile of this model.
    """
    name = f"image {number}"
    try:
        pixels = decode_image(data, settings.limits.pixels) if data else None
    except BadImageError as error:
        raise HistoError(name, str(error), "Repair it, or leave it out") from error
    if pixels is None:
        raise HistoError(name, "is empty (0 bytes)", "Leave it out")
    tile = fitted(pixels, spec, settings.resize, name, "Start the server with --resize")
    return np.ascontiguousarray(seen_part(tile, spec)), (pixels.shape[1], pixels.shape[0])
