"""Filtered listings, newest rows first, shared by both command lines and the page.

The state of a delivery comes from a view that no index supports. So events are selected first, page by page: by number,
sender's id or entity through an index, by open state from `open_delivery`, otherwise from one window of `inbox` after
another. A search in payloads reads only the payloads of selected events. The view then returns their deliveries.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, TextClause, bindparam, text

from inbox.db.dialect import Sql, each_name, rows_param
from inbox.db.engine import reading
from inbox.db.following import ARRIVALS, OUT_OF_ORDER, find_number
from inbox.db.reads import Row, plain
from inbox.events.states import OPEN, OPEN_STATES, UNROUTED, is_retrying, list_stored_states
from inbox.events.timestamps import as_time, time_text

_LISTED, _EXPORTED = 50, 500
"""Rows per page when all are read: first for requests and commands, whose values may be large, then for deliveries."""
ListingName = Literal["rejected", "commands", "alerts", "dead"]


class RowListing(msgspec.Struct, frozen=True):
    """A listing of a table or view, with its filters."""

    table: str
    time: str
    """Column compared with `since` and `until`."""
    equal: Mapping[str, str]
    """Column that each filter must equal."""
    error: str | None = None
    """Column that must contain the text of `error`, ignoring case."""
    order: str = "id DESC"


LISTINGS: Mapping[ListingName, RowListing] = {
    "rejected": RowListing(
        "rejected_request", "received_at", {"source": "source", "cause": "cause", "status": "status"}, "reason"
    ),
    "commands": RowListing("relay_command", "asked_at", {"kind": "kind", "state": "state"}),
    "alerts": RowListing("alert", "at", {"kind": "kind", "subject": "subject"}),
    "dead": RowListing(
        "dead_letter",
        "died_at",
        {name: name for name in ("source", "entity_type", "entity_id", "event_type", "cause")}
        | {"status": "last_status"},
        "error",
        order="died_at DESC, seq DESC, route",
    ),
}
"""Every listing except that of deliveries. The next page has ids below `before`, if rows have ids."""


class RowPage(msgspec.Struct, frozen=True):
    """Rows of a listing, newest first."""

    rows: list[Row]
    """About as many deliveries as requested, as an event is never split between pages."""
    before: int | None = None
    """Seq or id below which the next page begins; None if there are no more rows or no pages."""
    has_more: bool = False
    matching: int = 0
    """Number of matching deliveries among the scanned ones, at most one more than `most`."""
    is_complete: bool = True
    """False if the time limit was reached first."""
    looked_through: int = 0
    """Number of scanned events; in a search by open state or entity, only those that met the conditions on events. With
    `body`, the number of events whose payload was searched."""
    back_to: datetime | None = None
    """With `body`, if it is not complete: arrival of the last event whose payload was searched."""
    without_payload: int = 0
    """With `body`: number of those events whose payload retention or an erasure has deleted."""


AnyListing = ListingName | Literal["deliveries"]


def read_page(
    engine: Engine, name: AnyListing, wanted: Mapping[str, Any], limit: int, columns: Sequence[str] = ("*",)
) -> RowPage:
    """Read a page of any listing: about `limit` deliveries, or at most `limit` other rows."""
    if name == "deliveries":
        seconds = float("inf") if wanted.get("body") is None else LONGEST_SEARCH_SECONDS
        return list_deliveries(engine, EventFilter(**wanted), limit, seconds=seconds)
    rows = read_rows(engine, name, wanted, limit + 1, columns)
    has_more, shown = len(rows) > limit, rows[:limit]
    return RowPage(shown, shown[-1].get("id") if has_more else None, has_more)


def every_row(engine: Engine, name: AnyListing, wanted: Mapping[str, Any]) -> Iterator[Row]:
    """Yield every row of a listing, page by page; dead letters, which have no pages, all at once."""
    size = {"deliveries": _EXPORTED, "dead": _ABOVE_ALL - 1}.get(name, _LISTED)
    before = wanted.get("before")
    while True:
        page = read_page(engine, name, {**wanted, "before": before}, size)
        yield from page.rows
        if page.before is None:
            return
        before = page.before


def read_rows(
    engine: Engine, name: ListingName, wanted: Mapping[str, Any], limit: int, columns: Sequence[str] = ("*",)
) -> list[Row]:
    """Read rows of a table or view in a read-only transaction.

    Args:
        engine: the engine of the database.
        name: the listing.
        wanted: values of its filters, of `routes`, `since`, `until` and `before`; None matches all.
        limit: the maximum number of rows.
        columns: the columns or expressions to read.
    """
    listing, sql = LISTINGS[name], Sql(engine.dialect.name)
    conditions, values = _conditions(sql, wanted, listing.equal, listing.time)
    if wanted.get("error") is not None and listing.error is not None:
        conditions.append(sql.contains(listing.error, "error"))
        values["error"] = wanted["error"]
    if wanted.get("routes") is not None:
        conditions.append(f"route IN (SELECT name FROM {sql.rows('routes', name='text')})")
        values["routes"] = rows_param({"name": route} for route in wanted["routes"])
    if wanted.get("before") is not None:
        conditions.append("id < :before")
        values["before"] = wanted["before"]
    chosen = f"SELECT {', '.join(columns)} FROM {listing.table} WHERE {_all(conditions)}"
    statement = text(f"{chosen} ORDER BY {listing.order} LIMIT :limit")
    with engine.connect() as connection, reading(connection).begin():
        return [plain(row) for row in connection.execute(statement, {**values, "limit": limit}).mappings()]


def _conditions(
    sql: Sql, wanted: Mapping[str, Any], equal: Mapping[str, str], at: str
) -> tuple[list[str], dict[str, object]]:
    """Return conditions on columns and on the time, with the values of their parameters."""
    values: dict[str, object] = {name: wanted[name] for name in equal if wanted.get(name) is not None}
    conditions = [f"{equal[name]} = :{name}" for name in values]
    for name, operator in (("since", ">="), ("until", "<")):
        if wanted.get(name) is not None:
            conditions.append(f"{at} {operator} {sql.time(f':{name}')}")
            values[name] = time_text(wanted[name])
    return conditions, values


def _all(conditions: Sequence[str]) -> str:
    return " AND ".join(conditions or ["1 = 1"])


_PAGE = 250
"""Maximum events whose deliveries are read together."""
MOST_SEARCHED, LONGEST_SEARCH_SECONDS = 10_000, 10.0
"""A search in payloads stops after this many payloads or, on a command line, seconds."""
_SEARCHED = 100
"""Payloads searched by one statement."""
_WINDOW = 5000
"""Events scanned by one statement, so that none runs long even if few match."""
_ABOVE_ALL = 2**63 - 1
_CLOCKS_APART = timedelta(hours=1)
"""Assumed maximum difference between receivers' clocks. Apart from it, seqs follow the order of arrival."""
_EARLIEST, _LATEST = datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC)
_OF_DELIVERIES = ("open_delivery", "delivery_log")
"""Tables without rows for unrouted events."""
_OF_EVENT = {name: f"i.{name}" for name in ("source", "entity_type", "entity_id", "event_type", "seq")}
_OF_EVENT |= {"sender_id": "i.event_id"}


class EventFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on events and their deliveries; None matches all."""

    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    event_type: str | None = None
    seq: int | None = None
    sender_id: str | None = None
    """The sender's own id of the event, such as GitHub's delivery GUID."""
    body: str | None = None
    """Text in the payload, spelled as here or escaped as in JSON. The search stops after `MOST_SEARCHED` payloads."""
    since: datetime | None = None
    """Earliest time of arrival."""
    until: datetime | None = None
    """Time before which events arrived."""
    routes: Collection[str] | None = None
    state: str | None = None
    retrying_at: datetime | None = None
    """Time at which ready deliveries must be waiting for their next attempt."""
    error: str | None = None
    """Part of the last error, ignoring case."""
    status: int | None = None
    """HTTP status of the last call."""
    command: int | None = None
    """Number of the command that changed the deliveries."""
    before: int | None = None
    """Seq below which events are listed."""

    def admits(self, delivery: Row) -> bool:
        """Return whether a row of the view `delivery` meets the conditions on deliveries."""
        error, due_at, now = delivery["last_error"], delivery["due_at"], self.retrying_at
        return (
            (self.routes is None or delivery["route"] in self.routes)
            and (self.state is None or delivery["state"] in list_stored_states(self.state))
            and (now is None or is_retrying(delivery["state"], delivery["attempts"], due_at, now))
            and (self.status is None or delivery["last_status"] == self.status)
            and (self.error is None or (error is not None and self.error.casefold() in error.casefold()))
        )


def list_deliveries(
    engine: Engine,
    wanted: EventFilter,
    limit: int,
    *,
    most: int = 0,
    seconds: float = float("inf"),
) -> RowPage:
    """List about `limit` rows of the view `delivery`, and continue counting until more than `most` have matched.

    No statement begins after `seconds`. Rows are missed only if receivers' clocks differ by more than an hour.
    """
    end = time.monotonic() + seconds
    rows: list[Row] = []
    matching = looked = gone = 0
    back_to: datetime | None = None
    is_full, is_complete, place = False, True, wanted.before
    with engine.connect() as connection:
        keys = None if wanted.command is None else _read_changed(connection, wanted.command)
        for seqs, place, number in _Candidates(connection, wanted).pages(limit + 1):  # the last place counts
            found_in = seqs
            if wanted.body is None:
                looked += number
            else:
                found_in, without = _search(connection, seqs, wanted.body)
                looked, gone = looked + len(seqs), gone + without
            for found in read_deliveries(connection, found_in):
                shown = [row for row in found if wanted.admits(row) and (keys is None or _key_of(row) in keys)]
                matching += len(shown)
                is_full = is_full or bool(rows and shown and len(rows) + len(shown) > limit)
                if not is_full:
                    rows += shown
            if is_full and matching > most:
                break
            if time.monotonic() > end or (wanted.body is not None and looked >= MOST_SEARCHED):
                is_complete = False
                back_to = None if wanted.body is None else _read_arrival(connection, place)
                break
        else:
            place = None
    before = rows[-1]["seq"] if is_full else place
    return RowPage(rows, before, before is not None, min(matching, most + 1), is_complete, looked, back_to, gone)


def _search(connection: Connection, seqs: Sequence[int], body: str) -> tuple[list[int], int]:
    """Return those of the events whose payload contains a text, and the number of events without a payload.

    The numbers are literals, so that Postgres opens only the partitions that contain them.
    """
    if not seqs:
        return [], 0
    escaped = [json.dumps(body, ensure_ascii=ascii_only)[1:-1] for ascii_only in (False, True)]
    spelled = sorted({body, *escaped, *(each.replace("/", "\\/") for each in escaped)})  # some senders escape slashes
    texts = {f"text_{n}": each.encode() for n, each in enumerate(spelled)}
    is_found = " OR ".join(Sql(connection.dialect.name).has_bytes("body", name) for name in texts)
    numbers = ", ".join(str(int(seq)) for seq in seqs)
    statement = f"SELECT seq, {is_found} AS is_found FROM inbox_payload WHERE seq IN ({numbers})"
    with reading(connection).begin():
        found = {row.seq: row.is_found for row in connection.execute(text(statement), texts)}
    return [seq for seq in seqs if found.get(seq)], len(seqs) - len(found)


def _read_arrival(connection: Connection, seq: int | None) -> datetime | None:
    with reading(connection).begin():
        found = connection.execute(text("SELECT received_at FROM inbox WHERE seq = :seq"), {"seq": seq}).scalar()
    return None if found is None else as_time(found)


_OPEN_END = "'9999-12-31 00:00:00.000000Z'"
_MOST_FACTS = 100_000
"""Facts searched for those of a command, from its request on; many belong to other deliveries."""


def select_changed(sql: Sql) -> str:
    """Return the query for seq and route of each delivery that the command `:command` changed."""
    return f"""
SELECT DISTINCT recorded.seq, recorded.route FROM (
    SELECT w.seq, w.route, w.kind, w.detail FROM relay_command c
    JOIN delivery_log w ON w.at >= c.asked_at AND w.at <= coalesce(c.finished_at, {sql.time(_OPEN_END)})
    WHERE c.id = :command LIMIT {_MOST_FACTS}) recorded
WHERE recorded.kind IN ('replayed', 'rescheduled', 'cancelled', 'unblocked')
  AND {sql.number("recorded.detail ->> 'command'")} = :command"""


def _read_changed(connection: Connection, command: int) -> set[tuple[int, str]]:
    statement = text(select_changed(Sql(connection.dialect.name)))
    with reading(connection).begin():
        return {(row.seq, row.route) for row in connection.execute(statement, {"command": command})}


def _key_of(delivery: Row) -> tuple[int, str]:
    return delivery["seq"], delivery["route"]


class _Candidates:
    """Finds seqs of events that may match, in descending order."""

    def __init__(self, connection: Connection, wanted: EventFilter) -> None:
        self._connection, self._wanted = connection, wanted
        self._sql = Sql(connection.dialect.name)

    def pages(self, first: int) -> Iterator[tuple[list[int], int, int]]:
        """Yield lists of seqs, each with the seq below which the next list begins, and the number of scanned events.

        The first list has at most `first` seqs, so that short listings stay cheap.
        """
        wanted = self._wanted
        most = _PAGE if wanted.body is None else _SEARCHED
        size = min(first, most)
        below = _ABOVE_ALL if wanted.before is None else wanted.before
        statement, values = candidates(self._sql, wanted)
        if is_named(wanted) or is_open(wanted) or is_of_entity(wanted):
            while seqs := self._execute(statement, {**values, "before": below, "page": size}):
                below, size = seqs[-1], most
                yield seqs, below, len(seqs)
            return
        floor, ceiling = self._bounds()
        below = min(below, ceiling)
        while below > floor:
            found = self._execute(_LOWEST, {"below": below, "size": _WINDOW - 1})
            lowest = max(found[0] if found else floor, floor)
            seqs = self._execute(statement, {**values, "before": below, "lowest": lowest})
            at = 0
            while page := seqs[at : at + size]:
                yield page, page[-1], 0
                at, size = at + len(page), most
            below = lowest
            if below > floor:
                yield [], below, _WINDOW

    def _bounds(self) -> tuple[int, int]:
        """Return the range of seqs for the wanted times."""
        since, until = self._wanted.since, self._wanted.until
        early, late = _EARLIEST + _CLOCKS_APART, _LATEST - _CLOCKS_APART
        floor = 0 if since is None or since < early else self._place(since - _CLOCKS_APART) - OUT_OF_ORDER
        ceiling = _ABOVE_ALL if until is None or until > late else self._place(until + _CLOCKS_APART) + OUT_OF_ORDER
        return max(floor, 0), ceiling

    def _place(self, moment: datetime) -> int:
        with reading(self._connection).begin():
            return find_number(self._connection, ARRIVALS, moment)

    def _execute(self, statement: str, values: Mapping[str, object]) -> list[Any]:
        with reading(self._connection).begin():
            return list(self._connection.execute(text(statement), values).scalars())


_LOWEST = "SELECT seq FROM inbox WHERE seq < :below ORDER BY seq DESC LIMIT 1 OFFSET :size"
_IN_WINDOW = f"SELECT * FROM inbox w WHERE w.seq < :before AND w.seq >= :lowest ORDER BY w.seq DESC LIMIT {2 * _WINDOW}"
"""Query for a window's events, including some committed meanwhile. The limit keeps planners from merging conditions into it."""


def is_named(wanted: EventFilter) -> bool:
    """Return whether the filter names a seq, a sender's id or a command."""
    return wanted.seq is not None or wanted.sender_id is not None or wanted.command is not None


def is_open(wanted: EventFilter) -> bool:
    """Return whether only open deliveries can match; only they have errors."""
    return wanted.state in {*OPEN_STATES, OPEN} or wanted.error is not None


def is_of_entity(wanted: EventFilter) -> bool:
    """Return whether only events of one entity can match."""
    return wanted.entity_type is not None and wanted.entity_id is not None


def candidates(sql: Sql, wanted: EventFilter) -> tuple[str, dict[str, object]]:
    """Return the statement for seqs of events that may match, with its values.

    Its parameters are `before`, and either `page` (by name, open state or entity) or the `lowest` seq of a window.
    """
    conditions, values = _conditions(sql, msgspec.structs.asdict(wanted), _OF_EVENT, "i.received_at")
    if wanted.command is not None:
        conditions.append(f"i.seq IN (SELECT changed.seq FROM ({select_changed(sql)}) changed)")
        values["command"] = wanted.command
    if is_named(wanted):
        where = _all([*conditions, "i.seq < :before"])
        return f"SELECT i.seq FROM inbox i WHERE {where} ORDER BY i.seq DESC LIMIT :page", values
    routes = None if wanted.routes is None else f"IN (SELECT name FROM {sql.rows('routes', name='text')})"
    if wanted.routes is not None:
        values["routes"] = rows_param({"name": name} for name in wanted.routes)
    if is_open(wanted):
        if wanted.state is not None:  # literals, so that a partial index is used
            states = ", ".join(f"'{state}'" for state in list_stored_states(wanted.state) if state in OPEN_STATES)
            conditions.append(f"o.state IN ({states})" if states else "1 = 0")
        if wanted.retrying_at is not None:
            conditions.append(f"o.attempt > 0 AND o.due_at > {sql.time(':retrying_at')}")
            values["retrying_at"] = time_text(wanted.retrying_at)
        if routes is not None:
            conditions.append(f"o.route {routes}")
        if wanted.entity_id is not None and wanted.source is None:  # the index of entities begins with the source
            conditions.append(f"i.source IN {EVERY_SOURCE}")
        where = _all([*conditions, "o.seq < :before"])
        source = "SELECT DISTINCT o.seq FROM open_delivery o JOIN inbox i ON i.seq = o.seq"
        return f"{source} WHERE {where} ORDER BY o.seq DESC LIMIT :page", values
    conditions += _log_conditions(sql, wanted, routes, values)
    if is_of_entity(wanted):
        where = _all([OF_ENTITY, *conditions, "i.seq < :before"])
        found = sql.select_first(list_sources(wanted.source), "inbox i", where, "i.seq DESC", ":page")
        return f"SELECT i.seq FROM {found} ORDER BY i.seq DESC LIMIT :page", values
    return f"SELECT i.seq FROM ({_IN_WINDOW}) i WHERE {_all(conditions)} ORDER BY i.seq DESC", values


def _log_conditions(sql: Sql, wanted: EventFilter, routes: str | None, values: dict[str, object]) -> list[str]:
    """Return conditions on events with such a delivery, by their facts."""
    if wanted.state == UNROUTED:
        return [f"NOT EXISTS (SELECT 1 FROM {table} t WHERE t.seq = i.seq)" for table in _OF_DELIVERIES]
    of_fact = []
    if wanted.state is not None:
        of_fact.append("f.kind = :state")
        values["state"] = wanted.state
    if wanted.status is not None:
        of_fact.append(f"CAST({sql.extract_status('f')} AS int) = :status")
        values["status"] = wanted.status
    on_route = "" if routes is None else f" AND {{}}.route {routes}"
    fact = f"EXISTS (SELECT 1 FROM delivery_log f WHERE {_all(['f.seq = i.seq', *of_fact])}{on_route.format('f')})"
    if of_fact or not on_route:
        return [fact] if of_fact else []
    return [f"({fact} OR EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = i.seq{on_route.format('o')}))"]


EVERY_SOURCE = each_name("source", "inbox")
OF_ENTITY = "i.source = of_source.name AND i.entity_type = :entity_type AND i.entity_id = :entity_id"
"""Condition on the row `i` of the inbox, using the table of `list_sources`, as the index of entities begins with the source."""


def list_sources(source: str | None) -> str:
    """Return a table `of_source` with the name in the parameter `source`, or with the names of all sources."""
    return f"{EVERY_SOURCE} of_source" if source is None else "(SELECT CAST(:source AS text) AS name) of_source"


def read_deliveries(connection: Connection, seqs: Sequence[int]) -> list[list[Row]]:
    """Return the rows of the view `delivery` for each of these events."""
    if not seqs:
        return []
    of: dict[int, list[Row]] = {seq: [] for seq in seqs}
    with reading(connection).begin():
        if Sql(connection.dialect.name).is_postgres:
            found = connection.execute(_OF_MANY, {"wanted": rows_param({"seq": seq} for seq in seqs)})
        else:
            found = connection.execute(_OF_LISTED, {"seqs": list(seqs)})
        for row in found.mappings():
            of[row["seq"]].append(plain(row))
    return list(of.values())


_OF_LISTED: TextClause = text("SELECT * FROM delivery WHERE seq IN :seqs ORDER BY seq DESC, route").bindparams(
    bindparam("seqs", expanding=True)
)
"""Query for SQLite, which applies the list of seqs to each part of the view. A statement for each event would take
three times as long.
"""
_OF_MANY = text("""
SELECT d.* FROM jsonb_to_recordset(CAST(:wanted AS jsonb)) AS wanted(seq bigint)
CROSS JOIN LATERAL (SELECT * FROM delivery v WHERE v.seq = wanted.seq OFFSET 0) d
ORDER BY d.seq DESC, d.route
""")
