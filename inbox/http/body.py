"""Bodies of requests: read up to a size, for a time, and within the memory that all bodies of the process share."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from falcon.asgi import Request

from inbox.errors import RequestError, TooLarge, TooSlow, Unreadable
from inbox.http.limits import BODY_COMPLETE, CAPACITY, CUT_SHORT, SEND_CONTINUE, SMALL_BODY, Capacity, Reservation
from inbox.http.problems import problem_headers, problem_of

READ_WITHIN_SECONDS = 10.0
"""Seconds; a body that takes longer gets 408."""


async def read(req: Request, most: int, reservation: Reservation) -> bytes:
    """Return the whole body. Its memory stays reserved until the caller releases the reservation.

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


async def _read(req: Request, announced: int | None, most: int, reservation: Reservation) -> bytes:
    if announced is not None and announced <= SMALL_BODY:
        small: bytes = await req.stream.read(most + 1)
        return small
    body = io.BytesIO()  # gives its bytes without copying them
    async for part in req.stream:
        size = body.tell() + len(part)
        if size > most:
            raise TooLarge(f"the body may have at most {most} bytes", field="body")
        reservation.grow(size)
        body.write(part)
    return body.getvalue()


# --- An ASGI app whose requests have small bodies, which it gets whole, and whose process has limits.


Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Any, Any, Any], Awaitable[None]]
"""An ASGI application; frameworks differ in how they type it."""


class LimitedApp:
    """Calls `app` when the body of a request has arrived; others are answered with a problem document, without it.

    At most `connections` are open; one more gets 503. A body has at most `largest_body` bytes, and as long to arrive as one
    of a webhook.
    """

    def __init__(self, app: App, *, connections: int, largest_body: int) -> None:
        self._app = app
        self._capacity = Capacity(connections=connections, requests=connections, per_connection=10_000)
        self._most = largest_body

    async def __call__(self, scope: MutableMapping[str, Any], receive: Receive, send: Send) -> None:
        """Answer a request, or start and stop."""
        if scope["type"] == "lifespan":
            scope.setdefault("state", {})[CAPACITY] = self._capacity
        headers = dict(scope.get("headers", ()))
        if not headers.keys() & {b"content-length", b"transfer-encoding"}:
            await self._app(scope, receive, send)
            return
        try:
            body = await self._read(scope, receive, headers.get(b"content-length"))
        except RequestError as error:
            await _answer(send, error)
            return
        if body is not None:
            await self._app(scope, _first({"type": "http.request", "body": body, "more_body": False}, receive), send)

    async def _read(self, scope: MutableMapping[str, Any], receive: Receive, announced: bytes | None) -> bytes | None:
        """Return the body; None: the sender has gone."""
        if announced is not None and int(announced) > self._most:  # the server has checked that it is a number
            raise TooLarge(f"the body may have at most {self._most} bytes", field="body")
        if SEND_CONTINUE in scope:
            scope[SEND_CONTINUE]()
        parts, size = list[bytes](), 0
        try:
            async with asyncio.timeout(READ_WITHIN_SECONDS):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    parts.append(message.get("body", b""))
                    size += len(parts[-1])
                    if size > self._most:
                        raise TooLarge(f"the body may have at most {self._most} bytes", field="body")
                    more = message.get("more_body", False)
        except TimeoutError:
            raise TooSlow(f"the body did not arrive within {READ_WITHIN_SECONDS:g} s", field="body") from None
        if CUT_SHORT in scope:
            raise Unreadable(f"{scope[CUT_SHORT]} after {size} bytes of the body", field="body")
        return b"".join(parts)


def _first(message: Message, receive: Receive) -> Receive:
    """Return a `receive` that gives `message` before all others."""
    waiting = [message]

    async def received() -> Message:
        return waiting.pop() if waiting else await receive()

    return received


async def _answer(send: Send, error: RequestError) -> None:
    headers = [(name.lower().encode(), value.encode()) for name, value in problem_headers(error).items()]
    body = problem_of(error)
    headers += [(b"content-length", b"%d" % len(body)), (b"cache-control", b"no-store")]
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
