"""The long-running relay: one loop that owns the work, threads that make the calls, and one that keeps the leases alive.

The loop records what has finished, takes back leases that ran out, sequences what arrived and claims what is due. Every
step is a short transaction; none is open during a call.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from importlib.metadata import version
from typing import TypeVar

import tenacity
from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import Clock, SystemClock
from inbox.config import Config
from relay.destinations import Deliverer
from relay.leases import RENEW_EVERY_SECONDS, Leases, claim_of
from relay.observe import Observer
from relay.policy import policies
from relay.store import claim, nodes, record, sequence
from relay.store.database import Database
from relay.worker import Crew, Finished, crews

BUSY_POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.5
REAP_EVERY_SECONDS = 1.0
MOST_SEQUENCED_AT_ONCE = 10 * sequence.BATCH
GRACE_SECONDS = 20.0
"""How long running calls may go on after a SIGTERM before they are cut."""

_Result = TypeVar("_Result")


class Relay:
    """One relay process. `run` works until `stop` is called from another thread."""

    def __init__(
        self,
        database: Database,
        config: Config,
        deliverers: Mapping[str, Deliverer],
        *,
        observer: Observer | None = None,
        clock: Clock | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.node = str(uuid.uuid4())
        self._database = database
        self._policies = policies(config)
        self._observer = observer or Observer()
        self._grace = grace_seconds
        self._leases = Leases()
        self._stop = threading.Event()
        self._ended = threading.Event()
        self._finished: queue.SimpleQueue[Finished | None] = queue.SimpleQueue()
        self._unrecorded: list[Finished] = []
        self._reap_at = 0.0
        self._poll = BUSY_POLL_SECONDS
        self._crew_of = crews(
            config,
            deliverers,
            leases=self._leases,
            stop=self._stop,
            now=(clock or SystemClock()).now,
            finished=self._finished,
        )
        self._crews: list[Crew] = list({id(crew): crew for crew in self._crew_of.values()}.values())

    def stop(self) -> None:
        """End in order: claim nothing more, finish what runs, give back the rest. Call it from any other thread."""
        self._stop.set()
        self._finished.put(None)

    def run(self, *, drain: bool = False) -> None:
        """Work until stopped; with `drain`, only until nothing is received, due or in flight."""
        self._retried("starting", self._start)
        keeper = threading.Thread(target=self._keep_leases, name="leases", daemon=True)
        keeper.start()
        self._observer.started(self.node, self._crew_of)
        while not self._stop.is_set():
            more = self._retried("working", self._cycle)
            if drain and not more and not self._in_hand and self._retried("working", self._is_drained):
                break
            self._wait(busy=bool(more))
        self._shut_down()
        self._ended.set()
        keeper.join()

    def _start(self) -> None:
        nodes.start_node(self._database, self.node, socket.gethostname(), os.getpid(), version("inbox-relay"))

    def _cycle(self) -> bool:
        """One round of every step. Returns whether there was anything to do."""
        self._collect()
        recorded = self._record()
        self._reap()
        return self._sequence() + self._claim() + recorded > 0

    def _collect(self) -> None:
        while True:
            try:
                finished = self._finished.get_nowait()
            except queue.Empty:
                return
            if finished is not None:
                self._unrecorded.append(finished)

    def _record(self) -> int:
        """Record what has finished. After a failure it is all still there: a second record of the same outcome is fenced off."""
        if not self._unrecorded:
            return 0
        results = record.record(self._database, self._policies, self.node, self._unrecorded)
        for delivery, _ in self._unrecorded:
            self._crew_of[delivery.route].in_hand -= 1
        self._leases.forget(claim_of(delivery) for delivery, _ in self._unrecorded)
        self._unrecorded = []
        self._observer.recorded(results)
        return len(results)

    def _reap(self) -> None:
        if time.monotonic() >= self._reap_at:
            self._observer.reaped(claim.reap(self._database, self._policies, self.node))
            self._reap_at = time.monotonic() + REAP_EVERY_SECONDS

    def _sequence(self) -> int:
        """Order all that arrived before anything of it is claimed; of a mountain, some at a time, so that work goes on."""
        done = 0
        while sequence.any_received(self._database):
            batch = sequence.sequence(self._database, self._policies, self.node)
            done += batch
            if batch < sequence.BATCH or done >= MOST_SEQUENCED_AT_ONCE:
                break
        return done

    def _claim(self) -> int:
        """Fill every crew that wants more."""
        wanted = [(crew.take_turn(), crew.room) for crew in self._crews if crew.wants_more]
        if not wanted:
            return 0
        began = self._leases.began_asking()
        claimed = claim.claim(self._database, self.node, wanted)
        self._leases.granted(map(claim_of, claimed), began)
        for delivery in claimed:
            self._crew_of[delivery.route].hand_over(delivery)
        return len(claimed)

    def _wait(self, *, busy: bool) -> None:
        """For an outcome, at most as long as the poll: 20 ms after work, twice as long after each idle round, up to 500 ms."""
        self._poll = BUSY_POLL_SECONDS if busy else min(self._poll * 2, IDLE_POLL_SECONDS)
        try:
            finished = self._finished.get(timeout=self._poll)
        except queue.Empty:
            return
        if finished is not None:
            self._unrecorded.append(finished)

    @property
    def _in_hand(self) -> int:
        return sum(crew.in_hand for crew in self._crews)

    def _is_drained(self) -> bool:
        return nodes.is_drained(self._database, list(self._crew_of))

    def _shut_down(self) -> None:
        """What nobody has begun goes back unused; what runs may finish within the grace period, and is cut after it."""
        untouched = [claim_of(delivery) for crew in self._crews for delivery in crew.take_back()]
        self._tried("giving back", lambda: claim.give_back(self._database, untouched))
        self._leases.forget(untouched)
        deadline = time.monotonic() + self._grace
        cut = False
        while self._in_hand:
            left = deadline - time.monotonic()
            if left <= 0 and cut:
                break
            if left <= 0:
                self._leases.revoke()
                cut, deadline = True, time.monotonic() + BUSY_POLL_SECONDS * 50
                continue
            try:
                finished = self._finished.get(timeout=left)
            except queue.Empty:
                continue
            if finished is not None:
                self._unrecorded.append(finished)
                self._collect()
                self._tried("recording", self._record)
        for crew in self._crews:
            crew.end()
        self._tried("stopping", lambda: nodes.stop_node(self._database, self.node))
        self._observer.stopped(self.node, len(untouched))

    def _keep_leases(self) -> None:
        """Renew every 5 s. A lease that can't be renewed is trusted until its time, then its calls are cut."""
        while not self._ended.wait(RENEW_EVERY_SECONDS):
            began = self._leases.began_asking()
            try:
                if held := self._leases.held():
                    self._leases.renewed(claim.renew(self._database, held), began)
                nodes.heartbeat(self._database, self.node)
            except SQLAlchemyError as error:
                self._observer.database_trouble("renewing leases", error)

    def _retried(self, what: str, step: Callable[[], _Result]) -> _Result | None:
        """Run a step until the database takes it, or we are told to stop."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SQLAlchemyError),
            wait=tenacity.wait_random_exponential(multiplier=0.1, max=5),
            stop=tenacity.stop_when_event_set(self._stop),
            sleep=tenacity.sleep_using_event(self._stop),
            before_sleep=lambda state: self._observer.database_trouble(what, _exception_of(state)),
            retry_error_callback=lambda state: self._observer.database_trouble(what, _exception_of(state)),
        )
        return retrying(step)

    def _tried(self, what: str, step: Callable[[], object]) -> None:
        """Run a step of the shutdown a few times; what fails then is left to the end of its lease."""
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(SQLAlchemyError),
            wait=tenacity.wait_fixed(0.2),
            stop=tenacity.stop_after_attempt(3),
            retry_error_callback=lambda state: self._observer.database_trouble(what, _exception_of(state)),
        )
        retrying(step)


def _exception_of(state: tenacity.RetryCallState) -> BaseException:
    exception = None if state.outcome is None else state.outcome.exception()
    return exception or RuntimeError("no outcome")
