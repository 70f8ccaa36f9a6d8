"""Connections that detect a frozen server.

A frozen server's kernel keeps its sockets and acknowledges packets, so neither keepalives nor TCP timeouts detect it.
Meanwhile a new leader may be promoted, which only a new connection can find.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

import psycopg
from psycopg import OperationalError, pq
from psycopg.abc import PQGen
from psycopg.conninfo import make_conninfo

SILENT_SECONDS = 15.0
"""Seconds without a response before the server is probed; a relay's leases have expired by then."""
ASKED_SECONDS = 2
_Value = TypeVar("_Value")


class PatientConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection for threads. It waits for long statements as long as the server accepts new connections."""

    def wait(self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None) -> _Value:
        """Wait as psycopg does.

        Raises:
            OperationalError: the server is frozen; the connection is closed.
        """
        return super().wait(_watch(gen, self.pgconn, lambda: answers(self.pgconn)), interval, timeout)


class ImpatientConnection(psycopg.AsyncConnection[tuple[object, ...]]):
    """A connection for an event loop. Its statements are short, so the server is not probed, which would block the loop."""

    async def wait(
        self,
        gen: PQGen[_Value],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's
    ) -> _Value:
        """Wait as psycopg does. Raises as PatientConnection."""
        return await super().wait(_watch(gen, self.pgconn, lambda: False), interval, timeout)


def answers(pgconn: pq.abc.PGconn) -> bool:
    """Return whether the connection's server responds to a new connection, even by refusing it."""
    place = make_conninfo(
        host=pgconn.host.decode(),
        hostaddr=pgconn.hostaddr.decode() or None,
        port=pgconn.port.decode(),
        connect_timeout=ASKED_SECONDS,
    )
    return pq.PGconn.ping(place.encode()) in {pq.Ping.OK, pq.Ping.REJECT}


def _watch(waiting: PQGen[_Value], pgconn: pq.abc.PGconn, is_alive: Callable[[], bool]) -> PQGen[_Value]:
    """Limit the silence during a wait, which psycopg resumes several times a second."""
    silent_since = time.monotonic()
    try:
        wanted = next(waiting)
        while True:
            ready = yield wanted
            if ready:
                silent_since = time.monotonic()
            elif time.monotonic() - silent_since > SILENT_SECONDS:
                if not is_alive():
                    pgconn.finish()
                    raise OperationalError(f"the server has been silent for {SILENT_SECONDS:g} s")
                silent_since = time.monotonic()
            wanted = waiting.send(ready)
    except StopIteration as ended:
        value: _Value = ended.value
        return value
