"""What the relay says of its work: log lines made from facts, after they are committed. The only file that words them."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

from inbox.clock import Clock, SystemClock
from inbox.logs.traces import without_message
from inbox.telemetry import metrics
from inbox.telemetry.metrics import OFF, Meters
from relay.delivery import facts
from relay.delivery.alerts import Posted, sentence
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.delivery.outcome import Delivery
from relay.store.ahead import Ahead
from relay.store.database import FailedAlone
from relay.store.duplicates import Judged
from relay.store.record import Recorded
from relay.store.sweeps import Found

_log = logging.getLogger("relay")
_node_log = logging.getLogger("relay.node")

BREAKER_VALUES = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.RETIRED)
"""What the metric of a breaker stands at: the place of its state here."""


class Observer:
    """Logs and counts. `counts` tells what happened since the process began, by kind of fact; `meters` tells others."""

    def __init__(self, meters: Meters = OFF, clock: Clock | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.meters = meters
        self._left_alone: set[str] = set()
        self._now = (clock or SystemClock()).now

    def recorded(self, results: Iterable[Recorded]) -> None:
        """Outcomes that are committed, or were discarded because their lease was not the present one."""
        for result in results:
            delivery, fact = result.delivery, result.fact
            is_spared = isinstance(fact, facts.AttemptFailed) and not fact.counted
            attempt = delivery.attempt - int(is_spared)  # as delivery_log has it
            where = f"route={delivery.route} seq={delivery.seq} lane={delivery.lane!a} attempt={attempt}"
            if fact is None:
                self.counts["fenced"] += 1
                self.meters.count(metrics.DISCARDED)
                _log.warning("discarded a late result: another claim holds the lease %s", where)
                continue
            kind = facts.kind_of(fact)
            self.counts[kind] += 1
            self._measure(delivery, fact)
            match fact:
                case facts.AttemptFailed():
                    _log.warning("attempt_failed %s due_at=%s error=%a", where, fact.due_at.isoformat(), fact.error)
                case facts.Dead():
                    _log.error("dead %s cause=%s error=%a", where, fact.cause, fact.error)
                case facts.DeliveredFact():
                    _log.info("delivered %s did=%s%s", where, fact.did, " late=true" if fact.late else "")
                case _:
                    _log.info("%s %s", kind, where)

    def _measure(self, delivery: Delivery, fact: facts.AnyFact) -> None:
        match fact:
            case facts.AttemptFailed():
                outcome: str = fact.error_class
            case facts.Dead():
                outcome = fact.cause
            case _:
                outcome = facts.kind_of(fact)
        self.meters.count(metrics.ATTEMPTS, delivery.route, outcome)
        if isinstance(fact, facts.DeliveredFact | facts.UnchangedFact) and delivery.run == 0:
            took = (self._now() - delivery.received_at).total_seconds()
            self.meters.observe(metrics.DELIVERY_SECONDS, max(took, 0), delivery.route)

    def appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        """So many facts of each route and kind were added to the log."""
        for (route, kind), number in facts_of.items():
            self.meters.count(metrics.FACTS, route, kind, by=number)

    def reaped(self, abandoned: Iterable[tuple[int, str, facts.AnyFact]]) -> None:
        """Leases that ran out were taken back."""
        for seq, route, fact in abandoned:
            self.meters.count(metrics.LEASES_EXPIRED)
            self.counts[facts.kind_of(fact)] += 1
            if isinstance(fact, facts.Dead):
                _log.error("dead route=%s seq=%d cause=%s error=%a", route, seq, fact.cause, fact.error)
            else:
                _log.warning("abandoned route=%s seq=%d: its lease ran out; it will be attempted again", route, seq)

    def clock_stepped(self, seconds: float) -> None:
        """The database's clock was set, or the machine that it runs on is another one."""
        self.counts["clock_steps"] += 1
        if seconds > 0:
            then = "until every relay that lives has renewed its leases, none is taken back"
            _log.warning("the database's clock went forward by about %.1f s: %s", seconds, then)
        else:
            then = "what lies further ahead than any rule allows is pulled in"
            _log.warning("the database's clock went back by about %.1f s: %s", -seconds, then)

    def pulled_in(self, times: Sequence[Ahead]) -> None:
        """Times lay further ahead than any rule allows, and do no more."""
        self.counts["pulled_in"] += len(times)
        for column, number in sorted(Counter(time.column for time in times).items()):
            first = next(time for time in times if time.column == column)
            _log.warning(
                "pulled in %s rows=%d: further ahead than any rule allows, first %s seq=%s route=%s from %s to %s",
                column, number, first.about, first.seq, first.route, first.stored.isoformat(), first.furthest.isoformat(),
            )  # fmt: skip

    def judged(self, judged: Judged) -> None:
        """Repeated requests were looked at."""
        self.counts["rearmed"] += judged.rearmed
        if judged.rearmed:
            _log.info("rearmed %d deliveries after %d duplicate requests", judged.rearmed, judged.handled)

    def gates_changed(self, before: Gates, now: Gates) -> None:
        """Something was paused or resumed. Breakers are told as alerts."""
        for key in sorted(now.paused - before.paused):
            _log.warning("paused %s", " ".join(key))
        for key in sorted(before.paused - now.paused):
            _log.warning("resumed %s", " ".join(key))
        for kind, name in before.breakers.keys() | now.breakers.keys():
            was, state = (gates.breakers.get((kind, name), Breaker()).state for gates in (before, now))
            if was is not state and kind in {"destination", "api"}:
                self.meters.put(metrics.BREAKER, BREAKER_VALUES.index(state), kind, name)

    def alerted(self, alerts: Iterable[Posted]) -> None:
        """Something changed for the worse, or has recovered."""
        for posted in alerts:
            alert = posted.alert
            level = logging.ERROR if alert.firing else logging.WARNING
            _log.log(level, "alert %s %s: %s", alert.kind, "firing" if alert.firing else "recovered", sentence(alert))

    def not_posted(self, posted: Posted, error: str) -> None:
        """An alert was not taken; it is posted again in a minute."""
        _log.warning("alert %d not posted, trying again: %s", posted.id, error)

    def swept(self, subject: str, found: Found) -> None:
        """A sweep has come to its end."""
        self.counts["sweeps"] += 1
        self._count_sweep("swept", subject, found)

    def swept_in_part(self, subject: str, found: Found) -> None:
        """A sweep that has not come to its end has added what the next one will not find again."""
        self._count_sweep("swept in part", subject, found)

    def _count_sweep(self, what: str, subject: str, found: Found) -> None:
        for name in ("compared", "missed", "added"):
            self.counts[f"sweep_{name}"] += getattr(found, name)
        self.meters.count(metrics.SWEEP_COMPARED, found.source, found.entity_type, by=found.compared)
        self.meters.count(metrics.SWEEP_MISSED, found.source, found.entity_type, by=found.missed)
        level = logging.WARNING if found.missed else logging.INFO
        figures = (found.compared, found.missed, found.added)
        _log.log(level, "%s %s compared=%d missed=%d added=%d", what, subject, *figures)

    def sweep_failed(self, subject: str, error: str) -> None:
        """A sweep has not come to its end; the next begins again."""
        self.counts["sweep_failed"] += 1
        _log.warning("sweep_failed %s error=%a", subject, error)

    def gauges_broke(self, bug: Exception) -> None:
        """A bug has kept the gauges from being read; they are read again later."""
        _log.error("a look at the backlog ended by a bug", exc_info=without_message(bug))

    def step_failed(self, step: str, error: BaseException, seconds: float) -> None:
        """A step of the relay has failed; the others go on."""
        self.counts["step_failed"] += 1
        self.meters.count(metrics.STEP_FAILURES, step)
        # A driver's own words may show a row, and SQLAlchemy's show what was bound.
        told = without_message(error)
        _log.error("step_failed step=%s again_in=%.1fs: the other steps go on", step, seconds, exc_info=told)

    def thread_stumbled(self, name: str, bug: BaseException) -> None:
        """A bug has come up to the loop of a thread, which goes on."""
        self.counts["thread_stumbled"] += 1
        _log.error("bug in the thread %s, which goes on", name, exc_info=without_message(bug))

    def step_recovered(self, step: str, times: int) -> None:
        """A step works again that has failed so many times."""
        _log.warning("step_recovered step=%s after=%d failures", step, times)

    def failed_alone(self, item: FailedAlone) -> None:
        """An item was put aside, as its step could not work on it; the others of its batch went on."""
        self.counts["failed_alone"] += 1
        self.meters.count(metrics.FAILED_ALONE, item.step)
        _log.error("failed_alone step=%s %s error=%a: the others go on", item.step, item.item, item.error)

    def left_alone(self, what: str) -> None:
        """Something only a newer version knows is left to it. Each is logged once."""
        if what not in self._left_alone:
            self._left_alone.add(what)
            _log.warning("left to a newer version: %s", what)

    def exposed(self, exposures: Iterable[str]) -> None:
        """Files may be read by users who have no business with them."""
        for exposure in exposures:
            _node_log.warning("%s", exposure)

    def started(self, node: str, routes: Iterable[str]) -> None:
        """The relay begins to work."""
        _node_log.info("started node=%s routes=%s", node, ",".join(routes) or "none")

    def given_back(self, number: int) -> None:
        """Claims were returned that nobody has used."""
        self.counts["given_back"] += number
        _log.info("given_back deliveries=%d: not begun, or cut before anything was sent", number)

    def stopping(self, node: str, running: int) -> None:
        """The relay claims nothing more; so many calls run."""
        _node_log.info("stopping node=%s running=%d", node, running)

    def cut(self, node: str, running: int) -> None:
        """So many calls ran for too long, or were not to be waited for."""
        _node_log.warning("cutting node=%s running=%d", node, running)

    def stopped(self, node: str) -> None:
        """The relay has stopped in order."""
        _node_log.info("stopped node=%s given_back=%d", node, self.counts["given_back"])

    def reloaded(self, node: str, routes: Iterable[str]) -> None:
        """The relay works by the configuration as it is now."""
        _node_log.info("reloaded node=%s routes=%s", node, ",".join(routes) or "none")

    def reload_refused(self, mistakes: Iterable[str]) -> None:
        """The configuration as it is now can't be used."""
        for mistake in mistakes:
            _node_log.error("reload refused: %s", mistake)
        _node_log.error("reload refused: the old configuration stays")

    def orphaned(self) -> None:
        """The process that started this one is gone."""
        _node_log.warning("stopping: the parent process is gone")

    def child_started(self, pid: int) -> None:
        """A relay process was started."""
        _node_log.info("child started pid=%d", pid)

    def child_ended(self, pid: int, status: int) -> None:
        """A relay process ended as it should, or while it was told to."""
        _node_log.log(logging.ERROR if status else logging.INFO, "child ended pid=%d %s", pid, _ending(status))

    def child_lost(self, pid: int, status: int, seconds: float) -> None:
        """A relay process ended though nobody had told it to; it is replaced."""
        _node_log.warning("child ended pid=%d %s, another starts in %g s", pid, _ending(status), seconds)

    def child_not_started(self, error: OSError, seconds: float) -> None:
        """The system does not let a relay process start."""
        _node_log.error("child not started, tried again in %g s: %s", seconds, error)

    def database_trouble(self, what: str, error: BaseException) -> None:
        """The database failed; it is tried again."""
        self.counts["database_trouble"] += 1
        self.meters.count(metrics.DATABASE_TROUBLE)
        _log.warning(
            "database trouble while %s, trying again: %s", what, type(getattr(error, "orig", None) or error).__name__
        )


def _ending(status: int) -> str:
    """In words what `Popen.returncode` says."""
    names = {number.value: number.name for number in signal.Signals}
    return f"exit status {status}" if status >= 0 else f"killed by {names.get(-status, f'signal {-status}')}"
