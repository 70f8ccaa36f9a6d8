"""Listings of events, rejected requests and commands, the newest first, for any filter.

The state of a delivery is in a view that no index answers. So events are chosen first, page by page: of an open state from
`open_delivery`, otherwise from `inbox`. The view then shows the deliveries of a page of events.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import Connection, CursorResult, Engine, bindparam, text

from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.parameters import rows_param
from inbox.db.reads import Row, plain
from inbox.events.states import OPEN_STATES, UNROUTED, is_retrying
from inbox.events.timestamps import time_text

_OF_DELIVERIES = ("open_delivery", "delivery_log")
"""An event that never took a route has no row there."""
_PAGE = 500
"""The most events in one look, so that no statement runs long, however few of them match."""


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on events and their deliveries; None or nothing: any."""

    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    event_type: str | None = None
    since: datetime | None = None
    """Received at or after."""
    until: datetime | None = None
    """Received before."""
    routes: Collection[str] | None = None
    state: str | None = None
    retrying_at: datetime | None = None
    """Of ready ones, only those that wait at this time for their next attempt."""
    error: str | None = None
    """A part of the last error, in any case."""
    status: int | None = None
    """HTTP status of the last call."""
    before: int | None = None
    """Only below this seq."""

    def admits(self, delivery: Row) -> bool:
        """Return whether a row of the view `delivery` meets the conditions that are not on its event."""
        error = delivery["last_error"]
        return (
            (self.routes is None or delivery["route"] in self.routes)
            and (self.state is None or delivery["state"] == self.state)
            and (self.retrying_at is None or self._is_retrying(delivery, self.retrying_at))
            and (self.status is None or delivery["last_status"] == self.status)
            and (self.error is None or (error is not None and self.error.casefold() in error.casefold()))
        )

    @property
    def is_on_deliveries(self) -> bool:
        """Tell whether it has conditions that are not on the event."""
        return any(each is not None for each in (self.routes, self.state, self.error, self.status))

    @staticmethod
    def _is_retrying(delivery: Row, now: datetime) -> bool:
        return is_retrying(delivery["state"], delivery["attempts"], delivery["due_at"], now)


class ListingPage(msgspec.Struct, frozen=True):
    """A page of a listing."""

    rows: list[Row]
    before: int | None = None
    """The seq that the next page lies below; None: there is no more."""


def events(engine: Engine, wanted: EventFilter, limit: int) -> ListingPage:
    """List rows of the view `delivery`, the newest event first: about `limit`, as an event is never split between pages."""
    found: list[Row] = []
    with engine.connect() as connection:
        for page in _seqs(connection, wanted, _PAGE if wanted.is_on_deliveries else min(limit + 1, _PAGE)):
            for rows in deliveries_of(connection, page):
                shown = [row for row in rows if wanted.admits(row)]
                if found and len(found) + len(shown) > limit:
                    return ListingPage(found, found[-1]["seq"])
                found += shown
    return ListingPage(found)


def _seqs(connection: Connection, wanted: EventFilter, page: int) -> Iterator[list[int]]:
    """Yield the seqs of events that may match, downwards, a page at a time."""
    statement, values = _candidates(Sql(connection.dialect.name), wanted)
    before = wanted.before
    while True:
        with reading(connection).begin():
            given = {**values, "before": before, "page": page}
            seqs = list(connection.execute(text(statement(before is not None)), given).scalars())
        yield seqs
        if len(seqs) < page:
            return
        before = seqs[-1]


def _candidates(sql: Sql, wanted: EventFilter) -> tuple[Callable[[bool], str], dict[str, object]]:
    names = ("source", "entity_type", "entity_id", "event_type")
    conditions, values = conditions_on(sql, wanted, "i.received_at", names=names, of="i.")
    if wanted.state in OPEN_STATES or wanted.error is not None:  # only an open delivery has an error
        source = "SELECT DISTINCT o.seq FROM open_delivery o JOIN inbox i ON i.seq = o.seq"
        if wanted.state is not None:
            conditions.append("o.state = :state")
            values["state"] = wanted.state
        if wanted.retrying_at is not None:
            conditions.append(f"o.attempt > 0 AND o.due_at > {sql.time(':retrying_at')}")
            values["retrying_at"] = time_text(wanted.retrying_at)
        if wanted.routes is not None:
            conditions.append(f"o.route IN (SELECT name FROM {sql.rows('routes', name='text')})")
            values["routes"] = rows_param({"name": name} for name in wanted.routes)
        if wanted.entity_id is not None and wanted.source is None:  # the index of entities begins with the source
            conditions.append(f"i.source IN ({SOURCES})")
        key = "o.seq"
    else:
        source, key = "SELECT i.seq FROM inbox i", "i.seq"
        if wanted.state == UNROUTED:
            conditions += (f"NOT EXISTS (SELECT 1 FROM {table} t WHERE t.seq = i.seq)" for table in _OF_DELIVERIES)
        elif wanted.state is not None:
            conditions.append("EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.kind = :state)")
            values["state"] = wanted.state

    is_of_entity = wanted.entity_type is not None and wanted.entity_id is not None

    def statement(below: bool) -> str:
        where = [*conditions, f"{key} < :before"] if below else conditions
        if is_of_entity and key == "i.seq":  # the newest of each source, as their index has them
            of_each = " AND ".join((OF_ENTITY, *where))
            found = sql.first_of(sources_of(wanted.source), "inbox i", of_each, "i.seq DESC", ":page")
            return f"SELECT i.seq FROM {found} ORDER BY i.seq DESC LIMIT :page"
        return f"{source} WHERE {' AND '.join(where or ['1 = 1'])} ORDER BY {key} DESC LIMIT :page"

    return statement, values


SOURCES = """
WITH RECURSIVE known(name) AS (
    SELECT min(source) FROM inbox
    UNION ALL
    SELECT (SELECT min(source) FROM inbox WHERE source > known.name) FROM known WHERE known.name IS NOT NULL)
SELECT name FROM known WHERE name IS NOT NULL"""
"""Every source, by one look into the unique index for each."""
OF_ENTITY = "i.source = of_source.name AND i.entity_type = :entity_type AND i.entity_id = :entity_id"
"""Condition on the row `i` of the inbox, by the table of `sources_of`: the index of entities begins with the source."""


def sources_of(source: str | None) -> str:
    """Return a table `of_source` with the name that the parameter `source` gives, or with the name of every source."""
    return f"({SOURCES}) of_source" if source is None else "(SELECT CAST(:source AS text) AS name) of_source"


def deliveries_of(connection: Connection, seqs: Sequence[int]) -> list[list[Row]]:
    """Return the rows of the view for each of these events."""
    if not seqs:
        return []
    of: dict[int, list[Row]] = {seq: [] for seq in seqs}
    with reading(connection).begin():
        if Sql(connection.dialect.name).has_lateral:
            found = connection.execute(_OF_MANY, {"wanted": rows_param({"seq": seq} for seq in seqs)})
        else:
            found = connection.execute(_OF_LISTED, {"seqs": list(seqs)})
        for row in found.mappings():
            of[row["seq"]].append(plain(row))
    return list(of.values())


def _plain(result: CursorResult[Any]) -> list[Row]:
    return [plain(row) for row in result.mappings()]


_OF_LISTED = text("SELECT * FROM delivery WHERE seq IN :seqs ORDER BY seq DESC, route").bindparams(
    bindparam("seqs", expanding=True)
)
"""SQLite takes a list of values into each part of the view, and reads nothing else. A statement for each event takes thrice the
time.
"""
_OF_MANY = text("""
SELECT d.* FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted(seq bigint)
CROSS JOIN LATERAL (SELECT * FROM delivery v WHERE v.seq = wanted.seq OFFSET 0) d
ORDER BY d.seq DESC, d.route
""")


class RejectionFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on rejected requests; None: any."""

    source: str | None = None
    cause: str | None = None
    status: int | None = None
    since: datetime | None = None
    until: datetime | None = None
    error: str | None = None
    """A part of the reason, in any case."""
    before: int | None = None
    """Only below this id."""


def rejected_requests(
    engine: Engine, wanted: RejectionFilter, limit: int, columns: Sequence[str] = ("*",)
) -> list[Row]:
    """List rows of `rejected_request`, the newest first. `columns` are expressions."""
    sql = Sql(engine.dialect.name)
    conditions, values = conditions_on(sql, wanted, "received_at", names=("source", "cause", "status"))
    if wanted.error is not None:
        conditions.append("lower(reason) LIKE :error ESCAPE '!'")
        values["error"] = contains(wanted.error)
    if wanted.before is not None:
        conditions.append("id < :before")
        values["before"] = wanted.before
    where = " AND ".join(conditions or ["1 = 1"])
    with engine.connect() as connection, reading(connection).begin():
        statement = text(
            f"SELECT {', '.join(columns)} FROM rejected_request WHERE {where} ORDER BY id DESC LIMIT :limit"
        )
        return _plain(connection.execute(statement, {**values, "limit": limit}))


class CommandFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on operators' commands; None: any."""

    kind: str | None = None
    state: str | None = None
    since: datetime | None = None
    """Asked at or after."""
    until: datetime | None = None
    """Asked before."""
    before: int | None = None
    """Only below this id."""


def commands(engine: Engine, wanted: CommandFilter, limit: int) -> list[Row]:
    """List rows of `relay_command`, the newest first."""
    conditions, values = conditions_on(Sql(engine.dialect.name), wanted, "asked_at", names=("kind", "state"))
    if wanted.before is not None:
        conditions.append("id < :before")
        values["before"] = wanted.before
    where = " AND ".join(conditions or ["1 = 1"])
    with engine.connect() as connection, reading(connection).begin():
        statement = text(f"SELECT * FROM relay_command WHERE {where} ORDER BY id DESC LIMIT :limit")
        return _plain(connection.execute(statement, {**values, "limit": limit}))


def contains(part: str) -> str:
    """Return the pattern of LIKE, with `!` as its escape character, for a text in lower case that contains this part."""
    escaped = part.lower().replace("!", "!!").replace("%", "!%").replace("_", "!_")
    return f"%{escaped}%"


def conditions_on(
    sql: Sql,
    wanted: EventFilter | RejectionFilter | CommandFilter,
    received_at: str,
    *,
    names: Sequence[str],
    of: str = "",
) -> tuple[list[str], dict[str, object]]:
    """Return the conditions of the filter on columns, and the values of their parameters."""
    values: dict[str, object] = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
    conditions = [f"{of}{name} = :{name}" for name in values]
    for name, operator in (("since", ">="), ("until", "<")):
        if (moment := getattr(wanted, name)) is not None:
            conditions.append(f"{received_at} {operator} {sql.time(f':{name}')}")
            values[name] = time_text(moment)
    return conditions, values
