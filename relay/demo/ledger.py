"""The demo's view of the database: progress, counts, and what the relay has logged. Reads only."""

from __future__ import annotations

from collections import Counter

from sqlalchemy import text

from relay.demo.events import NoCallNeeded
from relay.store import reads
from relay.store.database import Database

_PROGRESS = text("""
SELECT state AS name, count(*) AS number FROM open_delivery GROUP BY state
UNION ALL SELECT 'events', count(*) FROM inbox
""")
_FACTS = text("""
SELECT kind AS name, count(*) AS number FROM delivery_log GROUP BY kind
UNION ALL SELECT 'stale', count(*) FROM delivery_log WHERE detail ->> 'error_class' = 'stale'
UNION ALL SELECT 'duplicates', CAST(coalesce(sum(times), 0) AS bigint) FROM duplicate_request
""")
_NOTES = text("""
SELECT l.id, l.kind, i.entity_type, i.entity_id
FROM delivery_log l JOIN inbox i ON i.seq = l.seq
WHERE l.id > :after AND (l.kind = 'unchanged' OR l.detail ->> 'error_class' = 'stale')
ORDER BY l.id
""")
_BUSY = text("SELECT DISTINCT i.entity_id FROM open_delivery o JOIN inbox i ON i.seq = o.seq")


class Ledger:
    """Queries, each in one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._last_note = 0

    def progress(self) -> Counter[str]:
        """Count open deliveries by state; also `events`, `dead` letters, and what is `still_open` for the relay."""
        with self._database.read() as transaction:
            found = Counter({row.name: row.number for row in transaction.execute(_PROGRESS)})
        found["dead"] += found.pop("blocked", 0)
        found["still_open"] = found.total() - found["events"] - found["dead"]
        return found

    def facts(self) -> Counter[str]:
        """Count facts of each kind, `stale` reads and `duplicates`."""
        with self._database.read() as transaction:
            return Counter({row.name: row.number for row in transaction.execute(_FACTS)})

    def busy_entities(self) -> set[str]:
        """Return ids of entities with an open delivery: the services may differ in them as yet."""
        with self._database.read() as transaction:
            return {row.entity_id for row in transaction.execute(_BUSY)}

    def notes(self) -> list[NoCallNeeded]:
        """List what no call shows, since the last time; one relay writes its facts in order."""
        with self._database.read() as transaction:
            rows = transaction.execute(_NOTES, after=self._last_note)
        self._last_note = rows[-1].id if rows else self._last_note
        whys = {"unchanged": "same"}
        return [NoCallNeeded(row.entity_type, row.entity_id, whys.get(row.kind, "stale")) for row in rows]

    def is_running(self, pid: int) -> bool:
        """Return true once the relay process of that id works."""
        return any(node["pid"] == pid for node in reads.relay_nodes(self._database))
