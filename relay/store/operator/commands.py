"""Rows of `relay_command`: operators insert them by SQL or the command line, and `relay.store.operator.execution` executes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import Any, Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.db import commands as statements
from inbox.db.dialect import Sql, json_param
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.commands import COMMAND_KINDS
from inbox.events.timestamps import time_text
from relay.operations.table import OPERATIONS
from relay.store.database import Database
from relay.store.transaction import Transaction

GateAct = Literal["pause", "resume"]
CommandState = Literal["asked", "running", "done", "failed", "refused", "cancelled"]
Standing = tuple[int | None, int, int]
"""The place of a command, by which two processes can tell whether one of them has gone on with it."""


class Progress(msgspec.Struct, frozen=True):
    """The progress of a command."""

    state: CommandState
    affected: int
    answer: str | None
    failed: int = 0
    """Deliveries that could not be changed."""
    error: str | None = None
    """The last failed delivery, and why."""

    @property
    def has_ended(self) -> bool:
        """True when nothing more happens."""
        return self.state not in {"asked", "running"}


class BatchResult(msgspec.Struct, frozen=True):
    """The result of one batch or step of a command."""

    state: CommandState
    changed: int = 0
    progress: int | None = None
    answer: str | None = None
    matched: int | None = None
    """Of a dry run: the number of deliveries or rows that it would change."""
    sample: dict[str, Any] | None = None
    """Of a dry run: an object for `relay_command.sample`, that JSON can have."""


class AskedTask(msgspec.Struct, frozen=True):
    """A command about no delivery, as the function of its kind gets it: see `relay.store.operator.tasks`."""

    number: int
    asked: Any
    """The operation's `asks`."""
    reason: str
    asked_by: str
    dry_run: bool
    progress: int | None
    """The `BatchResult.progress` of its last step; None at its begin."""
    affected: int
    """The sum of `BatchResult.changed` so far."""
    until: int | None
    """The highest id of a rejected request when it was asked: later ones are left alone."""


def request_of(command: Any, asked: Any) -> AskedTask:  # noqa: ANN401  # a result row
    """A command as the function of its kind gets it."""
    return AskedTask(
        number=command.id,
        asked=asked,
        reason=command.reason,
        asked_by=command.asked_by,
        dry_run=bool(command.dry_run),
        progress=command.progress_seq,
        affected=command.affected,
        until=command.until_seq,
    )


def ask(
    database: Database,
    kind: str,
    chosen: msgspec.Struct | Mapping[str, object],
    *,
    who: str,
    why: str,
    dry_run: bool = False,
    planned: int | None = None,
) -> int:
    """Store a command about `planned` deliveries or rows, if that is known. Returns its id."""
    with database.write() as transaction:
        asked = msgspec.json.encode(chosen).decode()
        given = {"kind": kind, "selection": asked, "reason": why, "who": who, "dry_run": dry_run, "planned": planned}
        return int(transaction.execute(statements.ask(database.sql), **given)[0].id)


def any_open(database: Database) -> bool:
    """True when a command of a known kind waits or is at work."""
    with database.read() as transaction:
        return bool(transaction.execute(_ANY_OPEN))


def next_open(database: Database, *, after: int, most: int) -> Sequence[int]:
    """The ids of the first open commands of a known kind after this id."""
    with database.read() as transaction:
        return [row.id for row in transaction.execute(_OPEN, after=after, most=most)]


def of_newer_version(database: Database) -> list[tuple[int, str]]:
    """Id and kind of open commands that only a newer version knows: they are left to that version."""
    with database.read() as transaction:
        return [(row.id, row.kind) for row in transaction.execute(_UNKNOWN)]


def progress(database: Database, number: int) -> Progress | None:
    """The progress of a command; None when there is none of this id."""
    with database.read() as transaction:
        found = transaction.execute(_PROGRESS, id=number)
    return Progress(*found[0]) if found else None


CommandAct = Literal["stop", "continue"]


def turn(database: Database, act: CommandAct, number: int, *, who: str, why: str) -> None:
    """Stop a command, or let a stopped one go on; what it has done stays done. A row of its own says who did so, and why.

    Raises:
        NoSuchCommand: there is none of this id.
        UnusableCommand: it has ended, or is not one that was stopped.
    """
    with database.write() as transaction:
        answer = turn_in(transaction, act, number, who=who, why=why)
        selection = json_param({"command": number})
        given = {"kind": act, "selection": selection, "reason": why, "who": who, "dry_run": False, "planned": None}
        (asked,) = transaction.execute(statements.ask(transaction.sql), **given)
        end(transaction, asked.id, "done", answer)


def turn_in(transaction: Transaction, act: CommandAct, number: int, *, who: str, why: str) -> str:
    """Do so in a transaction, without a row of its own. Returns the answer.

    Raises:
        NoSuchCommand: as `turn`.
        UnusableCommand: as `turn`.
    """
    found = transaction.execute(_command(transaction.sql, locked=False), id=number)
    if not found:
        raise NoSuchCommand(f"there is no command {number}")
    kind, state = found[0].kind, found[0].state
    if OPERATIONS[kind].is_of_a_command:
        raise UnusableCommand(f"command {number} is a {kind} itself, which is done at once")
    if act == "stop":
        said = f"stopped by {who}: {why}"
        if transaction.execute(statements.stop(transaction.sql), id=number, answer=said):
            return f"command {number} is stopped"
        raise UnusableCommand(f"command {number} has ended, and can't be stopped any more")
    if transaction.execute(_GO_ON, id=number):
        return f"command {number} goes on"
    raise UnusableCommand(f"command {number} is {state}: only one that was stopped goes on")


def read_open(transaction: Transaction, number: int, *, locked: bool = False) -> Any:  # noqa: ANN401  # a result row
    """The row of a command; None when it has ended."""
    found = transaction.execute(_command(transaction.sql, locked=locked), id=number)
    return found[0] if found and found[0].state in {"asked", "running"} else None


def standing_of(command: Any) -> Standing:  # noqa: ANN401  # a result row
    """The place of a command, as it was read."""
    return command.progress_seq, command.affected, command.failed


def is_as_it_was(transaction: Transaction, number: int, standing: Standing) -> bool:
    """Lock the command; true when nobody has gone on with it or stopped it since it was read, and nobody does at the moment."""
    now = read_open(transaction, number, locked=True)
    return now is not None and standing_of(now) == standing


def advance(transaction: Transaction, number: int, step: BatchResult, now: datetime) -> None:
    """Note the result of a batch."""
    finished_at = None if step.state == "running" else time_text(now)
    sample = None if step.sample is None else json_param(step.sample)
    values = {"id": number, "finished_at": finished_at, **msgspec.structs.asdict(step), "sample": sample}
    transaction.execute(_advance(transaction.sql), **values)


def advance_part(
    transaction: Transaction, number: int, progress: int, *, changed: int = 0, failed: int = 0, error: str | None = None
) -> Standing:
    """Note the result of a part of a batch. Returns the command's new place."""
    values = {"id": number, "progress": progress, "changed": changed, "failed": failed, "error": error}
    return standing_of(transaction.execute(_advance_part(transaction.sql), **values)[0])


def say(database: Database, number: int, answer: str) -> None:
    """Say in the row of an open command what it waits for, unless it says so."""
    with database.write() as transaction:
        transaction.execute(_SAY, id=number, answer=answer)


def end(transaction: Transaction, number: int, state: Literal["done", "failed", "refused"], answer: str) -> None:
    """End a command, with its result or the reason why it can't be done as its answer."""
    transaction.execute(_ended(transaction.sql), id=number, state=state, answer=answer)


_IS_OPEN = "state IN ('asked', 'running')"
_IS_KNOWN = f"kind IN ({', '.join(repr(kind) for kind in COMMAND_KINDS)})"
_ANY_OPEN = text(f"SELECT 1 FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} LIMIT 1")
_OPEN = text(f"SELECT id FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} AND id > :after ORDER BY id LIMIT :most")
_UNKNOWN = text(f"SELECT id, kind FROM relay_command WHERE {_IS_OPEN} AND NOT {_IS_KNOWN} ORDER BY id LIMIT 10")
_PROGRESS = text("SELECT state, affected, answer, failed, error FROM relay_command WHERE id = :id")
_SAY = text(
    f"UPDATE relay_command SET answer = :answer WHERE id = :id AND {_IS_OPEN} AND coalesce(answer, '') <> :answer"
)
_GO_ON = text("""
UPDATE relay_command SET state = 'running', finished_at = NULL, answer = NULL
WHERE id = :id AND state = 'cancelled'
RETURNING id
""")


@cache
def _command(sql: Sql, *, locked: bool) -> TextClause:
    return text(f"""
SELECT id, kind, selection, reason, asked_by, dry_run, state, progress_seq, affected, failed, matched, sample, until_seq
FROM relay_command
WHERE id = :id {sql.skip_locked if locked else ""}
""")


@cache
def _advance_part(sql: Sql) -> TextClause:
    error = "CAST(:error AS text)" if sql.is_postgres else ":error"
    return text(f"""
UPDATE relay_command
SET state = 'running', affected = affected + :changed, failed = failed + :failed, progress_seq = :progress,
    error = coalesce({error}, error)
WHERE id = :id
RETURNING progress_seq, affected, failed
""")


@cache
def _advance(sql: Sql) -> TextClause:
    matched, sample = (
        ("CAST(:matched AS bigint)", "CAST(:sample AS jsonb)") if sql.is_postgres else (":matched", ":sample")
    )
    return text(f"""
UPDATE relay_command
SET state = :state, affected = affected + :changed, progress_seq = :progress, answer = :answer,
    finished_at = {sql.time(":finished_at")}, matched = coalesce({matched}, matched), sample = coalesce({sample}, sample)
WHERE id = :id AND {_IS_OPEN}
""")


@cache
def _ended(sql: Sql) -> TextClause:
    return text(f"""
UPDATE relay_command SET state = :state, answer = :answer, finished_at = {sql.now}
WHERE id = :id AND {_IS_OPEN}
""")
