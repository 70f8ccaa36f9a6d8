"""Rows of `relay_command`: operators insert them by SQL or the command line, and `relay.store.operator.execution` executes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal

import msgspec
from sqlalchemy import text

from inbox.db.dialect import json_param
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.states import COMMAND_KINDS
from relay.operations.table import OPERATIONS
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

CommandState = Literal["asked", "running", "done", "failed", "refused", "cancelled"]


class Command(msgspec.Struct, frozen=True):
    """A command, as it was read."""

    id: int
    kind: str
    selection: Any
    """As the driver gives it."""
    reason: str
    asked_by: str
    dry_run: bool
    state: CommandState
    progress: int | None
    """The place where its last step ended; None at its begin."""
    affected: int
    answer: str | None
    failed: int
    """Deliveries or requests that could not be changed."""
    error: str | None
    """The last one that failed, and why."""
    matched: int | None
    """The number of deliveries or rows of its plan."""
    until: int | None
    """The highest seq, or id of a rejected request, when it was asked: later ones are left alone."""

    sample: dict[str, Any] | None = None
    """Of a dry run: an object for `relay_command.sample`, that JSON can have."""

    @property
    def has_ended(self) -> bool:
        """True when nothing more happens."""
        return self.state not in {"asked", "running"}

    def after(self, state: CommandState = "running", *, changed: int = 0, failed: int = 0, **values: Any) -> Command:  # noqa: ANN401  # of fields
        """Return it after a step that has changed and failed so many; its answer is none but the one that is given."""
        counts = {"affected": self.affected + changed, "failed": self.failed + failed, "answer": None}
        return msgspec.structs.replace(self, state=state, **(counts | values))


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
        return _ask(transaction, kind, chosen, who=who, why=why, dry_run=dry_run, planned=planned)


def _ask(transaction: Transaction, kind: str, chosen: object, **given: object) -> int:
    selection = msgspec.json.encode(chosen).decode()
    asked = transaction.execute(_INSERT, kind=kind, selection=selection, **given)
    return int(asked[0].id)


def next_open(database: Database, *, after: int, most: int) -> Sequence[int]:
    """The ids of the first open commands of a known kind after this id."""
    with database.read() as transaction:
        return [row.id for row in transaction.execute(_OPEN, after=after, most=most)]


def progress(database: Database, number: int) -> Command | None:
    """Read a command; None when there is none of this id."""
    with database.read() as transaction:
        return _read(transaction, number)


CommandAct = Literal["stop", "continue"]


def turn(database: Database, act: CommandAct, number: int, *, who: str, why: str) -> None:
    """Stop a command, or let a stopped one go on; what it has done stays done. A row of its own says who did so, and why.

    Raises:
        NoSuchCommand: there is none of this id.
        UnusableCommand: it has ended, or is not one that was stopped.
    """
    with database.write() as transaction:
        answer = turn_in(transaction, act, number, who=who, why=why)
        asked = _ask(transaction, act, {"command": number}, who=who, why=why, dry_run=False, planned=None)
        end(transaction, asked, "done", answer)


def turn_in(transaction: Transaction, act: CommandAct, number: int, *, who: str, why: str) -> str:
    """Do so in a transaction, without a row of its own. Returns the answer. Raises as `turn`."""
    found = _read(transaction, number)
    if found is None:
        raise NoSuchCommand(f"there is no command {number}")
    if OPERATIONS[found.kind].is_of_a_command:
        raise UnusableCommand(f"command {number} is a {found.kind} itself, which is done at once")
    if act == "stop":
        if end(transaction, number, "cancelled", f"stopped by {who}: {why}"):
            return f"command {number} is stopped"
        raise UnusableCommand(f"command {number} has ended, and can't be stopped any more")
    if transaction.execute(_GO_ON, id=number):
        return f"command {number} goes on"
    raise UnusableCommand(f"command {number} is {found.state}: only one that was stopped goes on")


def is_as_it_was(transaction: Transaction, command: Command) -> bool:
    """Lock the command; true when nobody has gone on with it or stopped it since it was read, and nobody does at the moment."""
    now = _read(transaction, command.id, locked=True)
    return now is not None and not now.has_ended and _place_of(now) == _place_of(command)


def _place_of(command: Command) -> tuple[int | None, int, int]:
    return command.progress, command.affected, command.failed


def _read(transaction: Transaction, number: int, *, locked: bool = False) -> Command | None:
    found = transaction.execute(_OF_ID[locked], id=number)
    return Command(*found[0]) if found else None


def advance(transaction: Transaction, after: Command, now: datetime) -> None:
    """Note a step of a command that is locked."""
    noted = {name: getattr(after, name) for name in _NOTED}
    sample = None if after.sample is None else json_param(after.sample)
    transaction.execute(_ADVANCE, **noted, sample=sample, finished_at=now if after.has_ended else None)


def say(database: Database, number: int, answer: str) -> None:
    """Say in the row of an open command what it waits for, unless it says so."""
    with database.write() as transaction:
        transaction.execute(_SAY, id=number, answer=answer)


def end(transaction: Transaction, number: int, state: CommandState, answer: str) -> bool:
    """End a command, with its result or the reason why it can't be done as its answer. Returns whether it was open."""
    return bool(transaction.execute(_END, id=number, state=state, answer=answer, at=transaction.now()))


_IS_OPEN = "state IN ('asked', 'running')"
_IS_KNOWN = f"kind IN ({', '.join(repr(kind) for kind in COMMAND_KINDS)})"
_OPEN = text(f"SELECT id FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} AND id > :after ORDER BY id LIMIT :most")
_SAY = text(
    f"UPDATE relay_command SET answer = :answer WHERE id = :id AND {_IS_OPEN} AND coalesce(answer, '') <> :answer"
)
_GO_ON = text("""
UPDATE relay_command SET state = 'running', finished_at = NULL, answer = NULL
WHERE id = :id AND state = 'cancelled'
RETURNING id
""")


_END = text(f"""
UPDATE relay_command SET state = :state, answer = :answer, finished_at = :at WHERE id = :id AND {_IS_OPEN} RETURNING id
""")
_NOTED = ("id", "state", "progress", "answer", "affected", "failed", "error", "matched")
_ADVANCE = text(f"""
UPDATE relay_command
SET state = :state, progress_seq = :progress, answer = :answer, affected = :affected, failed = :failed, error = :error,
    matched = :matched, sample = :sample, finished_at = :finished_at
WHERE id = :id AND {_IS_OPEN}
""")


_INSERT = Statement(f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at, dry_run, matched)
VALUES (:kind, :selection, :why, :who, {sql.now}, :dry_run, :planned)
RETURNING id
""")


_OF_ID = {
    locked: Statement(f"""
SELECT id, kind, selection, reason, asked_by, dry_run, state, progress_seq AS progress, affected, answer, failed, error,
    matched, until_seq AS until
FROM relay_command c
WHERE id = :id {sql.lock("c", skip=True) if locked else ""}
""")
    for locked in (False, True)
}
