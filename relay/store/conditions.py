"""Conditions that last: routes that are behind, sources that are silent, and dead deliveries that are gone again."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta

from sqlalchemy import text

from inbox.config import Config
from inbox.timestamps import as_time
from relay.alerts import Alert
from relay.store.alerts import note
from relay.store.database import SEQS_OUT_OF_ORDER, Database, Transaction


class Watch:
    """Looks for them now and then. One for each relay process, for it remembers when it heard of each source."""

    def __init__(self) -> None:
        self._heard: dict[str, datetime] = {}
        self._looked_to = 0

    def look(self, database: Database, config: Config) -> None:
        """Note an alert for each that has begun or ended since the last look of any relay."""
        with database.read() as transaction:
            now = transaction.now()
            firing = {(row.kind, row.subject) for row in transaction.execute(_FIRING)}
            found = [
                *_dead_again(transaction, firing),
                *_backlogs(transaction, config, now),
                *self._silences(transaction, config, now),
            ]
        changed = [alert for alert in found if alert.firing != ((alert.kind, alert.subject) in firing)]
        if changed:
            with database.write() as transaction:
                note(transaction, changed, transaction.lock_order())

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


def _backlogs(transaction: Transaction, config: Config, now: datetime) -> Iterator[Alert]:
    for route in config.routes:
        oldest = transaction.execute(_OLDEST, route=route)
        age = (now - as_time(oldest[0].received_at)).total_seconds() if oldest else 0
        is_behind = age > config.alerts.backlog_after
        detail = {"seq": oldest[0].seq, "age_seconds": round(age)} if is_behind else {}
        yield Alert("backlog_old", route, is_behind, detail)


_FIRING = text("""
SELECT a.kind, a.subject FROM alert a JOIN (SELECT max(id) AS id FROM alert GROUP BY kind, subject) newest ON newest.id = a.id
WHERE a.firing
""")
_ANY_DEAD = text("SELECT 1 FROM open_delivery WHERE route = :route AND state IN ('dead', 'blocked') LIMIT 1")
_OLDEST = text("""
SELECT o.seq, i.received_at
FROM (SELECT seq FROM open_delivery WHERE route = :route AND state <> 'dead' ORDER BY seq LIMIT 1) o
JOIN inbox i ON i.seq = o.seq
""")
_HIGHEST = text("SELECT max(seq) AS seq FROM inbox")
_LAST_OF_SOURCE = text(
    "SELECT received_at FROM inbox WHERE source = :source AND seq > :above ORDER BY seq DESC LIMIT 1"
)
