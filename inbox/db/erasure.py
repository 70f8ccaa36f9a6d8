"""The entity to erase, texts that name it, and the form of a fact after an erasure. Pure."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache, cached_property
from itertools import accumulate, count
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
    func,
    select,
    text,
    true,
    update,
)

from inbox.config.routing import entity_lane
from inbox.db.dialect import POSTGRES, Sql, as_json, rows_param
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
    def lane(self) -> str:
        """The entity's lane, on routes with a lane for each entity."""
        return entity_lane(self.entity_type, self.entity_id)

    @property
    def lane_of_pseudonym(self) -> str:
        """The lane of its erased events."""
        return entity_lane(self.entity_type, self.pseudonym)

    @property
    def gate(self) -> str:
        """`gate.name` of the entity."""
        return "|".join(map(escape, (self.source, self.entity_type, self.entity_id)))

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


def _readings(text: str) -> Iterator[str]:
    """Yield a text as it is, and without the escapes of JSON. It need not be whole or valid JSON."""
    yield text
    for _ in range(_NESTED):
        plain = _ESCAPES.sub(lambda found: json.loads(f'"{found[0]}"'), text)
        if plain == text:
            return
        yield (text := plain)


def emptied(dialect: str, detail: str) -> str:
    """Return the expression of `detail` without anything of a person. Applied again, it changes nothing."""
    kept, texts = _list(KEPT + EMPTIED), _list(EMPTIED)
    if dialect == POSTGRES:
        value = f"CASE WHEN d.key IN ({texts}) THEN to_jsonb(CAST('{ERASED}' AS text)) ELSE d.value END"
        return f"coalesce((SELECT jsonb_object_agg(d.key, {value}) FROM jsonb_each({detail}) d WHERE d.key IN ({kept})), '{{}}')"
    value = f"CASE WHEN d.key IN ({texts}) THEN '{ERASED}' ELSE json({detail} -> d.fullkey) END"
    return f"(SELECT json_group_object(d.key, {value}) FROM json_each({detail}) d WHERE d.key IN ({kept}))"


def _list(keys: tuple[str, ...]) -> str:
    return ", ".join(f"'{key}'" for key in keys)


EVENTS_OF_A_STEP = 100
"""Some 30 ms under the order lock, when each has been delivered on one route."""
FACTS_OF_A_STEP = 1000
"""Of events that were tried often, a step takes fewer; always one."""
ROWS_OF_A_PART = 500
BYTES_OF_A_PART = 4 * 1024 * 1024
"""Bodies of rejected requests that a step searches; a single one may be larger."""
COUNTED_EVENTS = 20_000
SEARCHED_PARTS = 2
"""A quick plan counts so many events, and searches so many parts of the rejected requests: each some 0.2 s."""
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
    """The next step of an erasure, as it was found without a lock."""

    events: Sequence[Any] = ()
    """seq and event_id of the next events."""
    naming: Sequence[NamingRow] = ()
    """Rows that name the entity, where its events are erased."""
    position: int | None = None
    """The place up to which `rejected_request` has been searched."""
    routes: Sequence[str] | None = None
    """In the last step: the routes on which the entity has had a lane."""


class StepDone(msgspec.Struct, frozen=True):
    """The result of a step."""

    erased: int = 0
    """Events."""
    position: int | None = None
    """The place where the next step goes on."""
    open: tuple[OpenFound, ...] = ()
    """Deliveries that stopped it."""
    is_last: bool = False


class ErasurePlan(msgspec.Struct, frozen=True):
    """The rows that an erasure would find."""

    subject: ErasureSubject
    events: int
    """Events that are not erased yet."""
    erased_before: int
    """Events that were erased before."""
    payloads: int
    duplicates: int
    """Rows of duplicate requests."""
    facts: int
    lanes: int
    pauses: int
    """1 if the entity is paused, else 0; its pause goes."""
    naming: dict[str, int]
    """Rows of other tables that name the entity, by table."""
    open: tuple[OpenFound, ...] = ()
    """The first deliveries that have not ended."""
    open_commands: tuple[int, ...] = ()
    """Commands that name the entity and have not ended."""
    is_whole: bool = True
    """False when there are more rejected requests than were searched: `naming` counts a part."""
    has_more_events: bool = False
    """True when there are more events than were counted: the numbers are of the newest."""

    @property
    def is_empty(self) -> bool:
        """True when the database certainly holds nothing of the entity."""
        return self.is_whole and not (self.events or self.pauses or self.naming)

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


def plan(
    engine: Engine, subject: ErasureSubject, *, quick: bool = False, searching: Callable[[int], None] = lambda _: None
) -> ErasurePlan:
    """Count what the database holds of an entity; a quick plan counts a part where there is much.

    `searching` hears up to which rejected request it has searched.
    """
    sql, most = Sql(engine.dialect.name), COUNTED_EVENTS if quick else 2**62
    given = {**_named(subject), "most_events": most}
    with engine.connect() as connection, reading(connection).begin():
        counted = connection.execute(_COUNTS, given).one()
        lanes = connection.execute(_lanes(sql), {**given, "lane": subject.lane}).scalar_one()
        before = connection.execute(_ERASED_BEFORE, {**given, **_erased(subject)}).scalar_one()
        pauses = connection.execute(_PAUSES, {"name": subject.gate}).scalar_one()
        found = connection.execute(_open_of_entity(sql), {**_named(subject), "most": MOST_SHOWN}).all()
        working = select(relay_command.c.id, relay_command.c.selection).where(
            ~_HAS_ENDED, relay_command.c.kind != "erase"
        )
        open_commands = [row.id for row in connection.execute(working) if _differs(subject, as_json(row.selection))]
    naming: Counter[str] = Counter()
    position: int | None = None
    is_whole = False
    for number in count(1):
        with engine.connect() as connection, reading(connection).begin():
            part = _search(connection, subject, position) or ErasureStep(position=position)
        naming.update(str(row.table.name) for row in part.naming)
        if is_whole := part.position == position:
            break
        position = part.position
        searching(position or 0)
        if quick and number == SEARCHED_PARTS:
            break
    return ErasurePlan(
        subject,
        counted.events,
        before,
        counted.payloads,
        int(counted.duplicates),
        int(counted.facts),
        lanes,
        pauses,
        dict(naming),
        tuple(OpenFound(row.seq, row.route, row.state) for row in found),
        tuple(open_commands),
        is_whole,
        counted.events >= most,
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
    connection.execute(update(relay_command).where(relay_command.c.id == number).values(selection=_erased(subject)))


def look(
    connection: Connection, subject: ErasureSubject, position: int | None, *, own_command: int | None = None
) -> ErasureStep:
    """Find the next step; `position` is of the last one, None at the start. Reads only."""
    sql = Sql(connection.dialect.name)
    events = connection.execute(_NEXT, {**_named(subject), "most": EVENTS_OF_A_STEP}).all()
    if events:
        found = rows_param({"seq": event.seq} for event in events)
        facts = accumulate(connection.execute(_facts_of(sql), {"found": found}).scalars())
        return ErasureStep(events=[e for e, n in zip(events, facts, strict=True) if n <= FACTS_OF_A_STEP] or events[:1])
    if (step := _search(connection, subject, position, own_command)) is not None:
        return step
    return ErasureStep(routes=connection.execute(_routes(sql), _erased(subject)).scalars().all())


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
        if step.routes is not None:
            return _finish(connection, sql, subject, step.routes)
        for row in step.naming:
            is_it = and_(*(row.table.c[name] == value for name, value in row.key.items()))
            connection.execute(update(row.table).where(is_it).values(dict(row.emptied)))
        return StepDone(position=step.position)
    finally:
        if sql.overwrites_on_request:
            connection.exec_driver_sql("PRAGMA secure_delete = OFF")


def _erase_events(
    connection: Connection, sql: Sql, subject: ErasureSubject, events: Sequence[Any], said: Mapping[str, str | None]
) -> StepDone:
    named = ({"seq": e.seq, "names": e.event_id is not None and subject.is_named_in(e.event_id)} for e in events)
    chosen = {"erased": rows_param(named)}
    if found := connection.execute(_open_of(sql), chosen).all():
        return StepDone(open=tuple(OpenFound(row.seq, row.route, row.state) for row in found))
    erased = connection.execute(_erase(sql), {**chosen, "pseudonym": subject.pseudonym, "now": said["now"]}).rowcount
    for statement in _forgetting(sql):
        connection.execute(statement, chosen)
    connection.execute(_say(sql), {**chosen, **said})
    connection.execute(_keep_lanes(sql), {**chosen, "lane": subject.lane, "pseudonym": subject.lane_of_pseudonym})
    return StepDone(erased=erased)


def _finish(connection: Connection, sql: Sql, subject: ErasureSubject, routes: Sequence[str]) -> StepDone:
    """Remove the lane and the pause of the entity."""
    if connection.execute(_NEXT, {**_named(subject), "most": 1}).first() is not None:
        return StepDone()  # another event has arrived
    lanes = rows_param({"route": route, "lane": subject.lane} for route in routes)
    connection.execute(_remove_lanes(sql), {"lanes": lanes})
    connection.execute(_REMOVE_GATE, {"name": subject.gate})
    return StepDone(is_last=True)


def _search(
    connection: Connection, subject: ErasureSubject, position: int | None, own_command: int | None = None
) -> ErasureStep | None:
    """Search the next part for rows that name the entity. None: there is none any more.

    Texts may be written in several ways, so they are compared here and not in SQL. `rejected_request` is read in parts.
    """
    until = _end_of_part(connection, position or 0)
    if until is not None:
        return ErasureStep(naming=_rejected(connection, subject, position or 0, until), position=until)
    late = connection.execute(_LATE_DUPLICATES, _erased(subject)).scalars().all()
    naming = [NamingRow(duplicate_request, {"id": number}, {"body": None, "error": None}) for number in late]
    for name, columns in SEARCHED.items():
        table = metadata.tables[name]
        # an open command can't be done without its selection
        is_searched = and_(_HAS_ENDED, table.c.id != (own_command or 0)) if table is relay_command else true()
        naming += [
            _emptied(table, row, changed)
            for row in connection.execute(_columns_of(table, columns).where(is_searched)).mappings()
            if (changed := {each: _without(subject, row[each]) for each in columns if _differs(subject, row[each])})
        ]
    return ErasureStep(naming=naming, position=position) if naming else None


def _end_of_part(connection: Connection, after: int) -> int | None:
    """Return the last id of the next part of the rejected requests; None behind the last row."""
    size = func.coalesce(func.length(rejected_request.c.body), 0).label("size")
    number = rejected_request.c.id
    rows = connection.execute(select(number, size).where(number > after).order_by(number).limit(ROWS_OF_A_PART)).all()
    sizes = accumulate(row.size for row in rows)
    fitting = [row.id for row, together in zip(rows, sizes, strict=True) if together <= BYTES_OF_A_PART]
    return (fitting or [rows[0].id])[-1] if rows else None


def _rejected(connection: Connection, subject: ErasureSubject, after: int, until: int) -> list[NamingRow]:
    """List requests of the source that name the entity, or have become an event of it. Nothing of their sender stays."""
    table = rejected_request
    became = exists().where(
        inbox.c.seq == table.c.readmitted_seq,
        inbox.c.source == subject.source,
        inbox.c.entity_type == subject.entity_type,
        inbox.c.entity_id.in_((subject.entity_id, subject.pseudonym)),
    )
    chosen = (table.c.id > after, table.c.id <= until, table.c.source == subject.source)
    statement = _columns_of(table, REJECTED).add_columns(became.label("became")).where(*chosen)
    empty = {name: None if table.c[name].nullable else ERASED for name in REJECTED}
    return [
        _emptied(table, row, empty)
        for row in connection.execute(statement).mappings()
        if row["became"] or any(_differs(subject, row[name]) for name in REJECTED)
        if any(row[name] != value for name, value in empty.items())
    ]


def _columns_of(table: Table, columns: Sequence[str]) -> Select[Any]:
    return select(*table.primary_key, *(table.c[each] for each in columns))


def _emptied(table: Table, row: RowMapping, changed: Mapping[str, Any]) -> NamingRow:
    return NamingRow(table, {each.name: row[each.name] for each in table.primary_key}, changed)


def _without(subject: ErasureSubject, value: Any) -> Any:  # noqa: ANN401  # a value of any column
    """Return a value without the entity; a JSON object keeps its keys, as they are the product's own."""
    if isinstance(value, dict):
        return {key: subject.without(item) for key, item in value.items()}
    return subject.without(value)


def _differs(subject: ErasureSubject, value: Any) -> bool:  # noqa: ANN401  # as above
    return bool(_without(subject, value) != value)


def _named(subject: ErasureSubject) -> dict[str, str]:
    """Return the parameters of `_OF_ENTITY`."""
    return {"source": subject.source, "entity_type": subject.entity_type, "entity_id": subject.entity_id}


def _erased(subject: ErasureSubject) -> dict[str, str]:
    """Return those of its erased events."""
    return {**_named(subject), "entity_id": subject.pseudonym}


_OF_ENTITY = "i.source = :source AND i.entity_type = :entity_type AND i.entity_id = :entity_id"
"""Condition on the row `i` of the inbox; an index answers it. An entity may be called like a pseudonym, so `erased_at` decides."""
_NEXT = text(f"""
SELECT i.seq, i.event_id FROM inbox i WHERE {_OF_ENTITY} AND i.erased_at IS NULL ORDER BY i.seq LIMIT :most
""")
_EVENTS = f"(SELECT i.seq FROM inbox i WHERE {_OF_ENTITY} AND {{}} ORDER BY i.seq DESC LIMIT :most_events) i"
_NOT_ERASED = _EVENTS.format("i.erased_at IS NULL")
_COUNTS = text(f"""
SELECT count(*) AS events, count(p.seq) AS payloads,
       coalesce(sum((SELECT count(*) FROM duplicate_request d WHERE d.seq = i.seq)), 0) AS duplicates,
       coalesce(sum((SELECT count(*) FROM delivery_log l WHERE l.seq = i.seq)), 0) AS facts
FROM {_NOT_ERASED} LEFT JOIN inbox_payload p ON p.seq = i.seq
""")
_ERASED_BEFORE = text(f"SELECT count(*) FROM {_EVENTS.format('i.erased_at IS NOT NULL')}")
_PAUSES = text("SELECT count(*) FROM gate WHERE kind = 'entity' AND name = :name")
_REMOVE_GATE = text("DELETE FROM gate WHERE kind = 'entity' AND name = :name")
_LATE_DUPLICATES = text(f"""
SELECT d.id FROM inbox i JOIN duplicate_request d ON d.seq = i.seq
WHERE {_OF_ENTITY} AND i.erased_at IS NOT NULL AND (d.body IS NOT NULL OR d.error IS NOT NULL)
""")


def _chosen(sql: Sql) -> str:
    return sql.rows("erased", seq="bigint", names="boolean")


@cache
def _lanes(sql: Sql) -> TextClause:
    routes = f"SELECT DISTINCT l.route FROM {sql.looked_up(_NOT_ERASED, 'delivery_log l', 'l.seq = i.seq')}"
    return text(f"SELECT count(*) FROM ({routes}) r JOIN lane ON lane.route = r.route AND lane.lane = :lane")


@cache
def _open_of_entity(sql: Sql) -> TextClause:
    events = f"(SELECT i.seq FROM inbox i WHERE {_OF_ENTITY} AND i.erased_at IS NULL) i"
    found = sql.looked_up(events, "open_delivery o", "o.seq = i.seq")
    return text(f"SELECT o.seq, o.route, o.state FROM {found} ORDER BY o.seq, o.route LIMIT :most")


@cache
def _open_of(sql: Sql) -> TextClause:
    return text(f"""
SELECT o.seq, o.route, o.state FROM {_chosen(sql)} JOIN open_delivery o ON o.seq = erased.seq ORDER BY o.seq, o.route
""")


@cache
def _routes(sql: Sql) -> TextClause:
    facts = sql.looked_up("inbox i", "delivery_log l", "l.seq = i.seq")
    return text(f"SELECT DISTINCT l.route FROM {facts} WHERE {_OF_ENTITY} AND i.erased_at IS NOT NULL")


@cache
def _facts_of(sql: Sql) -> TextClause:
    return text(f"""
SELECT (SELECT count(*) FROM delivery_log l WHERE l.seq = found.seq) AS facts
FROM {sql.rows("found", seq="bigint")} ORDER BY found.seq
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
    """Forget what was sent, called and said, and in lanes that other entities share, what was applied last."""
    erased = f"(SELECT erased.seq FROM {_chosen(sql)})"
    return tuple(
        map(
            text,
            (
                f"DELETE FROM inbox_payload WHERE seq IN {erased}",
                f"""UPDATE duplicate_request SET body = NULL, error = NULL
WHERE (body IS NOT NULL OR error IS NOT NULL) AND seq IN {erased}""",
                f"UPDATE delivery_log SET detail = {emptied(sql.name, 'delivery_log.detail')} WHERE seq IN {erased}",
                f"""UPDATE lane SET applied_hash = NULL
WHERE lane = '*' AND seq IN {erased}
  AND route IN (SELECT l.route FROM {_chosen(sql)} JOIN delivery_log l ON l.seq = erased.seq)""",
            ),
        )
    )


@cache
def _say(sql: Sql) -> TextClause:
    """One fact for each delivery, which stands as after its last one."""
    said = (
        "jsonb_build_object('who', CAST(:who AS text), 'why', CAST(:why AS text))"
        if sql.is_postgres
        else "json_object('who', :who, 'why', :why)"
    )
    return text(f"""
INSERT INTO delivery_log (at, seq, route, kind, state, attempt, run, crashes, relay_node, detail)
SELECT (SELECT {sql.now}), l.seq, l.route, 'erased', l.state, l.attempt, l.run, l.crashes, NULL, {said}
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
def _remove_lanes(sql: Sql) -> TextClause:
    return text(f"""
DELETE FROM lane
WHERE (route, lane) IN (SELECT lanes.route, lanes.lane FROM {sql.rows("lanes", route="text", lane="text")})
""")
