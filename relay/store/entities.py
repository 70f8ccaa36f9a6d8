"""The entities of a route, each by its newest event."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.routing import possible_lanes
from inbox.db.dialect import Sql
from inbox.db.parameters import rows_param
from inbox.events.timestamps import time_text
from relay.delivery.outcome import Delivery
from relay.store.database import Database
from relay.store.events import EVENT, of_event, payload_rows

Place = tuple[str, str]
"""Type and id: pages go by them."""
FIRST: Place = ("", "")


class Chosen(msgspec.Struct, frozen=True):
    """A selection of entities."""

    source: str
    route: str
    types: tuple[str, ...] = ()
    """Only these types of entities; empty: all."""
    entity_type: str | None = None
    entity_id: str | None = None
    since: datetime | None = None
    """Only entities with an event since this time."""


def page(database: Database, chosen: Chosen, after: Place, most: int) -> list[Delivery]:
    """Deliveries of the newest events of the next entities beyond this place, as if each were delivered now.

    Those whose newest event did not take the route are among them: what they are now may concern it all the same.
    """
    with database.read() as transaction:
        statement = _newest(database.sql, of_types=bool(chosen.types))
        rows = transaction.execute(statement, after_type=after[0], after_id=after[1], most=most, **_parameters(chosen))
        payloads = {row.seq: row for row in payload_rows(transaction, (row.seq for row in rows))}
    return [_delivery(row, payloads.get(row.seq), chosen.route) for row in rows]


def newest(database: Database, source: str, route: str, place: Place) -> Delivery | None:
    """A delivery of the newest event of one entity, as if it were delivered now; None: it has no event. It reads one row."""
    with database.read() as transaction:
        rows = transaction.execute(_NEWEST_OF_ONE, source=source, entity_type=place[0], entity_id=place[1])
        payloads = {row.seq: row for row in payload_rows(transaction, (row.seq for row in rows))}
    return _delivery(rows[0], payloads.get(rows[0].seq), route) if rows else None


def count(database: Database, chosen: Chosen) -> int:
    """Count the entities; it reads the index of all events of the source."""
    with database.read() as transaction:
        statement = _number(database.sql, of_types=bool(chosen.types))
        return int(transaction.execute(statement, **_parameters(chosen))[0].number)


def _parameters(chosen: Chosen) -> dict[str, str | None]:
    types = {"types": rows_param({"name": name} for name in chosen.types)} if chosen.types else {}
    return {
        "source": chosen.source,
        "entity_type": chosen.entity_type,
        "entity_id": chosen.entity_id,
        "since": None if chosen.since is None else time_text(chosen.since),
        **types,
    }


def _delivery(event: Any, payload: Any | None, route: str) -> Delivery:  # noqa: ANN401  # result rows
    return Delivery(
        seq=event.seq,
        route=route,
        lane=min(possible_lanes(entity_type=event.entity_type, entity_id=event.entity_id, key="")),
        attempt=1,
        run=0,
        lease_token=0,
        **of_event(event, payload),
    )


def _is_chosen(sql: Sql, *, of_types: bool) -> str:
    types = f"AND entity_type IN (SELECT types.name FROM {sql.rows('types', name='text')})" if of_types else ""
    return f"""source = :source AND entity_type IS NOT NULL AND entity_id IS NOT NULL {types}
      AND {sql.optional("entity_type", "text")} AND {sql.optional("entity_id", "text")}
      AND {sql.optional("received_at", "time", parameter="since", operator=">=")}"""


_NEWEST_OF_ONE = text(f"""
SELECT i.seq, {EVENT} FROM inbox i
WHERE i.source = :source AND i.entity_type = :entity_type AND i.entity_id = :entity_id
ORDER BY i.seq DESC LIMIT 1
""")


@cache
def _newest(sql: Sql, *, of_types: bool) -> TextClause:
    return text(f"""
SELECT i.seq, {EVENT}
FROM (
    SELECT entity_type, entity_id, max(seq) AS seq
    FROM inbox
    WHERE {_is_chosen(sql, of_types=of_types)} AND (entity_type, entity_id) > (:after_type, :after_id)
    GROUP BY entity_type, entity_id
    ORDER BY entity_type, entity_id
    LIMIT :most) newest
JOIN inbox i ON i.seq = newest.seq
ORDER BY i.entity_type, i.entity_id
""")


@cache
def _number(sql: Sql, *, of_types: bool) -> TextClause:
    return text(f"""
SELECT count(*) AS number FROM (
    SELECT 1 FROM inbox WHERE {_is_chosen(sql, of_types=of_types)} GROUP BY entity_type, entity_id) entities
""")
