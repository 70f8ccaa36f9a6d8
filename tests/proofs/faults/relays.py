"""The relays of the rig: each has a place where one always runs, whatever is done to it."""

from __future__ import annotations

import contextlib
import re
import signal
import sqlite3
import threading
import time
from collections.abc import Callable

from sqlalchemy import Engine, make_url
from sqlalchemy.exc import SQLAlchemyError

from tests.helpers.checkers import Call
from tests.helpers.databases import is_postgres
from tests.helpers.processes import Program
from tests.helpers.tables import in_flight_elsewhere, in_flight_of
from tests.helpers.traffic import Ledger
from tests.helpers.waiting import until

SHORTEST_LEASE_LEFT = 9.0
"""A relay renews its leases every 5 s, so that nothing runs out so soon after it was frozen."""
BUSY, BUSY_WITHIN = 16, 4.0
"""So much in hand is more than is being called, and worth waiting for so many seconds."""
STARTED_WITHIN = 10.0
DISCARDED = "discarded a late result"
WOKEN_WITHIN = 3.0
STOPPED_WITHIN = 30.0
STARTED = re.compile(r"started node=(\S+)")


class Place:
    """One relay's place. What is done is noted in `ledger`, with what the relay had in hand."""

    def __init__(
        self, name: str, start: Callable[[], Program], engine: Engine, ledger: Ledger, stopping: threading.Event
    ) -> None:
        self.name = name
        self._start = start
        self._engine = engine
        self._ledger = ledger
        self._stopping = stopping
        self._lock = threading.Lock()
        self.program = start()

    def kill(self) -> None:
        """SIGKILL the relay, whatever it does just now, and start another, until that has begun to work."""
        with self._lock:
            at = time.monotonic()
            self.program.kill()
            self._note("kill a relay", at, at)
            self.program = self._start()
        took = self.wait_until_started(self.program)
        self._ledger.append(kind="start a relay", who=self.name, begin=at, end=at + took)
        self._stopping.wait(took)  # so that however slow the machine is, a relay works as long as it starts

    def freeze(self, seconds: float) -> None:
        """SIGSTOP the relay while it works on something; SIGCONT when another one is just working on that, or at last."""
        with self._lock:
            patience = time.monotonic() + BUSY_WITHIN
            until(
                lambda: self._caught_at_work(1 if time.monotonic() > patience else BUSY),
                "the relay has something in flight",
                within=60,
            )
            at = time.monotonic()
            held = self._held()
            self._stopping.wait(SHORTEST_LEASE_LEFT)
            until(lambda: self._is_taken_over(held) or time.monotonic() > at + seconds, "the end of it", within=60)
            self.program.send(signal.SIGCONT)
            self._note("freeze a relay", at, time.monotonic(), held)
            self._wait_for(lambda: DISCARDED in self.program.output, WOKEN_WITHIN)

    def replace(self) -> None:
        """SIGTERM the relay after another one was started beside it."""
        with self._lock:
            other = self._start()
            self.wait_until_started(other)
            at = time.monotonic()
            self.program.send(signal.SIGTERM)
            status = self.program.ends(STOPPED_WITHIN)
            self._ledger.append(
                kind="replace a relay", who=self.name, begin=at, end=time.monotonic(), status=status, node=self._node()
            )
            self.program = other

    def wait_until_started(self, program: Program, within: float = STARTED_WITHIN) -> float:
        """Until it has begun to work; how many seconds that took.

        A relay that starts without a database ends instead, and is started again in the place.
        """
        return self._wait_for(
            lambda: STARTED.search((program if program.runs else self.program).output) is not None, within
        )

    def supervise(self) -> None:
        """Start the relay again if it has ended by itself, as a service manager does."""
        if not self._lock.acquire(blocking=False):
            return
        try:
            self._revive()
        finally:
            self._lock.release()

    def stop(self) -> int:
        """SIGTERM the relay for good; its exit status."""
        with self._lock:
            self.program.send(signal.SIGTERM)
            return self.program.ends(STOPPED_WITHIN)

    def _wait_for(self, condition: Callable[[], bool], seconds: float) -> float:
        """Not for long: whether it comes is judged by others. How long it took."""
        begin = time.monotonic()
        while not condition() and time.monotonic() < begin + seconds and not self._stopping.is_set():
            self._stopping.wait(0.1)
        return time.monotonic() - begin

    def _revive(self) -> None:
        if not self.program.runs:
            status = self.program.ends(0)
            self._ledger.append(kind="a relay ended by itself", who=self.name, status=status, node=self._node())
            self.program = self._start()

    def _caught_at_work(self, least: int) -> bool:
        """Stopped only once it was seen at work: stopped again and again, it would make its calls long after their claims."""
        self._revive()
        if not self._is_at_work(least):
            return False
        self.program.send(signal.SIGSTOP)
        if self._is_at_work(least) and (self._stopping.is_set() or self._others_may_write()):
            return True
        self.program.send(signal.SIGCONT)
        return False

    def _is_at_work(self, least: int) -> bool:
        with contextlib.suppress(SQLAlchemyError):
            return self._stopping.is_set() or len(in_flight_of(self._engine, self.program.pid)) >= least
        return False

    def _is_taken_over(self, held: list[Call] | None) -> bool:
        with contextlib.suppress(SQLAlchemyError):
            others = in_flight_elsewhere(self._engine, self._node())
            return self._stopping.is_set() or any(seq in others for seq, _, _ in held or ())
        return False

    def _others_may_write(self) -> bool:
        """On SQLite a frozen writer would stop everybody: that is no fault a relay could do anything about."""
        if is_postgres(str(self._engine.url)):
            return True
        name = make_url(str(self._engine.url)).database or ""
        with contextlib.closing(sqlite3.connect(name, timeout=0.5, isolation_level=None)) as other:
            try:
                other.execute("BEGIN IMMEDIATE")
            except sqlite3.OperationalError:
                return False
            other.execute("ROLLBACK")
            return True

    def _held(self) -> list[Call] | None:
        try:
            rows = in_flight_of(self._engine, self.program.pid)
        except SQLAlchemyError:
            return None
        return [(row["seq"], row["run"], row["attempt"]) for row in rows]

    def _node(self) -> str:
        started = STARTED.search(self.program.output)
        return started.group(1) if started else ""

    def _note(self, kind: str, begin: float, end: float, held: list[Call] | None = None) -> None:
        self._ledger.append(
            kind=kind,
            who=self.name,
            pid=self.program.pid,
            node=self._node(),
            begin=begin,
            end=end,
            held=self._held() if held is None else held,
        )
