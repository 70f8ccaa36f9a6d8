"""Sequence: gives deliveries their place in their lane, and every lane its head. Call what reads lanes under the order lock.

A delivery that arrives may be covered by a past success, or tell what a sweep has told. Settling (the shell around
`relay.delivery.ordering`) then promotes, folds and queues; `quarantine` sets aside what stops a lane.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from inbox.config.routing import OWN_LANE
from inbox.db.dialect import error_text
from inbox.db.following import OUT_OF_ORDER
from inbox.events.event import swept_key
from inbox.events.timestamps import as_time, to_nanoseconds
from relay.delivery import facts
from relay.delivery.alerts import deaths
from relay.delivery.lifecycle import OpenDelivery, State, append
from relay.delivery.ordering import LanePosition, LastDelivered, covers, settle
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.alerts import note
from relay.store.database import ScanStarts
from relay.store.deliveries import ROW, Key, Lane, as_open_delivery, key_text, rows_of_keys, write_back
from relay.store.statement import Statement, sql
from relay.store.transaction import Read, Transaction
from relay.store.work import Work, in_parts

STEP = "sequence"
BATCH = 500
"""Rows in one transaction; on SQLite a longer one would keep the receiver waiting."""
OWN_TRANSACTION = 50
"""Deliveries of a route that are worth a transaction of their own, under the lock of that route alone."""
LATE_SEQS = 1000
"""Numbers that are looked through again each time: what commits even later is found by the next scan from the beginning."""


def sequence(work: Work, scans: ScanStarts | None = None, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor loses rows. Where
    a scan begins only saves reading what has ended; one a second begins at the beginning.

    Routes that rest are left as they are. Those of another configuration are left to a relay that has them, as only their
    `ordering` says what their lanes drop.

    Returns:
        How many of them it has sequenced itself. `ScanStarts.is_behind` says whether there may be more.

    Raises:
        Exception: the database is unreachable or busy. Or a delivery could neither be sequenced nor set aside: then all
            others are done.
    """
    scans = scans or ScanStarts()
    known = sorted(work.policies.keys() - work.rests.now())
    with scans.received.look() as begin, work.database.read() as transaction:
        found = transaction.execute(_RECEIVED, batch=batch, begin_seq=begin or 0, known_routes=known)
    keys = [(row.seq, row.route) for row in found]
    if keys and work.database.sql.is_postgres:
        scans.received.at = max(keys)[0] - LATE_SEQS
    scans.is_behind = len(keys) >= batch

    def alone(key: Key, error: Exception) -> int:
        return int(quarantine(work, key, cause="unprocessable", error=error) is not None)

    parts = in_parts(
        work,
        STEP,
        keys,
        part=lambda some: _sequence(work, some),
        alone=alone,
        name=key_text,
        routes_of=lambda key: key[1:],
        enough=OWN_TRANSACTION,
    )
    return sum(parts)


def _sequence(work: Work, keys: Sequence[Key]) -> int:
    """Sequence those of them that are received still: another relay may have been faster."""
    policies = work.policies
    with work.write() as transaction:
        now, (rows,) = transaction.take_order_lock_and_read({route for _, route in keys}, rows_of_keys(keys, "none"))
        received = [as_open_delivery(row) for row in rows if row.state == State.RECEIVED]
        if received:
            received.sort(key=lambda row: row.seq)
            changed = supersede_covered(transaction, received, policies, now)
            settled = settle_lanes(transaction, changed, policies, now)
            transaction.only_write()
            write_back(transaction, settled)
    return len(received)


_RECEIVED = Statement(f"""
SELECT seq, route FROM (
    SELECT o.seq, o.route, o.occurred_at FROM open_delivery o
    WHERE o.state = 'received' AND o.seq >= :begin_seq AND o.route IN (SELECT route FROM {sql.rows("known_routes", route="text")})
    ORDER BY o.seq, o.route
    LIMIT :batch) found
ORDER BY occurred_at, seq, route
""")


# --- coverage: past successes, and what sweeps have told


def supersede_covered(
    transaction: Transaction, received: Sequence[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """End deliveries that past successes of their lanes cover, by the route's ordering.

    In `latest` these are changes that the last success certainly includes. In `strict` they are webhooks of changes for
    which a sweep's event was delivered. Deliveries that were replayed or re-armed are left alone.
    """
    new = [row for row in received if row.run == 0 and row.route in policies and not row.lane.startswith(OWN_LANE)]
    lasts = last_delivered(transaction, {(row.route, row.lane) for row in new})
    superseded: dict[Key, facts.Superseded] = {}
    late = []
    for row in new:
        last, policy = lasts.get((row.route, row.lane)), policies[row.route]
        if last is None:
            continue
        if policy.ordering == "strict":
            # When the last delivered event is older, as nearly always, no sweep's event of this instant was delivered.
            late += [row] if row.occurred_at <= last.occurred_at else []
        elif covers(last, row.key, policy.skew):
            superseded[row.seq, row.route] = facts.Superseded(by=last.seq, because="covered")
    superseded |= _duplicates_of_swept(transaction, late)
    return [
        append(row, superseded[row.seq, row.route], now) if (row.seq, row.route) in superseded else row
        for row in received
    ]


def _duplicates_of_swept(transaction: Transaction, late: Sequence[OpenDelivery]) -> dict[Key, facts.Superseded]:
    """Find webhooks among `late` whose change a sweep's event has delivered on their route.

    Each sweep's event supersedes one webhook, the first that comes. It is found by its key, which follows from entity and
    instant: one entry of an index, however many events an entity has.
    """
    if not late:
        return {}
    events = {event.seq: event for event in transaction.execute(_OF_LATE, late={row.seq for row in late})}
    asked = [
        (row.seq, row.route, event.source, _swept_key(event))
        for row in late
        if (event := events.get(row.seq)) and event.entity_type is not None and event.entity_id is not None
    ]
    found = transaction.execute(_SWEPT, asked=asked) if asked else []
    superseded: dict[Key, facts.Superseded] = {}
    used = set[Key]()
    for row in sorted(found, key=lambda row: row.late_seq):
        if (row.seq, row.route) not in used and _is_same_change(events[row.late_seq], row):
            used.add((row.seq, row.route))
            superseded[row.late_seq, row.route] = facts.Superseded(by=row.seq, because="swept")
    return superseded


def _swept_key(event: Any) -> str:  # noqa: ANN401  # a result row
    return swept_key(event.entity_type, event.entity_id, to_nanoseconds(as_time(event.occurred_at)))


def _is_same_change(event: Any, swept: Any) -> bool:  # noqa: ANN401  # result rows
    """True when an event duplicates a sweep's event that has its swept key: same entity, event type and instant.

    The source's `dedup` decides about two webhooks by their keys: two keys are two events, whatever else they share, and in
    `strict` every event matters. A sweep's event has a key of another kind, so the late webhook of the same change differs
    from it in the key alone. The sweep's event stands for one webhook: a second one of the same instant is another change.
    The reverse needs no decision: a sweep adds no event for a change that a webhook reported.

    On a `latest` route the fetched entity counts, not the event: two changes in one second look the same, and the second
    must not be lost. There `covers` alone decides.
    """
    names = ("entity_type", "entity_id", "event_type", "occurred_at")
    return event.seq != swept.seq and all(getattr(event, name) == getattr(swept, name) for name in names)


MOST_HEALED = 500
"""Dead deliveries that one transaction ends, in all its lanes together: some 40 ms under the order lock."""


def heal(
    transaction: Transaction, delivered: Iterable[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """On routes in `latest`, end dead deliveries that are older than the event of their lane that is delivered now.

    `MOST_HEALED` at most: the next success of the lane ends the rest.
    """
    newest = {
        (row.route, row.lane): row.key
        for row in delivered
        if policies.get(row.route, UNKNOWN_ROUTE).ordering == "latest"
    }
    if not newest:
        return []
    lanes = [(*lane, *key) for lane, key in newest.items()]
    dead = [as_open_delivery(row) for row in transaction.execute(_DEAD, lanes=lanes, most=MOST_HEALED)]
    return [append(row, facts.Superseded(by=newest[row.route, row.lane][1], because="healed"), now) for row in dead]


def last_delivered(transaction: Transaction, lanes: Iterable[Lane]) -> dict[Lane, LastDelivered]:
    """The last success in each of these lanes that has one."""
    wanted = list(lanes)
    rows = transaction.execute(_LAST_DELIVERED, lanes=wanted) if wanted else []
    return {
        (row.route, row.lane): LastDelivered(
            as_time(row.occurred_at),
            row.seq,
            row.fetch_began_at and as_time(row.fetch_began_at),
            row.last_modified and as_time(row.last_modified),
        )
        for row in rows
    }


_LAST_DELIVERED = Statement(f"""
SELECT l.route, l.lane, l.occurred_at, l.seq, l.fetch_began_at, l.last_modified
FROM {sql.rows("lanes", route="text", lane="text")} JOIN lane l ON l.route = lanes.route AND l.lane = lanes.lane
""")


_CHANGE = "i.seq, i.source, i.dedup_key, i.entity_type, i.entity_id, i.event_type, i.occurred_at"


_OF_LATE = Statement(f"SELECT {_CHANGE} FROM {sql.rows('late', seq='bigint')} JOIN inbox i ON i.seq = late.seq")


_ASKED = sql.rows("asked", seq="bigint", route="text", source="text", key="text")
_USED_BY = sql.look_up("inbox n", "delivery_log f", "f.seq = n.seq AND f.route = asked.route AND f.kind = 'superseded'")
# The sweeps' events among them that were delivered, and have superseded no webhook before: one that came after them, of the
# same instant. An EXISTS would have Postgres read the whole log.
_SWEPT = Statement(f"""
SELECT asked.seq AS late_seq, asked.route, {_CHANGE}
FROM {sql.look_up(_ASKED, "inbox i", "i.source = asked.source AND i.dedup_key = asked.key")}
WHERE (
    SELECT l.id FROM delivery_log l
    WHERE l.seq = i.seq AND l.route = asked.route AND l.kind IN ('delivered', 'unchanged')
    LIMIT 1) IS NOT NULL
  AND (
    SELECT f.id FROM {_USED_BY}
    WHERE n.source = i.source AND n.entity_type = i.entity_type AND n.entity_id = i.entity_id
      AND n.seq > i.seq - {OUT_OF_ORDER} AND n.occurred_at = i.occurred_at
      AND f.detail ->> 'because' = 'swept' AND {sql.number("f.detail ->> 'by'")} = i.seq
    LIMIT 1) IS NULL
""")

_OLDER = "o.state = 'dead' AND o.route = lanes.route AND o.lane = lanes.lane AND (o.occurred_at, o.seq) < (lanes.at, lanes.seq)"
_PLACES = sql.rows("lanes", route="text", lane="text", at="time", seq="bigint")
# Some of the dead before the place that is given for each lane, locked in their order.
_DEAD = Statement(f"""
WITH found AS MATERIALIZED (
    SELECT o.seq, o.route FROM {sql.look_up(_PLACES, "open_delivery o", _OLDER)} LIMIT :most
)
SELECT {ROW}
FROM {sql.look_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
ORDER BY o.seq, o.route
{sql.lock("o")}
""")


# --- lanes

MOST_FOLDED = 500
"""Waiting deliveries that one transaction folds, in all its lanes together: some 40 ms under the order lock."""


def settle_lanes(
    transaction: Transaction,
    changed: Iterable[OpenDelivery],
    policies: Policies,
    now: datetime,
    besides: Iterable[Lane] = (),
    *,
    first: Sequence[Any] | None = None,
) -> list[OpenDelivery]:
    """Give every lane that `changed` touches its head again.

    `changed` are deliveries as this transaction has made them so far: those that arrived, and heads that have ended,
    died, or are to be retried. What else is in their lanes, and in the lanes `besides`, is read here; heads are locked.

    Where many wait on a route in `latest`, the oldest are folded, `MOST_FOLDED` in all lanes together. The rest waits
    on, until the next settle of its lane folds more of it.

    With `first`, the rows that `first_waiting` selects for these lanes, no heads are looked for: `changed` has them all.

    Returns:
        What is to be written: `changed` and whatever settling moved besides, each in its last state.
    """
    lanes: dict[Lane, list[OpenDelivery]] = defaultdict(list, {lane: [] for lane in besides})
    for row in changed:
        lanes[row.route, row.lane].append(row)
    known = {(row.seq, row.route) for rows in lanes.values() for row in rows}
    waiting = _waiting(transaction, lanes, policies, first)
    heads = heads_of(transaction, lanes) if lanes and first is None else []
    others = [*heads, *(row for some in waiting.values() for row in some.rows)]
    before = {(row.seq, row.route): row for row in others if (row.seq, row.route) not in known}
    for row in before.values():
        lanes[row.route, row.lane].append(row)
    written = []
    for (route, lane), rows in lanes.items():
        policy = policies.get(route, UNKNOWN_ROUTE)
        out = [row for row in rows if row.state in _OUTSIDE_THE_LANE]
        inside = [row for row in rows if row.state not in _OUTSIDE_THE_LANE]
        settled = settle(policy.ordering, inside, now, policy.schedule.first_delay, waiting[route, lane].upto)
        written += out + [row for row in settled if before.get((row.seq, row.route)) != row]
    return written


_OUTSIDE_THE_LANE = frozenset({State.ENDED, State.DEAD})


class _Waiting(NamedTuple):
    """The first waiting deliveries of a lane."""

    rows: list[OpenDelivery]
    upto: LanePosition | None = None
    """The place of the last of them, when more wait behind it."""


def first_waiting(lanes: Iterable[Lane], most: int = 2) -> Read:
    """Select the deliveries that wait first in each of these lanes, as many as settling reads of a lane that isn't crowded."""
    return _FIRST_WAITING, {"lanes": list(lanes), "most": most}


def _waiting(
    transaction: Transaction,
    lanes: Mapping[Lane, Sequence[OpenDelivery]],
    policies: Policies,
    first: Sequence[Any] | None,
) -> dict[Lane, _Waiting]:
    """The waiting deliveries that settling needs: in `strict` the first, in `latest` as many as this transaction may fold.

    Hardly ever do two wait in a lane in `latest`. The lanes where they do share `MOST_FOLDED`; two of each are read,
    however many lanes there are, so that every one gets on.
    """
    found = _first_waiting(transaction, lanes, lanes, 2) if first is None else _by_lane(lanes, first)
    crowded = [
        lane
        for lane, rows in found.items()
        if len(rows) > 1 and policies.get(lane[0], UNKNOWN_ROUTE).ordering == "latest"
    ]
    share = max(MOST_FOLDED // max(len(crowded), 1), 2)
    waiting = {lane: _Waiting(rows) for lane, rows in found.items()}
    for lane, rows in _first_waiting(transaction, lanes, crowded, share + 1).items():
        waiting[lane] = _Waiting(rows) if len(rows) <= share else _Waiting(rows[:share], rows[share - 1].key)
    return waiting


def _first_waiting(
    transaction: Transaction, lanes: Mapping[Lane, Sequence[OpenDelivery]], wanted: Collection[Lane], most: int
) -> dict[Lane, list[OpenDelivery]]:
    """The first waiting deliveries of each `wanted` lane, without those that this transaction has changed."""

    def read(some: Collection[Lane], most: int) -> dict[Lane, list[OpenDelivery]]:
        statement, parameters = first_waiting(some, most)
        return _by_lane(some, transaction.execute(statement, **parameters) if some else ())

    found = read(wanted, most)
    for lane, rows in found.items():
        changed = {row.seq for row in lanes[lane]}
        if any(row.seq in changed for row in rows):
            some = read([lane], most + len(changed))[lane]
            found[lane] = [row for row in some if row.seq not in changed][:most]
    return found


def _by_lane(wanted: Iterable[Lane], rows: Iterable[Any]) -> dict[Lane, list[OpenDelivery]]:
    found: dict[Lane, list[OpenDelivery]] = {lane: [] for lane in wanted}
    for row in rows:
        if (lane := (row.route, row.lane)) in found:
            found[lane].append(as_open_delivery(row))
    return {lane: sorted(some, key=lambda row: row.key) for lane, some in found.items()}


def heads_of(transaction: Transaction, lanes: Iterable[Lane]) -> list[OpenDelivery]:
    """The heads of these lanes; those that are ready are locked."""
    return [as_open_delivery(row) for row in transaction.execute(_HEADS, lanes=list(lanes))]


_LANES = sql.rows("lanes", route="text", lane="text")
_OF_LANE = "o.route = lanes.route AND o.lane = lanes.lane AND o.state"
# Lock the ready ones: one may be claimed at this moment, and then can't be folded.
#
# The others are only read. Without the order lock nothing ends them; one in flight may be given back, and is not written
# here; its relay renews its lease, and would pass over a row that is locked.
_HEADS = Statement(f"""
WITH found AS MATERIALIZED (
    SELECT {ROW} FROM {sql.look_up(_LANES, "open_delivery o", f"{_OF_LANE} IN ('ready', 'in_flight', 'blocked')")}
), ready AS MATERIALIZED (
    SELECT {ROW}
    FROM {sql.look_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
    WHERE found.state = 'ready'
    ORDER BY o.seq, o.route
    {sql.lock("o")}
)
SELECT * FROM ready UNION ALL SELECT * FROM found WHERE state <> 'ready'
""")

# Read a fixed number of index entries of each lane, however many wait.
#
# Postgres without statistics would hash every row that waits, where it may (24,000 read for 32 lanes, 5.9 ms instead
# of 0.2): of a LATERAL with a LIMIT it can't.
_FIRST = sql.first_of(_LANES, "open_delivery o", f"{_OF_LANE} = 'waiting'", "o.occurred_at, o.seq", ":most")
_FIRST_WAITING = Statement(f"SELECT {ROW} FROM {_FIRST}")


_WRITES = frozenset({"create", "update", "delete"})


def lanes_in_doubt(attempts: Iterable[tuple[Delivery, Outcome]]) -> set[Lane]:
    """Return the lanes of failed attempts with a write that may have had an effect.

    An entity that then returns to its earlier state looks unchanged by its hash, and its counterpart is not.
    """
    return {
        (delivery.route, delivery.lane)
        for delivery, outcome in attempts
        if isinstance(outcome, Failed)
        and delivery.applied_hash is not None
        and any(call.step in _WRITES and call.sent != "not_sent" for call in outcome.calls)
    }


def forget_applied(transaction: Transaction, lanes: Iterable[Lane]) -> None:
    """Forget the hash of what was applied last in these lanes, so that the next attempt compares with nothing."""
    known = sorted(set(lanes))
    if known:
        transaction.execute(_FORGET, lanes=known)


_FORGET = Statement(f"""
UPDATE lane
SET applied_hash = NULL
WHERE (route, lane) IN (SELECT lanes.route, lanes.lane FROM {_LANES})
  AND applied_hash IS NOT NULL
""")


Cause = Literal["unrecordable", "unprocessable", "payload_gone"]
"""Its attempt's outcome can't be recorded; it can't be ordered, rescued or loaded; its event has no payload any more."""


def quarantine(work: Work, key: Key, *, cause: Cause, error: Exception, token: int | None = None) -> facts.Dead | None:
    """Make a delivery dead that is in flight under the lease of `token`, or, without one, received or ready.

    Its lane goes on, even where the alert is refused (`note`).

    Args:
        work: who does it.
        key: the delivery.
        cause: why, in one word.
        error: why, in its own words.
        token: of the lease that it must still be under; None: it must be under none.

    Returns:
        The fact; None when the delivery has moved on meanwhile.

    Raises:
        Exception: it could not even be written.
    """
    # One that is under no lease may be no head, so it can't hold its lane; nor is it attempted.
    is_leased = token is not None
    blocks = is_leased and work.policies.get(key[1], UNKNOWN_ROUTE).blocks_on_death
    fact = facts.Dead(cause=cause, error=error_text(error), blocks_lane=blocks, counted=is_leased)

    with work.write() as transaction:
        now = transaction.take_order_lock([key[1]])
        row = _find(transaction, key, token, now)
        if row is None:
            return None
        dead = append(row, fact, now)
        note(transaction, deaths([dead]), now)
        if is_leased:  # its attempt may have changed the other system
            forget_applied(transaction, [(row.route, row.lane)])
        write_back(transaction, settle_lanes(transaction, [dead], work.policies, now))
    return fact


def _find(transaction: Transaction, key: Key, token: int | None, now: datetime) -> OpenDelivery | None:
    """The delivery, locked, without its times: they may be what can't be read."""
    for row in transaction.execute(_WITHOUT_TIMES, seq=key[0], route=key[1], token=token):
        return OpenDelivery(**{**row._mapping, "state": State(row.state)}, occurred_at=now)  # noqa: SLF001  # SQLAlchemy's public name
    return None


_TOKEN = sql.bound("token", "bigint")
_WITHOUT_TIMES = Statement(f"""
SELECT o.seq, o.route, o.lane, o.state, o.attempt, o.run, o.crashes FROM open_delivery o
WHERE o.seq = :seq AND o.route = :route
  AND (o.state = 'in_flight' AND o.lease_token = {_TOKEN} OR o.state IN ('received', 'ready') AND {_TOKEN} IS NULL)
{sql.lock("o")}
""")
