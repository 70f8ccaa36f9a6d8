"""CPU of one worker for a request, without the sockets: a bare Falcon app, the receiver without a database, and durable.

It drives the servers' protocols in this process, over transports that only count answers. So a busy machine disturbs it
little, and no sender takes part. Rounds alternate between the sides; each figure is the median over the rounds, by the
CPU clock of the process, with all its threads; "collection" is the longest of Python's collector of garbage. `--before` does
the same with another checkout.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any

import falcon
import falcon.asgi
import typer
import uvloop
from falcon.asgi import Request, Response
from rich.console import Console
from rich.table import Table
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from benchmarks import noop
from benchmarks.support import TOKEN, Kind, configured, databases
from inbox.clock import SystemClock
from inbox.gunicorn_worker import HardenedWorker
from inbox.loader.load import read_config
from inbox.receiver.app import app_of

CONNECTIONS = 64
ACCEPTED = b"HTTP/1.1 200 "
ONE = "--one-side"


class _Peer(asyncio.Transport):
    """A sender that sends the next request as soon as it has its answer."""

    def __init__(self, protocol: Any, payload: Callable[[], bytes], done: Callable[[bytes], bool]) -> None:  # noqa: ANN401
        super().__init__({"socket": self})  # protocols ask it for the addresses
        self.protocol, self._payload, self._done = protocol, payload, done
        self._loop = asyncio.get_running_loop()
        protocol.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Take a part of an answer; the receiver writes heads and bodies by themselves."""
        if bytes(data[:9]) == b"HTTP/1.1 " and self._done(bytes(data)):
            self._loop.call_soon(self.send)

    def send(self) -> None:
        self.protocol.data_received(self._payload())

    def is_closing(self) -> bool:
        return False

    def getsockname(self) -> tuple[str, int]:
        return "127.0.0.1", 8000

    def getpeername(self) -> tuple[str, int]:
        return "127.0.0.1", 50000

    def close(self) -> None: ...

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None: ...

    def get_write_buffer_size(self) -> int:
        return 0


class Requests:
    """Webhooks that are all different; their times scatter, as a provider's do."""

    def __init__(self, size: int, repeated: bool) -> None:
        self._run, self._sent, self._repeated = random.getrandbits(40), 0, repeated
        self._more = "x" * max(size - 100, 0)
        self._begin = SystemClock().now() - timedelta(days=1)

    def next(self) -> bytes:
        self._sent += 1
        number = self._sent % 10 if self._repeated else self._sent
        moment = self._begin + timedelta(microseconds=number * 7_919)
        written = moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
        event = {"id": f"{self._run}-{number}", "entityType": "USER", "eventType": "UPDATE", "timestamp": written}
        if self._more:
            event["more"] = self._more
        body = json.dumps(event, separators=(",", ":"))
        return (
            f"POST /webhooks/trivore HTTP/1.1\r\nHost: 127.0.0.1:8000\r\nContent-Type: application/json\r\n"
            f"X-Webhook-Token: {TOKEN}\r\nUser-Agent: benchmark\r\nContent-Length: {len(body)}\r\n\r\n{body}"
        ).encode()


class Server:
    """An app behind a protocol of uvicorn, started."""

    def __init__(self, app: Any, protocol: Any) -> None:  # noqa: ANN401
        self._config = Config(
            app, http=protocol, lifespan="on", ws="none", timeout_keep_alive=30, server_header=False, log_config=None
        )
        self._config.load()
        self._protocol = protocol
        self._lifespan = self._config.lifespan_class(self._config)
        self._state = ServerState()

    async def start(self) -> None:
        await self._lifespan.startup()
        assert not self._lifespan.should_exit

    async def stop(self) -> None:
        await self._lifespan.shutdown()

    async def answer(self, number: int, requests: Requests) -> float:
        """Answer so many requests; returns the CPU microseconds of each."""
        loop = asyncio.get_running_loop()
        ready = [requests.next() for _ in range(number)]
        left, under_way, finished = number, CONNECTIONS, loop.create_future()

        def done(head: bytes) -> bool:
            nonlocal left
            if not head.startswith(ACCEPTED):
                raise SystemExit(f"answered {head!r}")
            nonlocal under_way
            left -= 1
            if left == 0:
                finished.set_result(None)
            under_way += 1
            return under_way <= number

        peers = [
            _Peer(self._protocol(self._config, self._state, dict(self._lifespan.state)), ready.pop, done)
            for _ in range(CONNECTIONS)
        ]
        began = time.process_time()
        for peer in peers:
            peer.send()
        await finished
        took = time.process_time() - began
        for peer in peers:
            peer.protocol.connection_lost(None)
        return took / number * 1e6


class Bare:
    """Parses the same JSON, and answers: what HTTP and the framework cost by themselves."""

    async def on_post(self, req: Request, resp: Response, source: str) -> None:
        event = json.loads(await req.stream.read())
        resp.content_type = falcon.MEDIA_JSON
        resp.data = b'{"status":"accepted","seq":%d}' % len(event["id"] + source)


def _bare() -> falcon.asgi.App[Request, Response]:
    app = falcon.asgi.App()
    app.add_route("/webhooks/{source}", Bare())
    return app


SIDES: dict[str, Callable[[], tuple[Any, Any]]] = {
    "bare": lambda: (_bare(), HttpToolsProtocol),
    "noop": lambda: (noop.get_app(), HardenedWorker.CONFIG_KWARGS["http"]),
    "durable": lambda: (app_of(read_config()), HardenedWorker.CONFIG_KWARGS["http"]),
}


class Collections:
    """Times of the collector of garbage, for which every request waits."""

    def __init__(self) -> None:
        self.longest = 0.0
        """Milliseconds."""
        self._began = 0.0
        gc.callbacks.append(self._hear)

    def _hear(self, phase: str, _about: object) -> None:
        now = time.thread_time()
        if phase == "start":
            self._began = now
        else:
            self.longest = max(self.longest, (now - self._began) * 1e3)


def measure(side: str, number: int, size: int, repeated: bool) -> tuple[float, float]:
    """Measure one side once, in this process. Returns CPU microseconds of a request, and milliseconds of the longest collection."""

    async def run() -> tuple[float, float]:
        server = Server(*SIDES[side]())
        await server.start()
        requests = Requests(size, repeated)
        await server.answer(number // 4, requests)
        collections = Collections()
        took = await server.answer(number, requests)
        await server.stop()
        return took, collections.longest

    return uvloop.run(run())


def _in_another(folder: Path, environment: dict[str, str], *arguments: str) -> tuple[float, float]:
    """Measure in a process of its own, with the product of `folder` and the benchmark of this checkout."""
    command = [sys.executable, __file__, ONE, *arguments]
    environment = {**environment, "PYTHONPATH": str(folder)}
    output = subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=folder).stdout
    took, longest = output.rpartition("RESULT ")[2].split()
    return float(took), float(longest)


def main(
    *,
    database: Annotated[Kind, typer.Option(help="Of the durable side.")] = Kind.SQLITE,
    sides: Annotated[str, typer.Option(help="Which, of bare, noop and durable.")] = "bare,noop,durable",
    rounds: Annotated[int, typer.Option(min=1, max=20, help="How often each side is measured.")] = 5,
    number: Annotated[int, typer.Option(min=500, help="Of requests in a round.")] = 4000,
    size: Annotated[int, typer.Option(min=100, help="Bytes of a body.")] = 100,
    before: Annotated[Path | None, typer.Option(help="A checkout of another version.")] = None,
    repeated: Annotated[bool, typer.Option(help="Send the same ten events again and again.")] = False,
) -> None:
    """Measure the CPU of a request, in microseconds."""
    checkouts = {"now": Path(__file__).parent.parent} | ({"before": before.absolute()} if before else {})
    found: dict[tuple[str, str], list[float]] = {}
    longest: dict[tuple[str, str], float] = {}
    with ExitStack() as stack:
        urls = stack.enter_context(databases(database, len(checkouts)))
        environments = [stack.enter_context(configured(url)) for url in urls]
        for _ in range(rounds):
            for side in sides.split(","):
                for (name, folder), environment in zip(checkouts.items(), environments, strict=True):
                    took, most = _in_another(folder, environment, side, str(number), str(size), str(repeated))
                    found.setdefault((side, name), []).append(took)
                    longest[side, name] = max(most, longest.get((side, name), 0.0))
    table = Table(
        "side", "checkout", "µs", "least", "collection, ms", "rounds", title=f"CPU of a request, {database}, {size} B"
    )
    for (side, name), times in found.items():
        each = " ".join(f"{one:.0f}" for one in times)
        table.add_row(
            side, name, f"{statistics.median(times):.1f}", f"{min(times):.1f}", f"{longest[side, name]:.1f}", each
        )
    Console(soft_wrap=True).print(table)
    for side in sides.split(","):
        if before:
            pairs = zip(found[side, "before"], found[side, "now"], strict=True)
            print(f"{side}: before / now {statistics.median(b / n for b, n in pairs):.3f}")
    print(f"load average {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    if sys.argv[1:2] == [ONE]:
        side, number, size, repeated = sys.argv[2:]
        print("RESULT", *measure(side, int(number), int(size), repeated == "True"))
    else:
        app = typer.Typer(pretty_exceptions_enable=False, add_completion=False)
        app.command()(main)
        app()
