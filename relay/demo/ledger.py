"""The demo's view of the database: progress, counts, and what the relay has logged."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text

from relay.demo.events import NoCallNeeded
from relay.store import reads
from relay.store.database import Database

_OPEN = text("SELECT state, count(*) AS number FROM open_delivery GROUP BY state")
_OPEN_ENTITIES = text("SELECT DISTINCT i.entity_id FROM open_delivery o JOIN inbox i ON i.seq = o.seq")
_EVENTS = text("SELECT count(*) AS number FROM inbox")
_COUNTS = text("""
SELECT kind, count(*) AS number FROM delivery_log GROUP BY kind
UNION ALL SELECT 'stale', count(*) FROM delivery_log WHERE detail ->> 'error_class' = 'stale'
UNION ALL SELECT 'events', count(*) FROM inbox
UNION ALL SELECT 'duplicates', CAST(coalesce(sum(times), 0) AS bigint) FROM repeated_request
""")
_NOTES = text("""
SELECT l.id, l.kind, i.entity_type, i.entity_id
FROM delivery_log l JOIN inbox i ON i.seq = l.seq
WHERE l.id > :after AND (l.kind = 'unchanged' OR l.detail ->> 'error_class' = 'stale')
ORDER BY l.id
""")


@dataclass(frozen=True, slots=True)
class DemoProgress:
    """How far the relay has come."""

    events: int
    open: Counter[str]
    """Deliveries that have not ended, by state."""

    @property
    def to_do(self) -> int:
        """Deliveries that the relay still has to work on."""
        return self.open.total() - self.given_up

    @property
    def given_up(self) -> int:
        """Dead letters: nothing happens to them without a person or a later event."""
        return self.open["dead"] + self.open["blocked"]


class Ledger:
    """Reads only, each time in one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_note = 0

    def progress(self) -> DemoProgress:
        """Counts events and open deliveries."""
        with self._database.read() as transaction:
            return DemoProgress(
                events=transaction.execute(_EVENTS)[0].number,
                open=Counter({row.state: row.number for row in transaction.execute(_OPEN)}),
            )

    def busy_entities(self) -> set[str]:
        """Returns ids of entities with an open delivery: the services may differ in them as yet."""
        with self._database.read() as transaction:
            return {row.entity_id for row in transaction.execute(_OPEN_ENTITIES)}

    def counts(self) -> Counter[str]:
        """Counts facts of each kind, `stale` reads, `events` and `duplicates`."""
        with self._database.read() as transaction:
            return Counter({row.kind: row.number for row in transaction.execute(_COUNTS)})

    def notes(self) -> list[NoCallNeeded]:
        """Lists what no call shows, since the last time; one relay writes its facts in order."""
        with self._database.read() as transaction:
            rows = transaction.execute(_NOTES, after=self._last_note)
        self._last_note = max([self._last_note, *(row.id for row in rows)])
        return [
            NoCallNeeded(row.entity_type, row.entity_id, "same" if row.kind == "unchanged" else "stale") for row in rows
        ]

    def is_running(self, pid: int) -> bool:
        """Whether the relay process of that id has begun to work."""
        return any(node["pid"] == pid for node in reads.relay_nodes(self._database))
