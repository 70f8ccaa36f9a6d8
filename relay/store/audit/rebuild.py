"""Rebuild: repairs what `verify` finds, in place, chunk by chunk under the order lock, while receivers and relays run.

Only what is found wrong is locked, and looked at again then. Swapping whole tables would lose what is written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from functools import cache
from typing import get_args

import msgspec
from sqlalchemy import TextClause, text
from sqlalchemy.exc import IntegrityError

from inbox.config.model import Config
from inbox.db.dialect import Sql, rows_param
from relay.delivery import facts
from relay.delivery.audit import Difference, Finding
from relay.delivery.lifecycle import (
    CORRECTED_TO,
    HEADS,
    FoldedState,
    OpenDelivery,
    State,
    Step,
    append,
    restore,
    schedule,
)
from relay.delivery.policy import Policies, policies
from relay.store.audit.examine import Event, Wrong, examine, examine_all, lane_of_success, present_lane
from relay.store.audit.verify import NO_HEAD, PHANTOM, WAS_DELIVERED, Checked, for_lanes, headless, unlogged_successes
from relay.store.database import Database
from relay.store.deliveries import Lane, fields_param, remove, write_back
from relay.store.record import Success, remember_delivered, success_row
from relay.store.reopen import insert
from relay.store.sequence import heads_of, settle_lanes
from relay.store.transaction import Transaction
from relay.store.work import Work, in_parts


class Mend(msgspec.Struct, frozen=True):
    """The planned repair of one delivery."""

    delivery: OpenDelivery
    """The delivery as it has to be, with the fact to append."""
    row: OpenDelivery | None
    """As it is."""
    differences: tuple[Difference, ...]

    @property
    def is_new(self) -> bool:
        """It has no row that could stay: another lane or another time is another row."""
        fits = self.row is not None and (self.row.lane, self.row.occurred_at) == (
            self.delivery.lane,
            self.delivery.occurred_at,
        )
        return self.delivery.state is not State.ENDED and not fits


def rebuild(database: Database, config: Config, *, who: str) -> Iterator[Checked]:
    """Make `open_delivery` and `lane` what follows from the log.

    A delivery that lost its row gets it back, one that has ended loses it, a lane without a head gets one. Where facts
    can't all be true they stay, and a fact `corrected` says how the delivery stands from then on. Calls that run are
    not disturbed, unless they are for a delivery that must not be open.

    A delivery that can't be mended is left as it is, and so is one with facts that only a newer version knows.

    Yields:
        What was mended in each chunk. What is left, since its lane is being worked on, is
        not in it: `verify` tells.
    """
    known = policies(config)
    work = Work(database, config, known)
    for lanes in unlogged_successes(database):
        with database.write() as transaction:
            transaction.lock_order()
            forgotten = transaction.execute(
                _forget(database.sql), lanes=rows_param({"route": route, "lane": lane} for route, lane in lanes)
            )
        yield Checked(0, differences=for_lanes(((row.route, row.lane) for row in forgotten), PHANTOM))
    for lanes in headless(database):
        with database.write() as transaction:
            now = transaction.lock_order()
            settled = settle_lanes(transaction, [], known, now, lanes)
            write_back(transaction, settled)
        yield Checked(
            0, differences=for_lanes(((row.route, row.lane) for row in settled if row.state in HEADS), NO_HEAD)
        )
    upto = 0
    for upto, examined in examine_all(database, config):
        wrong = sorted({one.subject.seq for one in examined.wrong if _is_mended(one)})
        parts = in_parts(
            work,
            "rebuild",
            wrong,
            part=lambda some: _mend(database, config, known, some, who),
            name=lambda seq: f"seq={seq}",
        )
        mended = tuple(found for part in parts for found in part)
        yield Checked(upto, examined.events, examined.deliveries, examined.facts, mended)


def _mend(database: Database, config: Config, known: Policies, seqs: Sequence[int], who: str) -> tuple[Difference, ...]:
    """Examine these seqs again under the order lock, and repair what is still wrong.

    Receivers don't take that lock. What they have added since the first look is none of these seqs, and is left alone.
    """
    with database.write() as transaction:
        now = transaction.lock_order(keeps_payloads=True)  # retention deletes no event whose facts are read here
        wrong = [one for one in examine(transaction, seqs, config, locked=True).wrong if _is_mended(one)]
        of_rows = [_plan(one, one.event, config, who) for one in wrong if one.event and _has(one, *_OF_THE_ROW)]
        late = [one for one in wrong if one.event and _has(one, "last_delivered")]
        removed = _remove_strays(transaction, [one for one in wrong if one.event is None])
        mends, demoted = _with_room(transaction, of_rows, now)
        changed = _write(transaction, mends)
        lanes = {(row.route, row.lane) for row in (one.subject.row for one in wrong) if row is not None}
        write_back(transaction, settle_lanes(transaction, [*changed, *demoted], known, now, lanes))
        remember_delivered(transaction, _last_delivered(late))
    return (
        *(found for one in removed for found in one.differences),
        *(found for mend in mends for found in mend.differences),
        *(found for one in late for found in one.differences if found.finding == "last_delivered"),
    )


_MENDED: frozenset[Finding] = frozenset(get_args(Finding)) - {"newer_version"}
_OF_THE_ROW: frozenset[Finding] = _MENDED - {"last_delivered"}


def _is_mended(one: Wrong) -> bool:
    """True when it is to be repaired; what a newer version has written is left to that version."""
    return _has(one, *_MENDED) and not one.subject.account.is_newer


def _has(one: Wrong, *findings: Finding) -> bool:
    return any(found.finding in findings for found in one.differences)


def _plan(one: Wrong, event: Event, config: Config, who: str) -> Mend:
    subject, standing = one.subject, one.subject.account.folded
    row = subject.row
    reasons = [found.facts_say for found in one.differences if found.finding in {"contradiction", "superseded_by"}]
    if not subject.is_expected:
        standing = FoldedState(State.ENDED, standing.attempt, standing.run)
        if subject.account.last is not None and not subject.account.is_put_right:
            reasons.append("the event takes no such route")
    elif _has(one, "superseded_by"):
        standing = FoldedState(State.RECEIVED, 0, standing.run)  # nothing stands for it, so it has to be delivered
    if row is not None and row.lane in subject.lanes and row.occurred_at == event.occurred_at:
        delivery = restore(row, standing)
    else:
        lane = present_lane(event, subject.route, config)
        delivery = restore(OpenDelivery(subject.seq, subject.route, lane, event.occurred_at, State.RECEIVED), standing)
    if reasons:
        delivery = append(delivery, _correction(standing, who, "; ".join(reasons)), event.occurred_at)
    differences = tuple(found for found in one.differences if found.finding in _OF_THE_ROW)
    return Mend(delivery, row, differences)


def _correction(standing: FoldedState, who: str, why: str) -> facts.Corrected:
    name = next(name for name, state in CORRECTED_TO.items() if state is standing.state)
    return facts.Corrected(state=name, attempt=standing.attempt, run=standing.run, who=who, why=why)


def _with_room(transaction: Transaction, mends: Sequence[Mend], now: datetime) -> tuple[list[Mend], list[OpenDelivery]]:
    """Deliveries that can be repaired now, and heads that have to make room for a blocked one.

    A blocked delivery that lost its place may find another head in its lane: one that is ready waits again behind it,
    one that is in flight is let finish, and the blocked one is left to another run.
    """
    returning = [
        m.delivery
        for m in mends
        if m.delivery.state is State.BLOCKED and (m.is_new or m.row is None or m.row.state not in HEADS)
    ]
    heads = {(head.route, head.lane): head for head in heads_of(transaction, {(d.route, d.lane) for d in returning})}
    making_room: dict[Lane, OpenDelivery] = {}
    postponed: set[tuple[int, str]] = set()
    for delivery in returning:
        lane = (delivery.route, delivery.lane)
        head = heads.get(lane)
        if head is not None and head.state is not State.READY:
            postponed.add((delivery.seq, delivery.route))
        elif head is not None:
            making_room[lane] = schedule(head, Step.DEMOTED, now)
        heads[lane] = delivery
    mended = {(m.delivery.seq, m.delivery.route) for m in mends}
    demoted = [head for head in making_room.values() if (head.seq, head.route) not in mended]
    return [m for m in mends if (m.delivery.seq, m.delivery.route) not in postponed], demoted


def _write(transaction: Transaction, mends: Sequence[Mend]) -> list[OpenDelivery]:
    """Insert missing rows and correct counters of those in flight; returns the deliveries whose lanes are to be settled."""
    new = [mend.delivery for mend in mends if mend.is_new]
    replaced = [mend.row for mend in mends if mend.is_new and mend.row is not None]
    remove(transaction, replaced)
    if new:
        insert(transaction, new)
    at_work = [mend.delivery for mend in mends if mend.delivery.state is State.IN_FLIGHT]
    if at_work:
        transaction.execute(_recount(transaction.sql), counted=fields_param(at_work, _COUNTED))
    return [mend.delivery for mend in mends if mend.delivery.state is not State.IN_FLIGHT]


def _remove_strays(transaction: Transaction, strays: Sequence[Wrong]) -> list[Wrong]:
    """Remove rows and facts without an event; returns the keys of which something was removed.

    Each statement looks for the event itself: on Postgres one may have been committed since the strays were read.
    """
    keys = rows_param({"seq": one.subject.seq, "route": one.subject.route} for one in strays)
    removed = transaction.execute(_remove(transaction.sql, "open_delivery"), strays=keys) if strays else []
    if any(one.subject.account.last is not None for one in strays):
        try:
            with transaction.connection.begin_nested():
                removed += transaction.execute(_remove(transaction.sql, "delivery_log"), strays=keys)
        except IntegrityError:
            pass  # the trigger has a later snapshot than its statement, and saw that an event of these seqs has come
    known = {(row.seq, row.route) for row in removed}
    return [one for one in strays if (one.subject.seq, one.subject.route) in known]


def _last_delivered(late: Iterable[Wrong]) -> Iterable[Success]:
    """The newest of these deliveries for each lane."""
    newest: dict[Lane, Success] = {}
    known = [(one.event, one.subject) for one in late if one.event is not None]
    for event, subject in sorted(known, key=lambda pair: (pair[0].occurred_at, pair[0].seq)):
        delivered, lane = subject.account.delivered, lane_of_success(subject)
        if delivered is not None and lane is not None:
            place = (event.occurred_at, event.seq)
            newest[subject.route, lane] = success_row(subject.route, lane, place, delivered)
    return newest.values()


@cache
def _forget(sql: Sql) -> TextClause:
    """Change only rows that are still as examined: another delivery may have been recorded since."""
    return text(f"""
DELETE FROM lane
WHERE (route, lane) IN (
    SELECT l.route, l.lane
    FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
    LEFT JOIN inbox i ON i.seq = l.seq
    WHERE NOT {WAS_DELIVERED})
RETURNING route, lane
""")


@cache
def _remove(sql: Sql, table: str) -> TextClause:
    return text(f"""
DELETE FROM {table}
WHERE (seq, route) IN (SELECT strays.seq, strays.route FROM {sql.rows("strays", seq="bigint", route="text")})
  AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = {table}.seq)
RETURNING seq, route
""")


_COUNTED = {"seq": "bigint", "route": "text", "attempt": "int", "run": "int", "crashes": "int"}


@cache
def _recount(sql: Sql) -> TextClause:
    """Correct only the counters of deliveries in flight: their leases stay."""
    return text(f"""
UPDATE open_delivery AS o
SET attempt = counted.attempt, run = counted.run, crashes = counted.crashes
FROM {sql.rows("counted", **_COUNTED)}
WHERE o.seq = counted.seq AND o.route = counted.route
""")
