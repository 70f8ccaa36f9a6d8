"""Reads what relays learned of payloads: fields, event types and changes; and acknowledges changes."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, islice
from operator import itemgetter

import msgspec
from sqlalchemy import Engine, text

from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.reads import Row, plain

OPEN_DAYS = 14
"""A change is open for so long, unless it is acknowledged or the field returns."""
ANY = "any"
"""Type of the row that counts the events with a path."""
_TYPES = 8
"""The most rows of a path: one for each type, and `ANY`."""


class FieldFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on fields of payloads; None: any."""

    source: str | None = None
    event_type: str | None = None
    path: str | None = None
    """A part of the path, in any case."""


class ChangeFilter(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on changes of payloads; None: any."""

    id: int | None = None
    source: str | None = None
    event_type: str | None = None
    change: str | None = None
    only_open: bool = False
    before: int | None = None
    """Only below this id."""


def fields(engine: Engine, wanted: FieldFilter, limit: int) -> list[Row]:
    """List the learned fields by source, event type and path.

    Each row has `types`, an object of the types with the events that had them; `events`, and `of`: the events that could
    have had the field since it was first seen.
    """
    sql = Sql(engine.dialect.name)
    conditions, values = _conditions(wanted, ("source", "event_type"))
    conditions.append(sql.contains("path", "path"))
    statement = text(f"""
SELECT source, event_type, path, type, events, first_seq, first_at, last_seq, last_at, absent, missed, missed_seq, is_map
FROM payload_field WHERE {" AND ".join(conditions)} ORDER BY source, event_type, path, id LIMIT :most
""")
    given = {**values, "path": wanted.path, "most": (limit + 1) * _TYPES}
    with engine.connect() as connection, reading(connection).begin():
        rows = [plain(row) for row in connection.execute(statement, given).mappings()]
    return list(islice(_of_paths(rows), limit))


def _of_paths(rows: list[Row]) -> Iterator[Row]:
    for _, group in groupby(rows, itemgetter("source", "event_type", "path")):
        types = {row["type"]: row for row in group}
        whole = types.pop(ANY, None)
        if whole is None:
            continue
        row = {name: value for name, value in whole.items() if name not in {"type", "absent"}}
        seen = {name: each["events"] for name, each in types.items()}
        yield {**row, "is_map": bool(row["is_map"]), "of": whole["events"] + whole["absent"], "types": seen}


def shapes(engine: Engine, source: str | None, limit: int) -> list[Row]:
    """List the event types that have a shape: `source`, `event_type`, `events`, `paths`, `first_at`, `last_seq` and `last_at`."""
    conditions, values = _conditions(FieldFilter(source=source), ("source",))
    statement = text(f"""
SELECT source, event_type, max(CASE WHEN path = '$' THEN events END) AS events, count(*) AS paths, min(first_at) AS first_at,
       max(last_seq) AS last_seq, max(last_at) AS last_at
FROM payload_field WHERE type = :any AND {" AND ".join(conditions)}
GROUP BY source, event_type ORDER BY source, event_type LIMIT :most
""")
    with engine.connect() as connection, reading(connection).begin():
        given = {**values, "any": ANY, "most": limit}
        return [plain(row) for row in connection.execute(statement, given).mappings()]


def changes(engine: Engine, wanted: ChangeFilter, limit: int) -> list[Row]:
    """List rows of `payload_change` with `is_open`, the newest first."""
    sql = Sql(engine.dialect.name)
    conditions, values = _of_changes(sql, wanted)
    where = " AND ".join(conditions)
    statement = text(
        f"SELECT c.*, ({is_open(sql)}) AS is_open FROM payload_change c WHERE {where} ORDER BY c.id DESC LIMIT :most"
    )
    with engine.connect() as connection, reading(connection).begin():
        rows = [plain(row) for row in connection.execute(statement, {**values, "most": limit, "now": None}).mappings()]
    return [{**row, "is_open": bool(row["is_open"])} for row in rows]


def acknowledge(engine: Engine, wanted: ChangeFilter, who: str) -> int:
    """Acknowledge the open changes that match. Returns their number."""
    sql = Sql(engine.dialect.name)
    conditions, values = _of_changes(sql, msgspec.structs.replace(wanted, only_open=True))
    statement = text(f"""
UPDATE payload_change AS c SET acknowledged_at = (SELECT {sql.now}), acknowledged_by = :who WHERE {" AND ".join(conditions)}
""")
    with engine.begin() as connection:
        return int(connection.execute(statement, {**values, "who": who, "now": None}).rowcount)


def is_open(sql: Sql) -> str:
    """Return the condition that a row `c` of `payload_change` is open; it binds `:now`."""
    first = sql.plus_seconds(f"(SELECT {sql.now})", str(-OPEN_DAYS * 86400))
    return f"c.acknowledged_at IS NULL AND c.returned_at IS NULL AND c.found_at > {first}"


def _of_changes(sql: Sql, wanted: ChangeFilter) -> tuple[list[str], dict[str, object]]:
    conditions, values = _conditions(wanted, ("id", "source", "event_type", "change"))
    if wanted.only_open:
        conditions.append(f"({is_open(sql)})")
    if wanted.before is not None:
        conditions.append("id < :before")
        values["before"] = wanted.before
    return conditions, values


def _conditions(wanted: FieldFilter | ChangeFilter, names: tuple[str, ...]) -> tuple[list[str], dict[str, object]]:
    values: dict[str, object] = {name: getattr(wanted, name) for name in names if getattr(wanted, name) is not None}
    return [f"{name} = :{name}" for name in values] or ["1 = 1"], values
