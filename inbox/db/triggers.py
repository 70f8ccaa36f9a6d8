"""Triggers that protect events, payloads and facts from changes, except deletion by retention and erasure.

`inbox.db.views` adds them to its statements. On Postgres those of `inbox` and `delivery_log` check all rows of a DELETE
at once, as row triggers made it 14 times slower. Those of `inbox_payload` are row triggers, as every leaf inherits
them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sqlalchemy import Table

from inbox.db.columns import format_values
from inbox.db.dialect import POSTGRES, SQLITE, Sql
from inbox.db.erasure import PSEUDONYM, redact_detail
from inbox.db.schema import delivery_log, inbox
from inbox.events.states import OPEN_COMMANDS, RETENTION_FLOOR_DAYS

_INBOX = "inbox is append-only: only events older than {days} days with nothing open can be deleted"
_PAYLOAD = "inbox_payload is append-only: only payloads of events with nothing open can be deleted"
_EDITED = "edited_body is append-only: a row goes with the payload of its event"
_UNKNOWN = "edited_body: the event has no payload that could be edited"
_ERASED = "inbox is append-only: only an erasure changes an event, and only to a pseudonym without texts of the person"
_EMPTIED = (
    "delivery_log is append-only: only the erasure of its event empties a fact, and only retention removes the calls of"
    " ended attempts"
)
_LOG = "delivery_log is append-only: only old attempts of ended deliveries can be deleted"


def _raise(message: str, state: str = "restrict_violation") -> str:
    return f"RAISE EXCEPTION '{message.format(days=RETENTION_FLOOR_DAYS)}' USING ERRCODE = '{state}';"


def _guard(name: str, event: str, body: str, each: str = "ROW") -> tuple[str, str]:
    """Return the Postgres statements for a function, and for the trigger of the same name that calls it."""
    function = f"""
CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql
SET search_path FROM CURRENT AS $$
BEGIN
{body}
END $$
"""
    return function, f"CREATE TRIGGER {name} {event} FOR EACH {each} EXECUTE FUNCTION {name}()"


_ERASABLE = ("entity_id", "event_id", "traceparent", "erased_at")
"""Columns that an erasure changes."""
_ERASABLE_KEYS = f"CAST('{{{', '.join(_ERASABLE)}}}' AS text[])"


def _loses_calls(dialect: str) -> str:
    """Return the condition that a fact loses its calls, and its delivery is not open."""
    return f"""OLD.kind IN ('attempt_failed', 'dead') AND NEW.detail = {Sql(dialect).without("OLD.detail", "calls")}
       AND NOT EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq AND o.route = OLD.route)"""


_FLOOR = f"clock_timestamp() - interval '{RETENTION_FLOOR_DAYS} days'"

# Rows of other tables are looked up one by one by index, whatever the statistics say: see `Sql.look_up`.
_POSTGRES = (
    *_guard(
        "inbox_deletes_old_rows_only",
        "AFTER DELETE ON inbox REFERENCING OLD TABLE AS gone",
        f"""
    IF EXISTS (SELECT FROM gone g WHERE g.received_at >= {_FLOOR}) OR EXISTS (
        SELECT FROM gone g CROSS JOIN LATERAL (SELECT FROM open_delivery o WHERE o.seq = g.seq LIMIT 1) AS found
    ) THEN
        {_raise(_INBOX)}
    END IF;
    DELETE FROM inbox_payload WHERE seq = ANY (ARRAY(SELECT g.seq FROM gone g));
    RETURN NULL;""",
        "STATEMENT",
    ),
    *_guard(
        "inbox_payload_is_append_only",
        "BEFORE UPDATE OR DELETE ON inbox_payload",
        f"""
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
            DELETE FROM edited_body e WHERE e.seq = OLD.seq;
            RETURN OLD;
        END IF;
    END IF;
    {_raise(_PAYLOAD)}""",
    ),
    *_guard(
        "edited_body_is_append_only",
        "BEFORE INSERT OR UPDATE OR DELETE ON edited_body",
        f"""
    IF TG_OP = 'DELETE' THEN
        IF NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
            RETURN OLD;
        END IF;
    ELSIF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM inbox_payload p WHERE p.seq = NEW.seq) THEN
            RETURN NEW;
        END IF;
        {_raise(_UNKNOWN)}
    END IF;
    {_raise(_EDITED)}""",
    ),
    *_guard(
        "delivery_log_deletes_old_attempts_only",
        "AFTER DELETE ON delivery_log REFERENCING OLD TABLE AS gone",
        f"""
    IF EXISTS (
        SELECT FROM (
            SELECT g.seq, g.route, g.kind IN ('attempt_failed', 'abandoned') AND g.at < {_FLOOR} AS is_old FROM gone g
        ) g
        CROSS JOIN LATERAL (SELECT FROM inbox i WHERE i.seq = g.seq LIMIT 1) AS event
        WHERE NOT g.is_old OR EXISTS (SELECT FROM open_delivery o WHERE o.seq = g.seq AND o.route = g.route)
    ) THEN
        {_raise(_LOG)}
    END IF;
    RETURN NULL;""",
        "STATEMENT",
    ),
    *_guard(
        "inbox_changes_by_erasure_only",
        "BEFORE UPDATE ON inbox",
        f"""
    IF to_jsonb(NEW) - {_ERASABLE_KEYS} = to_jsonb(OLD) - {_ERASABLE_KEYS}
       AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
       AND (NEW.event_id IS NULL OR NEW.event_id = OLD.event_id)
       AND OLD.entity_id IS NOT NULL AND NEW.entity_id ~ '^{PSEUDONYM}[0-9a-f]{{64}}$'
       AND NOT EXISTS (SELECT FROM open_delivery o WHERE o.seq = OLD.seq) THEN
        RETURN NEW;
    END IF;
    {_raise(_ERASED)}""",
    ),
    *_guard(
        "delivery_log_changes_by_erasure_only",
        "BEFORE UPDATE ON delivery_log",
        f"""
    IF to_jsonb(NEW) - 'detail' = to_jsonb(OLD) - 'detail' AND (
       EXISTS (SELECT FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
       AND NEW.detail = {redact_detail(POSTGRES, "OLD.detail")} OR {_loses_calls(POSTGRES)}) THEN
        RETURN NEW;
    END IF;
    {_raise(_EMPTIED)}""",
    ),
    *(
        statement
        for table in ("inbox", "inbox_payload", "edited_body", "delivery_log")
        for statement in _guard(
            f"{table}_is_not_truncated",
            f"BEFORE TRUNCATE ON {table}",
            "    " + _raise(f"{table} is append-only: it can''t be truncated"),
            "STATEMENT",
        )
    ),
)


def _refuses(table: str, event: str, message: str, condition: str = "") -> str:
    when = f"WHEN {condition}\n" if condition else ""
    return f"""
CREATE TRIGGER {table}_refuses_{event.lower()} BEFORE {event} ON {table}
{when}BEGIN
    SELECT RAISE(ABORT, '{message.format(days=RETENTION_FLOOR_DAYS)}');
END
"""


def _is_unchanged(table: Table, changing: Collection[str]) -> str:
    return " AND ".join(f"NEW.{column.name} IS OLD.{column.name}" for column in table.c if column.name not in changing)


_SQLITE_FLOOR = f"strftime('%Y-%m-%d %H:%M:%f', 'now', '-{RETENTION_FLOOR_DAYS} days')"
_IS_OPEN = "EXISTS (SELECT 1 FROM open_delivery o WHERE o.seq = OLD.seq)"
_IS_ERASURE = f"""{_is_unchanged(inbox, _ERASABLE)}
    AND OLD.erased_at IS NULL AND NEW.erased_at IS NOT NULL AND NEW.traceparent IS NULL
    AND (NEW.event_id IS NULL OR NEW.event_id IS OLD.event_id)
    AND OLD.entity_id IS NOT NULL AND coalesce(NEW.entity_id, '') GLOB '{PSEUDONYM}' || '{"[0-9a-f]" * 64}'
    AND NOT {_IS_OPEN}"""
_IS_EMPTIED = f"""{_is_unchanged(delivery_log, ("detail",))}
    AND (EXISTS (SELECT 1 FROM inbox i WHERE i.seq = OLD.seq AND i.erased_at IS NOT NULL)
       AND NEW.detail IS {redact_detail(SQLITE, "OLD.detail")} OR {_loses_calls(SQLITE)})"""

_SQLITE = (
    _refuses("inbox", "UPDATE", _ERASED, f"NOT ({_IS_ERASURE})"),
    _refuses("inbox", "DELETE", _INBOX, f"OLD.received_at >= {_SQLITE_FLOOR} OR {_IS_OPEN}"),
    """
CREATE TRIGGER inbox_deletes_payload AFTER DELETE ON inbox
BEGIN
    DELETE FROM inbox_payload WHERE seq = OLD.seq;
END
""",
    """
CREATE TRIGGER inbox_payload_deletes_edited AFTER DELETE ON inbox_payload
BEGIN
    DELETE FROM edited_body WHERE seq = OLD.seq;
END
""",
    _refuses("edited_body", "INSERT", _UNKNOWN, "NOT EXISTS (SELECT 1 FROM inbox_payload p WHERE p.seq = NEW.seq)"),
    _refuses("edited_body", "UPDATE", _EDITED),
    _refuses("edited_body", "DELETE", _EDITED, _IS_OPEN),
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


# --- `relay_command`: a command can't be changed, and records the last event that it covers. Relays mark invalid
# commands `refused`: see `relay.operations.table`.

CommandRule = tuple[str, str]
"""An error message, with the condition for raising it."""

_FROZEN = ("id", "kind", "asked_by", "asked_at", "dry_run", "reason")
_CANCEL = "UPDATE relay_command SET state = ''cancelled''"


def _update_rules(dialect: str) -> Iterator[CommandRule]:
    """Yield the rules of an UPDATE. Erasure may put a pseudonym into the selection of an ended command."""
    is_open, was_open = (f"{row}.state IN ({format_values(OPEN_COMMANDS)})" for row in ("NEW", "OLD"))
    differs = "IS DISTINCT FROM" if dialect == POSTGRES else "IS NOT"
    is_erased = f"coalesce(substr(NEW.selection ->> 'entity_id', 1, {len(PSEUDONYM)}), '') = '{PSEUDONYM}'"
    yield (
        f"a command stays as it was asked: cancel it with {_CANCEL}, and insert another one",
        " OR ".join(f"NEW.{column} {differs} OLD.{column}" for column in _FROZEN)
        + f" OR NEW.selection {differs} OLD.selection AND ({was_open} OR {is_open} OR NOT {is_erased})",
    )
    yield (
        "a command that has ended stays as it is: insert another one",
        f"NOT ({was_open}) AND NEW.state <> OLD.state AND NOT (OLD.state = 'cancelled' AND NEW.state = 'running')",
    )
    # Operators may set only the state, so they can't fake a finished command or continue another person's.
    yield (
        f"only a relay ends a command, and relay continue --command lets a stopped one go on: stop it with {_CANCEL}",
        f"NEW.state NOT IN (OLD.state, 'cancelled') AND (NEW.finished_at IS NULL) <> ({is_open})",
    )


_NEWEST = """CASE NEW.kind WHEN 'readmit' THEN (SELECT coalesce(max(id), 0) FROM rejected_request)
    ELSE (SELECT coalesce(max(seq), 0) FROM inbox) END"""
"""Expression for the newest event or rejected request that a command covers."""
_STAYS = f"an open command can''t be deleted: cancel it first with {_CANCEL}"
_BY_HAND = "cancelled by hand"


def statements(dialect: str) -> tuple[str, ...]:
    """Return the statements that create all triggers."""
    return (*_POSTGRES, *_commands_on_postgres()) if dialect == POSTGRES else (*_SQLITE, *_commands_on_sqlite())


def _commands_on_postgres() -> tuple[str, ...]:
    is_open, was_open = (f"{row}.state IN ({format_values(OPEN_COMMANDS)})" for row in ("NEW", "OLD"))
    rules = _update_rules(POSTGRES)
    # in parentheses, as PL/pgSQL ends a condition at the THEN of a CASE
    raised = "\n".join(f"IF ({condition}) THEN {_raise(said, 'check_violation')} END IF;" for said, condition in rules)
    return (
        *_guard(
            "relay_command_is_valid",
            "BEFORE INSERT OR UPDATE OR DELETE ON relay_command",
            f"""
    IF TG_OP = 'DELETE' THEN
        IF {was_open} THEN {_raise(_STAYS)} END IF;
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        {raised}
        IF {was_open} AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL THEN
            NEW.finished_at := clock_timestamp();
            NEW.answer := coalesce(NEW.answer, '{_BY_HAND}');
        END IF;
    ELSIF {is_open} THEN
        NEW.until_seq := coalesce(NEW.until_seq, {_NEWEST});
    END IF;
    RETURN NEW;""",
        ),
        "REVOKE ALL ON FUNCTION relay_command_is_valid() FROM PUBLIC",
    )


def _commands_on_sqlite() -> Iterator[str]:
    is_open = f"state IN ({format_values(OPEN_COMMANDS)})"
    rules = _update_rules(SQLITE)
    changes = "\n".join(f"    SELECT RAISE(ABORT, '{sentence}') WHERE {condition};" for sentence, condition in rules)
    yield f"""
CREATE TRIGGER relay_command_is_bounded AFTER INSERT ON relay_command
WHEN NEW.{is_open} AND NEW.until_seq IS NULL
BEGIN
    UPDATE relay_command SET until_seq = {_NEWEST} WHERE id = NEW.id;
END
"""
    yield f"""
CREATE TRIGGER relay_command_refuses_update BEFORE UPDATE ON relay_command
BEGIN
{changes}
END
"""
    yield f"""
CREATE TRIGGER relay_command_is_cancelled AFTER UPDATE OF state ON relay_command
WHEN OLD.{is_open} AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL
BEGIN
    UPDATE relay_command SET finished_at = strftime('%Y-%m-%d %H:%M:%f', 'now') || '000Z',
        answer = coalesce(answer, '{_BY_HAND}')
    WHERE id = NEW.id;
END
"""
    yield f"""
CREATE TRIGGER relay_command_refuses_delete BEFORE DELETE ON relay_command
WHEN OLD.{is_open}
BEGIN
    SELECT RAISE(ABORT, '{_STAYS}');
END
"""
