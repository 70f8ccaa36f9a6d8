"""Lasting conditions: routes that are behind, silent sources, dead deliveries that are gone again, failing steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from datetime import datetime, timedelta
from functools import partial

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.config.sources import Source
from inbox.events.timestamps import as_time
from relay.delivery.alerts import Alert
from relay.store.alerts import note
from relay.store.bulkhead import in_parts
from relay.store.database import SEQS_OUT_OF_ORDER, Database, Floor
from relay.store.nodes import failing_steps
from relay.store.retention import STEPS, state_of
from relay.store.transaction import Transaction

STEP = "look_at_conditions"

Firing = frozenset[tuple[str, str]]
"""Kind and subject of each alert that has not recovered."""


CATCH_UP_WITHIN = timedelta(hours=1)
"""A pruner that is behind for longer loses to intake, or has begun with a large database."""

WHOLE_EVERY_SECONDS = 60.0
"""Between two looks at everything that is open, at least."""


class _Moment(msgspec.Struct, frozen=True):
    """Values that all checks of one round share."""

    config: Config
    now: datetime
    highest: int
    """The newest event's seq."""
    firing: Firing


class Watch:
    """Checks them periodically. Each relay process has one, since it remembers when each source last sent."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._heard: dict[str, datetime] = {}
        self._looked_to = 0
        self._oldest: defaultdict[str, Floor[int]] = defaultdict(lambda: Floor(WHOLE_EVERY_SECONDS, monotonic))
        """Of each route: below it nothing of it was open."""

    def look(self, database: Database, config: Config) -> None:
        """Store an alert for each condition that has begun or ended since the last check of any relay.

        A look that fails keeps no other from being taken, nor its alert from being stored.
        """
        with database.read() as transaction:
            now = transaction.now()
            firing = frozenset((row.kind, row.subject) for row in transaction.execute(_FIRING))
            highest = transaction.execute(_HIGHEST)[0].seq or 0
        moment = _Moment(config, now, highest, firing)
        checks: dict[str, Callable[[Transaction], Iterator[Alert]]] = {
            "failing steps": partial(_recovered_steps, firing),
            **{
                f"dead letters of {name}": partial(_dead_again, name)
                for kind, name in sorted(firing)
                if kind == "delivery_dead"
            },
            **{f"backlog of {route}": partial(self._backlog, moment, route) for route in config.routes},
            **{
                f"silence of {name}": partial(self._silence, source, now)
                for name, source in config.sources.items()
                if source.silent_after is not None
            },
            "retention": partial(_retention, now),
        }

        def part(some: Sequence[str]) -> list[Alert]:
            with database.read() as transaction:
                return [alert for name in some for alert in checks[name](transaction)]

        changed: list[Alert] = []
        try:
            for alerts in in_parts(database, STEP, list(checks), part=part):
                changed += (alert for alert in alerts if alert.firing != ((alert.kind, alert.subject) in firing))
        finally:
            _store(database, changed)
        self._looked_to = highest

    def _backlog(self, moment: _Moment, route: str, transaction: Transaction) -> Iterator[Alert]:
        """A route that is behind. Only a look at the whole route ends the condition: an old event may have been replayed."""
        alert = self._age(moment, route, transaction)
        if not alert.firing and ("backlog_old", route) in moment.firing:
            self._oldest[route].at = None
            alert = self._age(moment, route, transaction)
        yield alert

    def _age(self, moment: _Moment, route: str, transaction: Transaction) -> Alert:
        floor = self._oldest[route]
        with floor.look() as begin:
            oldest = transaction.execute(_OLDEST, route=route, begin_seq=begin or 0)
        floor.at = (oldest[0].seq if oldest else moment.highest) - SEQS_OUT_OF_ORDER
        age = (moment.now - as_time(oldest[0].received_at)).total_seconds() if oldest else 0
        is_behind = age > moment.config.alerts.backlog_after
        detail = {"seq": oldest[0].seq, "age_seconds": round(age)} if is_behind else {}
        return Alert("backlog_old", route, is_behind, detail)

    def _silence(self, source: Source, now: datetime, transaction: Transaction) -> Iterator[Alert]:
        name = source.name
        last = transaction.execute(_LAST_OF_SOURCE, source=name, above=self._looked_to - SEQS_OUT_OF_ORDER)
        if last:  # its newest event may have been readmitted, and have arrived before the one before it
            arrived = as_time(last[0].received_at)
            self._heard[name] = max(self._heard.get(name, arrived), arrived)
        self._heard.setdefault(name, now)  # one that was never heard is silent from the first look on
        silent = now - self._heard[name]
        is_silent = silent > timedelta(seconds=source.silent_after or 0)
        detail = {"silent_seconds": round(silent.total_seconds())} if is_silent else {}
        yield Alert("source_silent", name, is_silent, detail)


def _store(database: Database, changed: Sequence[Alert]) -> None:
    """Store them. An end is checked again under the lock of those who store such alerts: what died or fails since lasts."""

    def part(some: Sequence[Alert]) -> None:
        with database.write() as transaction:
            # Who records a delivery stores `delivery_dead` under the lock of its route.
            is_any_dead = any(alert.kind == "delivery_dead" for alert in some)
            now = transaction.lock_order() if is_any_dead else transaction.lock_first()
            failing = {step.step for step in failing_steps(transaction)}
            note(transaction, [alert for alert in some if _lasts(alert, failing, transaction)], now)

    for _ in in_parts(database, STEP, changed, part=part, name=_name):
        pass


def _lasts(alert: Alert, failing: AbstractSet[str], transaction: Transaction) -> bool:
    if alert.kind == "delivery_dead":
        return bool([*_dead_again(alert.subject, transaction)])
    return alert.kind != "step_failed" or alert.subject not in failing


def _name(alert: Alert) -> str:
    return f"alert {alert.kind} of {alert.subject}"


def _dead_again(route: str, transaction: Transaction) -> Iterator[Alert]:
    """The end of a route's dead letters: the last one was replayed or cancelled. A death is alerted when it happens."""
    if not transaction.execute(_ANY_DEAD, route=route):
        yield Alert("delivery_dead", route, firing=False)


def _recovered_steps(firing: Firing, transaction: Transaction) -> Iterator[Alert]:
    """Steps that no relay fails any more: they work again, or the relay is gone. Each relay itself alerts a failing step."""
    fired = {subject for kind, subject in firing if kind == "step_failed"}
    if fired:
        for step in sorted(fired - {failing.step for failing in failing_steps(transaction)}):
            yield Alert("step_failed", step, firing=False)


def _retention(now: datetime, transaction: Transaction) -> Iterator[Alert]:
    """Kinds of rows that are deleted more slowly than they arrive: a pruner has had an hour to catch up."""
    for kind in STEPS:
        progress = state_of(transaction, kind)
        is_behind = progress.behind_since is not None and progress.behind_since <= now - CATCH_UP_WITHIN
        yield Alert(
            "retention_behind", kind, is_behind, {"behind_seconds": progress.behind_seconds} if is_behind else {}
        )


_FIRING = text("""
SELECT a.kind, a.subject FROM alert a JOIN (SELECT max(id) AS id FROM alert GROUP BY kind, subject) newest ON newest.id = a.id
WHERE a.firing
""")
# In one condition, Postgres would read everything that is open.
_ANY_DEAD = text("""
SELECT 1 WHERE EXISTS (SELECT 1 FROM open_delivery WHERE route = :route AND state = 'dead')
            OR EXISTS (SELECT 1 FROM open_delivery WHERE route = :route AND state = 'blocked')
""")
# It walks what is open on other routes, too, up to the first of this one. An index of its own would cost each event more
# than the walk, which mostly begins where the last one ended.
_OLDEST = text("""
SELECT found.seq, i.received_at
FROM (
    SELECT seq FROM open_delivery
    WHERE route = :route AND state <> 'dead' AND seq >= :begin_seq
    ORDER BY seq
    LIMIT 1) found
JOIN inbox i ON i.seq = found.seq
""")
_HIGHEST = text("SELECT max(seq) AS seq FROM inbox")
_LAST_OF_SOURCE = text(
    "SELECT received_at FROM inbox WHERE source = :source AND seq > :above ORDER BY seq DESC LIMIT 1"
)
