"""Bodies of requests: read up to a size, for a time, and within the memory that all bodies of the process share."""

from __future__ import annotations

import asyncio
import io

from falcon.asgi import Request

from inbox.errors import TooLarge, TooSlow, Unreadable
from inbox.http.limits import BODY_COMPLETE, CUT_SHORT, SEND_CONTINUE, SMALL_BODY, Reservation

READ_WITHIN_SECONDS = 10.0
"""Seconds; a body that takes longer gets 408."""


async def read(req: Request, most: int, reservation: Reservation | None = None) -> bytes:
    """Return the whole body. Its memory stays reserved until the caller releases the reservation, if there is one.

    Raises:
        TooLarge: it has, or announces, more than `most` bytes.
        TooSlow: it took too long.
        Unavailable: there is no memory for it now.
        Unreadable: it is shorter than its Content-Length, or ends in something that is no body.
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
    body = io.BytesIO()  # gives its bytes without copying them
    async for part in req.stream:
        size = body.tell() + len(part)
        if size > most:
            raise TooLarge(f"the body may have at most {most} bytes", field="body")
        if reservation is not None:
            reservation.grow(size)
        body.write(part)
    return body.getvalue()
