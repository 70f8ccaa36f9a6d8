"""A proxy before Postgres that cuts a connection at a commit, so that one side does not know its result.

It parses Postgres' protocol 3.0 over unix sockets. A cut waits for the next commit of its application that has
something to commit.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import struct
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from tests.helpers.machine import ROOM
from tests.helpers.traffic import Ledger

Moment = Literal["before", "after", "terminate"]
"""before: the commit never reaches the server. after: it is done, but the answer is lost. terminate: the commit is sent
and the backend terminated at the same time, in either order.
"""

SOCKET = ".s.PGSQL.5432"
_INTAKE = b"INSERT INTO inbox "
_CANCEL = 80877102
_WRITES = (b"INSERT", b"UPDATE", b"DELETE")


class Cut:
    """An order to cut the next commit of an application; `done` is set afterwards."""

    def __init__(self, application: str, moment: Moment) -> None:
        self.application = application
        self.moment = moment
        self.done = threading.Event()


class Proxy:
    """A proxy that listens in `folder` for the server whose socket is in `server`. `cuts` has a line for each cut.

    A line has `application`, `moment`, `pid` of the program, and `committed` (None: only the server knows).
    """

    def __init__(self, server: Path, cuts: Path) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="inbox-relay-proxy-", dir=ROOM))  # socket paths must be short
        self.cuts = Ledger(cuts)
        self.orders: list[Cut] = []
        self._server = str(server / SOCKET)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="proxy")
        self._ready = threading.Event()
        self._thread.start()
        self._ready.wait()

    def cut(self, application: str, moment: Moment) -> Cut:
        """Cut the next commit of this application."""
        order = Cut(application, moment)
        self.orders.append(order)
        return order

    def close(self) -> None:
        """Close all connections and stop."""
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self.cuts.close()
        (self.folder / SOCKET).unlink(missing_ok=True)
        self.folder.rmdir()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        listening = self._loop.run_until_complete(
            asyncio.start_unix_server(self._serve, path=str(self.folder / SOCKET), backlog=256)
        )
        self._ready.set()
        self._loop.run_forever()
        listening.close()
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        self._loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        upward: asyncio.StreamWriter | None = None
        try:
            answers, upward = await asyncio.open_unix_connection(self._server)
            connection = _Connection(self, _peer(writer), upward, writer)
            directions = [asyncio.create_task(connection.ask(reader)), asyncio.create_task(connection.answer(answers))]
            try:
                await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for direction in directions:
                    direction.cancel()
                await asyncio.gather(*directions, return_exceptions=True)
        except OSError:
            return  # the server is down
        finally:
            for end in (writer, upward):
                if end is not None:
                    end.transport.abort()


class _Connection:
    """One client's connection and its state."""

    def __init__(
        self, proxy: Proxy, pid: int, to_server: asyncio.StreamWriter, to_client: asyncio.StreamWriter
    ) -> None:
        self._proxy = proxy
        self._pid = pid
        self._to_server = to_server
        self._to_client = to_client
        self._application = ""
        self._backend = 0
        self._wrote = False
        self._statements: dict[bytes, bytes] = {}
        self._is_intake = False
        self._has_sent_writes = False
        """True when writes were sent; in a pipeline, their answers come after the commit."""
        self._ends = False
        """True when the next statement is a commit within a pipeline."""
        self._lost: Cut | None = None
        """Order for which the answers to the last commit are withheld."""
        self._kept: list[bytes] = []
        self._committed = False

    async def ask(self, reader: asyncio.StreamReader) -> None:
        """Forward the client's messages."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._begin(reader)
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                self._watch(head[:1], body)
                order = self._order() if self._commits(head[:1], body) else None
                if order is not None and order.moment == "before":
                    self._note(order, committed=False)
                    return
                if order is not None and order.moment == "after":
                    self._lost, self._kept, self._committed = order, [], False
                self._to_server.write(head + body)
                if order is not None and order.moment == "terminate":
                    self._note(order, committed=None)
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(self._backend, signal.SIGTERM)
                await self._to_server.drain()

    async def answer(self, reader: asyncio.StreamReader) -> None:
        """Forward the server's messages, except the answer to lose."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = await reader.readexactly(5)
                body = await reader.readexactly(struct.unpack("!I", head[1:])[0] - 4)
                self._learn(head[:1], body)
                if self._lost is None:
                    self._to_client.write(head + body)
                    await self._to_client.drain()
                    continue
                self._kept.append(head + body)
                if head[:1] == b"Z" and self._committed:
                    self._note(self._lost, committed=True)
                    return
                if head[:1] == b"Z":  # an error is unambiguous, so the order remains
                    self._proxy.orders.append(self._lost)
                    self._lost = None
                    self._to_client.write(b"".join(self._kept))

    async def _begin(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readexactly(8)
        length, code = struct.unpack("!II", head)
        body = await reader.readexactly(length - 8)
        if code != _CANCEL:
            words = body.split(b"\0")
            self._application = dict(zip(words[::2], words[1::2], strict=False)).get(b"application_name", b"").decode()
        self._to_server.write(head + body)

    def _watch(self, kind: bytes, body: bytes) -> None:
        """Track the current statement, to distinguish an intake from other autocommitted statements."""
        if kind == b"P":
            name, text, _ = body.split(b"\0", 2)
            self._statements[name] = text
        elif kind == b"B":
            bound = self._statements.get(body.split(b"\0", 2)[1], b"")
            self._is_intake = _INTAKE in bound
            self._has_sent_writes = self._has_sent_writes or bound.lstrip().startswith(_WRITES)
            self._ends = bound == b"COMMIT"

    def _commits(self, kind: bytes, body: bytes) -> bool:
        return (
            (kind == b"Q" and body == b"COMMIT\0" and self._wrote)
            or (kind == b"E" and self._ends and self._has_sent_writes)
            or (kind == b"S" and self._is_intake)
        )

    def _order(self) -> Cut | None:
        for order in self._proxy.orders:
            if order.application == self._application:
                self._proxy.orders.remove(order)
                return order
        return None

    def _learn(self, kind: bytes, body: bytes) -> None:
        if kind == b"K":
            self._backend = struct.unpack("!I", body[:4])[0]
        elif kind == b"C":
            words = body.rstrip(b"\0").split()
            self._committed = words == [b"COMMIT"] or self._is_intake
            self._wrote = self._wrote or (words[0] in _WRITES and words[-1] != b"0")
        elif kind == b"E":
            self._committed = False
        elif kind == b"Z" and body == b"I":
            self._wrote = self._has_sent_writes = False

    def _note(self, order: Cut, *, committed: bool | None) -> None:
        self._proxy.cuts.append(application=order.application, moment=order.moment, pid=self._pid, committed=committed)
        order.done.set()


def _peer(writer: asyncio.StreamWriter) -> int:
    """Return the pid of the client."""
    its_socket = writer.get_extra_info("socket")
    credentials = its_socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
    pid: int = struct.unpack("3i", credentials)[0]
    return pid


@contextlib.contextmanager
def run_proxy(server: Path, cuts: Path) -> Iterator[Proxy]:
    """Run a proxy for the block."""
    proxy = Proxy(server, cuts)
    try:
        yield proxy
    finally:
        proxy.close()
