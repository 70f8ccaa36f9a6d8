"""Log lines and counters of the relay, made from facts after their commit. The only file that words them."""

from __future__ import annotations

import logging
import signal
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

from inbox.clock import Clock, SystemClock
from inbox.db.dialect import trouble_text
from inbox.events.timestamps import time_text
from inbox.observe import metrics
from inbox.observe.logs import LogKeys, fields, without_message
from inbox.observe.metrics import OFF, Meters
from inbox.observe.traces import OFF as OFF_TRACER
from relay.delivery import facts
from relay.delivery.alerts import Posted, sentence
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.store.duplicates import Judged
from relay.store.record import Recorded
from relay.store.sweeps import SweepFindings
from relay.store.transaction import FailedAlone

_log = logging.getLogger("relay")
_node_log = logging.getLogger("relay.node")

BREAKER_VALUES = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.RETIRED)
"""The states of a breaker, in the order of their values in its metric."""


class Observer:
    """Logs and counts. `counts` has the totals of this process, by kind of fact; `meters` exports metrics."""

    def __init__(self, meters: Meters = OFF, clock: Clock | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.meters = meters
        self.tracer = OFF_TRACER
        """Traces attempts, sweeps and commands."""
        self._left_alone: set[str] = set()
        self._now = (clock or SystemClock()).now

    def recorded(self, results: Iterable[Recorded]) -> None:
        """Log and count outcomes: committed ones, and those that another claim's fencing token discarded."""
        for result in results:
            delivery, fact = result.delivery, result.fact
            is_spared = isinstance(fact, facts.AttemptFailed) and not fact.counted
            attempt = delivery.attempt - int(is_spared)  # as delivery_log has it
            where = f"route={delivery.route} seq={delivery.seq} lane={delivery.lane!a} attempt={attempt}"
            keys = partial(
                fields,
                ids=delivery.trace_ids,
                source=delivery.source,
                route=delivery.route,
                seq=delivery.seq,
                lane=delivery.lane,
                attempt=attempt,
            )
            if fact is None:
                self.counts["fenced"] += 1
                self.meters.count(metrics.DISCARDED)
                _log.warning(
                    "discarded a late result: another claim holds the lease %s", where, extra=keys("result_discarded")
                )
                continue
            kind = outcome = facts.kind_of(fact)
            self.counts[kind] += 1
            match fact:
                case facts.AttemptFailed():
                    outcome = fact.error_class
                    due_at = time_text(fact.due_at)
                    extra = keys(kind, due_at=due_at, cause=fact.error_class, error=fact.error)
                    _log.warning(
                        "attempt_failed %s due_at=%s error=%a", where, fact.due_at.isoformat(), fact.error, extra=extra
                    )
                case facts.Dead():
                    outcome = fact.cause
                    extra = keys(kind, cause=fact.cause, error=fact.error)
                    _log.error("dead %s cause=%s error=%a", where, fact.cause, fact.error, extra=extra)
                case facts.DeliveredFact():
                    extra = keys(kind, did=fact.did, late=bool(fact.late))
                    _log.info("delivered %s did=%s%s", where, fact.did, " late=true" if fact.late else "", extra=extra)
                case _:
                    _log.info("%s %s", kind, where, extra=keys(kind))
            self.meters.count(metrics.ATTEMPTS, delivery.route, outcome)
            if isinstance(fact, facts.DeliveredFact | facts.UnchangedFact) and delivery.run == 0:
                took = (self._now() - delivery.received_at).total_seconds()
                self.meters.observe(metrics.DELIVERY_SECONDS, max(took, 0), delivery.route)

    def appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        """Count facts that were added to the log, by route and kind."""
        for (route, kind), number in facts_of.items():
            self.meters.count(metrics.FACTS, route, kind, by=number)

    def reaped(self, abandoned: Iterable[tuple[int, str, facts.AnyFact]]) -> None:
        """Log and count deliveries rescued from expired leases."""
        for seq, route, fact in abandoned:
            self.meters.count(metrics.LEASES_EXPIRED)
            self.counts[facts.kind_of(fact)] += 1
            if isinstance(fact, facts.Dead):
                extra = fields("dead", route=route, seq=seq, cause=fact.cause, error=fact.error)
                _log.error("dead route=%s seq=%d cause=%s error=%a", route, seq, fact.cause, fact.error, extra=extra)
            else:
                text = "abandoned route=%s seq=%d: its lease expired; it will be attempted again"
                _log.warning(text, route, seq, extra=fields("abandoned", route=route, seq=seq))

    def clock_stepped(self, seconds: float) -> None:
        """Log that the database's clock was set, or that the database runs on another machine now."""
        self.counts["clock_steps"] += 1
        went = "forward" if seconds > 0 else "back"
        text = "the database's clock went %s by about %.1f s: no lease is rescued until every live relay has renewed its own%s"
        late = "" if seconds > 0 else "; what it made due later waits: relay retry --all, relay resume"
        _log.warning(text, went, abs(seconds), late, extra=fields("clock_stepped", seconds=seconds))

    def judged(self, judged: Judged) -> None:
        """Log deliveries that were rearmed because of duplicate requests."""
        self.counts["rearmed"] += judged.rearmed
        if judged.rearmed:
            extra = fields("rearmed", rows=judged.rearmed)
            _log.info("rearmed %d deliveries after %d duplicate requests", judged.rearmed, judged.handled, extra=extra)

    def gates_changed(self, before: Gates, now: Gates) -> None:
        """Log pauses and resumes, and set their metric and that of breakers, whose changes are logged as alerts."""
        for key in sorted(now.paused - before.paused):
            _log.warning("paused %s", " ".join(key), extra=fields("paused", kind=key[0], subject=key[1]))
        for key in sorted(before.paused - now.paused):
            _log.warning("resumed %s", " ".join(key), extra=fields("resumed", kind=key[0], subject=key[1]))
        for key in now.paused ^ before.paused:
            if key[0] != "entity":  # its name comes from a request: such series would be many, and stay for ever
                self.meters.put(metrics.PAUSED, float(key in now.paused), *key)
        for key, held in sorted(now.held.items()):
            if now.holds(key) and not before.holds(key):
                due_at = time_text(held.until)
                extra = fields("held", kind=key[0], subject=key[1], due_at=due_at, error=held.why)
                _log.warning("held %s until %s: %s", " ".join(key), due_at, held.why, extra=extra)
        for kind, name in before.breakers.keys() | now.breakers.keys():
            was, state = (gates.breakers.get((kind, name), Breaker()).state for gates in (before, now))
            if was is not state and kind in {"destination", "api"}:
                self.meters.put(metrics.BREAKER, BREAKER_VALUES.index(state), kind, name)

    def alerted(self, alerts: Iterable[Posted]) -> None:
        """Log alerts that fire or have recovered."""
        for posted in alerts:
            alert = posted.alert
            level = logging.ERROR if alert.firing else logging.WARNING
            said = "firing" if alert.firing else "recovered"
            extra = fields("alert", kind=alert.kind, subject=alert.subject, firing=alert.firing)
            _log.log(level, "alert %s %s: %s", alert.kind, said, sentence(alert), extra=extra)

    def not_posted(self, posted: Posted, error: str) -> None:
        """Log an alert that could not be posted; it is posted again in a minute."""
        extra = fields("alert_not_posted", kind=posted.alert.kind, subject=posted.alert.subject, error=error)
        _log.warning("alert %d not posted, trying again: %s", posted.id, error, extra=extra)

    def swept(self, subject: str, swept: SweepFindings) -> None:
        """Log and count a sweep that has ended."""
        self.counts["sweeps"] += 1
        self._count_sweep("swept", subject, swept)

    def swept_in_part(self, subject: str, swept: SweepFindings) -> None:
        """Log and count what a stopped sweep has added: the next sweep doesn't find it again."""
        self._count_sweep("swept in part", subject, swept)

    def _count_sweep(self, what: str, subject: str, swept: SweepFindings) -> None:
        for name in ("compared", "missed", "added"):
            self.counts[f"sweep_{name}"] += getattr(swept, name)
        self.meters.count(metrics.SWEEP_COMPARED, swept.source, swept.entity_type, by=swept.compared)
        self.meters.count(metrics.SWEEP_MISSED, swept.source, swept.entity_type, by=swept.missed)
        level = logging.WARNING if swept.missed else logging.INFO
        figures = (swept.compared, swept.missed, swept.added)
        keys: LogKeys = {"subject": subject, "compared": swept.compared, "missed": swept.missed, "added": swept.added}
        extra = fields(what.replace(" ", "_"), **keys)
        _log.log(level, "%s %s compared=%d missed=%d added=%d", what, subject, *figures, extra=extra)
        if swept.left_out:
            then = "their entities are larger than max_body, and left out of the body"
            extra = fields("swept", subject=subject, rows=swept.left_out)
            _log.warning("swept %s left_out=%d events: %s", subject, swept.left_out, then, extra=extra)

    def sweep_failed(self, subject: str, error: str) -> None:
        """Log a failed sweep; the next one starts over."""
        self.counts["sweep_failed"] += 1
        _log.warning(
            "sweep_failed %s error=%a", subject, error, extra=fields("sweep_failed", subject=subject, error=error)
        )

    def pruned(self, kind: str, rows: int, behind_seconds: float) -> None:
        """Log and count expired rows that were deleted in a round."""
        self.counts["pruned"] += rows
        self.meters.count(metrics.PRUNED, kind, by=rows)
        self.meters.put(metrics.RETENTION_BEHIND, behind_seconds, kind)
        if rows:
            extra = fields("pruned", kind=kind, rows=rows, seconds=behind_seconds)
            _log.info("pruned %s rows=%d behind=%ds", kind, rows, behind_seconds, extra=extra)

    def gauges_broke(self, what: str, bug: Exception) -> None:
        """Log a bug that kept some gauges from being read; they are read again later."""
        _log.error("a bug kept %s from being read", what, exc_info=without_message(bug), extra=fields("bug"))

    def step_failed(self, step: str, error: BaseException, seconds: float) -> None:
        """Log and count a step that has failed; the other steps go on."""
        self.counts["step_failed"] += 1
        self.meters.count(metrics.STEP_FAILURES, step)
        # A driver's own words may show a row, and SQLAlchemy's show what was bound.
        trace = without_message(error)
        text = "step_failed step=%s again_in=%.1fs: the other steps go on"
        _log.error(text, step, seconds, exc_info=trace, extra=fields("step_failed", step=step, seconds=seconds))

    def bug_in_thread(self, name: str, bug: BaseException) -> None:
        """Log a bug that reached the loop of a thread, which goes on."""
        self.counts["bug_in_thread"] += 1
        text, extra = "bug in the thread %s, which goes on", fields("bug_in_thread", subject=name)
        _log.error(text, name, exc_info=without_message(bug), extra=extra)

    def hears_nothing(self, why: str) -> None:
        """Log that the relay gets no wake-ups; it polls, and tries again to get them."""
        self.counts["hears_nothing"] += 1
        _log.info("no wake-ups, so that the relay polls: %s", why, extra=fields("hears_nothing", error=why))

    def step_recovered(self, step: str, times: int) -> None:
        """Log that a step works again after so many failures."""
        _log.warning("step_recovered step=%s after=%d failures", step, times, extra=fields("step_recovered", step=step))

    def failed_alone(self, item: FailedAlone) -> None:
        """Log and count an item that its step could not process; the rest of its batch went on."""
        self.counts["failed_alone"] += 1
        self.meters.count(metrics.FAILED_ALONE, item.step)
        extra = fields("failed_alone", step=item.step, item=item.item, error=item.error)
        _log.error("failed_alone step=%s %s error=%a: the others go on", item.step, item.item, item.error, extra=extra)

    def left_alone(self, what: str) -> None:
        """Log, once each, what only a newer version can process, and is left to it."""
        if what not in self._left_alone:
            self._left_alone.add(what)
            _log.warning("left to a newer version: %s", what, extra=fields("left_alone", subject=what))

    def exposed(self, exposures: Iterable[str]) -> None:
        """Log files with secrets that other users may read."""
        for exposure in exposures:
            _node_log.warning("%s", exposure, extra=fields("exposed"))

    def started(self, node: str, routes: Iterable[str]) -> None:
        """Log that the relay has started."""
        names = ",".join(routes) or "none"
        _node_log.info("started node=%s routes=%s", node, names, extra=fields("started", node=node, routes=names))

    def given_back(self, number: int) -> None:
        """Log and count unused claims that were released."""
        self.counts["given_back"] += number
        text = "given_back deliveries=%d: unstarted, or cut before anything was sent"
        _log.info(text, number, extra=fields("given_back", rows=number))

    def stopping(self, node: str, running: int) -> None:
        """Log that the relay claims nothing more, and how many calls run."""
        _node_log.info("stopping node=%s running=%d", node, running, extra=fields("stopping", node=node, rows=running))

    def cut(self, node: str, running: int) -> None:
        """Log that so many calls are cut, after the grace period or a second signal."""
        _node_log.warning("cutting node=%s running=%d", node, running, extra=fields("cutting", node=node, rows=running))

    def stopped(self, node: str) -> None:
        """Log that the relay has stopped gracefully."""
        number = self.counts["given_back"]
        _node_log.info("stopped node=%s given_back=%d", node, number, extra=fields("stopped", node=node, rows=number))

    def reloaded(self, node: str, routes: Iterable[str]) -> None:
        """Log that another configuration is active."""
        names = ",".join(routes) or "none"
        _node_log.info("reloaded node=%s routes=%s", node, names, extra=fields("reloaded", node=node, routes=names))

    def reload_refused(self, mistakes: Iterable[str]) -> None:
        """Log why a new configuration can't be used; the old one stays active."""
        for mistake in mistakes:
            _node_log.error("reload refused: %s", mistake, extra=fields("reload_refused", error=mistake))
        _node_log.error("reload refused: the old configuration stays", extra=fields("reload_refused"))

    def orphaned(self) -> None:
        """Log that the parent process is gone."""
        _node_log.warning("stopping: the parent process is gone", extra=fields("orphaned"))

    def child_started(self, pid: int) -> None:
        """Log that the supervisor has started a child."""
        _node_log.info("child started pid=%d", pid, extra=fields("child_started", child=pid))

    def child_ended(self, pid: int, status: int) -> None:
        """Log that a child has exited after a drain or a stop."""
        level = logging.ERROR if status else logging.INFO
        _node_log.log(level, "child ended pid=%d %s", pid, _ending(status), extra=fields("child_ended", child=pid))

    def child_lost(self, pid: int, status: int, seconds: float) -> None:
        """Log that a child has exited unexpectedly; another replaces it."""
        text, extra = "child ended pid=%d %s, another starts in %g s", fields("child_lost", child=pid, seconds=seconds)
        _node_log.warning(text, pid, _ending(status), seconds, extra=extra)

    def child_not_started(self, error: OSError, seconds: float) -> None:
        """Log that the system could not start a child."""
        extra = fields("child_not_started", seconds=seconds, error=str(error))
        _node_log.error("child not started, tried again in %g s: %s", seconds, error, extra=extra)

    def database_trouble(self, what: str, error: BaseException) -> None:
        """Log and count a failure of the database; the work is tried again."""
        self.counts["database_trouble"] += 1
        self.meters.count(metrics.DATABASE_TROUBLE)
        text = trouble_text(error)
        extra = fields("database_trouble", step=what, error=text)
        _log.warning("database trouble while %s, trying again: %s", what, text, extra=extra)


def _ending(status: int) -> str:
    """Word a `Popen.returncode`."""
    names = {number.value: number.name for number in signal.Signals}
    return f"exit status {status}" if status >= 0 else f"killed by {names.get(-status, f'signal {-status}')}"
