"""A relay process that drains the inbox and tells how it used the order lock: for `benchmarks.lock`.

It is run by its path, with the folder of a checkout as PYTHONPATH, so that another version can be measured, too. The times
are of one host's clock: the database has to be on the same machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
from sqlalchemy import Engine, event

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.loader.load import read_config
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery.outcome import Delivered
from relay.destinations import forward
from relay.store.database import Database
from relay.store.transaction import Transaction

BUSY_SECONDS = 0.0007
"""Processor time of one call that is `busy`: about what HTTP takes in Python."""

_ANSWERS = {"_exit_gen", "_sync_gen", "_fetch_gen"}
"""Waits for the server within a pipeline; all else is only sent."""


class Held:
    """One step's transactions under the lock."""

    def __init__(self) -> None:
        self.held: list[float] = []
        self.waited: list[float] = []
        self.trips = 0


class Watch:
    """Times each transaction that takes the order lock, and counts waits for the server in this thread."""

    def __init__(self) -> None:
        self.steps: dict[str, Held] = {}
        self.began_at: float | None = None
        """Processor time at the first lock, and the clock's."""
        self.clock_began_at = 0.0
        self.waits = self.statements = 0
        self._here = threading.local()

    def install(self) -> None:
        """Wrap what all versions have."""
        self._count_waits()
        write, here = Database.write, self._here

        @contextmanager
        def timed(database: Database, *given: Any, **named: Any) -> Iterator[Transaction]:  # noqa: ANN401  # each version's
            here.granted_at = here.answered_at = None
            with write(database, *given, **named) as transaction:
                yield transaction
            if here.granted_at is not None:
                step = self.steps.setdefault(here.step, Held())
                step.held.append(_now() - here.granted_at)
                step.waited.append(here.granted_at - here.asked_at)
                step.trips += here.waits - here.waits_before

        Database.write = timed  # type: ignore[assignment, method-assign]
        for name in ("take_order_lock", "take_order_lock_and_read"):
            if hasattr(Transaction, name):
                setattr(Transaction, name, self._watched(getattr(Transaction, name)))

    def _count_waits(self) -> None:
        wait, here = psycopg.Connection.wait, self._here

        def waiting(connection: Any, work: Any, *given: Any, **named: Any) -> Any:  # noqa: ANN401  # the driver's
            idle = connection.info.transaction_status is psycopg.pq.TransactionStatus.IDLE
            nothing = idle and work.__name__ in {"_rollback_gen", "_commit_gen"}
            if not nothing and (connection._pipeline is None or work.__name__ in _ANSWERS):  # noqa: SLF001
                self.waits += 1
                here.waits = getattr(here, "waits", 0) + 1
            return wait(connection, work, *given, **named)

        psycopg.Connection.wait = waiting  # type: ignore[assignment, method-assign]

    def _watched(self, take_order_lock: Callable[..., Any]) -> Callable[..., Any]:
        here = self._here

        @functools.wraps(take_order_lock)
        def locked(*given: Any, **named: Any) -> Any:  # noqa: ANN401  # each version's
            if self.began_at is None:
                self.began_at, self.clock_began_at = time.process_time(), time.perf_counter()
            here.asked_at = _now()
            found = take_order_lock(*given, **named)
            now = (found[0] if isinstance(found, tuple) else found).timestamp()
            if here.answered_at is None:
                here.waits_before = here.waits
            here.granted_at = min(here.answered_at or now, now)
            here.step = _step()
            return found

        return locked

    def statement(self, _connection: object, _cursor: object, statement: str, *_: object) -> None:
        """Note when the lock's own statement was answered."""
        self.statements += 1
        if "order_lock" in statement or "route_lock" in statement:
            self._here.answered_at, self._here.waits_before = _now(), self._here.waits

    def told(self) -> dict[str, object]:
        """Return the figures of this process."""
        return {
            "cpu": time.process_time() - (self.began_at or 0.0),
            "seconds": time.perf_counter() - self.clock_began_at,
            "waits": self.waits,
            "statements": self.statements,
            "steps": {
                name: {
                    "times": len(step.held),
                    "held": sum(step.held),
                    "waited": sum(step.waited),
                    "held_median": statistics.median(step.held),
                    "held_tenth": sorted(step.held)[len(step.held) // 10],
                    "trips": step.trips,
                }
                for name, step in self.steps.items()
            },
        }


def _now() -> float:
    """Seconds of the clock that the database has, too."""
    return SystemClock().now().timestamp()


def _step() -> str:
    """Name the module of the store that takes the lock."""
    frame = sys._getframe(2)  # noqa: SLF001
    while "/store/" not in frame.f_code.co_filename or frame.f_code.co_filename.endswith(
        ("database.py", "transaction.py")
    ):
        assert frame.f_back is not None
        frame = frame.f_back
    return frame.f_code.co_filename.rpartition("/")[2].removesuffix(".py")


def _deliver_at_once(busy: bool) -> None:
    def deliver(*_: object) -> Delivered:
        if busy:
            until = time.thread_time() + BUSY_SECONDS
            while time.thread_time() < until:
                pass
        return Delivered((), "forwarded")

    forward._forward = deliver  # type: ignore[assignment]  # noqa: SLF001


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("deliver", choices=["at-once", "busy", "http"])
    given = parser.parse_args()
    watch = Watch()
    watch.install()
    if given.deliver != "http":
        _deliver_at_once(given.deliver == "busy")
    config = read_config()
    engine: Engine = engines.connect(config.database.url, application="inbox-relay")
    event.listen(engine, "after_cursor_execute", watch.statement)
    Relay(Database(engine), prepare(config), grace_seconds=5).run(drain=True)
    print(json.dumps(watch.told()))


if __name__ == "__main__":
    main()
