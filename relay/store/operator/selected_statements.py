"""Statements for the deliveries that a selection means. `names_seqs`: it gives `seqs`."""

from __future__ import annotations

from functools import cache

from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.listing import OF_ENTITY, sources_of
from relay.store.operator.selection import Which

_WINDOW = 20_000
"""Events of any source among which those of one are looked for at a time."""
_COLUMNS = ("route", "seq", "source", "entity_type", "entity_id", "event_type")
_OF_INBOX = frozenset({"source", "entity_type", "entity_id", "event_type"})
OF_EVENTS = _OF_INBOX | {"seq", "seqs"}
"""Conditions on events alone, by which they are found."""


def _meant(sql: Sql, which: Which, names_seqs: bool) -> str:
    if which == "ended or dead":
        columns = {name: f"delivery.{name}" for name in (*_COLUMNS, "state")}
        return f"""SELECT *, CAST(NULL AS text) AS cause FROM delivery
WHERE {_given(sql, "received_at", columns, names_seqs)} AND {_of_routes(sql, "route")}
  AND route IS NOT NULL AND state NOT IN ('received', 'waiting', 'ready', 'in_flight')"""
    if which == "backfill":
        return _backfill(sql, "inbox i", names_seqs)
    return _open(sql, which, names_seqs, f"(SELECT {_FIELDS} FROM open_delivery o WHERE {_in_state(sql, which)}) o")


_FIELDS = "o.seq, o.route, o.lane, o.state, o.attempt, o.due_at"
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


@cache
def counted(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Count the selected deliveries of a kind."""
    return text(f"SELECT count(*) AS count FROM ({_meant(sql, which, names_seqs)}) meant")


@cache
def waiting(sql: Sql, names_seqs: bool) -> TextClause:
    """Count the selected attempts that wait, with the time of the last."""
    return text(
        f"SELECT count(*) AS count, max(due_at) AS last_due_at FROM ({_meant(sql, 'due later', names_seqs)}) meant"
    )


@cache
def grouped(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Count the selected deliveries by route, state and cause."""
    return text(f"""
SELECT route, state, cause, count(*) AS count, min(due_at) AS first_due_at, max(due_at) AS last_due_at
FROM ({_meant(sql, which, names_seqs)}) meant
GROUP BY route, state, cause
ORDER BY count DESC, route, state, cause
""")


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
def backfilled(sql: Sql, names_seqs: bool) -> TextClause:
    """Read what a backfill takes up among the events `wanted`."""
    found = sql.looked_up(sql.rows("wanted", seq="bigint"), "inbox i", "i.seq = wanted.seq")
    return text(f"SELECT * FROM ({_backfill(sql, found, names_seqs)}) meant ORDER BY seq, route")


@cache
def events(sql: Sql, names: tuple[str, ...]) -> TextClause:
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
def ended_of_events(sql: Sql, names_seqs: bool) -> TextClause:
    """Write it for many events on Postgres, and for one on SQLite, each looked up by its seq."""
    columns = {name: f"d.{name}" for name in (*_COLUMNS, "state")}
    found = (
        f"{sql.rows('wanted', seq='bigint')} CROSS JOIN LATERAL"
        " (SELECT * FROM delivery v WHERE v.seq = wanted.seq OFFSET 0) d"
        if sql.has_lateral
        else "(SELECT * FROM delivery WHERE seq = :wanted) d"
    )
    return text(f"""
SELECT d.*, CAST(NULL AS text) AS cause FROM {found}
WHERE {_given(sql, "d.received_at", columns, names_seqs)} AND {_of_routes(sql, "d.route")}
  AND d.route IS NOT NULL AND d.state NOT IN ('received', 'waiting', 'ready', 'in_flight')
ORDER BY d.seq, d.route
""")


@cache
def candidates(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
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
def looked_up(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Read the selected open deliveries among the keys `wanted`."""
    of_wanted = f"o.seq = wanted.seq AND o.route = wanted.route AND {_in_state(sql, which)}"
    found = sql.looked_up(sql.rows("wanted", seq="bigint", route="text"), "open_delivery o", of_wanted)
    return text(f"{_open(sql, which, names_seqs, found)} ORDER BY o.seq, o.route")


@cache
def among(sql: Sql, which: Which, names_seqs: bool) -> TextClause:
    """Find the keys of the selected deliveries of the events `wanted`."""
    wanted = sql.rows("wanted", seq="bigint")
    return text(
        f"SELECT seq, route FROM ({_meant(sql, which, names_seqs)}) meant WHERE seq IN (SELECT wanted.seq FROM {wanted})"
    )
