"""Reads the deliveries that a selection means, in pages of their keys. `names_seqs` of a statement: the selection gives `seqs`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import TypeVar

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql, blames_items, rows_param
from inbox.db.listing import OF_ENTITY, sources_of
from inbox.db.reads import Row
from relay.store.database import Database
from relay.store.deliveries import Key
from relay.store.operator.selection import Choice, Which, keys_of
from relay.store.transaction import Transaction

_CANDIDATES = 200
"""The fewest keys that are looked up together."""
_MOST_LOOK_UPS = 50
"""Consecutive look-ups of one page: whoever asked has other work, too."""
_FEW = 2000
"""Events of a source that are looked through at once."""
_WINDOW = 20_000
"""Events of any source among which those of one are looked for at a time."""

Result = TypeVar("Result")


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
    """The deliveries of the first events beyond the seq `after`: about `most`, whole events only, and none of a later event.

    Open ones are found by their key, some in each transaction, and then looked up: however many are selected, each reads few.
    After many candidates of which none is selected, the page is empty, and `upto` says where to go on. So it does when
    `is_late` says that the time is over.
    """
    read = {"ended or dead": _next_events, "backfill": _next_backfill}.get(choice.which, _next_open)
    found: list[Row] = []
    unreadable: dict[Key, Exception] = {}
    upto: int | None = after
    for _ in range(_MOST_LOOK_UPS):
        rows, failed, upto = read(database, choice, after, most)
        found += rows
        unreadable |= failed
        if len(found) > most:
            found = [row for row in found if row["seq"] < found[most]["seq"]] or [
                row for row in found if row["seq"] == found[most]["seq"]
            ]
            upto = int(found[-1]["seq"])
            break
        if upto is None or len(found) == most or is_late():
            break
        after = upto
    if choice.until_seq is not None and (upto is None or upto >= choice.until_seq):
        found, upto = [row for row in found if row["seq"] <= choice.until_seq], None
    kept = set(keys_of(found))
    return SelectedPage(found, {key: error for key, error in unreadable.items() if key in kept}, upto)


_Part = tuple[list[Row], dict[Key, Exception], int | None]
"""Rows, those that can't be looked up, and the seq beyond which to go on; None at the end."""


def _next_events(database: Database, choice: Choice, after: int, most: int) -> _Part:
    """Find events by their seq or entity, and then look their deliveries up: the view has no condition that may be left out."""
    with database.read() as transaction:
        given = {name: value for name, value in choice.parameters(choice.which).items() if value is not None}
        of_events = {name: value for name, value in given.items() if name in _OF_EVENTS}
        statement = _events(transaction.sql, tuple(sorted(of_events)))
        seqs = [int(row.seq) for row in transaction.execute(statement, **of_events, after=after, most=most)]
        return _of_events(transaction, choice, seqs), {}, seqs[-1] if len(seqs) == most else None


def _next_backfill(database: Database, choice: Choice, after: int, most: int) -> _Part:
    """Look through the events of the route's source: all where it has few, else some in each transaction."""
    source = {"of_source": choice.parameters("backfill")["of_source"]}
    with database.read() as transaction:
        few = [int(row.seq) for row in transaction.execute(FEW_OF_SOURCE, **source, most=_FEW + 1)]
        upto = None
        if len(few) <= _FEW:
            seqs = sorted(seq for seq in few if seq > after)[:most]
        else:
            found = transaction.execute(NEXT_OF_SOURCE, **source, after=after, most=most)
            seqs = [int(row.seq) for row in found]
            upto = transaction.execute(END_OF_WINDOW, after=after)[0].seq
        if len(seqs) == most:
            upto = seqs[-1]
        return _of_backfill(transaction, choice, seqs), {}, None if upto is None else int(upto)


def _next_open(database: Database, choice: Choice, after: int, most: int) -> _Part:
    with database.read() as transaction:
        keys = candidates(transaction, choice, after=after, most=max(most, _CANDIDATES))
    if not keys:
        return [], {}, None
    failed: dict[Key, Exception] = {}

    def look(some: Sequence[Key]) -> list[Row]:
        with database.read() as transaction:
            return look_up(transaction, choice, some)

    def fail(key: Key, error: Exception) -> list[Row]:
        failed[key] = error
        return [{"seq": key[0], "route": key[1]}]

    return [row for rows in together_or_apart(keys, look, fail) for row in rows], failed, keys[-1][0]


def together_or_apart(
    keys: Sequence[Key],
    do: Callable[[Sequence[Key]], Result],
    failed: Callable[[Key, Exception], Result],
    is_late: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """Read something of these together; where one of them is at fault, one by one until it is late, so that it stops no other."""
    try:
        yield do(keys)
    except Exception as error:
        if not blames_items(error):
            raise
    else:
        return
    for key in keys:
        try:
            yield do([key])
        except Exception as error:
            if not blames_items(error):
                raise
            yield failed(key, error)
        if is_late():
            return


def _of_events(transaction: Transaction, choice: Choice, seqs: Sequence[int]) -> list[Row]:
    """Read the selected deliveries of these events, ended or dead ones."""
    statement, known = _ended_of_events(transaction.sql, choice.names_seqs), choice.parameters(choice.which)
    if transaction.sql.has_lateral:
        return transaction.rows_of(statement, **known, wanted=rows_param({"seq": seq} for seq in seqs))
    return [row for seq in seqs for row in transaction.rows_of(statement, **known, wanted=seq)]


def _of_backfill(transaction: Transaction, choice: Choice, seqs: Sequence[int]) -> list[Row]:
    """Read what a backfill takes up of these events."""
    wanted = rows_param({"seq": seq} for seq in seqs)
    statement = _backfilled(transaction.sql, choice.names_seqs)
    return transaction.rows_of(statement, **choice.parameters("backfill"), wanted=wanted)


def candidates(transaction: Transaction, choice: Choice, *, after: int, most: int) -> list[Key]:
    """The keys beyond the seq `after` among which the selected open deliveries are: about `most`, whole events only."""
    known = choice.parameters(choice.which)
    names = ("route", "seq", "seqs", "deliveries", "state", "routes")
    given = {name: known[name] for name in names if name in known}
    statement = _candidates(transaction.sql, choice.which, choice.names_seqs)
    keys = keys_of(transaction.rows_of(statement, **given, after=after, most=most + 1))
    if len(keys) <= most:
        return keys
    whole = [key for key in keys if key[0] != keys[-1][0]]
    return whole or candidates(transaction, choice, after=after, most=2 * most)


def look_up(transaction: Transaction, choice: Choice, keys: Iterable[Key]) -> list[Row]:
    """The open deliveries among these that are selected."""
    wanted = rows_param({"seq": seq, "route": route} for seq, route in keys)
    statement = _looked_up(transaction.sql, choice.which, choice.names_seqs)
    return transaction.rows_of(statement, **choice.parameters(choice.which), wanted=wanted)


def among(transaction: Transaction, choice: Choice, keys: Iterable[Key], *, first: int = 0) -> set[Key]:
    """The deliveries among these that are selected, too, from the event `first` on.

    A batch that begins with `first` leaves out what an earlier one has taken up: perhaps that is delivered by now, and
    won't come last.
    """
    until = choice.until_seq
    keys = [key for key in keys if key[0] >= first and (until is None or key[0] <= until)]
    if choice.which in {"ended or dead", "backfill"}:
        read = _of_events if choice.which == "ended or dead" else _of_backfill
        return {*keys_of(read(transaction, choice, sorted({seq for seq, _ in keys})))}
    return {*keys_of(look_up(transaction, choice, keys))}


_COLUMNS = ("route", "seq", "source", "entity_type", "entity_id", "event_type")
_OF_INBOX = frozenset({"source", "entity_type", "entity_id", "event_type"})
_OF_EVENTS = _OF_INBOX | {"seq", "seqs"}
"""Conditions on events alone, by which they are found."""

_STATES: dict[Which, str] = {
    "dead": "o.state IN ('dead', 'blocked')",
    "not begun": "o.state IN ('received', 'waiting', 'ready', 'blocked', 'dead')",
    "blocked": "o.state = 'blocked'",
    "due later": "o.state = 'ready'",
}


def _in_state(sql: Sql, which: Which) -> str:
    return f"{_STATES[which]} AND o.due_at > (SELECT {sql.now})" if which == "due later" else _STATES[which]


def _backfill(sql: Sql, found: str, names_seqs: bool) -> str:
    """Deliveries that the route has ended, and events that it would take now, among those `found`, a table named `i`."""
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
FROM {found}
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = :route
LEFT JOIN delivery_log l ON l.id = (SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = :route)
WHERE i.source = :of_source AND (o.seq IS NULL OR o.state IN ('dead', 'blocked'))
  AND {_given(sql, "i.received_at", columns, names_seqs, route)}
  AND (l.id IS NOT NULL OR ({matching}))"""


def _given(sql: Sql, at: str, columns: dict[str, str], names_seqs: bool, route: str | None = None) -> str:
    """A condition for each parameter that may be given: its column has that value, and `at` lies in the given time.

    `route`: that of each row, where it is no column.
    """
    seq, route = columns["seq"], route or columns["route"]
    values = [
        sql.optional(column, "bigint" if name == "seq" else "text", parameter=name) for name, column in columns.items()
    ]
    values.append(_of_deliveries(sql, seq, route))
    values.append(sql.optional(_last_change(seq, route), "bigint", parameter="until_fact", operator="<="))
    values.append(sql.optional(at, "time", parameter="since", operator=">="))
    values.append(sql.optional(at, "time", parameter="until", operator="<"))
    if names_seqs:  # a condition of its own, as no planner finds an index behind an OR
        values.append(_of_seqs(sql, columns["seq"]))
    return " AND ".join(values)


def _of_seqs(sql: Sql, column: str) -> str:
    return f"{column} IN (SELECT seqs.value FROM {sql.rows('seqs', value='bigint')})"


def _of_deliveries(sql: Sql, seq: str, route: str) -> str:
    deliveries = "CAST(:deliveries AS text)" if sql.is_postgres else ":deliveries"
    rows = sql.rows("deliveries", seq="bigint", route="text")
    return f"({deliveries} IS NULL OR ({seq}, {route}) IN (SELECT deliveries.seq, deliveries.route FROM {rows}))"


def _last_change(seq: str, route: str) -> str:
    """The id of the newest fact, but for those after which a delivery can be replayed just as before; 0 without any.

    No EXISTS, as behind an OR a planner may read the whole log for it.
    """
    return f"""coalesce((SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = {seq} AND f.route = {route} AND f.kind NOT IN ('erased', 'unblocked')), 0)"""


def _of_routes(sql: Sql, column: str) -> str:
    routes = "CAST(:routes AS text)" if sql.is_postgres else ":routes"
    return f"({routes} IS NULL OR {column} IN (SELECT routes.value FROM {sql.rows('routes', value='text')}))"


def _open(sql: Sql, which: Which, names_seqs: bool, found: str) -> str:
    """The deliveries among `found`, a table named `o`, that meet the conditions, each with the fact of its last failure."""
    at = "i.received_at" if which == "not begun" else "coalesce(l.at, i.received_at)"
    columns = {name: f"i.{name}" if name in _OF_INBOX else f"o.{name}" for name in (*_COLUMNS, "state")}
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
LEFT JOIN delivery_log l ON l.id = {_last_failure(sql, which)}
WHERE {_given(sql, at, columns, names_seqs)} AND {_of_routes(sql, "o.route")} AND {failure}"""


def _last_failure(sql: Sql, which: Which) -> str:
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
    number = sql.number("t.detail ->> 'of'")
    older = f"""(SELECT {number} FROM delivery_log t
        WHERE t.id = (SELECT max(f.id) FROM delivery_log f WHERE {of_this} AND f.kind = 'took_over'))"""
    return f"coalesce({failed.format(of_this)}, {failed.format(f'f.seq = {older} AND f.route = o.route')})"


# By the index of entities, which has the seqs, too.
FEW_OF_SOURCE = text("""
SELECT i.seq FROM inbox i WHERE i.source = :of_source ORDER BY i.source, i.entity_type, i.entity_id, i.seq LIMIT :most
""")
_NEXT = f"SELECT n.seq, n.source FROM inbox n WHERE n.seq > :after ORDER BY n.seq LIMIT {_WINDOW}"
NEXT_OF_SOURCE = text(
    f"SELECT found.seq FROM ({_NEXT}) found WHERE found.source = :of_source ORDER BY found.seq LIMIT :most"
)
END_OF_WINDOW = text(f"SELECT CASE WHEN count(*) = {_WINDOW} THEN max(found.seq) END AS seq FROM ({_NEXT}) found")


@cache
def _backfilled(sql: Sql, names_seqs: bool) -> TextClause:
    """Read what a backfill takes up among the events `wanted`."""
    found = sql.looked_up(sql.rows("wanted", seq="bigint"), "inbox i", "i.seq = wanted.seq")
    return text(f"SELECT * FROM ({_backfill(sql, found, names_seqs)}) meant ORDER BY seq, route")


@cache
def _events(sql: Sql, names: tuple[str, ...]) -> TextClause:
    """Find the next seqs of events by these parameters, of `OF_EVENTS`."""
    where = " AND ".join(
        (*(_of_seqs(sql, "i.seq") if name == "seqs" else f"i.{name} = :{name}" for name in names), "i.seq > :after")
    )
    found = "inbox i"
    if {"entity_type", "entity_id"} <= {*names}:
        source = "source" if "source" in names else None
        found = sql.first_of(sources_of(source), "inbox i", f"{OF_ENTITY} AND {where}", "i.seq", ":most")
        where = "1 = 1"
    return text(f"SELECT i.seq FROM {found} WHERE {where} ORDER BY i.seq LIMIT :most")


@cache
def _ended_of_events(sql: Sql, names_seqs: bool) -> TextClause:
    """Write it for many events on Postgres, and for one on SQLite, each looked up by its seq."""
    columns = {name: f"d.{name}" for name in (*_COLUMNS, "state")}
    died = "(SELECT max(f.id) FROM delivery_log f WHERE f.seq = d.seq AND f.route = d.route AND f.kind = 'dead')"
    cause = f"(SELECT l.detail ->> 'cause' FROM delivery_log l WHERE l.id = {died})"
    found = (
        f"{sql.rows('wanted', seq='bigint')} CROSS JOIN LATERAL"
        " (SELECT * FROM delivery v WHERE v.seq = wanted.seq OFFSET 0) d"
        if sql.has_lateral
        else "(SELECT * FROM delivery WHERE seq = :wanted) d"
    )
    return text(f"""
SELECT d.*, d.last_error AS error, CASE WHEN d.state IN ('dead', 'blocked') THEN {cause} END AS cause FROM {found}
WHERE {_given(sql, "d.received_at", columns, names_seqs)} AND {_of_routes(sql, "d.route")}
  AND d.route IS NOT NULL AND d.state NOT IN ('received', 'waiting', 'ready', 'in_flight')
ORDER BY d.seq, d.route
""")


@cache
def _candidates(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Find the next keys among which the selected open deliveries are."""
    given = " AND ".join(
        (
            sql.optional("o.route", "text", parameter="route"),
            sql.optional("o.seq", "bigint", parameter="seq"),
            sql.optional("o.state", "text", parameter="state"),
            _of_routes(sql, "o.route"),
            _of_deliveries(sql, "o.seq", "o.route"),
            *([_of_seqs(sql, "o.seq")] if names_seqs else ()),
        )
    )
    return text(f"""
SELECT o.seq, o.route FROM open_delivery o
WHERE {_in_state(sql, which)} AND {given} AND o.seq > :after
ORDER BY o.seq, o.route
LIMIT :most
""")


@cache
def _looked_up(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Read the selected open deliveries among the keys `wanted`."""
    of_wanted = f"o.seq = wanted.seq AND o.route = wanted.route AND {_in_state(sql, which)}"
    found = sql.looked_up(sql.rows("wanted", seq="bigint", route="text"), "open_delivery o", of_wanted)
    return text(f"{_open(sql, which, names_seqs, found)} ORDER BY o.seq, o.route")
