"""Slow senders, as many as asked for: a third says nothing, a third drips a head, a third drips a body; one byte a second.

One that the receiver ends comes back at once. Prints READY when all are there, and at SIGTERM how many have been ended.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import itertools
import resource
import signal
from urllib.parse import urlsplit

import uvloop

from benchmarks.support import TOKEN

SECONDS_BETWEEN_BYTES = 1.0
KINDS = ("silent", "head", "body")


class _Senders:
    def __init__(self, url: str, number: int) -> None:
        self._parts = urlsplit(url)
        self._missing = number
        self._all_are_there = asyncio.Event()
        self.ended = dict.fromkeys(KINDS, 0)

    async def run(self, number: int) -> None:
        async with asyncio.TaskGroup() as group:
            for kind, _ in zip(itertools.cycle(KINDS), range(number), strict=False):
                group.create_task(self._sender(kind))
                await asyncio.sleep(0)
            await self._all_are_there.wait()
            print("READY", flush=True)

    async def _sender(self, kind: str) -> None:
        first = True
        while True:
            with contextlib.suppress(OSError):
                reader, writer = await asyncio.open_connection(self._parts.hostname, self._parts.port)
                if first:
                    first = False
                    self._missing -= 1
                    if not self._missing:
                        self._all_are_there.set()
                drip = asyncio.create_task(self._drip(kind, writer))
                await reader.read()
                drip.cancel()
                writer.close()
            self.ended[kind] += 1

    async def _drip(self, kind: str, writer: asyncio.StreamWriter) -> None:
        if kind == "silent":
            return
        line = f"POST {self._parts.path} HTTP/1.1\r\nHost: {self._parts.netloc}\r\n"
        whole = f"{line}X-Webhook-Token: {TOKEN}\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n\r\n"
        writer.write((whole if kind == "body" else line).encode())
        with contextlib.suppress(OSError):
            while True:
                await asyncio.sleep(SECONDS_BETWEEN_BYTES)
                writer.write(b" " if kind == "body" else b"x")
                await writer.drain()


async def _run(url: str, number: int) -> None:
    senders = _Senders(url, number)
    work = asyncio.ensure_future(senders.run(number))
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, work.cancel)
    with contextlib.suppress(asyncio.CancelledError):
        await work
    print("ENDED", *(f"{kind}={ended}" for kind, ended in senders.ended.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("number", type=int)
    given = parser.parse_args()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(_run(given.url, given.number))


if __name__ == "__main__":
    main()
