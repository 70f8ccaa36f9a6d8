"""Rows of `relay_command`. Operators insert them in SQL or by the command line; `relay.store.operator.execution` runs them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, cast

import msgspec
from sqlalchemy import text

from inbox.db.dialect import as_json, json_param
from inbox.db.listing import select_changed
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.states import COMMAND_KINDS
from relay.operations.table import OPERATIONS
from relay.store.database import Database
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

CommandState = Literal["asked", "running", "done", "failed", "refused", "cancelled"]


class Command(msgspec.Struct, frozen=True):
    """A command as read."""

    id: int
    kind: str
    selection: Any
    """The JSON as the driver returns it."""
    reason: str
    asked_by: str
    dry_run: bool
    state: CommandState
    progress: int | None
    """The position at the end of the last step; None before the first."""
    affected: int
    answer: str | None
    failed: int
    """Deliveries or requests that could not be changed."""
    error: str | None
    """The last delivery or request that failed, and its error."""
    matched: int | None
    """The number of deliveries or rows in its plan."""
    until: int | None
    """The highest seq, or id of a rejected request, when the command was requested; later ones are skipped."""

    sample: Any = None
    """The JSON of `relay_command.sample`: the plan of a dry run, or the numbers skipped so far."""

    @property
    def has_ended(self) -> bool:
        """True when the command will make no more changes."""
        return self.state not in {"asked", "running"}

    @property
    def skipped(self) -> Mapping[str, int]:
        """Number of deliveries or requests skipped so far, by reason."""
        return cast("Mapping[str, int]", (as_json(self.sample) or {}).get("skipped", {}))

    def skipping(self, skipped: Mapping[str, int]) -> Command:
        """Return the command with these numbers added to the skipped ones."""
        sums = Counter(self.skipped) + Counter(skipped)
        return msgspec.structs.replace(self, sample={"skipped": sums} if sums else None)

    def after(self, state: CommandState = "running", *, changed: int = 0, failed: int = 0, **values: Any) -> Command:  # noqa: ANN401  # of fields
        """Return the command after a step with these numbers of changed and failed items. The answer is cleared unless given."""
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
    """Store a command. `planned` is the number of deliveries or rows in its plan, if known. Returns its id."""
    with database.write() as transaction:
        return _ask(transaction, kind, chosen, who=who, why=why, dry_run=dry_run, planned=planned)


def note(database: Database, kind: str, chosen: Mapping[str, object], *, who: str, why: str, answer: str) -> None:
    """Store an act that a command line has completed itself as an ended command, for the audit trail."""
    with database.write() as transaction:
        asked = _ask(transaction, kind, chosen, who=who, why=why, dry_run=False, planned=None)
        end(transaction, asked, "done", answer)


def _ask(transaction: Transaction, kind: str, chosen: object, **given: object) -> int:
    selection = msgspec.json.encode(chosen).decode()
    asked = transaction.execute(_INSERT, kind=kind, selection=selection, **given)
    return int(asked[0].id)


class CommandOutcome(msgspec.Struct, frozen=True):
    """The current states of the deliveries that a command changed."""

    delivered: int = 0
    """Deliveries that are delivered, or unchanged as the destination already had the change."""
    failed: int = 0
    """Dead deliveries, including those that block their lane."""
    open: int = 0
    """Deliveries in progress."""
    other: Mapping[str, int] = {}
    """All other deliveries by state, such as superseded ones."""

    @property
    def says(self) -> str:
        """The counts in words: `6 delivered, 0 failed, 2 open`."""
        counts = {"delivered": self.delivered, "failed": self.failed, **self.other, "open": self.open}
        return ", ".join(f"{number:,} {word}" for word, number in counts.items() if number or word in _ALWAYS)


_ALWAYS = ("delivered", "failed")
_OUTCOMES = {"delivered": "delivered", "unchanged": "delivered", "dead": "failed", "blocked": "failed"}


def read_outcome(database: Database, number: int) -> CommandOutcome:
    """Count the current states of the deliveries that a command changed."""
    counts, other = Counter[str](), dict[str, int]()
    with database.read() as transaction:
        for row in transaction.execute(_STATES, command=number):
            if row.is_open or row.state in _OUTCOMES:
                counts[_OUTCOMES.get(row.state, "open")] += row.number
            else:
                other[row.state] = row.number
    return CommandOutcome(**counts, other=other)


def read_next_open(database: Database, *, after: int, most: int) -> Sequence[int]:
    """Read the ids of the next open commands of known kinds after this id."""
    with database.read() as transaction:
        return [row.id for row in transaction.execute(_OPEN, after=after, most=most)]


_NEWEST_ID = 2**63 - 1


def find_open_turn(database: Database, gate: object, *, before: int = _NEWEST_ID) -> tuple[int, str] | None:
    """Return id and kind of the oldest open pause or resume of this gate with a lower id; None if there is none."""
    with database.read() as transaction:
        for row in transaction.execute(_TURNS, before=before):
            if _list_given(row.selection) == _list_given(gate):
                return row.id, row.kind
    return None


def _list_given(selection: object) -> object:
    """Return a selection without fields that are null, which say nothing."""
    given = as_json(selection)
    return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


def read_command(database: Database, number: int) -> Command | None:
    """Read a command; None if there is none with this id."""
    with database.read() as transaction:
        return _read(transaction, number)


CommandAct = Literal["stop", "continue"]


def turn(database: Database, act: CommandAct, number: int, *, who: str, why: str) -> None:
    """Stop a command, or continue a stopped one, keeping its changes so far. A separate row stores who did so, and why.

    Raises:
        NoSuchCommand: there is none with this id.
        UnusableCommand: the command has ended, or should continue but was not stopped.
    """
    with database.write() as transaction:
        answer = turn_in(transaction, act, number, who=who, why=why)
        asked = _ask(transaction, act, {"command": number}, who=who, why=why, dry_run=False, planned=None)
        end(transaction, asked, "done", answer)


def turn_in(transaction: Transaction, act: CommandAct, number: int, *, who: str, why: str) -> str:
    """Stop or continue a command within a transaction, without a separate row. Returns the answer. Raises like `turn`."""
    found = _read(transaction, number)
    if found is None:
        raise NoSuchCommand(f"there is no command {number}")
    if obstacle := find_obstacle(found, act):
        raise UnusableCommand(obstacle)
    if act == "stop" and end(transaction, number, "cancelled", f"stopped by {who}: {why}"):
        return f"command {number} is stopped"
    if act == "continue" and transaction.execute(_GO_ON, id=number):
        return f"command {number} continues"
    raise UnusableCommand(f"command {number} has just changed: look at it again")


def find_obstacle(found: Command, act: str) -> str | None:
    """Return the reason a command can't be stopped or continued; None if it can."""
    if OPERATIONS[found.kind].is_of_a_command:
        return f"command {found.id} is a {found.kind}, which is done at once"
    if act == "stop" and found.has_ended:
        return f"command {found.id} has ended and can't be stopped any more"
    if act == "continue" and found.state != "cancelled":
        return f"command {found.id} is {found.state}: only a stopped one can be continued"
    return None


def is_as_it_was(transaction: Transaction, command: Command) -> bool:
    """Lock the command. Returns False if another process has advanced or stopped it since it was read, or is doing so now."""
    now = _read(transaction, command.id, locked=True)
    return now is not None and not now.has_ended and _get_position(now) == _get_position(command)


def _get_position(command: Command) -> tuple[int | None, int, int]:
    return command.progress, command.affected, command.failed


def _read(transaction: Transaction, number: int, *, locked: bool = False) -> Command | None:
    found = transaction.execute(_OF_ID[locked], id=number)
    return Command(*found[0]) if found else None


def advance(transaction: Transaction, after: Command, now: datetime) -> None:
    """Store a step of a locked command."""
    noted = {name: getattr(after, name) for name in _NOTED}
    sample = None if after.sample is None else json_param(as_json(after.sample))
    transaction.execute(_ADVANCE, **noted, sample=sample, finished_at=now if after.has_ended else None)


def say(database: Database, number: int, answer: str) -> None:
    """Store an answer in the row of an open command, unless it is already there."""
    with database.write() as transaction:
        transaction.execute(_SAY, id=number, answer=answer)


def end(transaction: Transaction, number: int, state: CommandState, answer: str) -> bool:
    """End a command with an answer: its result, or the reason it can't be done. Returns whether it was open."""
    return bool(transaction.execute(_END, id=number, state=state, answer=answer, at=transaction.now()))


_IS_OPEN = "state IN ('asked', 'running')"
_IS_KNOWN = f"kind IN ({', '.join(repr(kind) for kind in COMMAND_KINDS)})"
_OPEN = text(f"SELECT id FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} AND id > :after ORDER BY id LIMIT :most")
_TURNS = text(
    "SELECT id, kind, selection FROM relay_command "
    f"WHERE {_IS_OPEN} AND kind IN ('pause', 'resume') AND id < :before ORDER BY id"
)
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
_STATES = Statement(f"""
SELECT coalesce(o.state, l.kind) AS state, o.seq IS NOT NULL AS is_open, count(*) AS number
FROM ({select_changed(sql)}) k
LEFT JOIN open_delivery o ON o.seq = k.seq AND o.route = k.route
LEFT JOIN delivery_log l ON l.id = (
    SELECT max(f.id) FROM delivery_log f WHERE f.seq = k.seq AND f.route = k.route AND f.kind <> 'erased')
GROUP BY 1, 2
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
    matched, until_seq AS until, sample
FROM relay_command c
WHERE id = :id {sql.lock("c", skip=True) if locked else ""}
""")
    for locked in (False, True)
}
