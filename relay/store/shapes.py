"""Shapes of payloads in SQL: the turns of relays that learn, the events to learn from, and the rows of each shape.

A turn learns only events of which no lower one can still be committed: see `LearningTurn.until`.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from functools import cache

import msgspec
from sqlalchemy import TextClause, text

from inbox.db.dialect import Sql
from inbox.db.following import MISSING_SECONDS
from inbox.db.parameters import rows_param
from inbox.events.timestamps import as_time, time_text
from relay.shapes.learn import ANY, Key, Learned, SeenType
from relay.shapes.observe import MOST_BYTES
from relay.shapes.paths import parse_path, path_text
from relay.shapes.sample import Candidate
from relay.store.database import Database
from relay.store.transaction import Transaction

ROUND_EVERY_SECONDS = 60.0
"""Between two rounds of all relays together."""
LEASE_SECONDS = 60.0
"""A relay that dies delays the others no longer. Each shape that is written renews it."""
FIRST_EVENTS = 5_000
"""Newest events that the very first round looks at."""
LOOKED_AT = 5_000
"""Events that a round looks at; of a larger backlog it takes as many, at even distances."""
MOST_CHANGES_KEPT = 500
"""Changes of each source that stay."""
_MOST_ROWS = 20_000


class TurnLost(Exception):
    """Another relay learns by now."""


class LearningTurn(msgspec.Struct, frozen=True):
    """A relay's turn to learn the events above `after` up to `until`."""

    node: str
    after: int
    until: int
    """All events up to here are committed: it was the highest number a minute ago, and no transaction stands for so long."""
    horizon: int
    horizon_at: datetime

    @property
    def numbers(self) -> int:
        """Return how many numbers of events lie in it; some may be of no event."""
        return self.until - self.after


class Body(msgspec.Struct, frozen=True):
    """The beginning of a body."""

    seq: int
    beginning: bytes
    size: int
    """Bytes of the whole."""


def is_due(database: Database) -> bool:
    """Return whether a round is due and nobody has the turn, as far as a look without a lock can tell."""
    with database.read() as transaction:
        return any(row.is_due for row in transaction.execute(_is_due(database.sql), **_SECONDS))


def take(database: Database, node: str) -> LearningTurn | None:
    """Take the turn; None: it was not due, or somebody has it."""
    with database.write() as transaction:
        found = transaction.execute(_take(database.sql), node=node, lease=LEASE_SECONDS, **_SECONDS)
        if not found:
            return None
        highest = int(transaction.execute(_HIGHEST)[0].seq or 0)
    row = found[0]
    horizon_at = None if row.horizon_at is None else as_time(row.horizon_at)
    return turn_of(node, row.position, row.horizon, horizon_at, highest=highest, now=as_time(row.now))


def turn_of(
    node: str, position: int | None, horizon: int | None, horizon_at: datetime | None, *, highest: int, now: datetime
) -> LearningTurn:
    """Return the turn that follows from the stored place, at a time when `highest` is the highest number. Pure."""
    if horizon is None or horizon_at is None or horizon_at > now:  # none yet, or by a clock that was ahead
        after = max(highest - FIRST_EVENTS, 0) if position is None else position
        return LearningTurn(node, after, after, highest, now)
    after = position or 0
    if now - horizon_at < timedelta(seconds=MISSING_SECONDS):
        return LearningTurn(node, after, after, horizon, horizon_at)
    return LearningTurn(node, after, max(after, horizon), highest, now)


def candidates(database: Database, turn: LearningTurn) -> list[Candidate]:
    """Read the events of a turn; of more than `LOOKED_AT` numbers, those at even distances."""
    with database.read() as transaction:
        if turn.numbers <= LOOKED_AT:
            rows = transaction.execute(_RANGE, after=turn.after, until=turn.until)
        else:
            chosen = range(turn.until, turn.after, -math.ceil(turn.numbers / LOOKED_AT))
            rows = transaction.execute(_chosen(database.sql), wanted=rows_param({"seq": seq} for seq in chosen))
    return [
        Candidate(row.seq, row.source, row.event_type, as_time(row.received_at), row.entity_id, row.content_type)
        for row in rows
    ]


def known_types(database: Database) -> Mapping[str, set[str]]:
    """Read the event types of each source that have a shape."""
    types: defaultdict[str, set[str]] = defaultdict(set)
    with database.read() as transaction:
        for row in transaction.execute(_KNOWN_TYPES, any=ANY):
            types[row.source].add(row.event_type)
    return types


def bodies(database: Database, seqs: Sequence[int]) -> list[Body]:
    """Read the beginning of the body of each of these events that has one."""
    wanted = rows_param({"seq": seq} for seq in seqs)
    with database.read() as transaction:
        rows = transaction.execute(_bodies(database.sql), wanted=wanted, most=MOST_BYTES)
    return [Body(row.seq, bytes(row.beginning), row.size) for row in rows]


def read(database: Database, source: str, event_type: str) -> dict[Key, SeenType]:
    """Read a shape. Rows whose path an erasure has overwritten are left out."""
    with database.read() as transaction:
        rows = transaction.execute(_SHAPE, source=source, event_type=event_type, most=_MOST_ROWS)
    known: dict[Key, SeenType] = {}
    for row in rows:
        path = parse_path(row.path)
        if path is not None:
            known[path, row.type] = SeenType(
                row.events,
                row.first_seq,
                as_time(row.first_at),
                row.last_seq,
                as_time(row.last_at),
                row.absent,
                row.missed,
                row.missed_seq,
                None if row.missed_at is None else as_time(row.missed_at),
                bool(row.is_map),
                row.id,
            )
    return known


def write(database: Database, turn: LearningTurn, source: str, event_type: str, learned: Learned) -> None:
    """Store what a shape has become, with the changes that were found, and renew the lease.

    Raises:
        TurnLost: another relay learns by now; nothing is stored.
    """
    shape = {"source": source, "event_type": event_type}
    changed = [_row(key, learned.rows[key]) for key in learned.changed]
    with database.write() as transaction:
        transaction.rows = max(transaction.rows, len(changed))
        transaction.hurry()
        if not transaction.execute(_keep(database.sql), node=turn.node, lease=LEASE_SECONDS):
            raise TurnLost
        if learned.folded:
            gone = rows_param({"id": number} for number in learned.folded)
            transaction.execute(_forget(database.sql), gone=gone)
        if old := [row for row in changed if row["id"] is not None]:
            transaction.execute(_update(database.sql), fields=rows_param(old))
        if new := [row for row in changed if row["id"] is None]:
            transaction.execute(_insert(database.sql), fields=rows_param(new), **shape)
        _write_changes(transaction, learned, shape)


def _write_changes(transaction: Transaction, learned: Learned, shape: Mapping[str, str]) -> None:
    if learned.returned:
        paths = rows_param({"path": path_text(path)} for path in learned.returned)
        transaction.execute(_returned(transaction.sql), paths=paths, **shape)
    if learned.changes:
        rows = rows_param(
            {
                "change": each.change,
                "path": path_text(each.path),
                "seq": each.seq,
                "at": each.at,
                "type": each.type,
                "usual": each.usual or None,
            }
            for each in learned.changes
        )
        transaction.execute(_report(transaction.sql), changes=rows, **shape)
        transaction.execute(_TRIM, source=shape["source"], most=MOST_CHANGES_KEPT)


def _row(key: Key, row: SeenType) -> dict[str, object]:
    path, kind = key
    return {"path": path_text(path), "type": kind, **msgspec.structs.asdict(row)}


def finish(database: Database, turn: LearningTurn, *, learned: int, passed_over: int) -> None:
    """Give the turn back after a whole round: the next one begins behind its events."""
    figures = {"learned": learned, "passed_over": passed_over}
    place = {"position": turn.until, "horizon": turn.horizon, "horizon_at": time_text(turn.horizon_at)}
    with database.write() as transaction:
        transaction.execute(_finish(database.sql), node=turn.node, **place, **figures)


def give_back(database: Database, node: str) -> None:
    """Give the turn back after an interruption; the round stays due."""
    with database.write() as transaction:
        transaction.execute(_GIVE_BACK, node=node)


_SECONDS = {"every": -ROUND_EVERY_SECONDS, "longest": 2 * LEASE_SECONDS}


def _due(sql: Sql) -> str:
    """Return the condition that a round is due, and no lease is in force. Times far ahead are of a wrong clock."""
    now = f"(SELECT {sql.now})"
    last = sql.plus_seconds(now, "CAST(:every AS float8)")
    longest = sql.plus_seconds(now, "CAST(:longest AS float8)")
    return (
        f"(l.lease_until IS NULL OR l.lease_until <= {now} OR l.lease_until > {longest})"
        f" AND (l.ran_at IS NULL OR l.ran_at <= {last} OR l.ran_at > {now})"
    )


@cache
def _is_due(sql: Sql) -> TextClause:
    return text(f"SELECT ({_due(sql)}) AS is_due FROM payload_learner l")


def _until(sql: Sql) -> str:
    return sql.plus_seconds(f"(SELECT {sql.now})", "CAST(:lease AS float8)")


@cache
def _take(sql: Sql) -> TextClause:
    return text(f"""
UPDATE payload_learner AS l SET lease_until = {_until(sql)}, held_by = :node
WHERE {_due(sql)}
RETURNING position, horizon, horizon_at, (SELECT {sql.now}) AS now
""")


@cache
def _keep(sql: Sql) -> TextClause:
    return text(f"UPDATE payload_learner SET lease_until = {_until(sql)} WHERE held_by = :node RETURNING id")


@cache
def _finish(sql: Sql) -> TextClause:
    return text(f"""
UPDATE payload_learner
SET position = :position, horizon = :horizon, horizon_at = {sql.time(":horizon_at")}, learned = learned + :learned,
    passed_over = passed_over + :passed_over, ran_at = (SELECT {sql.now}), lease_until = NULL, held_by = NULL
WHERE held_by = :node
""")


_GIVE_BACK = text("UPDATE payload_learner SET lease_until = NULL, held_by = NULL WHERE held_by = :node")
_HIGHEST = text("SELECT max(seq) AS seq FROM inbox")
_META = "i.seq, i.source, i.event_type, i.received_at, i.entity_id, i.content_type"
_RANGE = text(f"SELECT {_META} FROM inbox i WHERE i.seq > :after AND i.seq <= :until ORDER BY i.seq")
_KNOWN_TYPES = text("SELECT source, event_type FROM payload_field WHERE path = '$' AND type = :any")
_SHAPE = text("SELECT * FROM payload_field WHERE source = :source AND event_type = :event_type ORDER BY id LIMIT :most")
_TRIM = text("""
DELETE FROM payload_change WHERE source = :source AND id <= (
    SELECT id FROM payload_change WHERE source = :source ORDER BY id DESC LIMIT 1 OFFSET :most)
""")


@cache
def _chosen(sql: Sql) -> TextClause:
    found = sql.looked_up(sql.rows("wanted", seq="bigint"), "inbox i", "i.seq = wanted.seq")
    return text(f"SELECT {_META} FROM {found} ORDER BY i.seq")


@cache
def _bodies(sql: Sql) -> TextClause:
    found = sql.looked_up(sql.rows("wanted", seq="bigint"), "inbox_payload p", "p.seq = wanted.seq")
    return text(f"SELECT p.seq, substr(p.body, 1, :most) AS beginning, length(p.body) AS size FROM {found}")


@cache
def _forget(sql: Sql) -> TextClause:
    return text(f"DELETE FROM payload_field WHERE id IN (SELECT id FROM {sql.rows('gone', id='bigint')})")


_FIGURES = {
    "events": "bigint", "last_seq": "bigint", "last_at": "time", "absent": "bigint", "missed": "bigint",
    "missed_seq": "bigint", "missed_at": "time", "is_map": "boolean",
}  # fmt: skip


@cache
def _update(sql: Sql) -> TextClause:
    """Change rows that are still there: one that retention or an erasure has deleted meanwhile does not come back."""
    values = ", ".join(f"{name} = fields.{name}" for name in _FIGURES)
    rows = sql.rows("fields", id="bigint", **_FIGURES)
    return text(f"UPDATE payload_field AS f SET {values} FROM {rows} WHERE f.id = fields.id")


@cache
def _insert(sql: Sql) -> TextClause:
    columns = {"path": "text", "type": "text", "first_seq": "bigint", "first_at": "time", **_FIGURES}
    names = ", ".join(columns)
    return text(f"""
INSERT INTO payload_field (source, event_type, {names}) SELECT :source, :event_type, {names} FROM {sql.rows("fields", **columns)}
""")


@cache
def _returned(sql: Sql) -> TextClause:
    return text(f"""
UPDATE payload_change SET returned_at = (SELECT {sql.now})
WHERE source = :source AND event_type = :event_type AND change = 'missing' AND acknowledged_at IS NULL AND returned_at IS NULL
  AND path IN (SELECT path FROM {sql.rows("paths", path="text")})
""")


@cache
def _report(sql: Sql) -> TextClause:
    columns = {"change": "text", "path": "text", "seq": "bigint", "at": "time", "type": "text", "usual": "text"}
    names = ", ".join(columns)
    return text(f"""
INSERT INTO payload_change (found_at, source, event_type, {names})
SELECT (SELECT {sql.now}), :source, :event_type, {names} FROM {sql.rows("changes", **columns)}
""")
