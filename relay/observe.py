"""Log lines and counters of the relay, made from facts after their commit. The only file that words them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial

from inbox.clock import Clock, SystemClock
from inbox.db.dialect import trouble_text
from inbox.errors import ConfigError
from inbox.events.timestamps import time_text
from inbox.observe import metrics
from inbox.observe.logs import fields, without_message
from inbox.observe.metrics import OFF, Meters
from inbox.observe.traces import OFF as OFF_TRACER
from relay.delivery import facts
from relay.delivery.alerts import Posted, sentence
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.store.duplicates import Judged
from relay.store.record import Recorded
from relay.store.sweeps import SweepFindings
from relay.store.transaction import FailedAlone

_log, _node_log = logging.getLogger("relay"), logging.getLogger("relay.node")

BREAKER_VALUES = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.RETIRED)
"""The states of a breaker, in the order of their values in its metric."""


LINES: Mapping[str, tuple[logging.Logger, int, str]] = {
    "exposed": (_node_log, logging.WARNING, "{what}"),
    "started": (_node_log, logging.INFO, "started node={node} routes={routes}"),
    "reloaded": (_node_log, logging.INFO, "reloaded node={node} routes={routes}"),
    "reload_refused": (_node_log, logging.ERROR, "reload refused: {error}"),
    "stopping": (_node_log, logging.INFO, "stopping node={node} running={rows}"),
    "cutting": (_node_log, logging.WARNING, "cutting node={node} running={rows}"),
    "stopped": (_node_log, logging.INFO, "stopped node={node} given_back={rows}"),
    "child_started": (_node_log, logging.INFO, "child started pid={child}"),
    "child_ended": (_node_log, logging.INFO, "child ended pid={child} {ending}"),
    "child_lost": (_node_log, logging.WARNING, "child ended pid={child} {ending}, another starts in {seconds:g} s"),
    "given_back": (_log, logging.INFO, "given_back deliveries={rows}: unstarted, or cut before anything was sent"),
    "hears_nothing": (_log, logging.INFO, "no wake-ups, so that the relay polls: {error}"),
    "step_recovered": (_log, logging.WARNING, "step_recovered step={step} after={times} failures"),
    "sweep_failed": (_log, logging.WARNING, "sweep_failed {subject} error={error!a}"),
    "alert_not_posted": (_log, logging.WARNING, "alert {number} not posted, trying again: {error}"),
}
"""Lines with nothing but their values: logger, level and text by the name of the line."""


class Observer:
    """Logs and counts. `counts` has the totals of this process, by kind of fact; `meters` exports metrics."""

    def __init__(self, meters: Meters = OFF, clock: Clock | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.meters = meters
        self.tracer = OFF_TRACER
        """Traces attempts, sweeps and commands."""
        self._left_alone: set[str] = set()
        self._now = (clock or SystemClock()).now

    def tell(self, event: str, level: int | None = None, **values: str | float | None) -> None:
        """Log a line of LINES and count it; the values fill its text, and those that `logs.KEYS` has are its keys."""
        self.counts[event] += 1
        log, usual, text = LINES[event]
        log.log(level or usual, "%s", text.format(**values), extra=fields(event, None, **values))

    def reload_refused(self, error: ConfigError) -> None:
        """Log why a new configuration can't be used; the old one stays active."""
        for mistake in (*str(error).splitlines(), "the old configuration stays"):
            self.tell("reload_refused", error=mistake)

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
        named = dict(zip(("compared", "missed", "added"), figures, strict=True))
        extra = fields(what.replace(" ", "_"), None, subject=subject, **named)
        _log.log(level, "%s %s compared=%d missed=%d added=%d", what, subject, *figures, extra=extra)
        if swept.left_out:
            then = "their entities are larger than max_body, and left out of the body"
            extra = fields("swept", subject=subject, rows=swept.left_out)
            _log.warning("swept %s left_out=%d events: %s", subject, swept.left_out, then, extra=extra)

    def pruned(self, kind: str, rows: int, behind_seconds: float) -> None:
        """Log and count expired rows that were deleted in a round."""
        self.counts["pruned"] += rows
        self.meters.count(metrics.PRUNED, kind, by=rows)
        self.meters.put(metrics.RETENTION_BEHIND, behind_seconds, kind)
        if rows:
            extra = fields("pruned", kind=kind, rows=rows, seconds=behind_seconds)
            _log.info("pruned %s rows=%d behind=%ds", kind, rows, behind_seconds, extra=extra)

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

    def database_trouble(self, what: str, error: BaseException) -> None:
        """Log and count a failure of the database; the work is tried again."""
        self.counts["database_trouble"] += 1
        self.meters.count(metrics.DATABASE_TROUBLE)
        text = trouble_text(error)
        extra = fields("database_trouble", step=what, error=text)
        _log.warning("database trouble while %s, trying again: %s", what, text, extra=extra)
