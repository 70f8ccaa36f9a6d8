"""Triggers of `relay_command`: a command stays as it was asked, and knows up to which event it goes.

A relay reads the row, and answers `refused` to one that makes no sense: see `relay.operations.table`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import msgspec

from inbox.db.dialect import POSTGRES, SQLITE
from inbox.events.commands import OPEN_COMMANDS

_FROZEN = ("id", "kind", "asked_by", "asked_at", "dry_run")
_ENDED_BY_RELAY = ("done", "failed", "refused")
_CANCEL = "UPDATE relay_command SET state = ''cancelled''"


class CommandRule(msgspec.Struct, frozen=True):
    """A sentence, and the condition under which a row deserves it."""

    sentence: str
    condition: str


def _texts(names: Iterable[str]) -> str:
    return ", ".join(f"'{name}'" for name in names)


def _of_change(dialect: str) -> Iterator[CommandRule]:
    """Yield the rules of an UPDATE. Erasure may take texts out of a command that has ended."""
    is_open, was_open = (f"{row}.state IN ({_texts(OPEN_COMMANDS)})" for row in ("NEW", "OLD"))
    differs = "IS DISTINCT FROM" if dialect == POSTGRES else "IS NOT"
    yield CommandRule(
        f"a command stays as it was asked: cancel it with {_CANCEL}, and insert another one",
        " OR ".join(f"NEW.{column} {differs} OLD.{column}" for column in _FROZEN)
        + f" OR ({was_open} AND (NEW.selection {differs} OLD.selection OR NEW.reason {differs} OLD.reason))",
    )
    yield CommandRule(
        "a command that has ended stays as it is: insert another one",
        f"NOT ({was_open}) AND NEW.state <> OLD.state AND NOT (OLD.state = 'cancelled' AND NEW.state = 'running')",
    )
    # Operators may set the state alone, so nobody can make a command look done, or have another person's one go on.
    yield CommandRule(
        f"only a relay ends a command, with finished_at: stop it with {_CANCEL}",
        f"NEW.state IN ({_texts(_ENDED_BY_RELAY)}) AND NEW.state <> OLD.state AND NEW.finished_at IS NULL",
    )
    yield CommandRule(
        "relay resume --command with its id makes a stopped command go on",
        f"OLD.state = 'cancelled' AND {is_open} AND NEW.finished_at IS NOT NULL",
    )


_NEWEST = """CASE NEW.kind WHEN 'readmit' THEN (SELECT coalesce(max(id), 0) FROM rejected_request)
    ELSE (SELECT coalesce(max(seq), 0) FROM inbox) END"""
"""The newest event or rejected request that a command is about."""
_STAYS = f"an open command can''t be deleted: cancel it first with {_CANCEL}"
_BY_HAND = "cancelled by hand"


def statements(dialect: str) -> tuple[str, ...]:
    """List the statements that make the triggers."""
    return _postgres() if dialect == POSTGRES else tuple(_sqlite())


def _postgres() -> tuple[str, ...]:
    is_open = f"NEW.state IN ({_texts(OPEN_COMMANDS)})"
    function = f"""
CREATE FUNCTION relay_command_is_valid() RETURNS trigger LANGUAGE plpgsql SET search_path FROM CURRENT AS $$
BEGIN
    IF TG_OP = 'DELETE' THEN
        IF OLD.state IN ({_texts(OPEN_COMMANDS)}) THEN
            RAISE EXCEPTION USING MESSAGE = '{_STAYS}', ERRCODE = 'restrict_violation';
        END IF;
        RETURN OLD;
    END IF;
    IF TG_OP = 'UPDATE' THEN
        {_raised(_of_change(POSTGRES), "        ")}
        IF OLD.state IN ({_texts(OPEN_COMMANDS)}) AND NEW.state = 'cancelled' AND NEW.finished_at IS NULL THEN
            NEW.finished_at := clock_timestamp();
            NEW.answer := coalesce(NEW.answer, '{_BY_HAND}');
        END IF;
        RETURN NEW;
    END IF;
    IF NOT ({is_open}) THEN
        RETURN NEW;
    END IF;
    NEW.until_seq := coalesce(NEW.until_seq, {_NEWEST});
    RETURN NEW;
END $$
"""
    trigger = """
CREATE TRIGGER relay_command_is_valid BEFORE INSERT OR UPDATE OR DELETE ON relay_command
    FOR EACH ROW EXECUTE FUNCTION relay_command_is_valid()
"""
    return function, "REVOKE ALL ON FUNCTION relay_command_is_valid() FROM PUBLIC", trigger


def _raised(rules: Iterable[CommandRule], indent: str) -> str:
    # In parentheses, as PL/pgSQL would end a condition at the THEN of a CASE.
    return f"\n{indent}".join(
        f"IF ({rule.condition}) THEN\n{indent}    RAISE EXCEPTION USING MESSAGE = '{rule.sentence}'"
        f", ERRCODE = 'check_violation';\n{indent}END IF;"
        for rule in rules
    )


def _sqlite() -> Iterator[str]:
    is_open = f"state IN ({_texts(OPEN_COMMANDS)})"
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
{_selected(_of_change(SQLITE))}
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


def _selected(rules: Iterable[CommandRule]) -> str:
    return "\n".join(f"    SELECT RAISE(ABORT, '{rule.sentence}') WHERE {rule.condition};" for rule in rules)
