"""Connections that give up a server which stands still.

A frozen host keeps its sockets and its kernel acknowledges what arrives, so that neither keepalives nor TCP's timeouts tell.
While it lasts, a new leader may have been promoted, which only a new connection can find.
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
"""Longest wait for a word of a server before it is asked for life; a relay's leases have ended by then."""
ASKED_SECONDS = 2
_Value = TypeVar("_Value")


class PatientConnection(psycopg.Connection[tuple[object, ...]]):
    """A connection for threads. It waits as long as a statement takes, if the server answers to others meanwhile."""

    def wait(self, gen: PQGen[_Value], interval: float = 0.1, timeout: float | None = None) -> _Value:
        """Wait as psycopg does.

        Raises:
            OperationalError: the server stands still; the connection is closed.
        """
        return super().wait(_watch(gen, self.pgconn, lambda: answers(self.pgconn)), interval, timeout)


class ImpatientConnection(psycopg.AsyncConnection[tuple[object, ...]]):
    """A connection for an event loop. Its statements are short, so the server is not asked: it would hold up the loop."""

    async def wait(
        self,
        gen: PQGen[_Value],
        interval: float = 0.1,
        timeout: float | None = None,  # noqa: ASYNC109  # psycopg's
    ) -> _Value:
        """Wait as psycopg does. Raises as PatientConnection."""
        return await super().wait(_watch(gen, self.pgconn, lambda: False), interval, timeout)


def answers(pgconn: pq.abc.PGconn) -> bool:
    """Return whether the server of a connection says anything to a new one, be it a refusal."""
    place = make_conninfo(
        host=pgconn.host.decode(),
        hostaddr=pgconn.hostaddr.decode() or None,
        port=pgconn.port.decode(),
        connect_timeout=ASKED_SECONDS,
    )
    return pq.PGconn.ping(place.encode()) in {pq.Ping.OK, pq.Ping.REJECT}


def _watch(waiting: PQGen[_Value], pgconn: pq.abc.PGconn, is_alive: Callable[[], bool]) -> PQGen[_Value]:
    """Watch a wait, which psycopg resumes several times a second, whether something has come or not."""
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
