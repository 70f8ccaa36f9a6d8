"""Triggers that keep events, payloads and facts from being changed, and let retention delete what nothing needs.

`inbox.db.views` adds them to its statements. On Postgres those of `inbox` and `delivery_log` look at all rows of a DELETE
at once: row by row they made it 14 times slower. Those of `inbox_payload` look at each row, as every leaf inherits them.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Table

from inbox.db import dialect
from inbox.db.erasure import PSEUDONYM, emptied
from inbox.db.schema import delivery_log, inbox
from inbox.events.states import RETENTION_FLOOR_DAYS

_INBOX = "inbox is append-only: only events older than {days} days with nothing open can be deleted"
_PAYLOAD = "inbox_payload is append-only: only payloads of events with nothing open can be deleted"
_ERASED = "inbox is append-only: only an erasure changes an event, and only to a pseudonym without texts of the person"
_EMPTIED = "delivery_log is append-only: only the erasure of its event changes a fact, and only by emptying it"
_LOG = "delivery_log is append-only: only old attempts of ended deliveries can be deleted"


def _raise(message: str) -> str:
    return f"RAISE EXCEPTION '{message.format(days=RETENTION_FLOOR_DAYS)}' USING ERRCODE = 'restrict_violation'"


def _looked_up(table: str, condition: str) -> str:
    """Return a FROM of the rows of `gone` that another table has a row for, each by that table's index (see `Sql.looked_up`)."""
    return f"FROM gone g CROSS JOIN LATERAL (SELECT FROM {table} WHERE {condition} LIMIT 1) AS found"


_ERASABLE = ("entity_id", "event_id", "traceparent", "erased_at")
"""Columns that an erasure changes."""
_ERASABLE_KEYS = f"CAST('{{{', '.join(_ERASABLE)}}}' AS text[])"

_FLOOR = f"clock_timestamp() - interval '{RETENTION_FLOOR_DAYS} days'"

POSTGRES = (
    f"""
CREATE FUNCTION inbox_is_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    {_raise(_INBOX)};
END $$
""",
    f"""
CREATE FUNCTION inbox_deletes_old_rows_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (SELECT FROM gone g WHERE g.received_at >= {_FLOOR})
       OR EXISTS (SELECT {_looked_up("open_delivery o", "o.seq = g.seq")}) THEN
        {_raise(_INBOX)};
    END IF;
    DELETE FROM inbox_payload WHERE seq = ANY (ARRAY(SELECT g.seq FROM gone g));
    RETURN NULL;
END $$
""",
    f"""
CREATE FUNCTION inbox_payload_is_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
            RETURN OLD;
        END IF;
    END IF;
    {_raise(_PAYLOAD)};
END $$
""",
    f"""
CREATE FUNCTION delivery_log_is_append_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    {_raise(_LOG)};
END $$
""",
    f"""
CREATE FUNCTION delivery_log_deletes_old_attempts_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF EXISTS (
        SELECT FROM (
            SELECT g.seq, g.route, g.kind IN ('attempt_failed', 'abandoned') AND g.at < {_FLOOR} AS is_old FROM gone g
        ) g
        CROSS JOIN LATERAL (SELECT FROM inbox i WHERE i.seq = g.seq LIMIT 1) AS event
        WHERE NOT g.is_old OR EXISTS (SELECT FROM open_delivery o WHERE o.seq = g.seq AND o.route = g.route)
    ) THEN
        {_raise(_LOG)};
    END IF;
    RETURN NULL;
END $$
""",
    f"""
CREATE FUNCTION inbox_changes_by_erasure_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF to_jsonb(NEW) - {_ERASABLE_KEYS} = to_jsonb(OLD) - {_ERASABLE_KEYS}
       AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
       AND (NEW.event_id IS NULL OR NEW.event_id = OLD.event_id)
       AND OLD.entity_id IS NOT NULL AND NEW.entity_id ~ '^{PSEUDONYM}[0-9a-f]{{64}}$'
       AND NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
        RETURN NEW;
    END IF;
    {_raise(_ERASED)};
END $$
""",
    f"""
CREATE FUNCTION delivery_log_changes_by_erasure_only() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
    IF to_jsonb(NEW) - 'detail' = to_jsonb(OLD) - 'detail'
       AND EXISTS (SELECT FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
       AND NEW.detail = {emptied(dialect.POSTGRES, "OLD.detail")} THEN
        RETURN NEW;
    END IF;
    {_raise(_EMPTIED)};
END $$
""",
    *(
        statement
        for table in ("inbox", "delivery_log")
        for statement in (
            f"""
CREATE TRIGGER {table}_changes_by_erasure_only BEFORE UPDATE ON {table}
    FOR EACH ROW EXECUTE FUNCTION {table}_changes_by_erasure_only()
""",
            f"""
CREATE TRIGGER {table}_is_append_only BEFORE TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_append_only()
""",
        )
    ),
    """
CREATE TRIGGER inbox_deletes_old_rows_only AFTER DELETE ON inbox REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION inbox_deletes_old_rows_only()
""",
    """
CREATE TRIGGER delivery_log_deletes_old_attempts_only AFTER DELETE ON delivery_log REFERENCING OLD TABLE AS gone
    FOR EACH STATEMENT EXECUTE FUNCTION delivery_log_deletes_old_attempts_only()
""",
    """
CREATE TRIGGER inbox_payload_is_append_only BEFORE UPDATE OR DELETE ON inbox_payload
    FOR EACH ROW EXECUTE FUNCTION inbox_payload_is_append_only()
""",
    """
CREATE TRIGGER inbox_payload_is_not_truncated BEFORE TRUNCATE ON inbox_payload
    FOR EACH STATEMENT EXECUTE FUNCTION inbox_payload_is_append_only()
""",
)


def _refuses(table: str, event: str, message: str, condition: str = "") -> str:
    when = f"WHEN {condition}\n" if condition else ""
    return f"""
CREATE TRIGGER {table}_refuses_{event.lower()} BEFORE {event} ON {table}
{when}BEGIN
    SELECT RAISE(ABORT, '{message.format(days=RETENTION_FLOOR_DAYS)}');
END
"""


def _unchanged(table: Table, changing: Collection[str]) -> str:
    return " AND ".join(f"NEW.{column.name} IS OLD.{column.name}" for column in table.c if column.name not in changing)


_SQLITE_FLOOR = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{RETENTION_FLOOR_DAYS} days')"
_IS_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)"
_IS_ERASURE = f"""{_unchanged(inbox, _ERASABLE)}
    AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
    AND (NEW.event_id IS NULL OR NEW.event_id IS OLD.event_id)
    AND OLD.entity_id IS NOT NULL AND coalesce(NEW.entity_id, '') GLOB '{PSEUDONYM}' || '{"[0-9a-f]" * 64}'
    AND NOT {_IS_OPEN}"""
_IS_EMPTIED = f"""{_unchanged(delivery_log, ("detail",))}
    AND EXISTS (SELECT 1 FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
    AND NEW.detail IS {emptied(dialect.SQLITE, "OLD.detail")}"""

SQLITE = (
    _refuses("inbox", "UPDATE", _ERASED, f"NOT ({_IS_ERASURE})"),
    _refuses("inbox", "DELETE", _INBOX, f"OLD.received_at >= {_SQLITE_FLOOR} OR {_IS_OPEN}"),
    """
CREATE TRIGGER inbox_deletes_payload AFTER DELETE ON inbox
BEGIN
    DELETE FROM inbox_payload WHERE seq = OLD.seq;
END
""",
    _refuses("inbox_payload", "UPDATE", _PAYLOAD),
    _refuses("inbox_payload", "DELETE", _PAYLOAD, _IS_OPEN),
    _refuses("delivery_log", "UPDATE", _EMPTIED, f"NOT ({_IS_EMPTIED})"),
    _refuses(
        "delivery_log",
        "DELETE",
        _LOG,
        f"""EXISTS (SELECT 1 FROM inbox i WHERE i.seq = OLD.seq)
    AND (OLD.kind NOT IN ('attempt_failed', 'abandoned')
         OR OLD.at >= {_SQLITE_FLOOR}
         OR EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq AND o.route = OLD.route))""",
    ),
)
