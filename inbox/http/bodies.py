"""Request bodies, read within limits, and error responses: problem documents (RFC 9457) and their headers."""

from __future__ import annotations

import asyncio
import io
import logging
from collections.abc import Mapping

import msgspec
from falcon.asgi import Request, Response

from inbox.errors import NotAuthenticated, RequestError, TooLarge, TooSlow, Unreadable
from inbox.http.limits import BODY_COMPLETE, CUT_SHORT, SEND_CONTINUE, SMALL_BODY, Reservation
from inbox.observe.logs import fields, without_message

PROBLEM_TYPE = "application/problem+json"

_log = logging.getLogger(__name__)


def problem(status: int, title: str, detail: str | None, field: str | None = None) -> bytes:
    """Return a problem document (RFC 9457)."""
    members: dict[str, object] = {"type": "about:blank", "title": title, "status": status}
    if detail:
        members["detail"] = detail
    if field:
        members["field"] = field
    return msgspec.json.encode(members)


def format_problem(error: RequestError) -> bytes:
    """Return the problem document of an error."""
    return problem(error.status, error.title, error.detail, error.field)


def problem_headers(error: RequestError) -> dict[str, str]:
    """Return the headers of an error response."""
    headers = {"Content-Type": PROBLEM_TYPE}
    if error.retry_after_seconds is not None:
        headers["Retry-After"] = str(error.retry_after_seconds)
    if isinstance(error, NotAuthenticated):
        headers["WWW-Authenticate"] = 'Bearer, Basic realm="webhooks"'  # RFC 9110 §11.6.1 requires it
    return headers


async def answer_problem(
    _req: Request, resp: Response, error: RequestError, _params: Mapping[str, object], **_: object
) -> None:
    """Write the response to a RequestError, for Falcon."""
    resp.status = error.status
    resp.data = format_problem(error)
    resp.set_headers(problem_headers(error))


async def answer_bug(
    _req: Request, resp: Response, error: Exception, _params: Mapping[str, object], **_: object
) -> None:
    """Write the response to an unexpected exception; Falcon's own handler would log its text, which may hold values."""
    _log.error("bug in the receiver; the sender gets 500", exc_info=without_message(error), extra=fields("bug"))
    resp.status, resp.data = 500, problem(500, "Internal Server Error", None)
    resp.content_type = PROBLEM_TYPE


# --- Bodies: limited in size, in time, and by the memory shared by all bodies of the process.


READ_WITHIN_SECONDS = 10.0
"""Seconds within which a body must arrive; otherwise the response is 408."""


async def read_whole(req: Request, most: int, reservation: Reservation | None = None) -> bytes:
    """Return the whole body. Its memory stays reserved until the caller releases the reservation.

    Raises:
        TooLarge: it has or announces more than `most` bytes.
        TooSlow: it took too long.
        Unavailable: there is not enough memory for it now.
        Unreadable: it is shorter than its Content-Length, or malformed.
    """
    announced = req.content_length
    if announced is not None and announced > most:
        raise TooLarge(f"the body may have at most {most} bytes, this one has {announced}", field="body")
    if SEND_CONTINUE in req.scope:
        req.scope[SEND_CONTINUE]()
    if BODY_COMPLETE in req.scope:
        body = await _read(req, announced, most, reservation)
    else:
        try:
            async with asyncio.timeout(READ_WITHIN_SECONDS):
                body = await _read(req, announced, most, reservation)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {READ_WITHIN_SECONDS:g} s", field="body") from None
    if CUT_SHORT in req.scope:
        raise Unreadable(f"{req.scope[CUT_SHORT]} after {len(body)} bytes of the body", field="body")
    if announced is not None and len(body) != announced:
        raise Unreadable(f"Content-Length is {announced}, but {len(body)} bytes came", field="body")
    return body


async def _read(req: Request, announced: int | None, most: int, reservation: Reservation | None) -> bytes:
    if announced is not None and announced <= SMALL_BODY:
        small: bytes = await req.stream.read(most + 1)
        return small
    body = io.BytesIO()  # returns its bytes without copying them
    async for part in req.stream:
        size = body.tell() + len(part)
        if size > most:
            raise TooLarge(f"the body may have at most {most} bytes", field="body")
        if reservation is not None:
            reservation.grow(size)
        body.write(part)
    return body.getvalue()
