"""Erase an entity: replace its id by a pseudonym, and delete payloads, calls and texts of its events.

Rejected requests, alerts and operators' reasons are not searched; retention deletes them.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from itertools import accumulate

import msgspec
from sqlalchemy import Connection, Engine, TextClause, text

from inbox.config.routing import entity_lane
from inbox.db.columns import format_values
from inbox.db.dialect import POSTGRES, SQLITE, Sql, each_name, rows_param
from inbox.db.engine import reading
from inbox.events.event import escape
from inbox.events.states import OPEN_COMMANDS

ERASED = "erased"
"""Replacement of a required text."""
PSEUDONYM = f"{ERASED}:"
"""Prefix of every pseudonym, followed by 64 hex digits."""

KEPT = (
    "attempt", "because", "blocks_lane", "by", "cause", "command", "counted", "crashes", "did", "due_at", "duplicate",
    "edited_body", "error_class",
    "fetch_began_at", "lane", "last_modified", "late", "of", "relay_node", "stale_suspected", "was_due_at", "who",
)  # fmt: skip
"""Keys of `delivery_log.detail` that stay, as they explain the delivery's history. `who` is an operator."""
EMPTIED = ("error", "why")
"""Keys whose text is replaced, as readers of a fact require them. All other keys are deleted."""


class ErasureSubject(msgspec.Struct, frozen=True):
    """An entity to erase."""

    source: str
    entity_type: str
    entity_id: str

    @property
    def pseudonym(self) -> str:
        """Replacement of the entity's id in all its erased events, different for each source.

        It is an unkeyed digest: anyone who knows or guesses the id can recognise it.
        """
        return f"{PSEUDONYM}{hashlib.sha256(self.gate.encode()).hexdigest()}"

    @property
    def gate(self) -> str:
        """`gate.name` of the entity."""
        return "|".join(map(escape, (self.source, self.entity_type, self.entity_id)))

    @property
    def names(self) -> Mapping[str, str]:
        """Parameters of statements: the entity's names before and after the erasure."""
        return {
            **msgspec.structs.asdict(self),
            "pseudonym": self.pseudonym,
            "gate": self.gate,
            "lane": entity_lane(self.entity_type, self.entity_id),
        }

    def is_named_in(self, text: str) -> bool:
        """Return whether a text contains the id as a whole word."""
        return re.search(rf"(?<![^\W_]){re.escape(self.entity_id)}(?![^\W_])", text) is not None


def redact_detail(dialect: str, detail: str) -> str:
    """Return the SQL for `detail` without personal data; applying it twice changes nothing."""
    kept, texts = format_values(KEPT + EMPTIED), format_values(EMPTIED)
    if dialect == POSTGRES:
        value = f"CASE WHEN d.key IN ({texts}) THEN to_jsonb(CAST('{ERASED}' AS text)) ELSE d.value END"
        return f"coalesce((SELECT jsonb_object_agg(d.key, {value}) FROM jsonb_each({detail}) d WHERE d.key IN ({kept})), '{{}}')"
    value = f"CASE WHEN d.key IN ({texts}) THEN '{ERASED}' ELSE json({detail} -> d.fullkey) END"
    return f"(SELECT json_group_object(d.key, {value}) FROM json_each({detail}) d WHERE d.key IN ({kept}))"


EVENTS_OF_A_STEP = 100
"""Events per step: about 30 ms under the order lock, if each was delivered on one route."""
FACTS_OF_A_STEP = 1000
"""Facts per step: if events have many attempts, a step takes fewer of them, but at least one."""
COUNTED_EVENTS = 20_000
"""Maximum events that a plan counts, in about 0.2 s."""


class ErasurePlan(msgspec.Struct, frozen=True):
    """The rows that an erasure would change or delete."""

    counts: Mapping[str, int]
    """Affected rows by name: unerased events, payloads, facts, duplicate requests, lanes, and pauses (0 or 1)."""
    erased_before: int
    """Number of events erased before."""
    obstacle: str | None
    """A delivery that must end before anything is erased."""


class StepDone(msgspec.Struct, frozen=True):
    """Result of a step."""

    erased: int = 0
    """Number of erased events."""
    obstacle: str | None = None
    """A delivery that stopped the step."""
    is_last: bool = False


def plan(engine: Engine, subject: ErasureSubject) -> ErasurePlan:
    """Count the rows of an entity, for at most `COUNTED_EVENTS` events."""
    given = {**subject.names, "most": COUNTED_EVENTS}
    with engine.connect() as connection, reading(connection).begin():
        counts = {name: int(number) for name, number in connection.execute(_COUNTS, given).mappings().one().items()}
        return ErasurePlan(counts, counts.pop("erased"), _obstacle(connection, _EVENTS_OF_ENTITY, subject.names))


def erase_step(
    connection: Connection, subject: ErasureSubject, *, who: str, why: str, now: str | None = None
) -> StepDone:
    """Run the next step, in a transaction that holds the order lock; tests may pass `now`, the database's time."""
    with _overwriting(connection):
        return _step(connection, {**subject.names, "who": who, "why": why, "now": now})


@contextmanager
def _overwriting(connection: Connection) -> Iterator[None]:
    """Overwrite rows deleted in this block with zeros, on SQLite."""
    is_sqlite = connection.dialect.name == SQLITE
    if is_sqlite:
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    try:
        yield
    finally:
        if is_sqlite:
            connection.exec_driver_sql("PRAGMA secure_delete = OFF")


def _step(connection: Connection, given: dict[str, str | None]) -> StepDone:
    sql = Sql(connection.dialect.name)
    events = connection.execute(_NEXT, {**given, "most": EVENTS_OF_A_STEP}).all()
    if not events:
        for statement in _LAST:
            connection.execute(statement, given)
        return StepDone(is_last=True)
    facts = accumulate(event.facts for event in events)
    few = [event for event, number in zip(events, facts, strict=True) if number <= FACTS_OF_A_STEP] or events[:1]
    given["erased"] = rows_param({"seq": event.seq} for event in few)
    if obstacle := _obstacle(connection, f"(SELECT erased.seq FROM {_chosen(sql)}) i", given):
        return StepDone(obstacle=obstacle)
    erased = connection.execute(_erase(sql), given).rowcount
    for statement in _forget_statements(sql):
        connection.execute(statement, given)
    return StepDone(erased)


def _obstacle(connection: Connection, events: str, given: Mapping[str, str | None]) -> str | None:
    """Return a sentence about a delivery that prevents the erasure of these events; None if no delivery does."""
    found = Sql(connection.dialect.name).look_up(events, "open_delivery o", "o.seq = i.seq")
    statement = text(f"SELECT o.seq, o.route, o.state FROM {found} ORDER BY o.seq, o.route LIMIT 1")
    first = connection.execute(statement, given).first()
    if first is None:
        return None
    return (
        f"its deliveries have to end first, such as seq {first.seq} on route {first.route}, which is {first.state}:"
        " cancel them, then ask again"
    )


def forget_in_commands(connection: Connection, subject: ErasureSubject) -> None:
    """Replace the entity by its pseudonym in the selections of ended commands."""
    with _overwriting(connection):
        connection.execute(_FORGET_IN_COMMANDS[connection.dialect.name], subject.names)


_OF_TYPE = "i.source = :source AND i.entity_type = :entity_type"
_OF_ENTITY = f"{_OF_TYPE} AND i.entity_id = :entity_id AND i.erased_at IS NULL"
_OF_ERASED = f"{_OF_TYPE} AND i.entity_id = :pseudonym AND i.erased_at IS NOT NULL"
"""Indexed conditions on the row `i` of the inbox. An entity's id may look like a pseudonym, so `erased_at` decides."""
_OF_LANE = f"lane.lane = :lane AND lane.route IN {each_name('route', 'lane')}"
_NEXT = text(f"""
SELECT i.seq, (SELECT count(*) FROM delivery_log l WHERE l.seq = i.seq) AS facts
FROM inbox i WHERE {_OF_ENTITY} ORDER BY i.seq LIMIT :most
""")
_COUNTS = text(f"""
SELECT count(*) AS events, count(p.seq) AS payloads,
       coalesce(sum((SELECT count(*) FROM delivery_log l WHERE l.seq = i.seq)), 0) AS facts,
       coalesce(sum((SELECT count(*) FROM duplicate_request d WHERE d.seq = i.seq)), 0) AS "duplicate requests",
       (SELECT count(*) FROM lane WHERE {_OF_LANE}) AS lanes,
       (SELECT count(*) FROM gate WHERE kind = 'entity' AND name = :gate) AS pauses,
       (SELECT count(*) FROM (SELECT 1 FROM inbox i WHERE {_OF_ERASED} LIMIT :most) e) AS erased
FROM (SELECT i.seq FROM inbox i WHERE {_OF_ENTITY} ORDER BY i.seq DESC LIMIT :most) i
LEFT JOIN inbox_payload p ON p.seq = i.seq
""")
_EVENTS_OF_ENTITY = f"(SELECT i.seq FROM inbox i WHERE {_OF_ENTITY}) i"
_LAST = (
    # duplicates stored while their event was being erased
    text(f"""
UPDATE duplicate_request SET body = NULL, error = NULL
WHERE (body IS NOT NULL OR error IS NOT NULL) AND seq IN (SELECT i.seq FROM inbox i WHERE {_OF_ERASED})
"""),
    # edited meanwhile: a trigger deletes the others with their payloads
    text(f"DELETE FROM edited_body WHERE seq IN (SELECT i.seq FROM inbox i WHERE {_OF_ERASED})"),
    # the lane stays if an entity of another source shares its name
    text(f"""
DELETE FROM lane WHERE {_OF_LANE}
  AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = lane.seq AND i.erased_at IS NULL)
"""),
    text("DELETE FROM gate WHERE kind = 'entity' AND name = :gate"),
)
_FORGET_IN_COMMANDS = {
    dialect: text(f"""
UPDATE relay_command SET selection = {selection}, sample = NULL
WHERE state NOT IN ({format_values(OPEN_COMMANDS)}) AND selection ->> 'entity_type' = :entity_type
  AND selection ->> 'entity_id' = :entity_id AND coalesce(selection ->> 'source', :source) = :source
""")
    for dialect, selection in {
        POSTGRES: "jsonb_set(selection, '{entity_id}', to_jsonb(CAST(:pseudonym AS text)))",
        SQLITE: "json_set(selection, '$.entity_id', :pseudonym)",
    }.items()
}


def _chosen(sql: Sql) -> str:
    return sql.rows("erased", seq="bigint")


@cache
def _erase(sql: Sql) -> TextClause:
    return text(f"""
UPDATE inbox SET entity_id = :pseudonym, event_id = NULL, traceparent = NULL, erased_at = {sql.now}
FROM {_chosen(sql)}
WHERE inbox.seq = erased.seq AND inbox.erased_at IS NULL
""")


@cache
def _forget_statements(sql: Sql) -> tuple[TextClause, ...]:
    """Delete the payloads, calls and texts of the events, and add a fact that names the operator.

    In shared lanes, the hash of the last applied data is deleted.
    """
    erased = f"(SELECT erased.seq FROM {_chosen(sql)})"
    routes = f"(SELECT l.route FROM {_chosen(sql)} JOIN delivery_log l ON l.seq = erased.seq)"
    newest = f"(SELECT max(f.id) FROM {_chosen(sql)} JOIN delivery_log f ON f.seq = erased.seq GROUP BY f.seq, f.route)"
    said = (
        "jsonb_build_object('who', CAST(:who AS text), 'why', CAST(:why AS text))"
        if sql.is_postgres
        else "json_object('who', :who, 'why', :why)"
    )
    return tuple(
        map(
            text,
            (
                f"DELETE FROM inbox_payload WHERE seq IN {erased}",
                f"""UPDATE duplicate_request SET body = NULL, error = NULL
WHERE (body IS NOT NULL OR error IS NOT NULL) AND seq IN {erased}""",
                f"UPDATE delivery_log SET detail = {redact_detail(sql.name, 'delivery_log.detail')} WHERE seq IN {erased}",
                f"""UPDATE lane SET applied_hash = NULL
WHERE lane = '*' AND seq IN {erased} AND route IN {routes}""",
                f"""INSERT INTO delivery_log (at, seq, route, kind, state, attempt, run, crashes, relay_node, detail)
SELECT (SELECT {sql.now}), l.seq, l.route, 'erased', l.state, l.attempt, l.run, l.crashes, NULL, {said}
FROM delivery_log l WHERE l.id IN {newest} ORDER BY l.seq, l.route""",
            ),
        )
    )
