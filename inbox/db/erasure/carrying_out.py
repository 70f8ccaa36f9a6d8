"""Carries an erasure out in this process. A row of `relay_command` is its record: a relay goes on with it if we die."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import cache

import msgspec
from sqlalchemy import Connection, Engine, TextClause, text

from inbox.db import commands
from inbox.db.dialect import Sql
from inbox.db.engine import reading
from inbox.db.erasure.subject import ErasureSubject
from inbox.db.erasure.work import ErasureOrder, OpenFound, StepDone, act, look
from inbox.db.order_lock import lock_everything
from inbox.events.commands import OPEN_COMMANDS

LONGEST_REST_SECONDS = 1.0


class ErasureResult(msgspec.Struct, frozen=True):
    """The end of an erasure."""

    command: int
    """relay_command.id."""
    erased: int
    """Events."""
    emptied: int
    """Rows of other tables that named the entity."""
    open: tuple[OpenFound, ...] = ()
    """Deliveries of events that arrived meanwhile, which have to end first."""
    is_done: bool = True


def ask(engine: Engine, order: ErasureOrder) -> int:
    """Store the command. Returns its id."""
    sql = Sql(engine.dialect.name)
    subject = order.subject
    selection = {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.entity_id}
    given = {
        "kind": "erase",
        "selection": msgspec.json.encode(selection).decode(),
        "reason": order.why,
        "who": order.who,
    }
    with engine.begin() as connection:
        return int(
            connection.execute(
                commands.ask(sql), {**given, "dry_run": False, "planned": None, "now": None}
            ).scalar_one()
        )


def carry_out(engine: Engine, order: ErasureOrder, number: int, heard: Callable[[StepDone], None]) -> ErasureResult:
    """Erase, step by step, until nothing is left or something open stops it. `heard` hears of each step.

    Between two steps it rests as long as the last one took, so that relays have the order lock half of the time.
    """
    sql = Sql(engine.dialect.name)
    position: int | None = None
    erased = emptied = 0
    while True:
        with engine.connect() as connection, reading(connection).begin():
            standing = _standing(connection, number)
            position = standing[1]
            step = look(connection, order.subject, position, own_command=number)
        began = time.monotonic()
        with engine.begin() as connection:
            now = _standing(connection, number, locked=True)  # before the other locks, as a relay takes them
            lock_everything(connection)
            if now[0] not in OPEN_COMMANDS:  # somebody has stopped it, or a relay was faster
                return ErasureResult(number, erased, emptied, is_done=_has_ended_well(connection, number))
            if now[1:] != standing[1:]:  # a relay has done this step, or another one
                continue
            done = act(connection, order, step)
            position = done.position if done.position is not None else position
            connection.execute(_PROGRESS, {"id": number, "changed": done.erased, "progress": position})
            if done.is_last or done.open:
                end(connection, order.subject, number, done)
        took = time.monotonic() - began
        erased, emptied = erased + done.erased, emptied + done.emptied
        heard(done)
        if done.is_last or done.open:
            return ErasureResult(number, erased, emptied, done.open, is_done=done.is_last)
        time.sleep(max(sql.pause_after_write, min(took, LONGEST_REST_SECONDS)))


def stop(engine: Engine, number: int) -> None:
    """Stop the command; what it has erased stays erased."""
    with engine.begin() as connection:
        connection.execute(commands.stop(Sql(engine.dialect.name)), {"id": number, "answer": None, "now": None})


def answer_of(found: Sequence[OpenFound]) -> str:
    """Return the answer to a command that has come to its end, or was stopped by open deliveries."""
    if not found:
        return "done"
    return f"an event arrived meanwhile; {held_up_by(found)}"


def held_up_by(found: Sequence[OpenFound]) -> str:
    """Return the sentence about deliveries that keep an entity from being erased."""
    first = found[0]
    return (
        f"its deliveries have to end first, such as seq {first.seq} on route {first.route}, which is {first.state}:"
        " cancel them, then ask again"
    )


def end(connection: Connection, subject: ErasureSubject, number: int, done: StepDone) -> None:
    """End the command, in the transaction of its last step; one that is done has the pseudonym in place of the entity."""
    sql = Sql(connection.dialect.name)
    state = "done" if done.is_last else "refused"
    connection.execute(_end(sql), {"id": number, "state": state, "answer": answer_of(done.open), "now": None})
    if done.is_last:
        connection.execute(_forget(sql), {"id": number, "pseudonym": subject.pseudonym})


def _standing(connection: Connection, number: int, *, locked: bool = False) -> tuple[str, int | None, int]:
    """Return the command's state, where its last step ended, and how many events are erased."""
    found = connection.execute(_read(Sql(connection.dialect.name), locked=locked), {"id": number}).one()
    return found.state, found.progress_seq, found.affected


def _has_ended_well(connection: Connection, number: int) -> bool:
    return bool(connection.execute(_STATE, {"id": number}).scalar_one() == "done")


_STATE = text("SELECT state FROM relay_command WHERE id = :id")
_PROGRESS = text("""
UPDATE relay_command SET state = 'running', affected = affected + :changed, progress_seq = :progress WHERE id = :id
""")


@cache
def _read(sql: Sql, *, locked: bool) -> TextClause:
    lock = sql.for_update if locked else ""
    return text(f"SELECT state, progress_seq, affected FROM relay_command WHERE id = :id {lock}")


@cache
def _end(sql: Sql) -> TextClause:
    return text(f"UPDATE relay_command SET state = :state, answer = :answer, finished_at = {sql.now} WHERE id = :id")


@cache
def _forget(sql: Sql) -> TextClause:
    changed = (
        "jsonb_set(selection, '{entity_id}', to_jsonb(CAST(:pseudonym AS text)))"
        if sql.is_postgres
        else "json_set(selection, '$.entity_id', :pseudonym)"
    )
    return text(f"UPDATE relay_command SET selection = {changed} WHERE id = :id")
