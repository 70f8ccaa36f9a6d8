"""Log lines and counters of the relay, made from facts after their commit. This file has all their texts."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any

from inbox.clock import Clock, SystemClock
from inbox.db.dialect import trouble_text
from inbox.errors import ConfigError
from inbox.events.timestamps import time_text
from inbox.observe import metrics
from inbox.observe.logs import TraceIds, fields, without_message
from inbox.observe.metrics import OFF, Meters
from inbox.observe.traces import OFF as OFF_TRACER
from relay.delivery import facts
from relay.delivery.alerts import Posted, format_sentence
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.delivery.outcome import Unchanged
from relay.store.record import Recorded
from relay.store.sweeps import SweepFindings
from relay.store.transaction import FailedAlone
from relay.store.work import Reports

_log, _node_log = logging.getLogger("relay"), logging.getLogger("relay.node")

BREAKER_VALUES = (BreakerState.CLOSED, BreakerState.HALF_OPEN, BreakerState.OPEN, BreakerState.RETIRED)
"""The states of a breaker, in the order of their metric values."""


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
    "child_not_started": (_node_log, logging.ERROR, "child not started, trying again in {seconds:g} s: {error}"),
    "child_lost": (_node_log, logging.WARNING, "child ended pid={child} {ending}, another starts in {seconds:g} s"),
    **{kind: (_log, logging.INFO, f"{kind} {{where}}") for kind in facts.KINDS},
    "delivered": (_log, logging.INFO, "delivered {where} did={did}{note}"),
    "attempt_failed": (_log, logging.WARNING, "attempt_failed {where} due_at={due_at} error={error!a}"),
    "dead": (_log, logging.ERROR, "dead {where} cause={cause} error={error!a}"),
    "abandoned": (
        _log,
        logging.WARNING,
        "abandoned {where}: its lease expired; it will be attempted again",
    ),
    "result_discarded": (_log, logging.WARNING, "discarded a late result: another claim holds the lease {where}"),
    "given_back": (_log, logging.INFO, "given_back deliveries={rows}: unstarted, or cut before anything was sent"),
    "rearmed": (_log, logging.INFO, "rearmed {rows} deliveries after {handled} duplicate requests"),
    "clock_stepped": (_log, logging.WARNING, "the database's clock went {went} by about {size:.1f} s: {then}"),
    "paused": (_log, logging.WARNING, "paused {kind} {subject}"),
    "resumed": (_log, logging.WARNING, "resumed {kind} {subject}"),
    "held": (_log, logging.WARNING, "held {kind} {subject} until {due_at}: {error}"),
    "alert": (_log, logging.ERROR, "alert {kind} {turn}: {sentence}"),
    "alert_not_posted": (_log, logging.WARNING, "alert {number} not posted, trying again: {error}"),
    "swept": (_log, logging.INFO, "swept {subject} compared={compared} missed={missed} added={added}"),
    "swept_in_part": (_log, logging.INFO, "swept in part {subject} compared={compared} missed={missed} added={added}"),
    "left_out": (_log, logging.WARNING, "swept {subject} left_out={rows} entities: they are larger than max_body"),
    "sweep_failed": (_log, logging.WARNING, "sweep_failed {subject} error={error!a}"),
    "pruned": (_log, logging.INFO, "pruned {kind} rows={rows} behind={seconds:.0f}s"),
    "hears_nothing": (_log, logging.INFO, "no wake-ups, so the relay polls: {error}"),
    "step_failed": (_log, logging.ERROR, "step_failed step={step} again_in={seconds:.1f}s: the other steps go on"),
    "step_recovered": (_log, logging.WARNING, "step_recovered step={step} after={times} failures"),
    "bug_in_thread": (_log, logging.ERROR, "bug in the thread {subject}, which goes on"),
    "failed_alone": (_log, logging.ERROR, "failed_alone step={step} {item} error={error!a}: the others go on"),
    "database_trouble": (_log, logging.WARNING, "database trouble while {step}, trying again: {error}"),
}
"""The logger, level and text of each line, by event name."""


class Observer(Reports):
    """Logs and counts events. `counts` has the totals of this process by event name; `meters` exports metrics."""

    def __init__(self, meters: Meters = OFF, clock: Clock | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self.meters = meters
        self.tracer = OFF_TRACER
        """Traces attempts and sweeps."""
        self._now = (clock or SystemClock()).now

    def log(
        self,
        event: str,
        level: int | None = None,
        *,
        ids: TraceIds | None = None,
        bug: BaseException | None = None,
        **values: Any,  # noqa: ANN401  # plain values
    ) -> None:
        """Log a line of LINES, and count it or its `rows`.

        Args:
            event: the name of the line.
            level: overrides the usual level.
            ids: the span of the line, if not the current one.
            bug: an exception to append as a traceback, without its message, which may quote rows or bound values.
            values: the values of the text; those named in `logs.KEYS` also become JSON keys.
        """
        rows = values.get("rows")
        self.counts[event] += rows if isinstance(rows, int) else 1
        logger, usual, text = LINES[event]
        if logger.isEnabledFor(level or usual):
            trace = None if bug is None else without_message(bug)
            logger.log(level or usual, "%s", text.format(**values), exc_info=trace, extra=fields(event, ids, **values))

    def on_reload_refused(self, error: ConfigError) -> None:
        """Log the reason a new configuration can't be used; the old one stays active."""
        for mistake in (*str(error).splitlines(), "the old configuration stays"):
            self.log("reload_refused", error=mistake)

    def on_recorded(self, results: Iterable[Recorded]) -> None:
        """Log and count recorded outcomes, and outcomes discarded because another claim holds the lease."""
        for result in results:
            delivery, fact = result.delivery, result.fact
            is_spared = isinstance(fact, facts.AttemptFailed) and not fact.counted
            attempt = delivery.attempt - int(is_spared)  # as in delivery_log
            log_fact = partial(
                self.log,
                where=f"route={delivery.route} seq={delivery.seq} lane={delivery.lane!a} attempt={attempt}",
                ids=delivery.trace_ids,
                source=delivery.source,
                route=delivery.route,
                seq=delivery.seq,
                lane=delivery.lane,
                attempt=attempt,
            )
            if fact is None:
                self.meters.count(metrics.DISCARDED)
                log_fact("result_discarded")
                continue
            kind = outcome = facts.get_kind(fact)
            match fact:
                case facts.AttemptFailed():
                    outcome = fact.error_class
                    log_fact(kind, due_at=time_text(fact.due_at), cause=fact.error_class, error=fact.error)
                case facts.Dead():
                    outcome = fact.cause
                    log_fact(kind, cause=fact.cause, error=fact.error)
                case facts.DeliveredFact():
                    log_fact(kind, did=fact.did, late=bool(fact.late), note=" late=true" if fact.late else "")
                case _:
                    log_fact(kind)
            self.meters.count(metrics.ATTEMPTS, delivery.route, outcome)
            if isinstance(fact, facts.DeliveredFact | Unchanged) and delivery.run == 0:
                took = (self._now() - delivery.received_at).total_seconds()
                self.meters.observe(metrics.DELIVERY_SECONDS, max(took, 0), delivery.route)

    def on_appended(self, facts_of: Mapping[tuple[str, str], int]) -> None:
        """Count facts appended to the log, by route and kind."""
        for (route, kind), number in facts_of.items():
            self.meters.count(metrics.FACTS, route, kind, by=number)

    def on_rescued(self, abandoned: Iterable[tuple[int, str, facts.AnyFact]]) -> None:
        """Log and count deliveries rescued from expired leases."""
        for seq, route, fact in abandoned:
            self.meters.count(metrics.LEASES_EXPIRED)
            log_fact = partial(self.log, where=f"route={route} seq={seq}", route=route, seq=seq)
            if isinstance(fact, facts.Dead):
                log_fact("dead", cause=fact.cause, error=fact.error)
            else:
                log_fact("abandoned")

    def on_clock_step(self, seconds: float) -> None:
        """Log that the database's clock was set, or that the database moved to another machine."""
        then = "no lease is rescued until every live relay has renewed its own"
        if seconds < 0:
            then += "; retries and holds set before then come late: relay retry --all, relay resume"
        went = "forward" if seconds > 0 else "back"
        self.log("clock_stepped", seconds=seconds, size=abs(seconds), went=went, then=then)

    def on_gates_changed(self, before: Gates, now: Gates) -> None:
        """Log pauses and resumes, and set the metrics of pauses and breakers. Breaker changes are logged as alerts."""
        for key in sorted(now.paused ^ before.paused):
            self.log("paused" if key in now.paused else "resumed", kind=key[0], subject=key[1])
            if key[0] != "entity":  # entity names come from requests: one series for each would grow without bound
                self.meters.put(metrics.PAUSED, float(key in now.paused), *key)
        for key, held in sorted(now.held.items()):
            if now.holds(key) and not before.holds(key):
                self.log("held", kind=key[0], subject=key[1], due_at=time_text(held.until), error=held.why)
        for kind, name in before.breakers.keys() | now.breakers.keys():
            was, state = (gates.breakers.get((kind, name), Breaker()).state for gates in (before, now))
            if was is not state and kind in {"destination", "api"}:
                self.meters.put(metrics.BREAKER, BREAKER_VALUES.index(state), kind, name)

    def on_alerts(self, alerts: Iterable[Posted]) -> None:
        """Log alerts that fire or recover."""
        for posted in alerts:
            alert = posted.alert
            level, turn = (logging.ERROR, "firing") if alert.firing else (logging.WARNING, "recovered")
            text = format_sentence(alert)
            self.log(
                "alert", level, kind=alert.kind, subject=alert.subject, firing=alert.firing, turn=turn, sentence=text
            )

    def on_swept(self, subject: str, swept: SweepFindings, *, in_part: bool = False) -> None:
        """Log and count a completed sweep, or the events that an interrupted one added: the next sweep won't find them again."""
        self.counts["sweep_missed"] += swept.missed
        self.meters.count(metrics.SWEEP_COMPARED, swept.source, swept.entity_type, by=swept.compared)
        self.meters.count(metrics.SWEEP_MISSED, swept.source, swept.entity_type, by=swept.missed)
        level = logging.WARNING if swept.missed else logging.INFO
        event = "swept_in_part" if in_part else "swept"
        self.log(event, level, subject=subject, compared=swept.compared, missed=swept.missed, added=swept.added)
        if swept.left_out:
            self.log("left_out", subject=subject, rows=swept.left_out)

    def on_pruned(self, kind: str, rows: int, behind_seconds: float) -> None:
        """Log and count the expired rows deleted in a round."""
        self.meters.count(metrics.PRUNED, kind, by=rows)
        self.meters.put(metrics.RETENTION_BEHIND, behind_seconds, kind)
        if rows:
            self.log("pruned", kind=kind, rows=rows, seconds=behind_seconds)

    def on_step_failed(self, step: str, error: BaseException, seconds: float) -> None:
        """Log and count a failed step; the other steps go on."""
        self.meters.count(metrics.STEP_FAILURES, step)
        self.log("step_failed", bug=error, step=step, seconds=seconds)

    def on_failed_alone(self, item: FailedAlone) -> None:
        """Log and count an item that its step could not process; the rest of its batch was processed."""
        self.meters.count(metrics.FAILED_ALONE, item.step)
        self.log("failed_alone", step=item.step, item=item.item, error=item.error)

    def on_database_trouble(self, what: str, error: BaseException) -> None:
        """Log and count a database failure; the work will be retried."""
        self.meters.count(metrics.DATABASE_TROUBLE)
        self.log("database_trouble", step=what, error=trouble_text(error))
