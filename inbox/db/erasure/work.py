"""The steps of an erasure. Each looks without a lock, then acts in one short transaction that holds the order lock.

First the events go, the oldest first, then rows that name the entity, last its lane and its pause. A step finds by itself
what is left, so that anybody may go on at any time, two at once too.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import accumulate
from typing import Any

import msgspec
from sqlalchemy import Connection, TextClause, text

from inbox.db.dialect import Sql
from inbox.db.erasure.detail import emptied
from inbox.db.erasure.searching import Naming, search
from inbox.db.erasure.subject import ErasureSubject
from inbox.db.parameters import rows_param

EVENTS_OF_A_STEP = 100
"""Some 30 ms under the order lock, when each has been delivered on one route."""


FACTS_OF_A_STEP = 1000
"""Of events that were tried often, a step takes fewer; always one."""


class ErasureOrder(msgspec.Struct, frozen=True):
    """An order to erase: who gave it and why. It stays in the log, so that it must not name the person."""

    subject: ErasureSubject
    who: str
    why: str


class OpenFound(msgspec.Struct, frozen=True):
    """A delivery of the entity that has not ended: nothing is erased before it has."""

    seq: int
    route: str
    state: str


class ErasureStep(msgspec.Struct, frozen=True):
    """The next step of an erasure, as it was found without a lock."""

    events: Sequence[Any] = ()
    """seq and event_id of the next events."""
    naming: Naming | None = None
    """Rows that name the entity, where its events are erased; None in the last step."""
    routes: Sequence[str] = ()
    """In the last step: the routes on which the entity has had a lane."""
    late: Sequence[int] = ()
    """In the last step: ids of duplicates that arrived while their event was erased, and kept a body."""


class StepDone(msgspec.Struct, frozen=True):
    """The result of a step."""

    erased: int = 0
    """Events."""
    emptied: int = 0
    """Rows that named the entity."""
    position: int | None = None
    """The place where the next step goes on."""
    open: tuple[OpenFound, ...] = ()
    """Deliveries that stopped it."""
    is_last: bool = False


def look(
    connection: Connection, subject: ErasureSubject, position: int | None, *, own_command: int | None = None
) -> ErasureStep:
    """Find the next step; `position` is of the last one, None at the start. Reads only."""
    sql = Sql(connection.dialect.name)
    events = connection.execute(_NEXT, {**named(subject), "most": EVENTS_OF_A_STEP}).all()
    if events:
        facts = accumulate(connection.execute(_facts_of(sql), {"found": _seqs(events)}).scalars())
        return ErasureStep(events=[e for e, n in zip(events, facts, strict=True) if n <= FACTS_OF_A_STEP] or events[:1])
    naming = search(connection, subject, position, own_command=own_command)
    if naming is not None:
        return ErasureStep(naming=naming)
    erased = {**named(subject), "entity_id": subject.pseudonym}
    return ErasureStep(
        routes=connection.execute(_routes(sql), erased).scalars().all(),
        late=connection.execute(_LATE_DUPLICATES, erased).scalars().all(),
    )


def act(connection: Connection, order: ErasureOrder, step: ErasureStep, *, now: str | None = None) -> StepDone:
    """Do a step, in a transaction that holds the order lock; `now` is the database's clock, unless a test passes one."""
    sql = Sql(connection.dialect.name)
    if sql.overwrites_on_request:
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    try:
        if step.events:
            return _erase_events(connection, sql, order, step.events, now)
        if step.naming is not None:
            return StepDone(emptied=step.naming.empty(connection), position=step.naming.position)
        return _finish(connection, sql, order.subject, step)
    finally:
        if sql.overwrites_on_request:
            connection.exec_driver_sql("PRAGMA secure_delete = OFF")


def open_deliveries(connection: Connection, subject: ErasureSubject, most: int, *, among: int) -> list[OpenFound]:
    """Return the first deliveries that have not ended, among so many of the newest events of the entity."""
    statement = _open_of_entity(Sql(connection.dialect.name))
    rows = connection.execute(statement, {**named(subject), "most": most, "among": among})
    return [OpenFound(row.seq, row.route, row.state) for row in rows]


def _erase_events(
    connection: Connection, sql: Sql, order: ErasureOrder, events: Sequence[Any], now: str | None
) -> StepDone:
    subject = order.subject
    rows = rows_param(
        {"seq": e.seq, "names": e.event_id is not None and subject.is_named_in(e.event_id)} for e in events
    )
    found = connection.execute(_open_of(sql), {"erased": rows}).all()
    if found:
        return StepDone(open=tuple(OpenFound(row.seq, row.route, row.state) for row in found))
    chosen = {"erased": rows}
    count = connection.execute(_erase(sql), {**chosen, "pseudonym": subject.pseudonym, "now": now}).rowcount
    connection.execute(_forget_payloads(sql), chosen)
    connection.execute(_empty_duplicates(sql), chosen)
    connection.execute(_empty_facts(sql), chosen)
    said = {"who": order.who, "why": order.why, "now": now}
    connection.execute(_say(sql), {**chosen, **said})
    connection.execute(_keep_lanes(sql), {**chosen, "lane": subject.lane, "pseudonym": subject.lane_of_pseudonym})
    connection.execute(_forget_state(sql), chosen)
    return StepDone(erased=count)


def _finish(connection: Connection, sql: Sql, subject: ErasureSubject, step: ErasureStep) -> StepDone:
    """Remove the lane and the pause of the entity, and bodies of duplicates that arrived while it was erased."""
    if connection.execute(_NEXT, {**named(subject), "most": 1}).first() is not None:
        return StepDone()  # another event has arrived
    lanes = rows_param({"route": route, "lane": subject.lane} for route in step.routes)
    connection.execute(_remove_lanes(sql), {"lanes": lanes})
    connection.execute(_REMOVE_GATE, {"name": subject.gate})
    connection.execute(_empty_late(sql), {"late": rows_param({"id": number} for number in step.late)})
    return StepDone(is_last=True)


def named(subject: ErasureSubject) -> dict[str, str]:
    """Return the parameters of `OF_ENTITY`."""
    return {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.entity_id}


OF_ENTITY = "i.source = :source AND i.entity_type = :entity_type AND i.entity_id = :entity_id"
"""Condition on the row `i` of the inbox; an index answers it. An entity may be called like a pseudonym, so `erased_at` decides."""
_NEXT = text(f"""
SELECT i.seq, i.event_id FROM inbox i WHERE {OF_ENTITY} AND i.erased_at IS NULL ORDER BY i.seq LIMIT :most
""")
_NEWEST = f"(SELECT i.seq FROM inbox i WHERE {OF_ENTITY} AND i.erased_at IS NULL ORDER BY i.seq DESC LIMIT :among) i"
_REMOVE_GATE = text("DELETE FROM gate WHERE kind = 'entity' AND name = :name")
_LATE_DUPLICATES = text(f"""
SELECT d.id FROM inbox i JOIN duplicate_request d ON d.seq = i.seq
WHERE {OF_ENTITY} AND i.erased_at IS NOT NULL AND (d.body IS NOT NULL OR d.error IS NOT NULL)
""")


def _seqs(events: Sequence[Any]) -> str:
    return rows_param({"seq": event.seq} for event in events)


def _chosen(sql: Sql) -> str:
    return sql.rows("erased", seq="bigint", names="boolean")


@cache
def _open_of_entity(sql: Sql) -> TextClause:
    found = sql.looked_up(_NEWEST, "open_delivery o", "o.seq = i.seq")
    return text(f"SELECT o.seq, o.route, o.state FROM {found} ORDER BY o.seq, o.route LIMIT :most")


@cache
def _routes(sql: Sql) -> TextClause:
    facts = sql.looked_up("inbox i", "delivery_log l", "l.seq = i.seq")
    return text(f"SELECT DISTINCT l.route FROM {facts} WHERE {OF_ENTITY} AND i.erased_at IS NOT NULL")


@cache
def _facts_of(sql: Sql) -> TextClause:
    return text(f"""
SELECT (SELECT count(*) FROM delivery_log l WHERE l.seq = found.seq) AS facts
FROM {sql.rows("found", seq="bigint")} ORDER BY found.seq
""")


@cache
def _open_of(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq, o.route, o.state FROM {_chosen(sql)} JOIN open_delivery o ON o.seq = erased.seq ORDER BY o.seq, o.route
""")


@cache
def _erase(sql: Sql) -> TextClause:
    return text(f"""
UPDATE inbox SET entity_id = :pseudonym, event_id = CASE WHEN erased.names THEN NULL ELSE inbox.event_id END,
    traceparent = NULL, erased_at = {sql.now}
FROM {_chosen(sql)}
WHERE inbox.seq = erased.seq AND inbox.erased_at IS NULL
""")


@cache
def _forget_payloads(sql: Sql) -> TextClause:
    return text(f"DELETE FROM inbox_payload WHERE seq IN (SELECT erased.seq FROM {_chosen(sql)})")


@cache
def _empty_duplicates(sql: Sql) -> TextClause:
    return text(f"""
UPDATE duplicate_request SET body = NULL, error = NULL
WHERE (body IS NOT NULL OR error IS NOT NULL) AND seq IN (SELECT erased.seq FROM {_chosen(sql)})
""")


@cache
def _empty_late(sql: Sql) -> TextClause:
    return text(f"""
UPDATE duplicate_request SET body = NULL, error = NULL WHERE id IN (SELECT late.id FROM {sql.rows("late", id="bigint")})
""")


@cache
def _empty_facts(sql: Sql) -> TextClause:
    return text(f"""
UPDATE delivery_log SET detail = {emptied(sql.name, "delivery_log.detail")}
WHERE seq IN (SELECT erased.seq FROM {_chosen(sql)})
""")


@cache
def _say(sql: Sql) -> TextClause:
    """One fact for each delivery, with the attempts that its last one counts."""
    said = (
        "jsonb_build_object('who', CAST(:who AS text), 'why', CAST(:why AS text))"
        if sql.is_postgres
        else "json_object('who', :who, 'why', :why)"
    )
    return text(f"""
INSERT INTO delivery_log (at, seq, route, kind, attempt, relay_node, detail)
SELECT (SELECT {sql.now}), l.seq, l.route, 'erased', l.attempt, NULL, {said}
FROM delivery_log l
WHERE l.id IN (
    SELECT max(f.id) FROM {_chosen(sql)} JOIN delivery_log f ON f.seq = erased.seq GROUP BY f.seq, f.route)
ORDER BY l.seq, l.route
""")


@cache
def _keep_lanes(sql: Sql) -> TextClause:
    """Let the lane of the pseudonym remember the last success, for `relay verify`; nothing of what was applied."""
    return text(f"""
INSERT INTO lane (route, lane, occurred_at, seq)
SELECT route, :pseudonym, occurred_at, seq FROM lane
WHERE lane.lane = :lane AND lane.route IN (
    SELECT l.route FROM {_chosen(sql)} JOIN delivery_log l ON l.seq = erased.seq)
ON CONFLICT (route, lane) DO UPDATE SET occurred_at = excluded.occurred_at, seq = excluded.seq
WHERE (excluded.occurred_at, excluded.seq) > (lane.occurred_at, lane.seq)
""")


@cache
def _forget_state(sql: Sql) -> TextClause:
    """Forget what was applied last in lanes that other entities share."""
    return text(f"""
UPDATE lane SET applied_hash = NULL, etag = NULL, etag_config = NULL
WHERE lane = '*' AND seq IN (SELECT erased.seq FROM {_chosen(sql)})
  AND route IN (SELECT l.route FROM {_chosen(sql)} JOIN delivery_log l ON l.seq = erased.seq)
""")


@cache
def _remove_lanes(sql: Sql) -> TextClause:
    return text(f"""
DELETE FROM lane
WHERE (route, lane) IN (SELECT lanes.route, lanes.lane FROM {sql.rows("lanes", route="text", lane="text")})
""")
