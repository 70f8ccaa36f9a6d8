"""Views for DBAs and listings. Their names and columns are public, as the tables' are.

`statements` adds the triggers and functions, and the rows that always exist. `metadata.create_all` makes them too, so that
a test can compare a database built by migrations with one built from here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sqlalchemy import Connection, event, text

from inbox.db import command_rules, health_views, leaves, stuck, triggers
from inbox.db.dialect import POSTGRES, SQLITE, Sql, status_of
from inbox.db.schema import inbox, metadata
from inbox.db.view_comments import VIEWS
from inbox.events.states import GONE_SECONDS, OPEN_STATES

ROWS: Mapping[str, str] = {
    "order_lock": "INSERT INTO order_lock (id) VALUES (1)",
    "payload_lock": "INSERT INTO payload_lock (id) VALUES (1)",
    "pruner": "INSERT INTO pruner (id) VALUES (1)",
    "write_probe": "INSERT INTO write_probe (id, probed_at) VALUES (1, '2000-01-01 00:00:00.000000Z')",
}
"""Tables with one row for ever, and the statement that makes it. Whoever locks a row that is gone locks nothing."""

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

_RELAY_HEALTH = """
CREATE VIEW relay_health AS
SELECT r.relay_node, r.host, r.pid, r.version,
       CASE WHEN r.stopped_at IS NOT NULL THEN 'stopped' WHEN r.silent_seconds > {gone} THEN 'gone' ELSE 'running' END AS health,
       r.silent_seconds,
       (SELECT count(*) FROM open_delivery o WHERE o.state = 'in_flight' AND o.relay_node = r.relay_node) AS in_flight,
       r.started_at, r.heartbeat_at, r.stopped_at, r.failing
FROM (
    SELECT n.id AS relay_node, n.host, n.pid, n.version, n.started_at, n.heartbeat_at, n.stopped_at, n.failing,
           {silent} AS silent_seconds
    FROM relay_node n
) r
"""


def _delivery_view(dialect: str) -> str:
    if dialect == POSTGRES:
        routed, route = "inbox i CROSS JOIN LATERAL unnest(i.routes) AS r(route)", "r.route"
        not_routed, none = "NOT r.route = ANY (i.routes)", "i.routes = '{}'"
    else:
        routed, route = "inbox i JOIN json_each(i.routes) r", "r.value"
        not_routed, none = "NOT EXISTS (SELECT 1 FROM json_each(i.routes) a WHERE a.value = r.route)", "i.routes = '[]'"
    known = "coalesce(o.state, l.kind)"
    # the first replay there; a DISTINCT would read the whole log for one entity
    replayed = "inbox i JOIN delivery_log r ON r.seq = i.seq AND r.kind = 'replayed'"
    once = (
        "NOT EXISTS (SELECT 1 FROM delivery_log f"
        " WHERE f.seq = r.seq AND f.route = r.route AND f.kind = 'replayed' AND f.id < r.id)"
    )
    never_replayed = "NOT EXISTS (SELECT 1 FROM delivery_log f WHERE f.seq = i.seq AND f.kind = 'replayed')"
    nowhere, by = "CAST(NULL AS text)", Sql(dialect).number("l.detail ->> 'by'")
    statuses = {
        "last_status": status_of("l", dialect),
        "failed_status": status_of("e", dialect),
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
    """List the views of events: with their payloads, of dead letters by cause, and of all that happened to an entity."""
    views = (_event(dialect), _dead_cause(dialect), _entity_timeline(dialect))
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
"""Body as text, or in hex. One row whose `body_is_text` is wrong would else break every query of the view.

It costs 1 to 3 microseconds a row. Up to Postgres 16 no parallel worker may catch an error, so a query of the view runs in
one process.
"""


def _event(dialect: str) -> str:
    """A body that is no text shows in hex, as Postgres writes bytes: one of them must not break a listing."""
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


def _dead_cause(dialect: str) -> str:
    died = (
        """LEFT JOIN LATERAL (
    SELECT f.at, f.detail FROM delivery_log f WHERE f.seq = gone.seq AND f.route = gone.route AND f.kind = 'dead'
    ORDER BY f.id DESC
    LIMIT 1) l ON true"""
        if dialect == POSTGRES
        else """LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = gone.seq AND f.route = gone.route AND f.kind = 'dead')"""
    )
    return f"""
CREATE VIEW dead_cause AS
SELECT d.route, d.cause, d.error, d.last_status, count(*) AS deliveries, min(d.died_at) AS first_died_at,
       max(d.died_at) AS last_died_at, max(d.seq) AS sample_seq
FROM (
    SELECT gone.seq, gone.route, l.at AS died_at, l.detail ->> 'cause' AS cause, l.detail ->> 'error' AS error,
           {status_of("l", dialect)} AS last_status
    FROM (
        SELECT seq, route FROM open_delivery WHERE state = 'dead'
        UNION ALL
        SELECT seq, route FROM open_delivery WHERE state = 'blocked'
    ) gone
    {died}
) d
GROUP BY d.route, d.cause, d.error, d.last_status
"""


_SENTENCES = {
    "delivered": "'did: ' || {did}",
    "unchanged": "'the other system had it already'",
    "superseded": "'event ' || {by} || ' replaces it (' || coalesce({because}, 'newer') || ')'",
    "skipped": "{why}",
    "attempt_failed": "{error_class} || ': ' || {error}",
    "abandoned": "'its lease expired: the relay that held it died or was cut off'",
    "took_over": "'it goes on with the attempts of event ' || {of}",
    "rescheduled": "'due at ' || {due_at}",
    "dead": "{cause} || ': ' || {error}",
    "rearmed": "'after duplicate request ' || {duplicate}",
}
"""Summary of each kind of fact, by the fields of its detail. Of the others, it is the person and the reason."""


def _sentence() -> str:
    fields = ("did", "by", "because", "why", "error_class", "error", "of", "due_at", "cause", "duplicate", "who")
    values = {name: f"(f.detail ->> '{name}')" for name in fields}
    cases = "\n".join(f"            WHEN '{kind}' THEN {words.format(**values)}" for kind, words in _SENTENCES.items())
    return f"CASE f.kind\n{cases}\n            ELSE {values['who']} || ': ' || {values['why']} END"


def _entity_timeline(dialect: str) -> str:
    """Rows of an event are looked up one event after the other, whatever the statistics say of their number."""
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
       {_sentence()}, f.id
FROM inbox i CROSS JOIN {facts}
{of_event.format("f")}
"""


def statements(dialect: str) -> tuple[str, ...]:
    """List the statements for everything besides tables and indexes, in their order, and for the rows that always exist."""
    clock = stuck.SqlClock(dialect)
    views = (
        _delivery_view(dialect),
        _DEAD_LETTER.format(last_status=status_of("l", dialect)),
        _BACKLOG.format(
            age=clock.since("i.received_at"),
            states=", ".join(f"b.{state}" for state in OPEN_STATES),
            counts=",\n           ".join(
                f"count(CASE WHEN state = '{state}' THEN 1 END) AS {state}" for state in OPEN_STATES
            ),
        ),
        _RELAY_HEALTH.format(gone=GONE_SECONDS, silent=clock.since("n.heartbeat_at")),
        health_views.route_gate(clock),
        stuck.view(dialect),
        *_event_views(dialect),
        *health_views.statements(dialect),
    )
    if dialect == SQLITE:
        return (*views, *triggers.SQLITE, *command_rules.statements(dialect), *ROWS.values())
    comments = (
        statement
        for view in VIEWS
        for statement in (
            f"COMMENT ON VIEW {view.name} IS '{_quoted(view.comment)}'",
            *(
                f"COMMENT ON COLUMN {view.name}.{column} IS '{_quoted(comment)}'"
                for column, comment in view.columns.items()
            ),
        )
    )
    return (
        *views,
        *comments,
        *triggers.POSTGRES,
        *command_rules.statements(dialect),
        *leaves.STATEMENTS,
        *ROWS.values(),
    )


def _quoted(comment: str) -> str:
    return comment.replace("'", "''")


@event.listens_for(metadata, "after_create")
def _create(_target: object, connection: Connection, **_: Any) -> None:  # noqa: ANN401  # SQLAlchemy's own keywords
    for statement in statements(connection.dialect.name):
        connection.execute(text(statement.replace(":", "\\:")))
