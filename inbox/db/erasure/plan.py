"""The plan of an erasure: what the database holds of an entity, and what stops it. Reads only."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import cache
from itertools import count

import msgspec
from sqlalchemy import Engine, TextClause, text

from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.erasure.searching import open_commands, search
from inbox.db.erasure.subject import ErasureSubject
from inbox.db.erasure.work import OF_ENTITY, OpenFound, named, open_deliveries

MOST_SHOWN = 5
"""Open deliveries that a plan names."""
ALL_EVENTS = 2**62

SHORT_ID = 4
"""Characters from which on an id hardly stands in a text that means something else."""
MANY_NAMING = 100
"""Rows of other tables beyond which a plan warns."""


class ErasurePlan(msgspec.Struct, frozen=True):
    """The rows that an erasure would find."""

    subject: ErasureSubject
    events: int
    """Events that are not erased yet."""
    erased_before: int
    """Events that were erased before."""
    payloads: int
    payload_bytes: int
    duplicates: int
    """Rows of duplicate requests."""
    facts: int
    lanes: int
    pauses: int
    """1 if the entity is paused, else 0; its pause goes."""
    naming: dict[str, int]
    """Rows of other tables that name the entity, by table."""
    open: tuple[OpenFound, ...] = ()
    """The first deliveries that have not ended."""
    open_commands: tuple[int, ...] = ()
    """Commands that name the entity and have not ended."""
    is_whole: bool = True
    """False when there are more rejected requests than were searched: `naming` counts a part."""
    has_more_events: bool = False
    """True when there are more events than were counted: the numbers are of the newest."""

    @property
    def is_empty(self) -> bool:
        """True when the database certainly holds nothing of the entity."""
        return self.is_whole and not (self.events or self.pauses or self.naming)

    @property
    def warning(self) -> str | None:
        """Say why rows of other tables may be about something else than the entity; None: it is unlikely."""
        rows, length = sum(self.naming.values()), len(self.subject.entity_id)
        if length < SHORT_ID:
            characters = "1 character" if length == 1 else f"{length} characters"
            return (
                f"careful: its id has {characters}. Rows of other tables with it may mean something else, and they are"
                " cleared too: look at them first"
            )
        if rows > MANY_NAMING:
            return f"careful: {rows} rows of other tables name it, and some may mean something else: look at them first"
        return None

    @property
    def is_held_up(self) -> bool:
        """True when something open has to end first."""
        return bool(self.open or self.open_commands)


def plan(
    engine: Engine,
    subject: ErasureSubject,
    *,
    searching: Callable[[int], None] = lambda _: None,
    most_parts: int | None = None,
    most_events: int = ALL_EVENTS,
    most_looked_at: int | None = None,
) -> ErasurePlan:
    """Count what the database holds of an entity.

    Args:
        engine: the database.
        subject: the entity.
        searching: hears up to which rejected request it has searched.
        most_parts: the most parts of the rejected requests that are searched; None: all.
        most_events: the most events that are counted: the newest.
        most_looked_at: the most events that are looked at for open deliveries; None: as many.
    """
    sql, given = Sql(engine.dialect.name), {**named(subject), "most_events": most_events}
    with engine.connect() as connection, reading(connection).begin():
        counted = connection.execute(_COUNTS, given).one()
        bodies = connection.execute(_PAYLOADS, given).one()
        lanes = connection.execute(_lanes(sql), {**given, "lane": subject.lane}).scalar_one()
        before = connection.execute(_ERASED_BEFORE, {**given, "entity_id": subject.pseudonym}).scalar_one()
        pauses = connection.execute(_PAUSES, {"name": subject.gate}).scalar_one()
        has_more = counted.events >= most_events
        found = tuple(open_deliveries(connection, subject, MOST_SHOWN, among=most_looked_at or most_events))
        commands = tuple(open_commands(connection, subject))
    naming, is_whole = _naming(engine, subject, searching, most_parts)
    return ErasurePlan(
        subject,
        counted.events,
        before,
        bodies.payloads,
        int(bodies.payload_bytes),
        int(counted.duplicates),
        int(counted.facts),
        lanes,
        pauses,
        naming,
        found,
        commands,
        is_whole,
        has_more,
    )


def _naming(
    engine: Engine, subject: ErasureSubject, searching: Callable[[int], None], most_parts: int | None
) -> tuple[dict[str, int], bool]:
    """Count rows that name the entity, by table, each part in a transaction of its own. False: there are more."""
    found: Counter[str] = Counter()
    position: int | None = None
    for number in count(1):
        with engine.connect() as connection, reading(connection).begin():
            naming = search(connection, subject, position)
        if naming is None:
            return dict(found), True
        found.update(row.table for row in naming.rows)
        if naming.position == position:
            return dict(found), True
        position = naming.position
        searching(position or 0)
        if number == most_parts:
            break
    return dict(found), False


_EVENTS = f"(SELECT i.seq FROM inbox i WHERE {OF_ENTITY} AND {{}} ORDER BY i.seq DESC LIMIT :most_events) i"
_NOT_ERASED = _EVENTS.format("i.erased_at IS NULL")
_COUNTS = text(f"""
SELECT count(*) AS events,
       coalesce(sum((SELECT count(*) FROM duplicate_request d WHERE d.seq = i.seq)), 0) AS duplicates,
       coalesce(sum((SELECT count(*) FROM delivery_log l WHERE l.seq = i.seq)), 0) AS facts
FROM {_NOT_ERASED}
""")
_PAYLOADS = text(f"""
SELECT count(*) AS payloads, coalesce(sum(length(p.body)), 0) AS payload_bytes
FROM {_NOT_ERASED} JOIN inbox_payload p ON p.seq = i.seq
""")
_ERASED_BEFORE = text(f"SELECT count(*) FROM {_EVENTS.format('i.erased_at IS NOT NULL')}")
_PAUSES = text("SELECT count(*) FROM gate WHERE kind = 'entity' AND name = :name")


@cache
def _lanes(sql: Sql) -> TextClause:
    routes = f"SELECT DISTINCT l.route FROM {sql.looked_up(_NOT_ERASED, 'delivery_log l', 'l.seq = i.seq')}"
    return text(f"SELECT count(*) FROM ({routes}) r JOIN lane ON lane.route = r.route AND lane.lane = :lane")
