"""Conditions that last: routes that are behind, sources that are silent, and dead deliveries that are gone again."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta

from sqlalchemy import text

from inbox.config import Config
from inbox.timestamps import as_time
from relay.alerts import Alert
from relay.store.alerts import note
from relay.store.database import SEQS_OUT_OF_ORDER, Database, Transaction
from relay.store.places import Floor

WHOLE_EVERY_SECONDS = 60.0
"""Between two looks at everything that is open, at least."""


class Watch:
    """Looks for them now and then. One for each relay process, for it remembers when it heard of each source."""

    def __init__(self, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._heard: dict[str, datetime] = {}
        self._looked_to = 0
        self._oldest: defaultdict[str, Floor[int]] = defaultdict(lambda: Floor(WHOLE_EVERY_SECONDS, monotonic))
        """Of each route: below it nothing of it was open."""

    def look(self, database: Database, config: Config) -> None:
        """Note an alert for each that has begun or ended since the last look of any relay."""
        with database.read() as transaction:
            now = transaction.now()
            firing = {(row.kind, row.subject) for row in transaction.execute(_FIRING)}
            found = [
                *_dead_again(transaction, firing),
                *self._backlogs(transaction, config, now, firing),
                *self._silences(transaction, config, now),
            ]
        changed = [alert for alert in found if alert.firing != ((alert.kind, alert.subject) in firing)]
        if changed:
            with database.write() as transaction:
                note(transaction, changed, transaction.lock_order())

    def _backlogs(
        self, transaction: Transaction, config: Config, now: datetime, firing: set[tuple[str, str]]
    ) -> Iterator[Alert]:
        """Routes that are behind. That one is so no more is said by a look at all of it: an old event may have been replayed."""
        highest = transaction.execute(_HIGHEST)[0].seq or 0
        for route in config.routes:
            alert = self._backlog(transaction, config, route, now, highest=highest)
            if not alert.firing and ("backlog_old", route) in firing:
                self._oldest[route].at = None
                alert = self._backlog(transaction, config, route, now, highest=highest)
            yield alert

    def _backlog(self, transaction: Transaction, config: Config, route: str, now: datetime, *, highest: int) -> Alert:
        floor = self._oldest[route]
        with floor.look() as begin:
            oldest = transaction.execute(_OLDEST, route=route, begin_seq=begin or 0)
        floor.at = (oldest[0].seq if oldest else highest) - SEQS_OUT_OF_ORDER
        age = (now - as_time(oldest[0].received_at)).total_seconds() if oldest else 0
        is_behind = age > config.alerts.backlog_after
        detail = {"seq": oldest[0].seq, "age_seconds": round(age)} if is_behind else {}
        return Alert("backlog_old", route, is_behind, detail)

    def _silences(self, transaction: Transaction, config: Config, now: datetime) -> Iterator[Alert]:
        watched = {name: source for name, source in config.sources.items() if source.silent_after is not None}
        if not watched:
            return
        highest = transaction.execute(_HIGHEST)[0].seq or 0
        for name, source in watched.items():
            last = transaction.execute(_LAST_OF_SOURCE, source=name, above=self._looked_to - SEQS_OUT_OF_ORDER)
            if last:  # its newest event may have been readmitted, and have arrived before the one before it
                arrived = as_time(last[0].received_at)
                self._heard[name] = max(self._heard.get(name, arrived), arrived)
            self._heard.setdefault(name, now)  # one that was never heard is silent from the first look on
            silent = now - self._heard[name]
            is_silent = silent > timedelta(seconds=source.silent_after or 0)
            detail = {"silent_seconds": round(silent.total_seconds())} if is_silent else {}
            yield Alert("source_silent", name, is_silent, detail)
        self._looked_to = highest


def _dead_again(transaction: Transaction, firing: set[tuple[str, str]]) -> Iterator[Alert]:
    """Routes whose last dead delivery was taken up again or cancelled. That one dies is noted when it does."""
    for kind, route in firing:
        if kind == "delivery_dead" and not transaction.execute(_ANY_DEAD, route=route):
            yield Alert("delivery_dead", route, firing=False)


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
