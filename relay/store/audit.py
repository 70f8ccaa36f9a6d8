"""Verify: compares the stored state of every delivery with its facts, chunk by chunk, while receivers and relays run."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from typing import Any, Literal

import msgspec
from sqlalchemy import text

from inbox.config.model import Config
from inbox.config.routing import get_lane_kind, possible_lanes
from inbox.db.dialect import as_list
from inbox.events.states import RETENTION_FLOOR_DAYS
from inbox.events.timestamps import as_time
from relay.delivery.lifecycle import NO_FACTS, OPEN, OpenDelivery, Standing, State, follows
from relay.store.database import Database
from relay.store.deliveries import ROW, as_open_delivery
from relay.store.sequence import read_last_delivered
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction

SPAN_SEQS = 500
"""Seqs of a chunk. It bounds memory, locks, and on SQLite the time for which a reader blocks checkpoints."""

_FACTS_AT_A_TIME = 200
_PATIENT = text("SET LOCAL idle_in_transaction_session_timeout = '60s'")
"""This reader blocks no other transaction, so `relay verify` may survive a host that is busy for some seconds."""
_PRUNED_AFTER = timedelta(days=RETENTION_FLOOR_DAYS)

FindingName = Literal[
    "missing",  # open, blocked or dead by its facts, but without a row
    "ended",  # ended by its facts, but with a row
    "unrouted",  # it has a row, but its event was never routed there
    "no_event",  # it has a row, but its event is not in the inbox
    "state",  # row and facts differ in the state: open, blocked or dead
    "attempt",  # row and facts differ in the number of attempts
    "run",  # row and facts differ in the number of runs
    "crashes",  # row and facts differ in the number of consecutive abandoned attempts
    "due_at",  # the row is due before its last failure allows
    "occurred_at",  # row and event have different times
    "lane",  # the row is in a lane that its event can't have
    "contradiction",  # a fact can't follow the previous one
    "no_head",  # it waits in a lane without a head
    "last_delivered",  # the lane does not remember its last delivery
]


class Difference(msgspec.Struct, frozen=True):
    """A stored value that contradicts the log."""

    finding: FindingName
    seq: int | None
    route: str | None
    lane: str | None
    facts_say: str
    stored: str


class Checked(msgspec.Struct, frozen=True):
    """The findings of one chunk."""

    upto: int
    """The last checked seq."""
    events: int = 0
    deliveries: int = 0
    facts: int = 0
    differences: tuple[Difference, ...] = ()


class Log(msgspec.Struct):
    """The facts of one delivery."""

    last: Standing = NO_FACTS
    due_at: datetime | None = None
    """The earliest time of the next attempt by the last fact."""
    contradiction: str = ""
    """The first fact that can't follow the previous one."""
    delivered: Any = None
    """The row of the last success."""
    was_replayed: bool = False
    """True when an operator replayed it. A replay can also create a delivery on a route that its event had not taken."""


class Stored(msgspec.Struct, frozen=True):
    """Everything stored about one delivery."""

    seq: int
    route: str
    event: Any
    """Row of the event in the inbox; None if missing."""
    row: OpenDelivery | None
    log: Log
    differences: list[Difference]

    @property
    def is_expected(self) -> bool:
        """True when the delivery should exist."""
        return self.event is not None and (self.route in as_list(self.event.routes) or self.log.was_replayed)

    @property
    def lanes(self) -> frozenset[str]:
        """The lanes in which the event may be."""
        event = self.event
        return possible_lanes(entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)

    @property
    def lane_of_success(self) -> str | None:
        """The lane that must remember the last success; None without a success, for a single-event lane, or after an erasure."""
        is_remembered = self.log.delivered is not None and self.event.erased_at is None
        kind = self.log.delivered.lane or "entity" if is_remembered else "event"
        return None if kind == "event" else next((lane for lane in self.lanes if get_lane_kind(lane) == kind), None)

    def add_difference(self, finding: FindingName, facts_say: object, stored: object) -> None:
        """Add a difference."""
        lane = None if self.row is None else self.row.lane
        self.differences.append(Difference(finding, self.seq, self.route, lane, str(facts_say), str(stored)))


def verify(database: Database, config: Config) -> Iterator[Checked]:
    """Compare `open_delivery` and `lane` with the state that follows from the log, without changing anything.

    Each chunk is read in a separate snapshot, which disturbs neither receivers nor relays. Rows that are added behind the
    current chunk are not checked.
    """
    for checked, _ in examine_all(database, config):
        yield checked


def examine_all(database: Database, config: Config) -> Iterator[tuple[Checked, list[Stored]]]:
    """Compare everything stored, including rows without an event, chunk by chunk in separate snapshots.

    Yields:
        The findings of each chunk, and its deliveries with differences.
    """
    upto, is_last = 0, False
    while not is_last:
        with database.snapshot() as transaction:
            if transaction.sql.is_postgres:
                transaction.connection.execute(_PATIENT)
            seqs = [row.seq for row in transaction.execute(_NEXT_SEQS, after=upto, most=SPAN_SEQS)]
            checked, wrong = examine(transaction, seqs, config)
        upto, is_last = seqs[-1] if seqs else upto, len(seqs) < SPAN_SEQS
        yield msgspec.structs.replace(checked, upto=upto), wrong


def examine(
    transaction: Transaction, seqs: Sequence[int], config: Config, *, locked: bool = False
) -> tuple[Checked, list[Stored]]:
    """Compare everything stored about these seqs with their facts.

    Call it in a snapshot, or under the order lock with the rows `locked`. On Postgres a receiver may commit between two
    statements under the lock, so the events are read first: their deliveries were committed with them. A row without an
    event may have got its event meanwhile, so the statement that removes the row must check again.
    """
    events = {row.seq: row for row in transaction.execute(_EVENTS, wanted=seqs)}
    found = transaction.execute(_ROWS[locked], wanted=seqs)
    rows = {(row.seq, row.route): as_open_delivery(row) for row in found}
    headless = {(row.seq, row.route) for row in found if not row.has_head}
    pruned_before, logs, facts = transaction.now() - _PRUNED_AFTER, {}, 0
    rows_of_log = transaction.stream(_FACTS, _FACTS_AT_A_TIME, wanted=seqs)
    for key, history in groupby(rows_of_log, key=lambda row: (row.seq, row.route)):
        known = list(history)
        facts += len(known)
        logs[key] = read_log(known, pruned_before)
    routed = {(event.seq, route) for event in events.values() for route in as_list(event.routes)}
    stored = [
        Stored(seq, route, events.get(seq), rows.get((seq, route)), logs.get((seq, route)) or Log(), [])
        for seq, route in sorted(routed | rows.keys() | logs.keys())
    ]
    for each in stored:
        _compare(each)
        if (each.seq, each.route) in headless:
            each.add_difference("no_head", "one may go next", "none")
    _compare_last_delivered(transaction, stored, config)
    differences = tuple(found for each in stored for found in each.differences)
    expected = sum(each.is_expected for each in stored)
    return Checked(0, len(events), expected, facts, differences), [each for each in stored if each.differences]


def read_log(rows: Iterable[Any], pruned_before: datetime) -> Log:
    """Read the facts of one delivery, in order of id, and check that each can follow the previous one.

    Args:
        rows: its rows of `delivery_log`.
        pruned_before: older failed attempts may have been deleted.
    """
    log, before = Log(), None
    for row in rows:
        log.last = Standing(State(row.state), row.attempt, row.run, row.crashes)
        if row.kind == "corrected":
            log.contradiction = ""
        elif not (
            log.contradiction
            or follows(before, row.kind, log.last)
            or (as_time(row.at) < pruned_before and follows(before, row.kind, log.last, may_be_pruned=True))
        ):
            after = _describe(before or NO_FACTS)
            log.contradiction = f"fact {row.id} ({row.kind}) leads to {_describe(log.last)}, after {after}"
        if row.kind == "delivered" or (row.kind == "unchanged" and row.lane is not None):
            log.delivered = row
        log.was_replayed |= row.kind == "replayed"
        log.due_at = None if row.due_at is None else as_time(row.due_at)
        before = log.last
    return log


def _describe(standing: Standing) -> str:
    return f"{_name(standing.state)} in run {standing.run} with {standing.attempt} attempts"


def _name(state: State) -> str:
    return "open" if state in OPEN else state.value


def _compare(stored: Stored) -> None:
    row, log = stored.row, stored.log
    state = "no row" if row is None else row.state.value
    if not stored.is_expected:
        if row is not None and stored.event is None:
            stored.add_difference("no_event", "no such event", state)
        elif row is not None:
            stored.add_difference("unrouted", "the event takes no such route", state)
        return
    if log.contradiction:
        stored.add_difference("contradiction", log.contradiction, state)
    if row is None:
        if log.last.state is not State.ENDED:
            stored.add_difference("missing", _name(log.last.state), state)
        return
    if log.last.state is State.ENDED:
        stored.add_difference("ended", log.last.state.value, state)
        return
    _compare_row(stored, row)


def _compare_row(stored: Stored, row: OpenDelivery) -> None:
    log, said, is_now, occurred_at = stored.log, stored.log.last, row.standing, as_time(stored.event.occurred_at)
    pairs: tuple[tuple[FindingName, object, object], ...] = (
        ("state", _name(said.state), _name(is_now.state)),
        ("attempt", said.attempt, is_now.attempt),
        ("run", said.run, is_now.run),
        ("crashes", said.crashes, is_now.crashes),
        ("occurred_at", occurred_at, row.occurred_at),
    )
    for finding, by_facts, by_row in pairs:
        if by_facts != by_row:
            stored.add_difference(finding, by_facts, by_row)
    if row.due_at is not None and log.due_at is not None and row.due_at < log.due_at:
        stored.add_difference("due_at", f"not before {log.due_at}", row.due_at)
    if row.lane not in stored.lanes:
        stored.add_difference("lane", " or ".join(sorted(stored.lanes)), row.lane)


def _compare_last_delivered(transaction: Transaction, all_stored: Sequence[Stored], config: Config) -> None:
    """Check that each lane remembers a delivery at least as new as every event delivered in it."""
    delivered = [
        (stored, lane)
        for stored in all_stored
        if stored.is_expected and stored.route in config.routes and (lane := stored.lane_of_success) is not None
    ]
    known = read_last_delivered(transaction, {(stored.route, lane) for stored, lane in delivered})
    for stored, lane in delivered:
        newest = known.get((stored.route, lane))
        if newest is None or newest.position < (as_time(stored.event.occurred_at), stored.seq):
            told = "nothing was delivered" if newest is None else f"seq {newest.seq} was the newest delivered"
            stored.differences.append(Difference("last_delivered", stored.seq, stored.route, lane, "delivered", told))


def read_bounds(database: Database) -> tuple[int, int]:
    """Read the lowest and the highest seq of the inbox, for a progress bar."""
    with database.read() as transaction:
        row = transaction.execute(_BOUNDS)[0]
    return int(row.lowest or 0), int(row.highest or 0)


_BOUNDS = text("SELECT min(seq) AS lowest, max(seq) AS highest FROM inbox")

_NEXT_SEQS = text("""
SELECT seq
FROM (
    SELECT seq FROM (SELECT seq FROM inbox WHERE seq > :after ORDER BY seq LIMIT :most) arrived
    UNION
    SELECT seq FROM (SELECT DISTINCT seq FROM open_delivery WHERE seq > :after ORDER BY seq LIMIT :most) opened) stored
ORDER BY seq
LIMIT :most
""")


_WANTED = sql.rows("wanted", seq="bigint")
_EVENTS = Statement(f"""
SELECT i.seq, i.entity_type, i.entity_id, i.dedup_key, i.occurred_at, i.erased_at, i.routes
FROM {sql.look_up(_WANTED, "inbox i", "i.seq = wanted.seq")}
""")
_HEADS = """SELECT h.seq FROM open_delivery h
    WHERE h.route = o.route AND h.lane = o.lane AND h.state IN ('ready', 'in_flight', 'blocked') LIMIT 1"""
_ROWS = {
    locked: Statement(f"""
SELECT {ROW}, o.state <> 'waiting' OR ({_HEADS}) IS NOT NULL AS has_head
FROM {sql.look_up(_WANTED, "open_delivery o", "o.seq = wanted.seq")}
ORDER BY o.seq, o.route
{sql.lock("o") if locked else ""}
""")
    for locked in (False, True)
}
# Reads from `detail` only the values of states and lanes, not the calls.
_DETAILS = ", ".join(
    f"f.detail ->> '{name}' AS {name}" for name in ("due_at", "lane", "fetch_began_at", "last_modified")
)
_FACTS = Statement(f"""
SELECT f.id, f.at, f.seq, f.route, f.kind, f.state, f.attempt, f.run, f.crashes, {_DETAILS}
FROM {sql.look_up(_WANTED, "delivery_log f", "f.seq = wanted.seq")}
ORDER BY f.seq, f.route, f.id
""")
