"""The relay's loop. Threads beside it make the calls, renew leases, post alerts, sweep and prune.

The loop records finished attempts, rescues expired leases, sequences new events and claims due deliveries. Every step
uses short transactions; none is open during a call. Other threads pass their results to the loop through one queue.
"""

from __future__ import annotations

import os
import queue
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import ExitStack
from importlib.metadata import version

from inbox.clock import Clock, SystemClock
from inbox.db.engine import is_behind_pooler
from inbox.db.throughput import FLUSH_EVERY_SECONDS
from relay.daemon.alerts import AlertSender
from relay.daemon.claimer import Claimer
from relay.daemon.generation import FinishedAttempt, Generations, LoopEvent, PreparedConfig
from relay.daemon.leases import RENEW_EVERY_SECONDS, Leases
from relay.daemon.pruner import Pruner
from relay.daemon.wake_up import Listener
from relay.delivery.outcome import Failed
from relay.delivery.policy import Policies, asks_for_hold, can_be_given_back
from relay.http.client import Limits
from relay.observe import Observer
from relay.steps import Repeated, Steps, run_beside
from relay.store import alerts, duplicates, leases, nodes, record, sequence
from relay.store.alert_conditions import Watch
from relay.store.database import Database, ScanStarts
from relay.store.deliveries import LeaseKey, lease_key_of
from relay.store.leases import DatabaseClock
from relay.store.operator import execution
from relay.store.retention import LeasedPruner
from relay.store.work import Work
from relay.sweep.scheduler import Sweeper

BUSY_POLL_SECONDS = 0.02
IDLE_POLL_SECONDS = 0.5
EVERY_SECONDS = 1.0
"""Interval for reading changes made by operators and other relays: a pause stops all relays within about a second."""
WATCH_EVERY_SECONDS = 15.0
MOST_SEQUENCED_AT_ONCE = 10 * sequence.BATCH
CUT_SECONDS = 1.0
"""Seconds to wait for cut calls to return; `relay.http.guard.Watchdog` ends them within a twentieth of that time."""


class Relay:
    """A relay process. `run` works until `stop` is called from another thread."""

    def __init__(
        self,
        database: Database,
        prepared: PreparedConfig,
        *,
        grace_seconds: float,
        observer: Observer | None = None,
        clock: Clock | None = None,
    ) -> None:
        """Prepare the relay. After a stop, calls may run for `grace_seconds` under renewed leases before they are cut."""
        self.node = str(uuid.uuid4())
        self._database = database
        self._observer = observer = observer or Observer()
        now = self._now = (clock or SystemClock()).now
        self._grace = grace_seconds
        self._leases = held = Leases()
        self._stop = stop = threading.Event()
        self._cut = threading.Event()
        self._ended = threading.Event()
        self._events: queue.SimpleQueue[LoopEvent] = queue.SimpleQueue()
        self._described: Policies | None = None
        """The policies whose routes are stored in `relay_node`."""
        self._unrecorded: dict[LeaseKey, FinishedAttempt] = {}
        self._to_give_back: list[LeaseKey] = []
        """Claims to give back: unstarted, or cut before any request was sent."""
        self._poll = BUSY_POLL_SECONDS
        self._is_woken = False
        """True while a wake-up is queued; a second one would add nothing."""
        self._is_idle = False
        """True when the last wait brought no result."""
        self._steps = steps = Steps(observer, alert=self._alert, is_healthy=self._takes_writes)
        work = Work(database, prepared.config, {}, self.node, observer)
        self._locked_routes, self._scans = work.locked_routes, ScanStarts()
        self._generations = Generations(
            prepared, work, leases=held, stop=stop, now=now, events=self._events, tracer=observer.tracer
        )
        self._claimer = Claimer(self._generations, self._scans, held, observer)
        self._clock = DatabaseClock(on_step=observer.on_clock_step)
        self._watch = Watch()
        self._commands = execution.OpenCommands()
        self._duplicates: duplicates.Unjudged | None = None
        """The duplicates to judge in the next round."""
        self._sweeper = Sweeper(work, prepared.sweeps, stop=stop, now=now, observer=observer, steps=steps)
        self._pruner = Pruner(lambda: self._work, LeasedPruner(database, self.node, stop.wait), stop, observer, steps)
        self._alert_sender = AlertSender(self._generations, Limits(lambda: float("inf"), stop, now), observer, steps)
        self._listener = Listener(database.engine, self.wake, stop, observer)
        self._threads: list[threading.Thread] = []
        """The threads beside the loop, which end after a stop."""
        self._table = self._list_steps()
        """The steps of a round, in order."""

    def _list_steps(self) -> list[Repeated]:
        return [
            Repeated("give_back", 0, self._give_back),
            Repeated("record", 0, self._record),
            Repeated("look_at_gates", EVERY_SECONDS, self._claimer.read_gates, paces=False),
            Repeated("rescue", EVERY_SECONDS, self._rescue),
            Repeated("judge_duplicates", EVERY_SECONDS, self._judge_duplicates),
            Repeated("look_at_conditions", WATCH_EVERY_SECONDS, self._look_at_conditions),
            Repeated("log_alerts", EVERY_SECONDS, self._log_alerts),
            Repeated("flush_throughput", FLUSH_EVERY_SECONDS, self._flush_throughput),
            Repeated("commands", EVERY_SECONDS, self._work_on_commands, paces=False),
            Repeated("sequence", 0, self._sequence, when=self._may_sequence),
            # before the ordinary claims, which would use up the rate
            Repeated("claim_suspect", EVERY_SECONDS, self._claimer.claim_suspect, when=self._may_claim_suspect),
            Repeated("claim", 0, self._claimer.claim, when=self._may_claim),
        ]

    def stop(self) -> None:
        """Stop gracefully: stop claiming, finish running calls, give back the rest. Call it from any other thread."""
        self._stop.set()
        self._events.put(None)

    def wake(self) -> None:
        """Look for work now instead of at the end of the poll. Call it from any thread."""
        if not self._is_woken:
            self._is_woken = True
            self._events.put(None)

    def cut(self) -> None:
        """Stop now: cut running calls, and give back those that can't have had an effect. Call it from any other thread."""
        self._cut.set()
        self.stop()

    def reload(self, prepared: PreparedConfig) -> None:
        """Activate another configuration in the next round; running calls finish under the old. Call it from any thread.

        Outcomes are judged by the policies that are active when they are recorded.
        """
        self._events.put(prepared)

    def run(self, *, drain: bool = False) -> None:
        """Work until stopped; with `drain`, until nothing is received, due or in flight.

        A bug in the loop also ends it, as gracefully as possible, and is raised. The node is then not marked as stopped, so
        that other relays and `relay status` see a relay that died.
        """
        self._steps.retry_until_done("starting", self._describe, unless=self._stop)
        with ExitStack() as leaving:
            self._observer.log("started", node=self.node, routes=",".join(self._generations.active.routes) or "none")
            renewing = run_beside(
                "leases", self._renew, every=RENEW_EVERY_SECONDS, stop=self._ended, observer=self._observer
            )
            leaving.callback(renewing.join, CUT_SECONDS)
            leaving.callback(self._ended.set)
            leaving.callback(self._shut_down)
            self._run_beside("alerts", self._alert_sender.run_due)
            if not drain:
                self._sweeper.start()
                self._run_beside("prune", self._pruner.run_due)
                if self._work.config.database.wake_up and not is_behind_pooler(self._database.engine):
                    self._run_beside("wake-up", self._listener.hear)
            self._go_on(drain=drain)
        self._steps.attempt("stopping", lambda: nodes.stop_node(self._database, self.node), times=3)
        self._observer.log("stopped", node=self.node, rows=self._observer.counts["given_back"])

    @property
    def _work(self) -> Work:
        return self._generations.active.work

    def _run_beside(self, name: str, work: Callable[[], float | None]) -> None:
        self._threads.append(run_beside(name, work, every=EVERY_SECONDS, stop=self._stop, observer=self._observer))

    def _describe(self) -> None:
        work = self._work
        # One transaction: on a slow disk each commit may take seconds.
        nodes.describe(work, socket.gethostname(), os.getpid(), version("inbox-relay"))
        self._described = work.policies

    def _go_on(self, *, drain: bool) -> None:
        while not self._stop.is_set():
            more = self._steps.retry_until_done("working", self._cycle, unless=self._stop)
            is_at_rest = drain and not more and not self._generations.in_hand
            if is_at_rest and self._steps.retry_until_done("working", self._is_drained, unless=self._stop):
                break
            self._wait(busy=bool(more))

    def _cycle(self) -> bool:
        """Run one round of all steps. Returns whether there was anything to do.

        Raises:
            Exception: the database is unreachable, or recording or claiming keeps failing.
        """
        self._collect()
        done = sum(step.run(self._steps) for step in self._table)
        self._generations.close_drained()
        return done > 0

    def _may_sequence(self) -> bool:
        """Return whether to sequence now. A large backlog waits until the last claim found too little, or the loop is idle."""
        return not self._scans.is_behind or self._claimer.ran_short or self._is_idle

    def _may_claim(self) -> bool:
        return not self._steps.is_awaited("sequence")

    def _may_claim_suspect(self) -> bool:
        return self._may_claim() and not self._generations.suspects

    def _collect(self) -> None:
        while True:
            try:
                self._accept(self._events.get_nowait())
            except queue.Empty:
                return

    def _accept(self, event: LoopEvent) -> None:
        match event:
            case FinishedAttempt(delivery=delivery, outcome=outcome, pool=pool) if can_be_given_back(outcome):
                pool.release(delivery)
                self._to_give_back.append(lease_key_of(delivery))
            case FinishedAttempt():
                self._unrecorded[lease_key_of(event.delivery)] = event
            case PreparedConfig() if not self._stop.is_set():
                self._to_give_back += map(lease_key_of, self._generations.activate(event))
                self._sweeper.replace_sweeps(event.sweeps)
                self._observer.log(
                    "reloaded", node=self.node, routes=",".join(self._generations.active.routes) or "none"
                )
            case None:  # a wake-up, or a stop, which the loop checks anyway
                self._is_woken = False
            case _:
                pass  # a configuration that arrives after a stop

    def _give_back(self) -> int:
        """Give back unused claims. After a failure they are kept for another try, which is harmless."""
        done, number = leases.give_back(self._work, self._to_give_back)
        self._leases.forget(done)
        self._to_give_back = [one for one in self._to_give_back if one not in done]
        if done:
            self._observer.log("given_back", rows=number)
        return number

    def _record(self) -> int:
        """Record finished attempts. After a failure the rest are kept; the fence discards a second record."""
        if not self._unrecorded:
            return 0
        outcomes = [(finished.delivery, finished.outcome) for finished in self._unrecorded.values()]
        recently_failing = self._claimer.gates.list_recently_failing()
        number = 0
        for results in record.record(self._work, outcomes, recently_failing, host_now=self._now):
            for result in results:
                self._forget_recorded(result)
            number += len(results)
            self._observer.on_recorded(results)
        done = [outcome for delivery, outcome in outcomes if lease_key_of(delivery) not in self._unrecorded]
        if done and (recently_failing or any(isinstance(each, Failed) or asks_for_hold(each) for each in done)):
            self._claimer.read_gates()
        return number

    def _forget_recorded(self, result: record.Recorded) -> None:
        key = lease_key_of(result.delivery)
        finished = self._unrecorded.pop(key)
        finished.pool.release(finished.delivery)
        self._leases.forget([key])

    def _sequence(self) -> int:
        """Sequence all new deliveries before claiming, or one part of a large backlog."""
        done = 0
        # 0: another relay has sequenced the whole batch; the next round scans again.
        while batch := sequence.sequence(self._work, self._scans):
            done += batch
            if not self._scans.is_behind or done >= MOST_SEQUENCED_AT_ONCE or self._generations.in_hand:
                break
        return done

    def _rescue(self) -> int:
        self._observer.on_rescued(leases.rescue_expired(self._work, self._leases.list_trusted(), self._clock))
        return 0

    def _judge_duplicates(self) -> int:
        """Judge a round of duplicates. Returns 1 if more can be judged at once."""
        rest, self._duplicates = self._duplicates, None
        judged = duplicates.judge_duplicates(self._work, rest)
        self._duplicates = judged.rest
        if judged.rearmed:
            self._observer.log("rearmed", rows=judged.rearmed, handled=judged.handled)
        return int(judged.rest is not None)

    def _look_at_conditions(self) -> int:
        self._watch.check(self._work)
        return 0

    def _log_alerts(self) -> int:
        self._observer.on_alerts(alerts.take_unlogged(self._work))
        return 0

    def _flush_throughput(self) -> int:
        nodes.flush_figures(self._database, self._work.config.routes)
        return 0

    def _work_on_commands(self) -> int:
        """Run a batch of each open command. Returns the number of changed deliveries."""
        changed = self._commands.work(self._work)
        if self._commands.are_open:
            self._claimer.read_gates()  # one may be a pause
        return changed

    def _wait(self, *, busy: bool) -> None:
        """Wait for an event, at most until the next poll: 20 ms after work, doubled after each idle round, up to 500 ms.

        The listener ends the wait at each commit; the poll covers missed notifications.
        """
        self._poll = BUSY_POLL_SECONDS if busy else min(self._poll * 2, IDLE_POLL_SECONDS)
        self._accept_within(self._poll)

    def _accept_within(self, seconds: float) -> None:
        try:
            event = self._events.get(timeout=seconds)
            self._is_idle = event is None
            self._accept(event)
        except queue.Empty:
            self._is_idle = True

    def _is_drained(self) -> bool:
        """Return whether only held-back deliveries are left: a drain doesn't wait for gates to open."""
        active = self._generations.active
        routes = active.select_admitted(self._claimer.gates, active.routes, "all", "probe")
        return nodes.is_drained(self._database, routes)

    def _shut_down(self) -> None:
        """Give back unstarted deliveries; let running calls finish within the grace period, then cut them."""
        self._stop.set()
        self._to_give_back += map(lease_key_of, self._generations.active.withdraw_unstarted())
        self._steps.attempt("giving back", self._give_back)
        self._observer.log("stopping", node=self.node, rows=self._generations.in_hand)
        self._finish_within(self._grace, unless=self._cut.is_set)
        if self._generations.in_hand:
            self._leases.revoke()
            self._observer.log("cutting", node=self.node, rows=self._generations.in_hand)
        self._finish_within(CUT_SECONDS)
        self._steps.attempt("writing figures", self._flush_throughput)
        self._generations.close()
        self._sweeper.join(CUT_SECONDS)
        for thread in self._threads:
            thread.join(CUT_SECONDS)

    def _finish_within(self, seconds: float, *, unless: Callable[[], bool] = lambda: False) -> None:
        """Record and give back until nothing is in hand. Retries often: the database may recover."""
        deadline = time.monotonic() + seconds
        while (self._generations.in_hand or self._to_give_back) and not unless() and time.monotonic() < deadline:
            self._accept_within(max(min(deadline - time.monotonic(), IDLE_POLL_SECONDS), 0))
            self._collect()
            self._locked_routes.try_all()  # this try may be the last
            self._steps.attempt("giving back", self._give_back)
            self._steps.attempt("recording", self._record)

    def _renew(self) -> None:
        """Renew all leases and store the heartbeat. A lease that can't be renewed is trusted until it ends."""
        self._steps.run("renew", self._renew_leases, None)
        self._steps.run("heartbeat", self._heartbeat, None)

    def _renew_leases(self) -> None:
        if held := self._leases.held():
            asked_at = self._leases.now()
            self._leases.extend(leases.renew(self._database, held), asked_at)

    def _heartbeat(self) -> None:
        """Store the steps that fail now or meet a locked route. If two threads race, the next heartbeat corrects the row."""
        nodes.heartbeat(self._database, self.node, {**self._locked_routes.as_texts(), **self._steps.failing})
        if self._work.policies is not self._described:
            self._describe()

    def _alert(self, step: str, error: str) -> bool:
        """Store an alert for a failing step. Returns False if the database refuses it now."""
        try:
            self._heartbeat()  # first: a relay that finds the alert without a failing step would end it
            alerts.alert_failing_step(self._work, step, error)
        except Exception as second:  # noqa: BLE001  # the step's own failure is already logged
            self._observer.on_database_trouble("alerting", second)
            return False
        return True

    def _takes_writes(self) -> bool:
        try:
            self._heartbeat()
        except Exception as error:  # noqa: BLE001  # any error shows that the database is unhealthy
            self._observer.on_database_trouble("checking whether it takes writes", error)
            return False
        return True
