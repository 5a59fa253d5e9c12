"""What a client is told that asks for something it does not get: a status of HTTP and one line."""

from __future__ import annotations

from histo_export.errors import HistoError

RETRY_AFTER_S = 1
"""When a client that met a full queue may come again: hundreds of tiles later."""


class Refused(HistoError):  # noqa: N818  # a refusal is no error of the server
    """A request is not answered.

    Args:
        status: of HTTP.
        thing, cause, next_step: as of every `HistoError`.
        headers: of the answer.
    """

    def __init__(
        self, status: int, thing: object, cause: str, next_step: str, headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(thing, cause, next_step)
        self.status, self.headers = status, headers or {}


def busy(thing: str, cause: str) -> Refused:
    """For a request that would be answered at another time."""
    headers = {"retry-after": str(RETRY_AFTER_S)}
    return Refused(503, thing, cause, f"Ask again in {RETRY_AFTER_S} s", headers)


def malformed(thing: object, cause: str, next_step: str) -> Refused:
    """For a request that no server of this protocol can answer."""
    return Refused(400, thing, cause, next_step)


def too_large(thing: object, cause: str, next_step: str) -> Refused:
    """For a request beyond one of the `Limits`."""
    return Refused(413, thing, cause, next_step)
