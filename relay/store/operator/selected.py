"""Reads the deliveries that a selection means: counts, pages, and membership."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, blames_items
from inbox.db.listings import SOURCES
from inbox.db.parameters import rows_param
from inbox.db.reads import Row
from inbox.events.timestamps import as_time
from relay.store.database import Database, Key, Transaction
from relay.store.operator.selection import Choice, Which


def groups(transaction: Transaction, choice: Choice) -> list[Any]:
    """The number of selected open deliveries of each route, state and cause, and when their next attempts are due."""
    return transaction.execute(_grouped(transaction.sql, choice.which), **choice.parameters(choice.which))


def count(transaction: Transaction, choice: Choice, which: Which) -> int:
    """The number of deliveries of this kind that meet the conditions, whatever the act is about."""
    return int(transaction.execute(_counted(transaction.sql, which), **choice.parameters(which))[0].count)


def wait_until(transaction: Transaction, choice: Choice) -> tuple[int, datetime | None]:
    """The number of attempts that wait, and when the last one is due."""
    (found,) = transaction.execute(_waiting(transaction.sql), **choice.parameters("due later"))
    return int(found.count), None if found.last_due_at is None else as_time(found.last_due_at)


class SelectedPage(msgspec.Struct, frozen=True):
    """The next selected deliveries, in the order of their keys."""

    rows: Sequence[Row]
    """All columns; of one that can't be looked up seq and route alone."""
    unreadable: Mapping[Key, Exception] = {}
    """Deliveries that can't be looked up, so that nobody knows whether they are selected."""
    upto: int | None = None
    """The seq beyond which to go on; None at the end."""


def page(
    database: Database, choice: Choice, *, after: int, most: int, is_late: Callable[[], bool] = lambda: False
) -> SelectedPage:
    """The deliveries of the first events beyond the seq `after`: about `most`, whole events only.

    Open ones are found by their key, some in each transaction, and then looked up: however many are selected, each reads few.
    After many candidates of which none is selected, the page is empty, and `upto` says where to go on. So it does when
    `is_late` says that the time is over.
    """
    if choice.which == "ended or dead":
        return _page_of_events(database, choice, after, most)
    if choice.which not in OF_WORK_TABLE:
        with database.read() as transaction:
            known = choice.parameters(choice.which)
            rows = _whole_events(_page(transaction.sql, choice.which), transaction, known, after, most)
        return SelectedPage(rows, upto=int(rows[-1]["seq"]) if rows else None)
    found: list[Row] = []
    unreadable: dict[Key, Exception] = {}
    for _ in range(_MOST_LOOK_UPS):
        with database.read() as transaction:
            keys = candidates(transaction, choice, after=after, most=max(most, _CANDIDATES))
        if not keys:
            return SelectedPage(found, unreadable, int(found[-1]["seq"]) if found else None)
        rows, failed = _look_up_each(database, choice, keys)
        found += rows
        unreadable |= failed
        if len(found) > most:
            cut = found[most]["seq"]
            found = [row for row in found if row["seq"] < cut] or [row for row in found if row["seq"] == cut]
            kept = {(row["seq"], row["route"]) for row in found}
            return SelectedPage(
                found, {key: unreadable[key] for key in unreadable.keys() & kept}, int(found[-1]["seq"])
            )
        after = keys[-1][0]
        if len(found) == most or is_late():
            break
    return SelectedPage(found, unreadable, after)


def _page_of_events(database: Database, choice: Choice, after: int, most: int) -> SelectedPage:
    """Find events by their seq or entity, and then look their deliveries up: the view has no condition that may be left out."""
    with database.read() as transaction:
        given = {name: value for name, value in choice.parameters(choice.which).items() if value is not None}
        sources = "source" not in given and {"entity_type", "entity_id"} <= given.keys()
        found = transaction.execute(
            _events(tuple(sorted(given.keys() & {*_OF_INBOX, "seq"})), of_any_source=sources),
            **{name: value for name, value in given.items() if name in {*_OF_INBOX, "seq"}},
            after=after,
            most=most,
        )
        seqs = [int(row.seq) for row in found]
        rows = _of_events(transaction, choice, seqs)
    return SelectedPage(rows, upto=seqs[-1] if len(seqs) == most else None)


def _of_events(transaction: Transaction, choice: Choice, seqs: Sequence[int]) -> list[Row]:
    """Read the selected deliveries of these events, ended or dead ones."""
    statement, known = _ended_of_events(transaction.sql), choice.parameters(choice.which)
    if transaction.sql.has_lateral:
        return transaction.rows_of(statement, **known, wanted=rows_param({"seq": seq} for seq in seqs))
    return [row for seq in seqs for row in transaction.rows_of(statement, **known, wanted=seq)]


def _look_up_each(database: Database, choice: Choice, keys: Sequence[Key]) -> tuple[list[Row], dict[Key, Exception]]:
    """Look up these together; where one of them can't be, one by one, so that it stops no other."""
    try:
        with database.read() as transaction:
            return look_up(transaction, choice, keys), {}
    except Exception as error:
        if not blames_items(error):
            raise
    rows: list[Row] = []
    failed: dict[Key, Exception] = {}
    for key in keys:
        try:
            with database.read() as transaction:
                rows += look_up(transaction, choice, [key])
        except Exception as error:
            if not blames_items(error):
                raise
            rows.append({"seq": key[0], "route": key[1]})
            failed[key] = error
    return rows, failed


def candidates(transaction: Transaction, choice: Choice, *, after: int, most: int) -> list[Key]:
    """The keys beyond the seq `after` among which the selected open deliveries are: about `most`, whole events only."""
    known = choice.parameters(choice.which)
    given = {name: known[name] for name in ("route", "seq", "routes")}
    rows = _whole_events(_candidates(transaction.sql, choice.which), transaction, given, after, most)
    return [(int(row["seq"]), str(row["route"])) for row in rows]


def look_up(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> list[Row]:
    """The open deliveries among these that are selected."""
    wanted = rows_param({"seq": seq, "route": route} for seq, route in keys)
    statement = _looked_up(transaction.sql, choice.which)
    return transaction.rows_of(statement, **choice.parameters(choice.which), wanted=wanted)


def _whole_events(
    statement: TextClause, transaction: Transaction, given: dict[str, object], after: int, most: int
) -> list[Row]:
    rows = transaction.rows_of(statement, **given, after=after, most=most + 1)
    if len(rows) <= most:
        return rows
    whole = [row for row in rows if row["seq"] != rows[-1]["seq"]]
    return whole or _whole_events(statement, transaction, given, after, 2 * most)


def still_to_come(transaction: Transaction, choice: Choice, first: int, keys: Iterable[Key]) -> set[Key]:
    """The selected ones among these that the batch which begins with the event `first`, or a later one, has.

    An earlier batch has taken up the others: perhaps they are delivered by now, and won't come last.
    """
    return among(transaction, choice, {key for key in keys if key[0] >= first})


def among(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> set[Key]:
    """The deliveries among these that are selected, too."""
    seqs = sorted({seq for seq, _ in keys})
    if choice.which == "ended or dead":
        return {(int(row["seq"]), str(row["route"])) for row in _of_events(transaction, choice, seqs)}
    wanted = rows_param({"seq": seq} for seq in seqs)
    found = transaction.execute(_among(transaction.sql, choice.which), **choice.parameters(choice.which), wanted=wanted)
    return {(row.seq, row.route) for row in found}


OF_WORK_TABLE: frozenset[Which] = frozenset({"dead", "not begun", "blocked", "due later"})
"""Kinds of deliveries that have a row in `open_delivery`."""
_CANDIDATES = 200
"""The fewest keys that are looked up together."""
_MOST_LOOK_UPS = 50
"""Consecutive look-ups of one page: whoever asked has other work, too."""
_COLUMNS = ("route", "seq", "source", "entity_type", "entity_id", "event_type")
_OF_INBOX = frozenset({"source", "entity_type", "entity_id", "event_type"})


def _meant(sql: Sql, which: Which) -> str:
    if which == "ended or dead":
        return f"""SELECT *, CAST(NULL AS text) AS cause FROM delivery
WHERE {_given(sql, "received_at", dict(zip(_COLUMNS, _COLUMNS, strict=True)))} AND {_of_routes(sql, "route")}
  AND route IS NOT NULL AND state NOT IN ('received', 'waiting', 'ready', 'in_flight')"""
    if which == "backfill":
        return _backfill(sql)
    return _open(sql, which, f"(SELECT {_FIELDS} FROM open_delivery o WHERE {_in_state(sql, which)}) o")


_FIELDS = "o.seq, o.route, o.lane, o.state, o.attempt, o.due_at"
_STATES: dict[Which, str] = {
    "dead": "o.state IN ('dead', 'blocked')",
    "not begun": "o.state IN ('received', 'waiting', 'ready', 'blocked', 'dead')",
    "blocked": "o.state = 'blocked'",
    "due later": "o.state = 'ready'",
}


def _in_state(sql: Sql, which: Which) -> str:
    return f"{_STATES[which]} AND o.due_at > (SELECT {sql.now})" if which == "due later" else _STATES[which]


def _backfill(sql: Sql) -> str:
    """Deliveries that the route has ended, and events that it would take now."""
    route = "CAST(:route AS text)" if sql.is_postgres else ":route"
    columns = {name: f"i.{name}" for name in ("seq", "entity_type", "entity_id", "event_type")}
    matching = " AND ".join(
        f"(NOT EXISTS (SELECT 1 FROM {sql.rows(wanted, value='text')})"
        f" OR i.{column} IN (SELECT {wanted}.value FROM {sql.rows(wanted, value='text')}))"
        for column, wanted in (("entity_type", "entity_types"), ("event_type", "event_types"), ("action", "actions"))
    )
    return f"""SELECT i.seq, {route} AS route, i.source, i.entity_type, i.entity_id, i.event_type,
       coalesce(o.state, l.kind, 'unrouted') AS state, coalesce(o.attempt, l.attempt, 0) AS attempts,
       CAST(NULL AS text) AS cause
FROM inbox i
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = :route
LEFT JOIN delivery_log l ON l.id = (SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = :route)
WHERE i.source = :of_source AND (o.seq IS NULL OR o.state IN ('dead', 'blocked')) AND {_given(sql, "i.received_at", columns)}
  AND (l.id IS NOT NULL OR ({matching}))"""


def _given(sql: Sql, at: str, columns: dict[str, str]) -> str:
    """A condition for each parameter that may be given: its column has that value, and `at` lies in the given time."""
    values = [
        sql.optional(column, "bigint" if name == "seq" else "text", parameter=name) for name, column in columns.items()
    ]
    values.append(sql.optional(at, "time", parameter="since", operator=">="))
    values.append(sql.optional(at, "time", parameter="until", operator="<"))
    return " AND ".join(values)


def _of_routes(sql: Sql, column: str) -> str:
    routes = "CAST(:routes AS text)" if sql.is_postgres else ":routes"
    return f"({routes} IS NULL OR {column} IN (SELECT routes.value FROM {sql.rows('routes', value='text')}))"


def _open(sql: Sql, which: Which, found: str) -> str:
    """The deliveries among `found`, a table named `o`, that meet the conditions, each with the fact of its last failure."""
    at = "i.received_at" if which == "not begun" else "coalesce(l.at, i.received_at)"
    columns = {name: f"i.{name}" if name in _OF_INBOX else f"o.{name}" for name in _COLUMNS}
    cause = "coalesce(l.detail ->> 'cause', l.detail ->> 'error_class')"
    error, status = "l.detail ->> 'error'", sql.last_status("l.detail")
    failure = " AND ".join(
        (
            sql.optional(cause, "text", parameter="cause"),
            sql.optional(status, "text", parameter="status"),
            sql.contains(error, "error"),
            sql.optional(sql.sha256(error), "text", parameter="error_sha256"),
        )
    )
    return f"""SELECT o.seq, o.route, o.lane, o.state, o.attempt AS attempts, o.due_at, i.source, i.entity_type, i.entity_id,
       i.event_type, i.occurred_at, i.received_at, l.at AS failed_at, {cause} AS cause, {status} AS status, {error} AS error
FROM {found}
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = {_last_failure(which)}
WHERE {_given(sql, at, columns)} AND {_of_routes(sql, "o.route")} AND {failure}"""


def _last_failure(which: Which) -> str:
    """The fact by which a delivery died. Of one that waits for its next attempt: its last failed one.

    One that took over the retries of an older delivery, and has not failed itself, has the failure of that one.
    """
    of_this = "f.seq = o.seq AND f.route = o.route"
    dead = (
        f"(SELECT max(f.id) FROM delivery_log f WHERE {of_this} AND f.kind = 'dead' AND o.state IN ('blocked', 'dead'))"
    )
    if which != "due later":
        return dead
    failed = "(SELECT max(f.id) FROM delivery_log f WHERE {} AND f.kind = 'attempt_failed')"
    older = f"""(SELECT CAST(t.detail ->> 'of' AS bigint) FROM delivery_log t
        WHERE t.id = (SELECT max(f.id) FROM delivery_log f WHERE {of_this} AND f.kind = 'took_over'))"""
    return f"coalesce({failed.format(of_this)}, {failed.format(f'f.seq = {older} AND f.route = o.route')})"


@cache
def _counted(sql: Sql, which: Which) -> TextClause:
    return text(f"SELECT count(*) AS count FROM ({_meant(sql, which)}) meant")


@cache
def _waiting(sql: Sql) -> TextClause:
    return text(f"SELECT count(*) AS count, max(due_at) AS last_due_at FROM ({_meant(sql, 'due later')}) meant")


@cache
def _grouped(sql: Sql, which: Which) -> TextClause:
    return text(f"""
SELECT route, state, cause, count(*) AS count, min(due_at) AS first_due_at, max(due_at) AS last_due_at
FROM ({_meant(sql, which)}) meant
GROUP BY route, state, cause
ORDER BY count DESC, route, state, cause
""")


@cache
def _page(sql: Sql, which: Which) -> TextClause:
    return text(f"SELECT * FROM ({_meant(sql, which)}) meant WHERE seq > :after ORDER BY seq, route LIMIT :most")


@cache
def _events(names: tuple[str, ...], *, of_any_source: bool) -> TextClause:
    conditions = [f"i.{name} = :{name}" for name in names]
    if of_any_source:  # the index of entities begins with the source
        conditions.append(f"i.source IN ({SOURCES})")
    where = " AND ".join((*conditions, "i.seq > :after"))
    return text(f"SELECT i.seq FROM inbox i WHERE {where} ORDER BY i.seq LIMIT :most")


@cache
def _ended_of_events(sql: Sql) -> TextClause:
    """Write it for many events on Postgres, and for one on SQLite, each looked up by its seq."""
    columns = {name: f"d.{name}" for name in _COLUMNS}
    found = (
        f"{sql.rows('wanted', seq='bigint')} CROSS JOIN LATERAL"
        " (SELECT * FROM delivery v WHERE v.seq = wanted.seq OFFSET 0) d"
        if sql.has_lateral
        else "(SELECT * FROM delivery WHERE seq = :wanted) d"
    )
    return text(f"""
SELECT d.*, CAST(NULL AS text) AS cause FROM {found}
WHERE {_given(sql, "d.received_at", columns)} AND {_of_routes(sql, "d.route")}
  AND d.route IS NOT NULL AND d.state NOT IN ('received', 'waiting', 'ready', 'in_flight')
ORDER BY d.seq, d.route
""")


@cache
def _candidates(sql: Sql, which: Which) -> TextClause:
    given = " AND ".join(
        (
            sql.optional("o.route", "text", parameter="route"),
            sql.optional("o.seq", "bigint", parameter="seq"),
            _of_routes(sql, "o.route"),
        )
    )
    return text(f"""
SELECT o.seq, o.route FROM open_delivery o
WHERE {_in_state(sql, which)} AND {given} AND o.seq > :after
ORDER BY o.seq, o.route
LIMIT :most
""")


@cache
def _looked_up(sql: Sql, which: Which) -> TextClause:
    of_wanted = f"o.seq = wanted.seq AND o.route = wanted.route AND {_in_state(sql, which)}"
    found = sql.looked_up(sql.rows("wanted", seq="bigint", route="text"), "open_delivery o", of_wanted)
    return text(f"{_open(sql, which, found)} ORDER BY o.seq, o.route")


@cache
def _among(sql: Sql, which: Which) -> TextClause:
    wanted = sql.rows("wanted", seq="bigint")
    return text(f"SELECT seq, route FROM ({_meant(sql, which)}) meant WHERE seq IN (SELECT wanted.seq FROM {wanted})")
