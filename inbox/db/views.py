"""Views for DBAs and listings. Their names and columns are public, like those of tables.

`statements` includes triggers, functions and permanent rows. `metadata.create_all` creates them too, so that a test can
compare databases built by migrations and from the metadata.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec
from sqlalchemy import Connection, event, text

from inbox.db import health_views, leaves, triggers
from inbox.db.dialect import POSTGRES, SQLITE, Sql
from inbox.db.schema import gate, inbox, metadata, open_delivery
from inbox.events.states import OPEN_STATES


class View(msgspec.Struct, frozen=True):
    """A public view with its comments."""

    name: str
    comment: str
    columns: Mapping[str, str]
    """Comments by column, in order."""


def _as_in_tables(*names: str) -> dict[str, str]:
    """Return the comments of columns with the same meaning as in `inbox`, `open_delivery` or `gate`."""
    return {name: next(t.c[name].comment or "" for t in (inbox, open_delivery, gate) if name in t.c) for name in names}


def _comment_periods(**comments: str) -> dict[str, str]:
    """Return two column comments for each figure, for the last hour and the last day."""
    return {f"{name}_{each}": said.format(each) for name, said in comments.items() for each in ("hour", "day")}


_EVENT = _as_in_tables("source", "entity_type", "entity_id", "event_type", "action", "occurred_at", "received_at")

VIEWS = (
    View(
        "event",
        "Every event as inbox has it, with its headers and its body as text. Query it by seq, entity or source and dedup_key.",
        {
            **_as_in_tables(*(column.name for column in inbox.columns)),
            "headers": "allow-listed request headers; empty when the payload is gone",
            "body": "body as text, or \\x and hex digits if it is not UTF-8 or has a NUL; empty when the payload is gone",
            "is_pruned": "true: retention or an erasure has deleted its headers and body",
            "is_erased": "true: a person was erased from it",
        },
    ),
    View(
        "delivery",
        "State of each event on each route. Query it by seq or entity; for counts use backlog.",
        {
            **_as_in_tables("seq", "route"),
            **_EVENT,
            "state": "as in open_delivery, or the kind of the last fact when it has ended; unrouted: the event matched no route",
            "attempts": "attempts used in its current or last run",
            **_as_in_tables("due_at", "lane", "relay_node"),
            "last_fact": "kind of its newest row in delivery_log; an erasure is not counted",
            "last_fact_at": "time of that row",
            "last_error": "while it is open: error of its newest failed attempt",
            "last_status": "HTTP status of the last call: of the newest failed attempt while it is open, else of the last fact",
            "superseded_by": "if superseded: the seq of the event that replaces it",
        },
    ),
    View(
        "dead_letter",
        "Deliveries that were given up, with cause and error. relay replay starts them again.",
        {
            **_as_in_tables("seq", "route", "lane"),
            "state": "dead, or blocked when it blocks its lane",
            **_EVENT,
            "attempts": "attempts used in its last run",
            "died_at": "time at which it was given up",
            "cause": "exhausted, crash_loop, unrecordable, unprocessable, payload_gone, or an error class, as in"
            " docs/reference/delivery.md",
            "error": "the last error, in one sentence",
            "last_status": "HTTP status of the last call",
        },
    ),
    View(
        "backlog",
        "Per route: open deliveries by state, and the age of the oldest that is not dead.",
        {
            **_as_in_tables("route"),
            "open": "sum of the following states",
            "received": "not ordered yet",
            "waiting": "behind the head of their lane",
            "ready": "heads, due now or later",
            "in_flight": "heads under a relay's lease",
            "blocked": "given up, and blocking their lanes",
            "dead": "given up",
            "oldest_received_at": "arrival of the oldest that is not dead",
            "oldest_age_seconds": "seconds since then",
        },
    ),
    View(
        "stuck",
        "Deliveries, commands and relays that make no progress, and why, as relay status --check reports them;"
        " deliveries behind a closed gate are excluded. Of each route, the 1,000 longest due. Empty when all is well."
        " It knows inbox.toml as far as running relays have stored it: see route_gate.",
        {
            "finding": "no_relay, crash_loop, step_failed, config_differs, failing, unordered, stuck, blocked, command,"
            " or command_failed",
            **_as_in_tables("seq", "route", "lane"),
            "state": "state of the delivery or command; gone or failing for relays",
            "for_seconds": "seconds since the problem began; empty: unknown",
            "why": "the problem in one sentence",
            "number": "blocked: deliveries behind it, counted to 1,000; failing: attempts that failed in a row; else empty",
        },
    ),
    View(
        "route_gate",
        "Gates on the way of each route, as the configuration of the running relays has them. One without a row in gate is open.",
        {
            "route": "the route",
            "kind": "source, route, destination or api: gate.kind",
            "name": "its name in inbox.toml: gate.name",
        },
    ),
    View(
        "entity_timeline",
        "Everything that happened to the events of an entity: arrivals, duplicates, attempts and outcomes. Query it by source,"
        " entity_type and entity_id, ORDER BY at, seq, fact_id, what.",
        {
            **_as_in_tables("source", "entity_type", "entity_id"),
            "at": "time of the arrival, or of the recording",
            "what": "arrived, duplicate, or a kind of fact, as in delivery_log",
            **_as_in_tables("seq"),
            "route": "the route; empty for arrivals and duplicates",
            "summary": "the outcome, error, or person and reason, in one sentence",
            "fact_id": "if a fact: delivery_log.id; else 0",
        },
    ),
    View(
        "source_health",
        "Sources with figures or events: the last arrival, and the requests of the last hour and day. The hour and the"
        " day end with the last figures, about ten seconds ago.",
        {
            "source": "name of the source; (unknown) for all unknown sources together",
            "last_arrival_at": "last event or duplicate, to the minute; empty: none in the age of the figures",
            **_comment_periods(
                events="events stored in the last {}, those of sweeps too",
                duplicates="duplicates in the last {}",
                rejected="rejected requests in the last {}; more than rejected_request has, when there were many",
            ),
            "is_silent": "true while the alert source_silent fires, which needs silent_after in inbox.toml",
            "paused_at": "time at which an operator paused it; empty: not paused",
        },
    ),
    View(
        "destination_health",
        "Routes, destinations and apis: their health, the outcomes of deliveries in the last hour and day, and their gates."
        " Figures of a destination are of all routes to it; apis have only a gate.",
        {
            "kind": "route, destination or api",
            "name": "its name in inbox.toml",
            "health": "paused, open, half_open or retired (its breaker), held (it asked for no call), failing (the last"
            " attempt failed, and deliveries are open) or ok",
            **_comment_periods(
                delivered="deliveries that succeeded in the last {}",
                failed="failed and abandoned attempts in the last {}",
                dead="deliveries given up in the last {}",
            ),
            "last_success_at": "last success, to the minute; empty: none in the age of the figures",
            "last_failure_at": "last failed attempt or death, to the minute",
            **_as_in_tables("paused_at", "breaker", "breaker_until", "breaker_cause", "held_until", "hold_reason"),
        },
    ),
)


ROWS: Mapping[str, str] = {
    "order_lock": "INSERT INTO order_lock (id) VALUES (1)",
    "payload_lock": "INSERT INTO payload_lock (id) VALUES (1)",
    "pruner": "INSERT INTO pruner (id) VALUES (1)",
    "write_probe": "INSERT INTO write_probe (id, probed_at) VALUES (1, '2000-01-01 00:00:00.000000Z')",
}
"""Tables with one permanent row, and the statement that inserts it. Locking a missing row would lock nothing."""

_DELIVERY = """
SELECT i.seq, {route} AS route, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at, i.received_at,
       {state} AS state,
       coalesce(o.attempt, l.attempt, 0) AS attempts, o.due_at, o.lane, o.relay_node,
       l.kind AS last_fact, l.at AS last_fact_at,
       CASE WHEN o.seq IS NOT NULL THEN e.detail ->> 'error' END AS last_error,
       CASE WHEN o.seq IS NOT NULL THEN {failed_status} ELSE {last_status} END AS last_status,
       CASE WHEN o.seq IS NULL AND l.kind = 'superseded' THEN {by} END AS superseded_by
FROM {routed}
LEFT JOIN open_delivery o ON o.seq = i.seq AND o.route = {route}
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = i.seq AND f.route = {route} AND f.kind <> 'erased')
LEFT JOIN delivery_log e ON e.id = (
    SELECT max(f.id) FROM delivery_log f
    WHERE f.seq = i.seq AND f.route = {route} AND f.kind IN ('attempt_failed', 'abandoned', 'dead'))
WHERE {condition}
"""

_DEAD_LETTER = """
CREATE VIEW dead_letter AS
SELECT o.seq, o.route, o.lane, o.state, i.source, i.entity_type, i.entity_id, i.event_type, i.action, i.occurred_at,
       i.received_at, o.attempt AS attempts, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
       {last_status} AS last_status
FROM (
    SELECT seq, route, lane, state, attempt FROM open_delivery WHERE state = 'dead'
    UNION ALL
    SELECT seq, route, lane, state, attempt FROM open_delivery WHERE state = 'blocked'
) o
JOIN inbox i ON i.seq = o.seq
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = o.seq AND f.route = o.route AND f.kind = 'dead')
"""

_BACKLOG = """
CREATE VIEW backlog AS
SELECT b.route, b.open, {states},
       i.received_at AS oldest_received_at, {age} AS oldest_age_seconds
FROM (
    SELECT route, count(*) AS open,
           {counts},
           min(CASE WHEN state <> 'dead' THEN seq END) AS oldest_seq
    FROM open_delivery
    GROUP BY route
) b
LEFT JOIN inbox i ON i.seq = b.oldest_seq
"""


def _delivery_view(dialect: str) -> str:
    if dialect == POSTGRES:
        routed, route = "inbox i CROSS JOIN LATERAL unnest(i.routes) AS r(route)", "r.route"
        not_routed, none = "NOT r.route = ANY (i.routes)", "i.routes = '{}'"
    else:
        routed, route = "inbox i JOIN json_each(i.routes) r", "r.value"
        not_routed, none = "NOT EXISTS (SELECT 1 FROM json_each(i.routes) a WHERE a.value = r.route)", "i.routes = '[]'"
    known = "coalesce(o.state, l.kind)"
    # the first replay on the route; a DISTINCT would read the whole log for one entity
    replayed = "inbox i JOIN delivery_log r ON r.seq = i.seq AND r.kind = 'replayed'"
    once = (
        "NOT EXISTS (SELECT 1 FROM delivery_log f"
        " WHERE f.seq = r.seq AND f.route = r.route AND f.kind = 'replayed' AND f.id < r.id)"
    )
    never_replayed = "NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.kind = 'replayed')"
    nowhere, by = "CAST(NULL AS text)", Sql(dialect).number("l.detail ->> 'by'")
    statuses = {
        "last_status": Sql(dialect).extract_status("l"),
        "failed_status": Sql(dialect).extract_status("e"),
    }
    return "CREATE VIEW delivery AS" + "UNION ALL".join(
        _DELIVERY.format(by=by, routed=rows, route=name, state=state, condition=condition, **statuses)
        for rows, name, state, condition in (
            (routed, route, known, "1 = 1"),
            (replayed, "r.route", known, f"{not_routed} AND {once}"),
            ("inbox i", nowhere, "'unrouted'", f"{none} AND {never_replayed}"),
        )
    )


def _event_views(dialect: str) -> tuple[str, ...]:
    """Return the views of events: `event` with payloads, and `entity_timeline`."""
    views = (_event(dialect), _entity_timeline(dialect))
    return (_BODY_TEXT, *views) if dialect == POSTGRES else views


_BODY_TEXT = """
CREATE FUNCTION inbox_body_text(body bytea) RETURNS text LANGUAGE plpgsql IMMUTABLE STRICT
SET search_path FROM CURRENT AS $$
BEGIN
    RETURN convert_from(body, 'UTF8');
EXCEPTION WHEN character_not_in_repertoire OR untranslatable_character THEN
    RETURN '\\x' || encode(body, 'hex');
END $$
"""
"""Function for a body as text, or in hex. Otherwise a single row with a wrong `body_is_text` would break every query.

It costs 1 to 3 microseconds a row. Up to Postgres 16, parallel workers can't catch errors, so queries of the view run
in one process.
"""


def _event(dialect: str) -> str:
    """Return the view `event`. A body that is not text appears in hex, so that it doesn't break listings."""
    columns = ", ".join(f"i.{column.name}" for column in inbox.columns)
    if dialect == POSTGRES:
        body, in_hex = "inbox_body_text(p.body)", "encode(p.body, 'hex')"
    else:
        body, in_hex = "CAST(p.body AS text)", "lower(hex(p.body))"
    return f"""
CREATE VIEW event AS
SELECT {columns}, p.headers,
       CASE WHEN p.seq IS NULL THEN NULL WHEN i.body_is_text THEN {body} ELSE '\\x' || {in_hex} END AS body,
       p.seq IS NULL AS is_pruned, i.erased_at IS NOT NULL AS is_erased
FROM inbox i LEFT JOIN inbox_payload p ON p.seq = i.seq
"""


def _entity_timeline(dialect: str) -> str:
    """Return the view `entity_timeline`. It looks up rows event by event, whatever the statistics say."""
    if dialect == POSTGRES:
        routes = "nullif(array_to_string(i.routes, ', '), '')"
        duplicates = "LATERAL (SELECT * FROM duplicate_request r WHERE r.seq = i.seq OFFSET 0) d"
        facts = "LATERAL (SELECT * FROM delivery_log r WHERE r.seq = i.seq OFFSET 0) f"
        of_event = ""
    else:
        routes = "(SELECT group_concat(r.value, ', ') FROM json_each(i.routes) r)"
        duplicates, facts = "duplicate_request d", "delivery_log f"
        of_event = "WHERE {}.seq = i.seq"
    return f"""
CREATE VIEW entity_timeline AS
SELECT i.source, i.entity_type, i.entity_id, i.received_at AS at, 'arrived' AS what, i.seq, CAST(NULL AS text) AS route,
       i.event_type || coalesce(', for ' || {routes}, ', for no route') AS summary, CAST(0 AS bigint) AS fact_id
FROM inbox i
UNION ALL
SELECT i.source, i.entity_type, i.entity_id, d.received_at, 'duplicate', i.seq, NULL,
       d.times || CASE WHEN d.times = 1 THEN ' request' ELSE ' requests' END
           || CASE WHEN d.body IS NOT NULL THEN ' with another body' ELSE '' END
           || coalesce(': not judged: ' || d.error, ''), 0
FROM inbox i CROSS JOIN {duplicates}
{of_event.format("d")}
UNION ALL
SELECT i.source, i.entity_type, i.entity_id, f.at, f.kind, i.seq, f.route,
       coalesce(f.detail ->> 'error', (f.detail ->> 'who') || ': ' || (f.detail ->> 'why'), f.detail ->> 'why',
                f.detail ->> 'did', f.detail ->> 'because', ''), f.id
FROM inbox i CROSS JOIN {facts}
{of_event.format("f")}
"""


def statements(dialect: str) -> tuple[str, ...]:
    """Return the statements for everything except tables and indexes, in order, including the permanent rows."""
    sql = Sql(dialect)
    views = (
        _delivery_view(dialect),
        _DEAD_LETTER.format(last_status=Sql(dialect).extract_status("l")),
        _BACKLOG.format(
            age=sql.seconds_since("i.received_at"),
            states=", ".join(f"b.{state}" for state in OPEN_STATES),
            counts=",\n           ".join(
                f"count(CASE WHEN state = '{state}' THEN 1 END) AS {state}" for state in OPEN_STATES
            ),
        ),
        *health_views.statements(sql),
        *_event_views(dialect),
    )
    if dialect == SQLITE:
        return (*views, *triggers.statements(dialect), *ROWS.values())
    comments = (
        statement
        for view in VIEWS
        for statement in (
            f"COMMENT ON VIEW {view.name} IS '{_quote(view.comment)}'",
            *(
                f"COMMENT ON COLUMN {view.name}.{column} IS '{_quote(comment)}'"
                for column, comment in view.columns.items()
            ),
        )
    )
    return (
        *views,
        *comments,
        *triggers.statements(dialect),
        *leaves.STATEMENTS,
        *ROWS.values(),
    )


def _quote(comment: str) -> str:
    return comment.replace("'", "''")


@event.listens_for(metadata, "after_create")
def _create(_target: object, connection: Connection, **_: Any) -> None:  # noqa: ANN401  # SQLAlchemy's own keywords
    for statement in statements(connection.dialect.name):
        connection.execute(text(statement.replace(":", "\\:")))
