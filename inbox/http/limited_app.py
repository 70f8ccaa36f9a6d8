"""An ASGI app whose requests have small bodies, which it gets whole, and whose process has limits."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from inbox.errors import RequestError, TooLarge, TooSlow, Unreadable
from inbox.http.body import READ_WITHIN_SECONDS
from inbox.http.limits import Capacity
from inbox.http.problems import problem_headers, problem_of
from inbox.http.scope import CAPACITY, CUT_SHORT, SEND_CONTINUE

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
