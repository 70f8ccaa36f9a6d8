"""Views of events: with their payloads, of dead letters by cause, and of all that happened to an entity."""

from __future__ import annotations

from inbox.db.dialect import POSTGRES
from inbox.db.schema import inbox


def statements(dialect: str) -> tuple[str, ...]:
    """List the views of this module."""
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


def status_of(fact: str, dialect: str) -> str:
    """Return the HTTP status of the last call of a fact; a fact that no relay wrote must not break the view."""
    if dialect == POSTGRES:
        return f"CAST(substring({fact}.detail #>> '{{calls,-1,status}}' FROM '^[0-9][0-9][0-9]$') AS int)"
    return f"{fact}.detail ->> '$.calls[#-1].status'"


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
