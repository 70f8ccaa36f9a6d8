"""What the database tells of the demo's run, read from the tables that both sides share."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from sqlalchemy import text

from relay.store import reads
from relay.store.database import Database

_GIVEN_UP = frozenset({"dead", "blocked"})
_OPEN = text("SELECT state, count(*) AS number FROM open_delivery GROUP BY state")
_FACTS = text("SELECT kind, count(*) AS number FROM delivery_log GROUP BY kind")
_EVENTS = text("SELECT count(*) AS number FROM inbox")
_REPEATS = text("SELECT count(*) AS number FROM repeated_request")


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

    def counts(self) -> dict[str, int]:
        """Facts of each kind, `events` and `repeats` (of requests)."""
        with self._database.read() as transaction:
            facts = {row.kind: row.number for row in transaction.execute(_FACTS)}
            return {
                **facts,
                "events": transaction.execute(_EVENTS)[0].number,
                "repeats": transaction.execute(_REPEATS)[0].number,
            }

    def is_up(self, pid: int) -> bool:
        """Whether the relay process of that id has begun to work."""
        return any(node["pid"] == pid for node in reads.relay_nodes(self._database))
