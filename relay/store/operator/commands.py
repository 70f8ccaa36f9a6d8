"""Commands of operators, given by SQL or the command line, done batch by batch by any relay process.

A batch, how far the command has come, and what it has changed so far are one transaction under the order lock. So
several processes may work on one command, and any of them may die.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from functools import cache, partial
from typing import Any, Literal, TypeVar, get_args

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.exc import DBAPIError

from inbox.config.model import Config
from inbox.db.dialect import Sql, as_json, blames_items, error_text, failure_of
from inbox.errors import UnusableCommand
from inbox.events.timestamps import time_text
from relay.delivery import facts
from relay.delivery.gates import Gate
from relay.delivery.policy import Policies
from relay.store import gates
from relay.store.bulkhead import in_parts
from relay.store.database import Database, FailedAlone, Key, Transaction, key_text
from relay.store.operator import selection
from relay.store.operator.replay import GIVEN_UP, end_or_unblock, replay
from relay.store.operator.selection import Act, Choice, Selection, keys_of

BATCH = 200
"""Deliveries in one transaction."""
MOST_AT_ONCE = 10
"""Commands that get one batch each in one step of a relay."""
MOST_OPEN = 1000
"""The most open replayed deliveries of a route: new events must not wait behind a large backlog of them."""

GateAct = Literal["pause", "resume"]
CommandState = Literal["asked", "running", "done", "failed", "cancelled"]
_Form = TypeVar("_Form")


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


def ask(database: Database, kind: Act | GateAct, chosen: msgspec.Struct, *, who: str, why: str) -> int:
    """Store a command. Returns its id."""
    with database.write() as transaction:
        asked = msgspec.json.encode(chosen).decode()
        row = transaction.execute(_ask(database.sql), kind=kind, selection=asked, reason=why, who=who)[0]
        return int(row.id)


def any_open(database: Database) -> bool:
    """True when a command of a known kind waits or is at work."""
    with database.read() as transaction:
        return bool(transaction.execute(_ANY_OPEN))


def of_newer_version(database: Database) -> list[tuple[int, str]]:
    """Id and kind of open commands that only a newer version knows: they are left to that version."""
    with database.read() as transaction:
        return [(row.id, row.kind) for row in transaction.execute(_UNKNOWN)]


class OpenCommands:
    """Open commands, a few at a time and in turn, so that none delays another."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._after = 0
        self.busy: list[tuple[int, DBAPIError]] = []
        """Commands that failed last time because a row they need was locked."""

    def work(self, config: Config, policies: Policies) -> int:
        """Do a batch of each of the next few commands. Returns the number of changed deliveries."""
        with self._database.read() as transaction:
            numbers = [row.id for row in transaction.execute(_OPEN, after=self._after, most=MOST_AT_ONCE)]
        self._after = numbers[-1] if len(numbers) == MOST_AT_ONCE else 0
        self.busy = []
        changed = 0
        for number in numbers:
            try:
                changed += work_on(self._database, config, policies, number)
            except DBAPIError as error:
                if failure_of(error) != "busy":
                    raise
                self.busy.append((number, error))
        return changed


def work_on(database: Database, config: Config, policies: Policies, number: int) -> int:
    """Do the next batch of this command, if it has not ended.

    A command that can't be understood, or whose deliveries can't be found, is `failed`. A delivery that can't be changed is
    passed over: `relay_command.failed` counts it, `relay_command.error` has the last one.

    Returns:
        How many deliveries it has changed; of a replay also none when too many are open already.
    """
    try:
        batch = _look(database, config, number)
        if batch is None:
            return 0
        try:
            return _do(database, config, policies, batch)
        except Exception as error:
            if not blames_items(error) or batch.choice is None or not batch.keys:
                raise
        return _do_apart(database, policies, batch, batch.choice)
    except Exception as error:
        if not blames_items(error):
            raise
        _fail(database, number, error)
        return 0


class _Batch(msgspec.Struct, frozen=True):
    """The next batch of a command, as it was read without a lock."""

    command: Any
    """The row."""
    choice: Choice | None = None
    """None when the command is about a gate."""
    keys: Sequence[Key] = ()
    waits: bool = False
    """True when too many replayed deliveries are open."""


def _look(database: Database, config: Config, number: int) -> _Batch | None:
    """Read the next batch without a lock, since finding the deliveries may take long.

    Raises:
        UnusableCommand: it can't be understood.
    """
    with database.read() as transaction:
        command = _read(transaction, number)
        if command is None or command.kind in get_args(GateAct):
            return command and _Batch(command)
        choice = _choice(command, config)
        room = _room(transaction, choice.selection) if choice.act == "replay" else BATCH
        if room <= 0:
            return _Batch(command, choice, waits=True)
        page = selection.page(transaction, choice, after=command.progress_seq or 0, most=min(BATCH, room))
    return _Batch(command, choice, keys_of(page))


def _do(database: Database, config: Config, policies: Policies, batch: _Batch) -> int:
    """Do a batch in one transaction, unless another process has done it meanwhile."""
    with database.write() as transaction:
        now = transaction.lock_order()
        if not _is_as_it_was(transaction, batch.command.id, _standing(batch.command)):
            return 0
        step = (
            _turn_gate(transaction, config, batch.command, now)
            if batch.choice is None
            else _next(transaction, batch, batch.choice, policies, now)
        )
        finished_at = None if step.state == "running" else time_text(now)
        values = {"id": batch.command.id, "finished_at": finished_at, **msgspec.structs.asdict(step)}
        transaction.execute(_advance(database.sql), **values)
    return step.changed


def _do_apart(database: Database, policies: Policies, batch: _Batch, choice: Choice) -> int:
    """Do a batch in parts, after one of its deliveries has failed.

    Each part notes how far the command has come: whoever goes on with it, at the same time or after us, does none twice.
    """
    number, standing = batch.command.id, _standing(batch.command)

    def note(
        transaction: Transaction, last: Key, *, changed: int = 0, failed: int = 0, error: str | None = None
    ) -> None:
        nonlocal standing
        following = batch.keys[batch.keys.index(last) + 1 :][:1]
        upto = last[0] - int(bool(following) and following[0][0] == last[0])  # more of its event is to come
        values = {"id": number, "progress": upto, "changed": changed, "failed": failed, "error": error}
        standing = _standing(transaction.execute(_count(database.sql), **values)[0])

    def part(some: Sequence[Key]) -> int:
        with database.write() as transaction:
            now = transaction.lock_order()
            if not _is_as_it_was(transaction, number, standing):
                return 0
            changed = _change(transaction, choice, batch.command, some, now, policies=policies)
            note(transaction, some[-1], changed=changed)
        return changed

    def alone(key: Key, error: Exception) -> int:
        with database.write() as transaction:
            transaction.lock_order()
            if _is_as_it_was(transaction, number, standing):
                note(transaction, key, failed=1, error=f"{key_text(key)}: {error_text(error)}")
        return 0

    return sum(in_parts(database, "commands", batch.keys, part=part, alone=alone, name=key_text))


class _Step(msgspec.Struct, frozen=True):
    """The result of one batch."""

    state: CommandState
    changed: int = 0
    progress: int | None = None
    answer: str | None = None


def _read(transaction: Transaction, number: int, *, locked: bool = False) -> Any:  # noqa: ANN401  # a result row
    """The command; None when it has ended."""
    found = transaction.execute(_command(transaction.sql, locked=locked), id=number)
    return found[0] if found and found[0].state in {"asked", "running"} else None


def _standing(command: Any) -> tuple[int | None, int, int]:  # noqa: ANN401  # a result row
    """The place of a command, by which two processes can tell whether one of them has gone on with it."""
    return command.progress_seq, command.affected, command.failed


def _is_as_it_was(transaction: Transaction, number: int, standing: tuple[int | None, int, int]) -> bool:
    """Lock the command; true when nobody has gone on with it or stopped it since it was read."""
    now = _read(transaction, number, locked=True)
    return now is not None and _standing(now) == standing


def _choice(command: Any, config: Config) -> Choice:  # noqa: ANN401  # a result row
    """The selection and act of a command.

    Raises:
        UnusableCommand: it can't be understood, or can't be meant.
    """
    choice = Choice(command.kind, _understood(as_json(command.selection), Selection), config)
    if choice.mistake is not None:
        raise UnusableCommand(choice.mistake)
    return choice


def _understood(value: object, form: type[_Form]) -> _Form:
    try:
        return msgspec.convert(value, form)
    except msgspec.ValidationError as error:
        raise UnusableCommand(f"not understood: {error}") from error


def _next(transaction: Transaction, batch: _Batch, choice: Choice, policies: Policies, now: datetime) -> _Step:
    command = batch.command
    if batch.waits:
        return _Step(
            "running", progress=command.progress_seq, answer=f"waits: {MOST_OPEN} replayed deliveries are open"
        )
    if not batch.keys:
        answer = f"done, but for {command.failed} that could not be changed: see error" if command.failed else "done"
        return _Step("done", progress=command.progress_seq, answer=answer)
    return _Step(
        "running", _change(transaction, choice, command, batch.keys, now, policies=policies), batch.keys[-1][0]
    )


def _change(
    transaction: Transaction,
    choice: Choice,
    command: Any,  # noqa: ANN401  # a result row
    keys: Sequence[Key],
    now: datetime,
    *,
    policies: Policies,
) -> int:
    said = {"who": command.asked_by, "why": command.reason}
    states = GIVEN_UP if choice.is_about_dead else None
    if choice.act == "replay":
        too = None if choice.selection.force else partial(selection.among, transaction, choice)
        return replay(
            transaction, choice.config, keys, facts.Replayed(**said), now, policies=policies, too=too, states=states
        )
    fact = facts.Cancelled(**said) if choice.act == "cancel" else facts.Unblocked(**said)
    return end_or_unblock(transaction, choice.config, keys, fact, now, policies=policies, states=states)


def _fail(database: Database, number: int, error: Exception) -> None:
    """End a command that can't be done, with the reason as its answer."""
    answer = str(error) if isinstance(error, UnusableCommand) else error_text(error)
    with database.write() as transaction:
        transaction.execute(_failed(database.sql), id=number, answer=answer)
    database.failed_alone(FailedAlone("commands", f"command={number}", answer))


def _room(transaction: Transaction, chosen: Selection) -> int:
    statement = _replayed_open(transaction.sql)
    return MOST_OPEN - int(transaction.execute(statement, route=chosen.route, most=MOST_OPEN)[0].count)


def _turn_gate(transaction: Transaction, config: Config, command: Any, now: datetime) -> _Step:  # noqa: ANN401  # a result row
    gate = _understood(as_json(command.selection), Gate)
    if mistake := gate.mistake(config):
        raise UnusableCommand(mistake)
    if command.kind == "pause":
        changed = gates.pause(transaction, gate.key, who=command.asked_by, why=command.reason)
        return _Step("done", answer="paused" if changed else "was paused already")
    changed = gates.resume(transaction, gate.key, now)
    return _Step("done", answer="resumed" if changed else "nothing was held back")


def progress(database: Database, number: int) -> Progress | None:
    """The progress of a command; None when there is none of this id."""
    with database.read() as transaction:
        found = transaction.execute(_PROGRESS, id=number)
    return Progress(*found[0]) if found else None


def stop(database: Database, number: int) -> None:
    """Stop a command: what it has done stays done, and `go_on` resumes the rest."""
    with database.write() as transaction:
        transaction.lock_order()
        transaction.execute(_stop(database.sql), id=number)


def go_on(database: Database, number: int) -> bool:
    """Resume a stopped command. Returns whether there is one."""
    with database.write() as transaction:
        transaction.lock_order()
        return bool(transaction.execute(_GO_ON, id=number))


_IS_OPEN = "state IN ('asked', 'running')"
_IS_KNOWN = "kind IN ('replay', 'cancel', 'unblock', 'pause', 'resume')"
_ANY_OPEN = text(f"SELECT 1 FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} LIMIT 1")
_OPEN = text(f"SELECT id FROM relay_command WHERE {_IS_OPEN} AND {_IS_KNOWN} AND id > :after ORDER BY id LIMIT :most")
_UNKNOWN = text(f"SELECT id, kind FROM relay_command WHERE {_IS_OPEN} AND NOT {_IS_KNOWN} ORDER BY id LIMIT 10")
_PROGRESS = text("SELECT state, affected, answer, failed, error FROM relay_command WHERE id = :id")
_GO_ON = text("""
UPDATE relay_command SET state = 'running', finished_at = NULL, answer = NULL
WHERE id = :id AND state = 'cancelled'
RETURNING id
""")


@cache
def _ask(sql: Sql) -> TextClause:
    selected = "CAST(:selection AS jsonb)" if sql.is_postgres else ":selection"
    return text(f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at)
VALUES (:kind, {selected}, :reason, :who, {sql.now})
RETURNING id
""")


@cache
def _command(sql: Sql, *, locked: bool) -> TextClause:
    return text(f"""
SELECT id, kind, selection, reason, asked_by, state, progress_seq, affected, failed FROM relay_command
WHERE id = :id {sql.for_update_now if locked else ""}
""")


@cache
def _count(sql: Sql) -> TextClause:
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
    return text(f"""
UPDATE relay_command
SET state = :state, affected = affected + :changed, progress_seq = :progress, answer = :answer,
    finished_at = {sql.time(":finished_at")}
WHERE id = :id
""")


@cache
def _failed(sql: Sql) -> TextClause:
    return text(f"""
UPDATE relay_command SET state = 'failed', answer = :answer, finished_at = {sql.now}
WHERE id = :id AND {_IS_OPEN}
""")


@cache
def _stop(sql: Sql) -> TextClause:
    return text(f"""
UPDATE relay_command SET state = 'cancelled', finished_at = {sql.now}, answer = 'stopped by who had asked for it'
WHERE id = :id AND {_IS_OPEN}
""")


@cache
def _replayed_open(sql: Sql) -> TextClause:
    return text(f"""
SELECT count(*) AS count FROM (
    SELECT 1 FROM open_delivery o
    WHERE o.run > 0 AND o.state IN ('received', 'waiting', 'ready', 'in_flight')
      AND {sql.optional("o.route", "text", parameter="route")}
    LIMIT :most) replayed
""")
