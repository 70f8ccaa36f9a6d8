"""What the database tells of the demo's run, read from the tables that both sides share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text

from relay.demo.happenings import Noted
from relay.store import reads
from relay.store.database import Database

_GIVEN_UP = frozenset({"dead", "blocked"})
_OPEN = text("SELECT state, count(*) AS number FROM open_delivery GROUP BY state")
_FACTS = text("SELECT kind, count(*) AS number FROM delivery_log GROUP BY kind")
_OPEN_ENTITIES = text("SELECT DISTINCT i.entity_id FROM open_delivery o JOIN inbox i ON i.seq = o.seq")
_EVENTS = text("SELECT count(*) AS number FROM inbox")
_REPEATS = text("SELECT CAST(coalesce(sum(times), 0) AS bigint) AS number FROM duplicate_request")
_STALE = text("SELECT count(*) AS number FROM delivery_log WHERE detail ->> 'error_class' = 'stale'")
_NOTES = text("""
SELECT l.id, l.kind, i.entity_type, i.entity_id
FROM delivery_log l JOIN inbox i ON i.seq = l.seq
WHERE l.id > :after AND (l.kind = 'unchanged' OR l.detail ->> 'error_class' = 'stale')
ORDER BY l.id
""")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the relay has come."""

    events: int
    open: Counter[str]
    """Deliveries that have not ended, by state."""

    @property
    def to_do(self) -> int:
        """What the relay still has to work on."""
        return self.open.total() - self.given_up

    @property
    def given_up(self) -> int:
        """Dead letters: nothing happens to them without a person or a later event."""
        return sum(self.open[state] for state in _GIVEN_UP)


class Ledger:
    """Reads only, each time in one short transaction."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._noted = 0

    def progress(self) -> Progress:
        """How far the relay has come."""
        with self._database.read() as transaction:
            return Progress(
                events=transaction.execute(_EVENTS)[0].number,
                open=Counter({row.state: row.number for row in transaction.execute(_OPEN)}),
            )

    def in_flight(self) -> int:
        """How many deliveries a relay works on, or died over."""
        return self.progress().open["in_flight"]

    def entities_under_way(self) -> set[str]:
        """Ids of entities of which a delivery has not ended: what the sides have of them may differ as yet."""
        with self._database.read() as transaction:
            return {row.entity_id for row in transaction.execute(_OPEN_ENTITIES)}

    def counts(self) -> dict[str, int]:
        """Facts of each kind, `stale` (reads), `events` and `repeats` (of requests)."""
        with self._database.read() as transaction:
            facts = {row.kind: row.number for row in transaction.execute(_FACTS)}
            return {
                **facts,
                "events": transaction.execute(_EVENTS)[0].number,
                "stale": transaction.execute(_STALE)[0].number,
                "repeats": transaction.execute(_REPEATS)[0].number,
            }

    def notes(self) -> list[Noted]:
        """What no call at the other side shows, since this was asked last; one relay writes its facts in order."""
        with self._database.read() as transaction:
            rows = transaction.execute(_NOTES, after=self._noted)
        self._noted = max([self._noted, *(row.id for row in rows)])
        return [Noted(row.entity_type, row.entity_id, "same" if row.kind == "unchanged" else "stale") for row in rows]

    def is_up(self, pid: int) -> bool:
        """Whether the relay process of that id has begun to work."""
        return any(node["pid"] == pid for node in reads.relay_nodes(self._database))
