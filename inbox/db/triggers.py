"""Triggers that keep events, payloads and facts from being changed, and let retention delete what nothing needs.

`inbox.db.views` adds them to its statements. On Postgres those of `inbox` and `delivery_log` look at all rows of a DELETE
at once: row by row they made it 14 times slower. Those of `inbox_payload` look at each row, as every leaf inherits them.
"""

from __future__ import annotations

from inbox.events.states import RETENTION_FLOOR_DAYS

_INBOX = "inbox is append-only: only events older than {days} days with nothing open can be deleted"
_PAYLOAD = "inbox_payload is append-only: only payloads of events with nothing open can be deleted"
_LOG = "delivery_log is append-only: only old attempts of ended deliveries can be deleted"


def _raise(message: str) -> str:
    return f"RAISE EXCEPTION '{message.format(days=RETENTION_FLOOR_DAYS)}' USING ERRCODE = 'restrict_violation'"


def _looked_up(table: str, condition: str) -> str:
    """Return a FROM of the rows of `gone` that another table has a row for, each by that table's index (see `Sql.looked_up`)."""
    return f"FROM gone g CROSS JOIN LATERAL (SELECT FROM {table} WHERE {condition} LIMIT 1) AS found"


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
    *(
        f"""
CREATE TRIGGER {table}_is_append_only BEFORE UPDATE OR TRUNCATE ON {table}
    FOR EACH STATEMENT EXECUTE FUNCTION {table}_is_append_only()
"""
        for table in ("inbox", "delivery_log")
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


_SQLITE_FLOOR = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{RETENTION_FLOOR_DAYS} days')"
_IS_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)"

SQLITE = (
    _refuses("inbox", "UPDATE", _INBOX),
    _refuses("inbox", "DELETE", _INBOX, f"OLD.received_at >= {_SQLITE_FLOOR} OR {_IS_OPEN}"),
    """
CREATE TRIGGER inbox_deletes_payload AFTER DELETE ON inbox
BEGIN
    DELETE FROM inbox_payload WHERE seq = OLD.seq;
END
""",
    _refuses("inbox_payload", "UPDATE", _PAYLOAD),
    _refuses("inbox_payload", "DELETE", _PAYLOAD, _IS_OPEN),
    _refuses("delivery_log", "UPDATE", _LOG),
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
