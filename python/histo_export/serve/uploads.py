"""Bodies of requests, within their limits and in memory alone: nothing that is sent is written to a disk."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header
from starlette.requests import Request

from histo_export.data.images import OF_STRANGERS, BadImageError, decode_image
from histo_export.errors import HistoError, one_line
from histo_export.predict.pages.samples import seen_part
from histo_export.predict.tile_set import fitted, judge_size
from histo_export.serve.refusals import Refused, busy, malformed, too_large
from histo_export.serve.settings import Limits, ServeSettings
from histo_export.spec import ModelSpec

Pixels = npt.NDArray[np.uint8]
MB = 1 << 20
CURL = "Send each image as a file of the form: curl -F image=@a.png -F image=@b.png"


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
        form = _Form(self.request.headers["content-type"], self._uploads.limits.images)
        async for chunk in self.chunks():
            form.write(chunk)
        if not form.ended:  # a last image that is cut off would be left out without a word
            raise malformed("The form", "is cut off", "Send it again")
        if not form.files:
            raise malformed("The form", "holds no file", CURL)
        return [(name, bytes(content)) for name, content in form.files]


class _Form:
    """Collects the files of a form, which come in pieces.

    Args:
        content_type: the header of that name.
        most: files of a form.

    Raises:
        Refused: it states no boundary.
    """

    def __init__(self, content_type: str, most: int) -> None:
        self.files: list[tuple[str, bytearray]] = []
        self.ended = False
        self._most = most
        self._header, self._value, self._disposition = bytearray(), bytearray(), b""
        boundary = parse_options_header(content_type)[1].get(b"boundary", b"")
        with _form_errors():
            if not boundary:
                raise FormParserError("it states no boundary")
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin_part,
                    "on_header_field": lambda data, start, end: self._header.extend(data[start:end]),
                    "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
                    "on_header_end": self._end_header,
                    "on_headers_finished": self._begin_file,
                    "on_part_data": lambda data, start, end: self.files[-1][1].extend(data[start:end]),
                    "on_end": self._end,
                },
            )

    def write(self, chunk: bytes) -> None:
        """Takes the next bytes; Refused where they can't be those of a form with files alone."""
        with _form_errors():
            self._parser.write(chunk)

    def _begin_part(self) -> None:
        self._disposition = b""

    def _end_header(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header, self._value = bytearray(), bytearray()

    def _begin_file(self) -> None:
        options = parse_options_header(self._disposition)[1]
        if b"filename" not in options:
            raise malformed("The form", "has a field that is not a file", CURL)
        if len(self.files) == self._most:
            raise too_large("The request", f"has more than {self._most} images", "Send fewer at a time")
        self.files.append((options[b"filename"].decode(errors="replace"), bytearray()))

    def _end(self) -> None:
        self.ended = True


@contextmanager
def _form_errors() -> Iterator[None]:
    """Turns what the library says of a damaged form into a refusal."""
    try:
        yield
    except FormParserError as error:
        raise malformed("The form", f"can't be read ({one_line(error)})", CURL) from error


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
            raise busy("The server", f"holds {self.bytes // MB:,} MiB of requests")
        self.bytes += count


def tile_or_fault(
    data: bytes, number: int, spec: ModelSpec, settings: ServeSettings
) -> tuple[Pixels, tuple[int, int]] | str:
    """What the network sees of an image, and the size of the image in pixels; or why it can't be a tile of this model.

    The fault is a text, not an exception: an exception holds what was decoded, until all images of its request are.

    Args:
        data: of a JPEG, PNG, TIFF or WebP file.
        number: of the image in its request, from 1, for messages: they hold no name.
        spec: of the model.
        settings: the filter for other sizes, and the most pixels.

    Returns:
        C-contiguous uint8 RGB `(crop, crop, 3)`; width and height. Or one line of text.
    """
    name = f"image {number}"
    wanted = spec, settings.resize, name, "Start the server with --resize"
    if not data:
        return str(HistoError(name, "is empty (0 bytes)", "Leave it out"))
    try:
        most = settings.limits.pixels
        pixels = decode_image(data, most, lambda width, height: judge_size(width, height, *wanted), OF_STRANGERS)
        tile = fitted(pixels, *wanted)
    except BadImageError as error:
        return str(HistoError(name, str(error), "Repair it, or leave it out"))
    except HistoError as error:
        return str(error)
    return np.ascontiguousarray(seen_part(tile, spec)), (pixels.shape[1], pixels.shape[0])
