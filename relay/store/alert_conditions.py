"""Watches lasting conditions: routes that are behind, silent sources, dead deliveries, failing steps, late retention."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from datetime import datetime, timedelta

from sqlalchemy import text

from inbox.config.sources import Source
from inbox.db.following import OUT_OF_ORDER
from inbox.events.timestamps import as_time
from relay.delivery.alerts import Alert
from relay.store.alerts import NEWEST, store_alerts
from relay.store.database import ScanStart
from relay.store.nodes import read_nodes
from relay.store.retention import STEPS, read_kind_state
from relay.store.transaction import Transaction
from relay.store.work import Work

Firing = frozenset[tuple[str, str]]
"""Kind and subject of each alert that has not recovered."""

CATCH_UP_WITHIN = timedelta(hours=1)
"""A pruner that is behind for longer can't keep up with intake, or has started on a large database."""

WHOLE_EVERY_SECONDS = 60.0
"""Minimum interval between two scans of all open deliveries."""


class Watch:
    """Checks the conditions periodically. Each relay process has one, which remembers when each source last sent."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._heard: dict[str, datetime] = {}
        self._looked_to = 0
        self._oldest: defaultdict[str, ScanStart[int]] = defaultdict(lambda: ScanStart(WHOLE_EVERY_SECONDS, monotonic))
        """By route: the seq below which no delivery is open."""

    def check(self, work: Work) -> None:
        """Store an alert for each condition that has begun or ended since the last check by any relay."""
        config = work.config
        with work.database.read() as transaction:
            now = transaction.now()
            firing = frozenset((row.kind, row.subject) for row in transaction.execute(_FIRING))
            highest, after = transaction.execute(_HIGHEST)[0].seq or 0, config.alerts.backlog_after
            for kind, subject in firing:
                if kind == "backlog_old":  # only a scan of the whole route may end it: an old event may be replayed
                    self._oldest[subject].at = None
            found = [
                *_find_ended(transaction, firing),
                *(self._check_backlog(transaction, route, now, highest, after) for route in config.routes),
                *(self._check_silence(transaction, each, now) for each in config.sources.values() if each.silent_after),
                *_check_retention(transaction, now),
            ]
        _store(work, [alert for alert in found if alert.firing != ((alert.kind, alert.subject) in firing)])
        self._looked_to = highest

    def _check_backlog(self, transaction: Transaction, route: str, now: datetime, highest: int, after: float) -> Alert:
        start = self._oldest[route]
        with start.scan() as begin:
            oldest = transaction.execute(_OLDEST, route=route, begin_seq=begin or 0)
        start.at = (oldest[0].seq if oldest else highest) - OUT_OF_ORDER
        age = (now - as_time(oldest[0].received_at)).total_seconds() if oldest else 0
        is_behind = age > after
        detail = {"seq": oldest[0].seq, "age_seconds": round(age)} if is_behind else {}
        return Alert("backlog_old", route, is_behind, detail)

    def _check_silence(self, transaction: Transaction, source: Source, now: datetime) -> Alert:
        name = source.name
        last = transaction.execute(_LAST_OF_SOURCE, source=name, above=self._looked_to - OUT_OF_ORDER)
        if last:  # the newest event may be a readmitted one, which arrived before others
            arrived = as_time(last[0].received_at)
            self._heard[name] = max(self._heard.get(name, arrived), arrived)
        self._heard.setdefault(name, now)  # a source without events counts as silent from the first check on
        silent = now - self._heard[name]
        is_silent = silent > timedelta(seconds=source.silent_after or 0)
        detail = {"silent_seconds": round(silent.total_seconds())} if is_silent else {}
        return Alert("source_silent", name, is_silent, detail)


def _store(work: Work, changed: Sequence[Alert]) -> None:
    """Store changed alerts. Recoveries are checked again under the lock, as a delivery may have died or a step failed meanwhile."""
    if not changed:
        return
    with work.write() as transaction:
        # `delivery_dead` is stored under the lock of its route when a delivery is recorded.
        is_any_dead = any(alert.kind == "delivery_dead" for alert in changed)
        now = transaction.take_order_lock() if is_any_dead else transaction.lock_first()
        ended = {(alert.kind, alert.subject) for alert in _find_ended(transaction, None)}
        checked = {"delivery_dead", "step_failed"}
        store_alerts(
            transaction,
            [each for each in changed if each.kind not in checked or (each.kind, each.subject) in ended],
            now,
        )


def _find_ended(transaction: Transaction, firing: Firing | None) -> Iterator[Alert]:
    """Yield recoveries of routes without dead letters left, and of steps that no longer fail in any relay.

    The firing is stored elsewhere: when a delivery dies, or by the relay whose step fails.
    """
    for row in transaction.execute(_DEATHS_OVER):
        yield Alert("delivery_dead", row.subject, firing=False)
    fired = firing or {(row.kind, row.subject) for row in transaction.execute(_FIRING)}
    steps = {subject for kind, subject in fired if kind == "step_failed"}
    for step in sorted(steps.difference(*(relay["failing"] for relay in read_nodes(transaction))) if steps else ()):
        yield Alert("step_failed", step, firing=False)


def _check_retention(transaction: Transaction, now: datetime) -> Iterator[Alert]:
    """Yield an alert for each kind of rows: firing if the pruner has been behind for more than an hour."""
    for kind in STEPS:
        progress = read_kind_state(transaction, kind)
        is_behind = progress.behind_since is not None and progress.behind_since <= now - CATCH_UP_WITHIN
        yield Alert(
            "retention_behind", kind, is_behind, {"behind_seconds": progress.behind_seconds} if is_behind else {}
        )


_FIRING = text(f"{NEWEST} WHERE a.firing")
# Each condition is one index lookup: with a join, Postgres may read all open deliveries.
_DEATHS_OVER = text(f"""
SELECT fired.subject FROM ({NEWEST} WHERE a.firing AND a.kind = 'delivery_dead') fired
WHERE (SELECT 1 FROM open_delivery WHERE route = fired.subject AND state = 'dead' LIMIT 1) IS NULL
  AND (SELECT 1 FROM open_delivery WHERE route = fired.subject AND state = 'blocked' LIMIT 1) IS NULL
""")
# It also walks the open deliveries of other routes, up to the first of this route. Most walks begin where the last one
# ended, so a separate index would cost each event more.
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
