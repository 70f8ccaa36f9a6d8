"""Read one event, one entity or single rows, by primary keys and indexes, as Python values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import Connection, Engine, text

from inbox.db.dialect import Sql, as_json, as_list, rows_param
from inbox.db.engine import reading
from inbox.events.event import escape
from inbox.events.states import HEADS, OPEN_STATES
from inbox.events.timestamps import as_time, rfc3339

Row = dict[str, Any]

MOST_FACTS = 400
"""Maximum number of newest facts of an event, for frequently read pages."""
MOST_DUPLICATES = 50
MOST_COUNTED = 500
"""Maximum count of a lane's deliveries."""
MOST_LINES = 1000
"""Maximum lines of an entity's page; an event may have thousands of facts, which its own page lists."""
ENTITY = ("source", "entity_type", "entity_id")
"""Columns that identify an entity; escaped and joined, they are the name of its gate."""
_ALL = 2**63 - 1

_FLAGS = frozenset({
    "dry_run", "body_is_text", "is_pruned", "is_other", "is_kept", "is_silent", "firing", "is_unsendable"
})  # fmt: skip


def plain(mapping: Any) -> Row:  # noqa: ANN401  # a result row's mapping
    """Convert a row of a public table or view to Python values: aware times, decoded JSON, booleans."""
    row = dict(mapping)
    for name, value in row.items():
        if value is None:
            continue
        if name in {"at", "minute"} or name.endswith(("_at", "_until")):
            row[name] = as_time(value)
        elif name in {"headers", "detail", "selection", "sample"}:
            row[name] = as_json(value)
        elif name in _FLAGS:  # SQLite stores numbers
            row[name] = bool(value)
        elif name == "routes":
            row[name] = as_list(value)
        elif name == "body_sha256":
            row[name] = value.hex()
    return row


def _rows(connection: Connection, statement: str, **values: object) -> list[Row]:
    return [plain(row) for row in connection.execute(text(statement), values).mappings()]


PARTS = (
    "deliveries", "facts", "has_earlier_facts", "duplicates", "lanes", "gates", "relays", "previous_seq", "next_seq"
)  # fmt: skip
"""Members of the result of `event` that aren't columns of `inbox`."""


def event(engine: Engine, seq: int, *, is_whole: bool = False) -> Row | None:
    """Read one event with its deliveries and facts; None if it doesn't exist.

    In addition to the columns of `inbox`, it has `is_pruned` and `PARTS`: rows of the view `delivery`; the newest
    facts, oldest first; the newest duplicates, with `is_other` if the body differs; the lane of each open delivery;
    every gate on their way, open or closed; the relays working on them; and the neighbouring events of the entity.

    With `is_whole`, it also has `headers` and `body`, bodies of duplicates, and all facts; the viewers' role may not read these.
    """
    most, body = (_ALL, ", d.body") if is_whole else (MOST_FACTS, "")
    with engine.connect() as connection, reading(connection).begin():
        found = _rows(connection, "SELECT * FROM inbox WHERE seq = :seq", seq=seq)
        if not found:
            return None
        row = found[0]
        # A literal, so that Postgres opens only the payload leaf of this number.
        pruned = connection.exec_driver_sql(f"SELECT is_pruned FROM event WHERE seq = {int(seq)}").scalar()
        if is_whole:
            row["headers"], row["body"] = payload(connection, seq) or (None, None)
        deliveries = _rows(connection, _DELIVERIES, seq=seq)
        facts = _rows(connection, _FACTS, seq=seq, most=min(most + 1, _ALL))
        open_ones = ((each["route"], each["lane"]) for each in deliveries if each["state"] in OPEN_STATES)
        return row | {
            "is_pruned": bool(pruned),
            "deliveries": deliveries,
            "facts": facts[:most][::-1],
            "has_earlier_facts": len(facts) > most,
            "duplicates": _rows(
                connection, _DUPLICATES.format(body), seq=seq, most=_ALL if is_whole else MOST_DUPLICATES
            ),
            "lanes": _lanes(connection, open_ones),
            "gates": _gates(connection, *(str(row[name]) for name in ENTITY)),
            "relays": _rows(connection, _RELAYS, seq=seq),
            "previous_seq": _neighbour(connection, row, "max", "<"),
            "next_seq": _neighbour(connection, row, "min", ">"),
        }


def payload(connection: Connection, seq: int) -> tuple[dict[str, str], bytes] | None:
    """Read headers and body of an event; None if they are deleted."""
    statement = f"SELECT headers, body FROM inbox_payload WHERE seq = {int(seq)}"
    found = connection.exec_driver_sql(statement).first()
    return None if found is None else (as_json(found.headers), bytes(found.body))


def _neighbour(connection: Connection, row: Row, which: str, side: str) -> int | None:
    if row["entity_type"] is None or row["entity_id"] is None:
        return None
    statement = f"SELECT {which}(seq) AS seq FROM inbox WHERE {_OF_ENTITY} AND seq {side} :seq"
    found: int | None = _rows(connection, statement, **{name: row[name] for name in (*ENTITY, "seq")})[0]["seq"]
    return found


_DELIVERIES = "SELECT * FROM delivery WHERE seq = :seq AND route IS NOT NULL ORDER BY route"
_FACTS = (
    "SELECT id, at, route, kind, state, attempt, relay_node, detail FROM delivery_log WHERE seq = :seq"
    " ORDER BY id DESC LIMIT :most"
)
_DUPLICATES = """
SELECT d.id, d.received_at, d.times, d.last_received_at, d.handled_at, d.error, d.body_sha256 <> i.body_sha256 AS is_other{}
FROM duplicate_request d JOIN inbox i ON i.seq = d.seq
WHERE d.seq = :seq
ORDER BY d.id DESC LIMIT :most
"""
_RELAYS = "SELECT id, host, pid FROM relay_node WHERE id IN (SELECT relay_node FROM open_delivery WHERE seq = :seq)"


def describe_removed(engine: Engine, row: Row, at: datetime) -> list[str]:
    """Describe the data missing from an event as of `at`, because of retention or erasure."""
    missing = []
    if row["erased_at"] is not None and row["erased_at"] > at:
        when = rfc3339(row["erased_at"], "seconds")
        missing.append(f"its entity was erased at {when}: texts and calls of its facts are gone")
    with engine.connect() as connection, reading(connection).begin():
        found = _rows(connection, "SELECT pruned_until FROM pruning WHERE kind = 'attempts' AND rows > 0")
    until = found[0]["pruned_until"] if found else None
    if until is not None and until > row["received_at"]:
        when = rfc3339(until, "seconds")
        missing.append(f"retention has deleted failed attempts from before {when}: attempts may be missing")
    return missing


class TimelineLine(msgspec.Struct, frozen=True):
    """One step in the history of an event."""

    at: datetime
    what: str
    """`arrived`, `duplicate`, or a kind of fact."""
    route: str | None
    summary: str | None


class EventOfEntity(msgspec.Struct, frozen=True):
    """An event of an entity with its history, oldest first."""

    seq: int
    event_type: str
    action: str
    occurred_at: datetime
    received_at: datetime
    timeline: tuple[TimelineLine, ...]


class EntityRead(msgspec.Struct, frozen=True):
    """A page of an entity's events, with its current lanes and gate."""

    events: tuple[EventOfEntity, ...]
    """Events, newest first."""
    is_cut: bool
    """True if there are more than `MOST_LINES` lines; the last events then lack some."""
    before: int | None
    """Seq below which the next page begins; None if there is none."""
    lanes: Mapping[str, Row]
    """Lanes by route, as `_LANES` reads them."""
    gates: list[Row]


def entity(
    engine: Engine, name: tuple[str, str, str], lanes: Iterable[tuple[str, str]], *, before: int | None, limit: int
) -> EntityRead:
    """Read an entity by its source, type and id. `lanes` lists its lanes as route and lane."""
    named = dict(zip(ENTITY, name, strict=True))
    with engine.connect() as connection, reading(connection).begin():
        found = _rows(connection, _EVENTS, **named, below=_ALL if before is None else before, most=limit + 1)
        events = found[:limit]
        lines: dict[int, list[TimelineLine]] = {each["seq"]: [] for each in events}
        told: list[Row] = []
        if events:
            bounds = {"lowest": events[-1]["seq"], "highest": events[0]["seq"]}
            told = _rows(connection, _LINES, **named, **bounds, most=MOST_LINES + 1)
        for line in told[:MOST_LINES]:
            lines[line.pop("seq")].append(TimelineLine(**line))
        return EntityRead(
            events=tuple(EventOfEntity(**each, timeline=tuple(lines[each["seq"]])) for each in events),
            is_cut=len(told) > MOST_LINES,
            before=events[-1]["seq"] if len(found) > limit else None,
            lanes={row["route"]: row for row in _lanes(connection, lanes)},
            gates=_gates(connection, *name),
        )


_OF_ENTITY = " AND ".join(f"{name} = :{name}" for name in ENTITY)
_EVENTS = f"""
SELECT seq, event_type, action, occurred_at, received_at FROM inbox
WHERE {_OF_ENTITY} AND seq < :below ORDER BY seq DESC LIMIT :most
"""
_LINES = f"""
SELECT at, what, seq, route, summary FROM entity_timeline
WHERE {_OF_ENTITY} AND seq >= :lowest AND seq <= :highest
ORDER BY seq DESC, at, fact_id, what LIMIT :most
"""


def _gates(connection: Connection, *name: str) -> list[Row]:
    return _rows(connection, _GATES, entity="|".join(map(escape, name)))


_GATES = """
SELECT kind, name, paused_at, paused_by, pause_reason, breaker, breaker_until, breaker_cause, rate_used_until,
    held_until, hold_reason
FROM gate
WHERE kind <> 'entity' OR (kind = 'entity' AND name = :entity)
ORDER BY kind, name
"""


def _lanes(connection: Connection, lanes: Iterable[tuple[str, str]]) -> list[Row]:
    wanted = rows_param({"route": route, "lane": lane} for route, lane in lanes)
    listed = Sql(connection.dialect.name).rows("wanted", route="text", lane="text")
    return _rows(connection, _LANES.format(wanted=listed), wanted=wanted, most=MOST_COUNTED + 1)


_OF_LANE = "d.route = wanted.route AND d.lane = wanted.lane"
_IS_HEAD = ", ".join(f"'{state}'" for state in HEADS)
_HEAD = f"SELECT {{}} FROM open_delivery d WHERE {_OF_LANE} AND d.state IN ({_IS_HEAD}) LIMIT 1"
_COUNT = (
    f"SELECT count(*) FROM (SELECT 1 FROM open_delivery d WHERE {_OF_LANE} AND d.state = '{{}}' LIMIT :most) counted"
)
_LANES = f"""
SELECT wanted.route, ({_HEAD.format("d.seq")}) AS head_seq, ({_HEAD.format("d.state")}) AS head_state,
       ({_COUNT.format("waiting")}) AS waiting, ({_COUNT.format("dead")}) AS dead,
       (SELECT d.seq FROM lane d WHERE {_OF_LANE}) AS delivered_seq
FROM {{wanted}}
ORDER BY wanted.route
"""
"""Query for lanes: the head, counts up to `MOST_COUNTED` + 1, and the last delivered event."""


def read_row(engine: Engine, table: str, number: int) -> Row | None:
    """Read one row of `rejected_request` or `relay_command`; None if it doesn't exist."""
    with engine.connect() as connection, reading(connection).begin():
        found = _rows(connection, f"SELECT * FROM {table} WHERE id = :id", id=number)
    return found[0] if found else None


# --- names in filters that the configuration lacks: rows of removed routes and sources stay

NEWEST = 10_000
"""Number of newest rows searched if no index has the name, so that a typo doesn't cost a full scan."""
NamedIn = Literal["route", "source", "rejected_source", "sender_id"]
_PLACES: Mapping[NamedIn, Sequence[str]] = {
    "route": (
        *(
            f"open_delivery WHERE state = '{state}' AND route = :name" for state in OPEN_STATES
        ),  # each uses its partial index
        "lane WHERE route = :name",
        "gate WHERE kind = 'route' AND name = :name",
        f"(SELECT route FROM delivery_log ORDER BY id DESC LIMIT {NEWEST}) newest WHERE route = :name",
    ),
    "source": ("inbox WHERE source = :name",),
    "sender_id": ("inbox WHERE event_id = :name",),
    "rejected_source": (
        f"(SELECT source FROM rejected_request ORDER BY id DESC LIMIT {NEWEST}) newest WHERE source = :name",
    ),
}


def has(engine: Engine, kind: NamedIn, name: str) -> bool:
    """Return whether any row has this name: for routes deliveries, lanes, gates and the newest facts.

    For sources, the newest rejected requests are searched too, which may name any word in a URL as their source.
    """
    with engine.connect() as connection, reading(connection).begin():
        return any(_rows(connection, f"SELECT 1 AS found FROM {place} LIMIT 1", name=name) for place in _PLACES[kind])


def find_sender_ids(engine: Engine, part: str, most: int) -> list[str]:
    """Return up to `most` sender's ids of the newest events that contain a text, ignoring case."""
    newest = f"(SELECT event_id FROM inbox ORDER BY seq DESC LIMIT {NEWEST}) newest"
    has_part = Sql(engine.dialect.name).contains("event_id", "part")
    statement = f"SELECT DISTINCT event_id FROM {newest} WHERE {has_part} ORDER BY event_id LIMIT :most"
    with engine.connect() as connection, reading(connection).begin():
        return [row["event_id"] for row in _rows(connection, statement, part=part, most=most)]
