"""The entity to erase, texts that name it, and the form of a fact after an erasure. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate
from typing import Any

import msgspec
from sqlalchemy import (
    Connection,
    Engine,
    RowMapping,
    Select,
    Table,
    TextClause,
    and_,
    exists,
    select,
    text,
    true,
    update,
)

from inbox.config.routing import entity_lane
from inbox.db.columns import one_of
from inbox.db.dialect import POSTGRES, Sql, as_json, each_name, rows_param
from inbox.db.engine import reading
from inbox.db.schema import duplicate_request, inbox, metadata, rejected_request, relay_command
from inbox.events.event import escape

ERASED = "erased"
"""Stands where a text was that has to be there."""
PSEUDONYM = f"{ERASED}:"
"""Every pseudonym begins with it; 64 hex digits follow."""

KEPT = (
    "attempt", "because", "blocks_lane", "by", "cause", "counted", "crashes", "did", "due_at", "duplicate", "error_class",
    "fetch_began_at", "lane", "last_modified", "late", "of", "relay_node", "stale_suspected", "was_due_at", "who",
)  # fmt: skip
"""Keys of `delivery_log.detail` that stay: they say how it went on. `who` is an operator."""
EMPTIED = ("error", "why")
"""Keys whose text gives way to a word, since a fact can't be read without them. Every other key goes."""

_IS_PSEUDONYM = re.compile(rf"{PSEUDONYM}[0-9a-f]{{64}}")
_ESCAPES = re.compile(r'(?:\\(?:["\\/bfnrt]|u[0-9a-fA-F]{4}))+')
"""Characters as JSON may write them; several together, as two may make one character."""
_NESTED = 3
"""JSON in a text of JSON in a text of JSON is read, too."""


class ErasureSubject(msgspec.Struct, frozen=True, dict=True):
    """The entity to erase."""

    source: str
    entity_type: str
    entity_id: str

    @property
    def pseudonym(self) -> str:
        """Stands for the entity's id in its erased events: the same for all of them, another one at another source.

        It is a digest without a key. Who knows the exact id can find it again, so it doesn't hide ids that can be guessed.
        """
        return f"{PSEUDONYM}{hashlib.sha256(self.gate.encode()).hexdigest()}"

    @property
    def gate(self) -> str:
        """`gate.name` of the entity."""
        return "|".join(map(escape, (self.source, self.entity_type, self.entity_id)))

    @cached_property
    def names(self) -> Mapping[str, str]:
        """The parameters of statements about it: as it is called, and as it is called after the erasure."""
        return {
            **msgspec.structs.asdict(self),
            "pseudonym": self.pseudonym,
            "gate": self.gate,
            "lane": entity_lane(self.entity_type, self.entity_id),
        }

    def is_named_in(self, text: str) -> bool:
        """Return whether a text has the id: alone, not as a part of a longer word or number.

        It is found as it is, and in every form that JSON has for it; in no other encoding.
        """
        return any(self._pattern.search(reading) for reading in _readings(text))

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        return re.compile(rf"(?<![^\W_]){re.escape(self.entity_id)}(?![^\W_])")

    def without(self, value: Any) -> Any:  # noqa: ANN401  # a value of any column
        """Return a value of a column without the texts that name the entity; the value itself when there are none."""
        if isinstance(value, str):
            is_named = self.is_named_in(value) and not _IS_PSEUDONYM.fullmatch(value)
            return ERASED if is_named else value
        if isinstance(value, bytes):
            return None if self.is_named_in(value.decode("utf-8", "backslashreplace")) else value
        if isinstance(value, dict):
            return {self.without(key): self.without(item) for key, item in value.items()}
        if isinstance(value, list):
            return [self.without(item) for item in value]
        return value

    def differs(self, value: Any) -> bool:  # noqa: ANN401  # as above
        """Return whether a value of a column names the entity."""
        return bool(self.without(value) != value)


def _readings(text: str) -> Iterator[str]:
    """Yield a text as it is, and without the escapes of JSON: a letter of one before the id is no part of a word."""
    yield text
    for _ in range(_NESTED):
        plain = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), text)
        if plain == text:
            return
        yield (text := plain)


def emptied(dialect: str, detail: str) -> str:
    """Return the expression of `detail` without anything of a person. Applied again, it changes nothing."""
    kept, texts = one_of(KEPT + EMPTIED), one_of(EMPTIED)
    if dialect == POSTGRES:
        value = f"CASE WHEN d.key IN ({texts}) THEN to_jsonb(CAST('{ERASED}' AS text)) ELSE d.value END"
        return f"coalesce((SELECT jsonb_object_agg(d.key, {value}) FROM jsonb_each({detail}) d WHERE d.key IN ({kept})), '{{}}')"
    value = f"CASE WHEN d.key IN ({texts}) THEN '{ERASED}' ELSE json({detail} -> d.fullkey) END"
    return f"(SELECT json_group_object(d.key, {value}) FROM json_each({detail}) d WHERE d.key IN ({kept}))"


EVENTS_OF_A_STEP = 100
"""Some 30 ms under the order lock, when each has been delivered on one route."""
FACTS_OF_A_STEP = 1000
"""Of events that were tried often, a step takes fewer; always one."""
ROWS_OF_A_PART = 500
BYTES_OF_A_PART = 4 * 1024 * 1024
"""Bodies of rejected requests that a step searches; a single one may be larger."""
COUNTED_EVENTS = 20_000
SEARCHED_PARTS = 2
"""A plan counts so many events, and searches so many parts of the rejected requests: each some 0.2 s."""
MOST_SHOWN = 5
"""Open deliveries that a plan names."""
SHORT_ID = 4
"""Characters from which on an id hardly stands in a text that means something else."""
MANY_NAMING = 100
"""Rows of other tables beyond which a plan warns."""

REJECTED = ("reason", "field", "remote_address", "headers", "body", "readmit_reason")
"""All that a sender sent goes from each rejected request of the source in which one of these names the entity."""
SEARCHED: Mapping[str, tuple[str, ...]] = {
    "relay_command": ("selection", "reason", "sample", "answer", "error"),
    "alert": ("subject", "detail", "error"),
    "payload_reveal": ("reason",),
    "gate": ("pause_reason", "breaker_cause", "hold_reason"),
    "relay_node": ("failing",),
    "pruning": ("error",),
    "sweep_watermark": ("error",),
}
"""Columns of tables that stay small: whatever names the entity goes, in any row."""
_HAS_ENDED = relay_command.c.state.not_in(("asked", "running"))


class OpenFound(msgspec.Struct, frozen=True):
    """A delivery of the entity that has not ended: nothing is erased before it has."""

    seq: int
    route: str
    state: str


class NamingRow(msgspec.Struct, frozen=True):
    """A row that names the entity."""

    table: Table
    key: Mapping[str, Any]
    emptied: Mapping[str, Any]
    """The columns that change, without the entity."""


class ErasureStep(msgspec.Struct, frozen=True):
    """The next step of an erasure, as it was found without a lock. The last one has neither events nor rows."""

    position: int | None
    """The place up to which `rejected_request` has been searched."""
    events: Sequence[Any] = ()
    """seq and event_id of the next events."""
    naming: Sequence[NamingRow] = ()
    """Rows that name the entity, where its events are erased."""
    is_last: bool = False


class StepDone(msgspec.Struct, frozen=True):
    """The result of a step."""

    erased: int = 0
    """Events."""
    open: tuple[OpenFound, ...] = ()
    """Deliveries that stopped it."""
    is_last: bool = False


class ErasurePlan(msgspec.Struct, frozen=True):
    """The rows that an erasure would find."""

    subject: ErasureSubject
    counts: Mapping[str, int]
    """Rows that go, by name: events that are not erased yet, payloads, facts, duplicate requests, lanes, and pauses (0 or 1)."""
    erased_before: int
    """Events that were erased before."""
    naming: Mapping[str, int]
    """Rows of other tables that name the entity, by table."""
    open: tuple[OpenFound, ...] = ()
    """The first deliveries that have not ended."""
    open_commands: tuple[int, ...] = ()
    """Commands that name the entity and have not ended."""
    is_whole: bool = True
    """False when there are more rejected requests than were searched: `naming` counts a part."""

    @property
    def has_more_events(self) -> bool:
        """True when there are more events than were counted: the numbers are of the newest."""
        return self.counts["events"] >= COUNTED_EVENTS

    @property
    def is_empty(self) -> bool:
        """True when the database certainly holds nothing of the entity."""
        return self.is_whole and not (self.counts["events"] or self.counts["pauses"] or self.naming)

    @property
    def warning(self) -> str | None:
        """Say why rows of other tables may be about something else than the entity; None: it is unlikely."""
        rows, length = sum(self.naming.values()), len(self.subject.entity_id)
        if length < SHORT_ID:
            characters = "1 character" if length == 1 else f"{length} characters"
            return (
                f"Careful: its id has {characters}. Rows of other tables with it may mean something else, and they are"
                " cleared too: look at them first"
            )
        if rows > MANY_NAMING:
            return f"Careful: {rows} rows of other tables name it, and some may mean something else: look at them first"
        return None


def plan(engine: Engine, subject: ErasureSubject) -> ErasurePlan:
    """Count what the database holds of an entity; where there is much, a part of it."""
    naming: Counter[str] = Counter()
    position: int | None = None
    is_whole = False
    with engine.connect() as connection, reading(connection).begin():
        counts = dict(connection.execute(_COUNTS, {**subject.names, "most": COUNTED_EVENTS}).mappings().one())
        found = connection.execute(
            _open_of_entity(Sql(engine.dialect.name)), {**subject.names, "most": MOST_SHOWN}
        ).all()
        working = select(relay_command.c.id, relay_command.c.selection).where(
            ~_HAS_ENDED, relay_command.c.kind != "erase"
        )
        open_commands = [row.id for row in connection.execute(working) if subject.differs(as_json(row.selection))]
        for _ in range(SEARCHED_PARTS):
            part = _rejected(connection, subject, position or 0)
            is_whole = part is None
            part = part or ErasureStep(position, naming=_searched(connection, subject))
            naming.update(str(row.table.name) for row in part.naming)
            if is_whole:
                break
            position = part.position
    return ErasurePlan(
        subject,
        {name: int(number) for name, number in counts.items() if name != "erased"},
        counts["erased"],
        dict(naming),
        tuple(OpenFound(row.seq, row.route, row.state) for row in found),
        tuple(open_commands),
        is_whole,
    )


def held_up_by(found: Sequence[OpenFound]) -> str:
    """Return the sentence about deliveries that keep an entity from being erased."""
    first = found[0]
    return (
        f"its deliveries have to end first, such as seq {first.seq} on route {first.route}, which is {first.state}:"
        " cancel them, then ask again"
    )


def end(connection: Connection, subject: ErasureSubject, number: int) -> None:
    """Put the pseudonym in place of the entity in a command that is done."""
    erased = {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.pseudonym}
    connection.execute(update(relay_command).where(relay_command.c.id == number).values(selection=erased))


def look(connection: Connection, subject: ErasureSubject, position: int | None, *, own_command: int = 0) -> ErasureStep:
    """Find the next step; `position` is of the last one, None at the start. Reads only."""
    events = connection.execute(_NEXT, {**subject.names, "most": EVENTS_OF_A_STEP}).all()
    if events:
        facts = accumulate(event.facts for event in events)
        few = [event for event, number in zip(events, facts, strict=True) if number <= FACTS_OF_A_STEP]
        return ErasureStep(position, events=few or events[:1])
    if (part := _rejected(connection, subject, position or 0)) is not None:
        return part
    naming = _searched(connection, subject, own_command)
    return ErasureStep(position, naming=naming, is_last=not naming)


def act(
    connection: Connection, subject: ErasureSubject, step: ErasureStep, *, who: str, why: str, now: str | None = None
) -> StepDone:
    """Do a step, in a transaction that holds the order lock; `now` is the database's clock, unless a test passes one."""
    sql = Sql(connection.dialect.name)
    if sql.overwrites_on_request:
        connection.exec_driver_sql("PRAGMA secure_delete = ON")
    try:
        if step.events:
            return _erase_events(connection, sql, subject, step.events, {"who": who, "why": why, "now": now})
        for row in step.naming:
            is_it = and_(*(row.table.c[name] == value for name, value in row.key.items()))
            connection.execute(update(row.table).where(is_it).values(dict(row.emptied)))
        if not step.is_last or connection.execute(_NEXT, {**subject.names, "most": 1}).first() is not None:
            return StepDone()  # of the last step: another event has arrived
        for statement in (_REMOVE_LANES, _REMOVE_GATE):
            connection.execute(statement, subject.names)
        return StepDone(is_last=True)
    finally:
        if sql.overwrites_on_request:
            connection.exec_driver_sql("PRAGMA secure_delete = OFF")


def _erase_events(
    connection: Connection, sql: Sql, subject: ErasureSubject, events: Sequence[Any], said: Mapping[str, str | None]
) -> StepDone:
    named = ({"seq": e.seq, "names": e.event_id is not None and subject.is_named_in(e.event_id)} for e in events)
    given = {**subject.names, **said, "erased": rows_param(named)}
    if found := connection.execute(_open_of(sql), given).all():
        return StepDone(open=tuple(OpenFound(row.seq, row.route, row.state) for row in found))
    erased = connection.execute(_erase(sql), given).rowcount
    for statement in _forgetting(sql):
        connection.execute(statement, given)
    return StepDone(erased=erased)


def _searched(connection: Connection, subject: ErasureSubject, own_command: int = 0) -> list[NamingRow]:
    """Search the small tables for rows that name the entity. Texts may be written in several ways, so not in SQL."""
    late = connection.execute(_LATE_DUPLICATES, subject.names).scalars().all()
    naming = [NamingRow(duplicate_request, {"id": number}, {"body": None, "error": None}) for number in late]
    for name, columns in SEARCHED.items():
        table = metadata.tables[name]
        # an open command can't be done without its selection
        is_searched = and_(_HAS_ENDED, table.c.id != own_command) if table is relay_command else true()
        naming += [
            NamingRow(table, _key(table, row), changed)
            for row in connection.execute(_columns_of(table, columns).where(is_searched)).mappings()
            if (changed := {each: subject.without(row[each]) for each in columns if subject.differs(row[each])})
        ]
    return naming


def _rejected(connection: Connection, subject: ErasureSubject, after: int) -> ErasureStep | None:
    """Search the next requests of the source for those that name the entity, or have become an event of it.

    Nothing of their sender stays. None: there are no more requests.
    """
    table = rejected_request
    became = exists().where(
        inbox.c.seq == table.c.readmitted_seq,
        inbox.c.source == subject.source,
        inbox.c.entity_type == subject.entity_type,
        inbox.c.entity_id.in_((subject.entity_id, subject.pseudonym)),
    )
    statement = _columns_of(table, REJECTED).add_columns(became.label("became"))
    of_source = statement.where(table.c.id > after, table.c.source == subject.source).order_by(table.c.id)
    empty = {name: None if table.c[name].nullable else ERASED for name in REJECTED}
    naming: list[NamingRow] = []
    size, last = 0, None
    for row in connection.execute(of_source.limit(ROWS_OF_A_PART), execution_options={"yield_per": 10}).mappings():
        if size > BYTES_OF_A_PART:
            break
        size, last = size + len(row["body"] or b""), row["id"]
        names = row["became"] or any(subject.differs(row[name]) for name in REJECTED)
        if names and any(row[name] != value for name, value in empty.items()):
            naming.append(NamingRow(table, _key(table, row), empty))
    return None if last is None else ErasureStep(last, naming=naming)


def _columns_of(table: Table, columns: Sequence[str]) -> Select[Any]:
    return select(*table.primary_key, *(table.c[each] for each in columns))


def _key(table: Table, row: RowMapping) -> dict[str, Any]:
    return {each.name: row[each.name] for each in table.primary_key}


_OF_TYPE = "i.source = :source AND i.entity_type = :entity_type"
_OF_ENTITY = f"{_OF_TYPE} AND i.entity_id = :entity_id AND i.erased_at IS NULL"
_OF_ERASED = f"{_OF_TYPE} AND i.entity_id = :pseudonym AND i.erased_at IS NOT NULL"
"""Conditions on the row `i` of the inbox, which an index answers. An entity may be called like a pseudonym, so `erased_at`
decides."""
_OF_LANE = f"lane.lane = :lane AND lane.route IN {each_name('route', 'lane')}"
_NEXT = text(f"""
SELECT i.seq, i.event_id, (SELECT count(*) FROM delivery_log l WHERE l.seq = i.seq) AS facts
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
_LATE_DUPLICATES = text(f"""
SELECT d.id FROM inbox i JOIN duplicate_request d ON d.seq = i.seq
WHERE {_OF_ERASED} AND (d.body IS NOT NULL OR d.error IS NOT NULL)
""")
_REMOVE_GATE = text("DELETE FROM gate WHERE kind = 'entity' AND name = :gate")
_REMOVE_LANES = text(f"""
DELETE FROM lane WHERE {_OF_LANE}
  AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = lane.seq AND i.erased_at IS NULL)
""")
"""An entity of another source may be called alike: its lane stays."""


def _chosen(sql: Sql) -> str:
    return sql.rows("erased", seq="bigint", names="boolean")


@cache
def _open_of_entity(sql: Sql) -> TextClause:
    found = sql.looked_up(f"(SELECT i.seq FROM inbox i WHERE {_OF_ENTITY}) i", "open_delivery o", "o.seq = i.seq")
    return text(f"SELECT o.seq, o.route, o.state FROM {found} ORDER BY o.seq, o.route LIMIT :most")


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
def _forgetting(sql: Sql) -> tuple[TextClause, ...]:
    """Forget what was sent, called and said of the events, and add a fact that says who has erased them.

    In lanes that other entities share, what was applied last goes.
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
                f"UPDATE delivery_log SET detail = {emptied(sql.name, 'delivery_log.detail')} WHERE seq IN {erased}",
                f"""UPDATE lane SET applied_hash = NULL
WHERE lane = '*' AND seq IN {erased} AND route IN {routes}""",
                f"""INSERT INTO delivery_log (at, seq, route, kind, state, attempt, run, crashes, relay_node, detail)
SELECT (SELECT {sql.now}), l.seq, l.route, 'erased', l.state, l.attempt, l.run, l.crashes, NULL, {said}
FROM delivery_log l WHERE l.id IN {newest} ORDER BY l.seq, l.route""",
            ),
        )
    )
