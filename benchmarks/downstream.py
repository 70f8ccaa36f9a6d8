"""A downstream service that answers 200 after so many milliseconds, keeps connections open, and counts requests.

`GET /` answers with the number of requests with a body since the last GET, of different bodies among them, and the seconds
from the first to the last. Any other GET answers with an entity.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from typing import Protocol, cast

import httptools
import uvloop


class Sees(Protocol):
    """An observer of requests with a body."""

    def add(self, body: bytes) -> None: ...

    def report(self) -> bytes: ...


class Seen:
    """The requests with a body since the last report."""

    def __init__(self) -> None:
        self.requests = 0
        self.bodies: set[bytes] = set()
        self.first_at = self.last_at = 0.0

    def add(self, body: bytes) -> None:
        self.last_at = time.monotonic()
        self.first_at = self.first_at or self.last_at
        self.requests += 1
        self.bodies.add(body)

    def report(self) -> bytes:
        seconds = self.last_at - self.first_at
        told = json.dumps({"requests": self.requests, "bodies": len(self.bodies), "seconds": seconds}).encode()
        self.__init__()  # type: ignore[misc]  # start over
        return told


class Connection(asyncio.Protocol):
    """One client's connection; httptools calls the methods that begin with `on_`."""

    def __init__(self, seen: Sees, seconds: float = 0.0) -> None:
        self._seen = seen
        self._seconds = seconds
        self._parser = httptools.HttpRequestParser(self)
        self._body = self._path = b""
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's does not inherit from it

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_message_begin(self) -> None:
        self._body = self._path = b""

    def on_url(self, part: bytes) -> None:
        self._path += part

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        if self._parser.get_method() == b"GET":
            self._answer(self._seen.report() if self._path == b"/" else b'{"name": "Ada"}')
            return
        self._seen.add(self._body)
        if self._seconds:
            asyncio.get_running_loop().call_later(self._seconds, self._answer, b"ok")
        else:
            self._answer(b"ok")

    def _answer(self, answer: bytes) -> None:
        assert self._transport is not None
        if self._transport.is_closing():  # the client was killed during its call
            return
        self._transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(answer), answer))


async def _serve(port: int, seconds: float) -> None:
    seen = Seen()
    server = await asyncio.get_running_loop().create_server(
        lambda: Connection(seen, seconds), "127.0.0.1", port, backlog=1024
    )
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("milliseconds", type=float, nargs="?", default=0.0)
    given = parser.parse_args()
    uvloop.run(_serve(given.port, given.milliseconds / 1000))


if __name__ == "__main__":
    main()
