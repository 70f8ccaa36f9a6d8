"""Selections of operators: conditions, and pages of the deliveries that meet them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import MAXYEAR, MINYEAR, datetime
from functools import cache, partial
from typing import Annotated, Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.config.model import Config
from inbox.db.dialect import Sql, rows_param
from inbox.db.reads import Row
from inbox.events.timestamps import time_text
from relay.store.bulkhead import in_parts
from relay.store.database import Database, Key, Transaction, key_text
from relay.store.operator.replay import overtaken
from relay.store.reopen import find

_READ_AT_ONCE = 200

Act = Literal["replay", "cancel", "unblock"]
_Which = Literal["dead", "ended or dead", "everything", "not begun", "blocked"]


class Selection(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Every condition that is given must hold. This is also what `relay_command.selection` holds, as JSON."""

    route: str | None = None
    seq: Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)] | None = None
    source: str | None = None
    entity_type: str | None = None
    entity_id: str | None = None
    cause: str | None = None
    since: Annotated[datetime, msgspec.Meta(tz=True)] | None = None
    """Died at or after this time; where others than the dead are selected: arrived at or after."""
    force: bool = False
    """Replay even where that overwrites the last delivered state with an older one."""

    everything: bool = False
    """For a replay of one route: also ended deliveries, and events that match the route now and have never taken it."""

    @property
    def is_empty(self) -> bool:
        """True when no condition is given."""
        return msgspec.structs.replace(self, force=False, everything=False) == Selection()

    @property
    def dead_only(self) -> bool:
        """For a replay: unless one event or entity is named, only dead letters are selected, and ended deliveries left alone."""
        return self.cause is not None or (self.seq is None and self.entity_id is None)


class Plan(msgspec.Struct, frozen=True):
    """The deliveries that an act would change, in the order of arrival."""

    count: int
    sample: tuple[Row, ...]
    overtaken: int = 0
    """For a replay without `force`: the number left out because their event is older than the last delivered one."""


def keys_of(rows: Iterable[Row]) -> list[Key]:
    """Seq and route of each."""
    return [(int(row["seq"]), str(row["route"])) for row in rows]


class Choice(msgspec.Struct, frozen=True):
    """An act and what it is about, under one configuration."""

    act: Act
    selection: Selection
    config: Config

    @property
    def mistake(self) -> str | None:
        """The reason why this selection is invalid; None when it is valid."""
        chosen, routes = self.selection, self.config.routes
        if chosen.since is not None and not MINYEAR < chosen.since.year < MAXYEAR:
            return f"since the year {chosen.since.year}? Name one between {MINYEAR + 1} and {MAXYEAR - 1}"
        if self.act == "cancel" and chosen.is_empty:
            return "name what is to be cancelled: a route, seq, source, entity, cause or time"
        if self.act != "replay" and (chosen.everything or chosen.force):
            return "only a replay can be forced, or be of everything"
        if chosen.everything and chosen.route not in routes:
            return f"everything of which route? Configured are: {', '.join(sorted(routes)) or 'none'}"
        if chosen.everything and (chosen.cause is not None or chosen.source is not None):
            return "everything of a route is of one source and of every cause; leave those out"
        return None

    @property
    def which(self) -> _Which:
        """The kind of deliveries it is about."""
        if self.act == "cancel":
            return "not begun"
        if self.act == "unblock":
            return "blocked"
        if self.selection.everything:
            return "everything"
        return "dead" if self.selection.dead_only else "ended or dead"

    @property
    def is_about_dead(self) -> bool:
        """True when only dead letters are selected; one that was taken up again meanwhile is not."""
        return self.which in {"dead", "blocked"} or (self.act == "cancel" and self.selection.cause is not None)

    @property
    def parameters(self) -> dict[str, object]:
        """The bound parameters of the statements of `which`."""
        chosen = self.selection
        given: dict[str, object] = {
            "route": chosen.route,
            "seq": chosen.seq,
            "entity_type": chosen.entity_type,
            "entity_id": chosen.entity_id,
            "since": None if chosen.since is None else time_text(chosen.since),
        }
        if self.which == "everything":
            route = self.config.routes[str(chosen.route)]
            wanted: dict[str, Sequence[str]] = {
                "entity_types": route.when.entity_type,
                "event_types": route.when.event_type,
                "actions": route.when.action,
            }
            lists = {name: rows_param({"value": value} for value in values) for name, values in wanted.items()}
            return given | {"of_source": route.source} | lists
        given["source"] = chosen.source
        return given if self.which == "ended or dead" else given | {"cause": chosen.cause}


def count(database: Database, choice: Choice) -> int:
    """The number of selected deliveries."""
    with database.read() as transaction:
        return int(transaction.execute(_counted(database.sql, choice.which), **choice.parameters)[0].count)


def preview(database: Database, choice: Choice, sample: int | None) -> Plan:
    """Preview a command, with this many of its deliveries as a sample (None: all). Changes nothing."""
    number = count(database, choice)
    with database.read() as transaction:
        rows = page(transaction, choice, after=0, most=number if sample is None else sample)
    left = _overtaken(database, choice) if choice.act == "replay" and not choice.selection.force else 0
    return Plan(number, tuple(rows if sample is None else rows[:sample]), left)


def _overtaken(database: Database, choice: Choice) -> int:
    def part(some: Sequence[Key]) -> int:
        with database.write() as transaction:  # a write, for `find` locks; nothing is changed
            too = partial(among, transaction, choice)
            return len(overtaken(transaction, find(transaction, choice.config, some), too))

    number, after = 0, 0
    while True:
        with database.read() as transaction:
            keys = keys_of(page(transaction, choice, after=after, most=_READ_AT_ONCE))
        if not keys:
            return number
        number += sum(in_parts(database, "commands", keys, part=part, name=key_text))
        after = keys[-1][0]


def page(transaction: Transaction, choice: Choice, *, after: int, most: int) -> list[Row]:
    """The deliveries of the first events beyond the seq `after`: about `most`, whole events only."""
    statement = _page(transaction.sql, choice.which)
    rows = transaction.rows_of(statement, **choice.parameters, after=after, most=most + 1)
    if len(rows) <= most:
        return rows
    whole = [row for row in rows if row["seq"] != rows[-1]["seq"]]
    return whole or page(transaction, choice, after=after, most=2 * most)


def among(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> set[Key]:
    """The deliveries among these that are selected, too."""
    wanted = rows_param({"seq": seq} for seq in sorted({seq for seq, _ in keys}))
    found = transaction.execute(_among(transaction.sql, choice.which), **choice.parameters, wanted=wanted)
    return {(row.seq, row.route) for row in found}


def _meant(sql: Sql, which: _Which) -> str:
    columns = {name: name for name in ("route", "source", "entity_type", "entity_id", "seq")}
    if which == "ended or dead":
        return f"""SELECT * FROM delivery
WHERE {_given(sql, "received_at", **columns)} AND route IS NOT NULL
  AND state NOT IN ('received', 'waiting', 'ready', 'in_flight')"""
    if which == "everything":
        return _everything(sql)
    if which == "dead":
        return f"SELECT * FROM dead_letter WHERE {_given(sql, 'died_at', **columns, cause='cause')}"
    return _open(sql, ("received", "waiting", "ready", "blocked", "dead") if which == "not begun" else ("blocked",))


def _everything(sql: Sql) -> str:
    """Deliveries that the route has ended, and events that it would take now."""
    route = "CAST(:route AS text)" if sql.is_postgres else ":route"
    given = _given(sql, "i.received_at", seq="i.seq", entity_type="i.entity_type", entity_id="i.entity_id")
    matching = " AND ".join(
        f"(NOT EXISTS (SELECT 1 FROM {sql.rows(wanted, value='text')})"
        f" OR i.{column} IN (SELECT {wanted}.value FROM {sql.rows(wanted, value='text')}))"
        for column, wanted in (("entity_type", "entity_types"), ("event_type", "event_types"), ("action", "actions"))
    )
    return f"""SELECT i.seq, {route} AS route, i.source, i.entity_type, i.entity_id, i.event_type,
       coalesce(o.state, l.kind, 'unrouted') AS state, coalesce(o.attempt, l.attempt, 0) AS attempts
FROM inbox i
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = :route
LEFT JOIN delivery_log l ON l.id = (SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = :route)
WHERE i.source = :of_source AND (o.seq IS NULL OR o.state IN ('dead', 'blocked')) AND {given}
  AND (l.id IS NOT NULL OR ({matching}))"""


def _given(sql: Sql, arrived: str, **columns: str) -> str:
    """A condition for each parameter that may be given: its column has that value, and `arrived` is not before `since`."""
    values = [
        sql.optional(column, "bigint" if name == "seq" else "text", parameter=name) for name, column in columns.items()
    ]
    return " AND ".join([*values, sql.optional(arrived, "time", parameter="since", operator=">=")])


def _open(sql: Sql, states: Sequence[str]) -> str:
    listed = ", ".join(f"'{state}'" for state in states)
    columns = {name: f"i.{name}" for name in ("source", "entity_type", "entity_id")}
    columns |= {"route": "o.route", "seq": "o.seq", "cause": "l.detail ->> 'cause'"}
    return f"""SELECT o.seq, o.route, o.lane, o.state, o.attempt AS attempts, i.source, i.entity_type, i.entity_id, i.event_type,
       i.received_at, l.detail ->> 'cause' AS cause
FROM open_delivery o
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
    AND o.state IN ('blocked', 'dead')
WHERE o.state IN ({listed}) AND {_given(sql, "i.received_at", **columns)}"""


@cache
def _counted(sql: Sql, which: _Which) -> TextClause:
    return text(f"SELECT count(*) AS count FROM ({_meant(sql, which)}) meant")


@cache
def _page(sql: Sql, which: _Which) -> TextClause:
    return text(f"SELECT * FROM ({_meant(sql, which)}) meant WHERE seq > :after ORDER BY seq, route LIMIT :most")


@cache
def _among(sql: Sql, which: _Which) -> TextClause:
    wanted = sql.rows("wanted", seq="bigint")
    return text(f"SELECT seq, route FROM ({_meant(sql, which)}) meant WHERE seq IN (SELECT wanted.seq FROM {wanted})")
