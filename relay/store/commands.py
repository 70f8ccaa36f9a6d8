"""Commands: what an operator asks for by SQL or the command line, done batch by batch by whichever process gets to it.

A batch, how far the command has come, and what it has changed so far are one transaction under the order lock. So
several processes may work on one command, and any of them may die.
"""

from __future__ import annotations

from datetime import datetime
from functools import cache, partial
from typing import Any, Literal

import msgspec
from sqlalchemy import TextClause, text

from inbox.config import Config
from inbox.db.dialect import Sql, as_json
from inbox.timestamps import time_text
from relay import facts
from relay.gates import Gate
from relay.store import gates, selection
from relay.store.database import Database, Transaction
from relay.store.reopen import find
from relay.store.replay import end_or_unblock, overtaken, replay
from relay.store.selection import Act, Choice, Plan, Selection, keys_of

BATCH = 200
"""Deliveries in one transaction."""
MOST_OPEN = 1000
"""So many replayed deliveries of a route may be open: what arrives meanwhile is not to wait behind a mountain of them."""

GateAct = Literal["pause", "resume"]
CommandState = Literal["asked", "running", "done", "failed", "cancelled"]


class Progress(msgspec.Struct, frozen=True):
    """How a command stands."""

    state: CommandState
    affected: int
    answer: str | None

    @property
    def has_ended(self) -> bool:
        """Whether nothing more happens."""
        return self.state not in {"asked", "running"}


def plan(database: Database, choice: Choice, sample: int | None) -> Plan:
    """What an act would do, with so many of the deliveries as a sample (None: all of them). Changes nothing."""
    number = selection.count(database, choice)
    with database.read() as transaction:
        rows = selection.page(transaction, choice, after=0, most=number if sample is None else sample)
    left = _overtaken(database, choice) if choice.act == "replay" and not choice.selection.force else 0
    return Plan(number, tuple(rows if sample is None else rows[:sample]), left)


def _overtaken(database: Database, choice: Choice) -> int:
    number, after = 0, 0
    while True:
        with database.write() as transaction:  # a write, for `find` locks; nothing is changed
            keys = keys_of(selection.page(transaction, choice, after=after, most=BATCH))
            if not keys:
                return number
            too = partial(selection.among, transaction, choice)
            number += len(overtaken(transaction, find(transaction, choice.config, keys), too))
        after = keys[-1][0]


def ask(database: Database, kind: Act | GateAct, chosen: msgspec.Struct, *, who: str, why: str) -> int:
    """Note what is asked for. Returns the command's id."""
    with database.write() as transaction:
        asked = msgspec.json.encode(chosen).decode()
        row = transaction.execute(_ask(database.sql), kind=kind, selection=asked, reason=why, who=who)[0]
        return int(row.id)


def any_open(database: Database) -> bool:
    """Whether a command waits, or is at work."""
    with database.read() as transaction:
        return bool(transaction.execute(_ANY_OPEN))


def work_on_open(database: Database, config: Config) -> int:
    """A batch of each open command. Returns how many deliveries were changed."""
    with database.read() as transaction:
        numbers = [row.id for row in transaction.execute(_OPEN)]
    return sum(work_on(database, config, number) for number in numbers)


def work_on(database: Database, config: Config, number: int) -> int:
    """The next batch of this command, if it has not ended.

    Returns:
        How many deliveries it has changed; of a replay also none when too many are open already.
    """
    with database.write() as transaction:
        now = transaction.lock_order()
        found = transaction.execute(_command(database.sql), id=number)
        if not found or found[0].state not in {"asked", "running"}:
            return 0
        step = _step(transaction, config, found[0], now)
        transaction.execute(_advance(database.sql), id=number, at=time_text(now), **msgspec.structs.asdict(step))
    return step.changed


class _Step(msgspec.Struct, frozen=True):
    """What one batch has come to."""

    state: CommandState
    changed: int = 0
    progress: int | None = None
    answer: str | None = None


def _step(transaction: Transaction, config: Config, command: Any, now: datetime) -> _Step:  # noqa: ANN401  # a result row
    try:
        if command.kind in {"pause", "resume"}:
            return _turn_gate(transaction, config, command, now)
        chosen = msgspec.convert(as_json(command.selection), Selection)
        choice = Choice(msgspec.convert(command.kind, Act), chosen, config)
    except msgspec.ValidationError as error:
        return _Step("failed", answer=f"not understood: {error}")
    if choice.mistake is not None:
        return _Step("failed", answer=choice.mistake)
    most = min(BATCH, _room(transaction, chosen) if choice.act == "replay" else BATCH)
    if most <= 0:
        return _Step(
            "running", progress=command.progress_seq, answer=f"waits: {MOST_OPEN} replayed deliveries are open"
        )
    keys = keys_of(selection.page(transaction, choice, after=command.progress_seq or 0, most=most))
    if not keys:
        return _Step("done", progress=command.progress_seq, answer="done")
    said = {"who": command.asked_by, "why": command.reason}
    if choice.act == "replay":
        too = None if chosen.force else partial(selection.among, transaction, choice)
        changed = replay(transaction, config, keys, facts.Replayed(**said), now, too=too)
    else:
        fact = facts.Cancelled(**said) if choice.act == "cancel" else facts.Unblocked(**said)
        changed = end_or_unblock(transaction, config, keys, fact, now)
    return _Step("running", changed, keys[-1][0])


def _room(transaction: Transaction, chosen: Selection) -> int:
    statement = _replayed_open(transaction.sql)
    return MOST_OPEN - int(transaction.execute(statement, route=chosen.route, most=MOST_OPEN)[0].count)


def _turn_gate(transaction: Transaction, config: Config, command: Any, now: datetime) -> _Step:  # noqa: ANN401  # a result row
    gate = msgspec.convert(as_json(command.selection), Gate)
    if mistake := gate.mistake(config):
        return _Step("failed", answer=mistake)
    if command.kind == "pause":
        changed = gates.pause(transaction, gate.key, who=command.asked_by, why=command.reason)
        return _Step("done", answer="paused" if changed else "was paused already")
    changed = gates.resume(transaction, gate.key, now)
    return _Step("done", answer="resumed" if changed else "nothing was held back")


def progress(database: Database, number: int) -> Progress | None:
    """How a command stands; None when there is none of this id."""
    with database.read() as transaction:
        found = transaction.execute(_PROGRESS, id=number)
    return Progress(found[0].state, found[0].affected, found[0].answer) if found else None


def stop(database: Database, number: int) -> None:
    """Let it be: what it has done stays done, and `go_on` takes up the rest."""
    with database.write() as transaction:
        transaction.lock_order()
        transaction.execute(_stop(database.sql), id=number)


def go_on(database: Database, number: int) -> bool:
    """Let a command that was stopped go on. Whether there is one."""
    with database.write() as transaction:
        transaction.lock_order()
        return bool(transaction.execute(_GO_ON, id=number))


_ANY_OPEN = text("SELECT 1 FROM relay_command WHERE state IN ('asked', 'running') LIMIT 1")
_OPEN = text("SELECT id FROM relay_command WHERE state IN ('asked', 'running') ORDER BY id LIMIT 10")
_PROGRESS = text("SELECT state, affected, answer FROM relay_command WHERE id = :id")
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
def _command(sql: Sql) -> TextClause:
    return text(f"""
SELECT id, kind, selection, reason, asked_by, state, progress_seq FROM relay_command WHERE id = :id {sql.for_update}
""")


@cache
def _advance(sql: Sql) -> TextClause:
    ended = ":state IN ('done', 'failed')" if not sql.is_postgres else "CAST(:state AS text) IN ('done', 'failed')"
    return text(f"""
UPDATE relay_command
SET state = :state, affected = affected + :changed, progress_seq = :progress, answer = :answer,
    finished_at = CASE WHEN {ended} THEN {sql.time(":at")} END
WHERE id = :id
""")


@cache
def _stop(sql: Sql) -> TextClause:
    return text(f"""
UPDATE relay_command SET state = 'cancelled', finished_at = {sql.now}, answer = 'stopped by who had asked for it'
WHERE id = :id AND state IN ('asked', 'running')
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
