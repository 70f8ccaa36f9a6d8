"""The long-running relay: one loop that owns the work, and threads: some make the calls, one keeps the leases, one sweeps.

The loop records what has finished, takes back leases that ran out, sequences what arrived and claims what is due. Every
step is a short transaction; none is open during a call. What other threads have for the loop, they put into its mail.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from functools import partial
from importlib.metadata import version
from typing import TypeVar

from sqlalchemy.exc import SQLAlchemyError

from inbox.clock import Clock, SystemClock
from inbox.config.model import Config
from relay.daemon import GRACE_SECONDS
from relay.daemon.alert_sender import Done
from relay.daemon.claimer import Claimer
from relay.daemon.generation import Generations, LoopEvent, Setup
from relay.daemon.leases import RENEW_EVERY_SECONDS, Leases, claim_of
from relay.daemon.maintenance import Maintenance
from relay.daemon.pool import Finished
from relay.daemon.retries import tried, until_done
from relay.delivery.outcome import Failed
from relay.delivery.policy import can_be_given_back
from relay.destinations import Deliverer
from relay.http.client import HttpClient
from relay.observe import Observer
from relay.steps import Steps
from relay.store import alerts, claim, nodes, record, sequence
from relay.store.database import Database
from relay.sweep.scheduler import Sweeper, scheduled

BUSY_POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.5
RENEW_AGAIN_SECONDS = 0.2
MOST_SEQUENCED_AT_ONCE = 10 * sequence.BATCH
UNRECORDABLE_AGAIN_SECONDS = 30.0
CUT_SECONDS = 1.0
"""How long calls that are cut have to come back; the watchdog needs a twentieth of it."""

_Result = TypeVar("_Result")


class Relay:
    """One relay process. `run` works until `stop` is called from another thread."""

    def __init__(
        self,
        database: Database,
        config: Config,
        deliverers: Mapping[str, Deliverer],
        *,
        alerts: HttpClient | None = None,
        observer: Observer | None = None,
        clock: Clock | None = None,
        grace_seconds: float = GRACE_SECONDS,
    ) -> None:
        self.node = str(uuid.uuid4())
        self._database = database
        self._observer = observer or Observer()
        self._now = (clock or SystemClock()).now
        self._grace = grace_seconds
        self._leases = Leases()
        self._stop = threading.Event()
        self._cut = threading.Event()
        self._ended = threading.Event()
        self._mail: queue.SimpleQueue[LoopEvent] = queue.SimpleQueue()
        self._unrecorded: dict[claim.Claimed, Finished] = {}
        self._unrecordable: list[tuple[float, Finished]] = []
        """What could neither be recorded nor become dead, and when it is tried again (monotonic seconds)."""
        self._unused: list[claim.Claimed] = []
        """Claims that were not begun, or were cut in time: to be given back."""
        self._poll = BUSY_POLL_SECONDS
        self._is_behind = False
        """More has arrived than could be ordered at once."""
        self._is_idle = False
        """Nothing has come back for as long as the poll."""
        database.on_failed_alone = self._observer.failed_alone
        self._steps = Steps(self._observer, alert=self._alert, is_healthy=self._takes_writes)
        self._claiming = Claimer(database, self.node, self._leases, self._observer)
        self._upkeep = Maintenance(
            database, self.node, self._claiming, self._observer, leases=self._leases, steps=self._steps
        )
        setup = Setup(config, deliverers, alerts, scheduled(config))
        self._sweeper = Sweeper(
            database,
            self.node,
            setup.sweepings,
            stop=self._stop,
            now=self._now,
            observer=self._observer,
            steps=self._steps,
        )
        self._staff = Generations(setup, leases=self._leases, stop=self._stop, now=self._now, mail=self._mail)

    def stop(self) -> None:
        """End in order: claim nothing more, finish what runs, give back the rest. Call it from any other thread."""
        self._stop.set()
        self._mail.put(None)

    def cut(self) -> None:
        """End now: cut running calls, give back what can't have had an effect. Call it from any other thread."""
        self._cut.set()
        self.stop()

    def reload(self, config: Config, deliverers: Mapping[str, Deliverer], alerts: HttpClient | None = None) -> None:
        """Work by another configuration from the next cycle on; what has begun finishes by the old. Call it from any thread.

        What an attempt comes to, such as when it is repeated, follows the policies in force when it is recorded.

        Raises:
            ConfigError: a sweep can't be run as configured; nothing is changed.
        """
        self._mail.put(Setup(config, deliverers, alerts, scheduled(config)))

    def run(self, *, drain: bool = False) -> None:
        """Work until stopped; with `drain`, only until nothing is received, due or in flight.

        A bug in the loop, or in what renews the leases, ends it too: in order as far as possible, then it is raised. It is
        not noted as stopped then, so that others see a relay that died.
        """
        self._retried("starting", self._start)
        with ThreadPoolExecutor(1, "leases") as threads, ExitStack() as leaving:
            keeper = threads.submit(self._keep_leases)
            leaving.callback(self._ended.set)
            leaving.callback(self._shut_down)
            keeper.add_done_callback(lambda _: self.stop())  # without renewals nothing may go on
            self._observer.started(self.node, self._staff.crews.routes)
            if not drain:
                self._sweeper.start()
            self._work(drain=drain)
        keeper.result()
        self._tried("stopping", lambda: nodes.stop_node(self._database, self.node), times=3)
        self._observer.stopped(self.node)

    def _start(self) -> None:
        nodes.start_node(self._database, self.node, socket.gethostname(), os.getpid(), version("inbox-relay"))

    def _work(self, *, drain: bool) -> None:
        while not self._stop.is_set():
            more = self._retried("working", self._cycle)
            if drain and not more and not self._staff.in_hand and self._retried("working", self._is_drained):
                break
            self._wait(busy=bool(more))

    def _cycle(self) -> bool:
        """One round of every step. Returns whether there was anything to do.

        Raises:
            Exception: the database is unreachable; or recording or claiming fails for good.
        """
        self._collect()
        run = self._steps.run
        done = run("give_back", self._give_back, 0) + run("record", self._record, 0)
        self._staff.dismiss()
        done += self._upkeep.do(self._staff.config, self._staff.policies, self._staff.poster)
        done += run("sequence", self._sequence, 0)
        if not self._steps.is_awaited("sequence"):
            done += run("claim", self._claim, 0) + run("claim_suspect", self._claim_suspect, 0)
        return done > 0

    def _collect(self) -> None:
        while True:
            try:
                self._accept(self._mail.get_nowait())
            except queue.Empty:
                return

    def _accept(self, letter: LoopEvent) -> None:
        match letter:
            case Finished(delivery=delivery, outcome=outcome, crew=crew) if can_be_given_back(outcome):
                crew.let_go(delivery)
                self._unused.append(claim_of(delivery))
            case Finished():
                self._unrecorded[claim_of(letter.delivery)] = letter
            case Done():
                self._upkeep.posted(letter)
            case Setup() if not self._stop.is_set():
                self._unused += map(claim_of, self._staff.change_over(letter))
                self._sweeper.change_over(letter.sweepings)
                self._observer.reloaded(self.node, self._staff.crews.routes)
            case _:
                pass  # told to stop: the loop looks by itself

    def _take_back(self) -> None:
        self._unused += map(claim_of, self._staff.crews.take_back())

    def _give_back(self) -> int:
        """Return what is not used. After a failure it is all still there, and no harm is done twice."""
        if not self._unused:
            return 0
        returned = claim.give_back(self._database, self._staff.policies, self.node, self._unused)
        self._leases.forget(self._unused)
        self._unused = []
        self._observer.given_back(returned)
        return returned

    def _record(self) -> int:
        """Record what has finished. After a failure what is left is still there: a second record of an outcome is fenced off."""
        self._take_up_unrecordable()
        if not self._unrecorded:
            return 0
        outcomes = [(finished.delivery, finished.outcome) for finished in self._unrecorded.values()]
        watched = self._claiming.troubled(self._staff.policies)
        number = 0
        parts = record.record_each(
            self._database, self._staff.policies, self.node, outcomes, watched, host_now=self._now
        )
        for results in parts:
            for result in results:
                self._recorded(result)
            number += len(results)
            self._observer.recorded(result for result in results if result.error is None)
        if watched or any(isinstance(outcome, Failed) for _, outcome in outcomes):
            self._claiming.look_at_gates()
        return number

    def _recorded(self, result: record.Recorded) -> None:
        key = claim_of(result.delivery)
        finished = self._unrecorded.pop(key)
        if result.error is None:
            finished.crew.let_go(finished.delivery)
            self._leases.forget([key])
        else:  # it stays leased, so that its call is not repeated
            self._observer.step_failed("record", result.error, UNRECORDABLE_AGAIN_SECONDS)
            self._unrecordable.append((time.monotonic() + UNRECORDABLE_AGAIN_SECONDS, finished))

    def _take_up_unrecordable(self) -> None:
        while self._unrecordable and self._unrecordable[0][0] <= time.monotonic():
            finished = self._unrecordable.pop(0)[1]
            self._unrecorded[claim_of(finished.delivery)] = finished

    def _sequence(self) -> int:
        """Order all that arrived before anything of it is claimed.

        Of a mountain, some whenever claims run short of it or nothing else is to be done: so that work goes on.
        """
        done = 0
        if self._is_behind and not (self._claiming.ran_short or self._is_idle):
            return 0
        while sequence.any_received(self._database):
            batch = sequence.sequence(self._database, self._staff.policies, self.node)
            done += batch
            self._is_behind = batch == sequence.BATCH
            if not self._is_behind or done >= MOST_SEQUENCED_AT_ONCE or self._staff.in_hand:
                break
        return done

    def _claim(self) -> int:
        """Fill every crew that wants more."""
        return self._claiming.claim(self._staff.policies, self._staff.crews)

    def _claim_suspect(self) -> int:
        """One suspect besides, never two."""
        return 0 if self._staff.suspects else self._claiming.claim_suspect(self._staff.policies, self._staff.crews)

    def _wait(self, *, busy: bool) -> None:
        """For mail, at most as long as the poll: 20 ms after work, twice as long after each idle round, up to 500 ms."""
        self._poll = BUSY_POLL_SECONDS if busy else min(self._poll * 2, IDLE_POLL_SECONDS)
        self._accept_within(self._poll)

    def _accept_within(self, seconds: float) -> None:
        try:
            self._accept(self._mail.get(timeout=seconds))
            self._is_idle = False
        except queue.Empty:
            self._is_idle = True

    def _is_drained(self) -> bool:
        """What a gate holds back is not to be waited for: nobody knows for how long."""
        routes = self._claiming.admitted(self._staff.policies, self._staff.crews.routes, "all", "probe")
        return nodes.is_drained(self._database, routes, self._claiming.gates.paused_entities)

    def _shut_down(self) -> None:
        """What nobody has begun goes back unused; what runs may finish within the grace period, and is cut after it."""
        self._stop.set()
        self._take_back()
        self._tried("giving back", self._give_back)
        self._observer.stopping(self.node, self._staff.in_hand)
        deadline = time.monotonic() + self._grace
        while (self._staff.in_hand or self._unused) and not self._cut.is_set() and time.monotonic() < deadline:
            self._finish(deadline)
        if self._staff.in_hand:
            self._leases.revoke()
            self._observer.cut(self.node, self._staff.in_hand)
        deadline = time.monotonic() + CUT_SECONDS
        while (self._staff.in_hand or self._unused) and time.monotonic() < deadline:
            self._finish(deadline)
        self._staff.end()
        self._sweeper.join(CUT_SECONDS)

    def _finish(self, deadline: float) -> None:
        """Wait for an outcome, but not for long: the database may take now what it did not take a moment ago."""
        self._accept_within(max(min(deadline - time.monotonic(), IDLE_POLL_SECONDS), 0))
        self._collect()
        self._tried("giving back", self._give_back)
        self._tried("recording", self._record)

    def _keep_leases(self) -> None:
        """Renew every 5 s. A lease that can't be renewed is trusted until its time, then its calls are cut.

        A renewal passes over rows that somebody has locked, such as who settles their lanes: it asks for them again soon.
        """
        nothing: set[claim.Claimed] = set()
        pause = RENEW_EVERY_SECONDS
        while not self._ended.wait(pause):
            pause = RENEW_EVERY_SECONDS
            try:
                left = self._steps.run("renew", lambda: self._renew(self._leases.held()), nothing)
                self._steps.run("heartbeat", self._say_that_it_lives, None)
                while left and pause > RENEW_AGAIN_SECONDS and not self._ended.wait(RENEW_AGAIN_SECONDS):
                    pause -= RENEW_AGAIN_SECONDS
                    again = left.intersection(self._leases.held())
                    left = self._steps.run("renew", partial(self._renew, again), nothing)
            except SQLAlchemyError as error:  # no connection was to be had, either
                self._observer.database_trouble("renewing leases", error)

    def _say_that_it_lives(self) -> None:
        nodes.heartbeat(self._database, self.node, self._steps.failing)

    def _alert(self, step: str, error: str) -> None:
        """Note that a step fails, as far as that can be noted."""
        try:
            alerts.step_failed(self._database, step, error)
            self._say_that_it_lives()
        except Exception as second:  # noqa: BLE001  # the step's own failure is logged already, and is what counts
            self._observer.database_trouble("alerting", second)

    def _takes_writes(self) -> bool:
        try:
            self._say_that_it_lives()
        except Exception as error:  # noqa: BLE001  # whatever it is, the database is not well
            self._observer.database_trouble("looking whether it takes writes", error)
            return False
        return True

    def _renew(self, held: Collection[claim.Claimed]) -> set[claim.Claimed]:
        """Renew these. Returns those that are to be asked for again; not those that are lost."""
        if not held:
            return set()
        began = self._leases.began_asking()
        renewed = claim.renew(self._database, held)
        self._leases.renewed(renewed, began)
        return claim.passed_over(self._database, set(held) - renewed)

    def _retried(self, what: str, step: Callable[[], _Result]) -> _Result | None:
        """Run a step until the database takes it, or we are told to stop."""
        return until_done(what, step, unless=self._stop, observer=self._observer)

    def _tried(self, what: str, step: Callable[[], object], times: int = 1) -> None:
        """Run a step of the shutdown; what fails is tried again while there is time, or left to the end of its lease."""
        tried(what, step, times=times, observer=self._observer)
