"""Sequence: gives deliveries their place in their lane, and every lane its head, under the order lock.

A received delivery may be covered by a past success, or duplicate a sweep's event. Settling (the shell around
`relay.delivery.ordering`) then promotes, folds and queues; `quarantine` makes a delivery dead if it can't be processed.
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
from relay.delivery.alerts import list_deaths
from relay.delivery.lifecycle import OpenDelivery, State, apply_fact
from relay.delivery.ordering import LanePosition, LastDelivered, covers, settle
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.alerts import store_alerts
from relay.store.database import ScanStarts
from relay.store.deliveries import ROW, Key, Lane, as_open_delivery, format_key, select_rows, write_back
from relay.store.statement import Statement, sql
from relay.store.transaction import Read, Transaction
from relay.store.work import Work, process_in_parts

STEP = "sequence"
BATCH = 500
"""Rows in one transaction. On SQLite, a longer transaction would delay the receiver."""
OWN_TRANSACTION = 50
"""Deliveries of one route that justify a separate transaction, which locks only that route."""
SEQ_OVERLAP = 1000
"""Number of seqs that each scan reads again. Events that commit even later are found by the next scan from the beginning."""


def sequence(work: Work, scans: ScanStarts | None = None, batch: int = BATCH) -> int:
    """Make up to `batch` received deliveries ready, waiting, or superseded.

    They are found by their state, never by a cursor over `seq`: numbers commit out of order, and a cursor would lose rows.
    The start of a scan only saves reading ended deliveries, and once a second a scan starts from the beginning.

    Locked routes are skipped. Unknown routes are left to relays whose configuration has them, as their `ordering` decides
    which deliveries are superseded.

    Returns:
        The number of deliveries it has sequenced itself. `ScanStarts.is_behind` is set if there may be more.

    Raises:
        Exception: the database is unreachable or busy; or a delivery could neither be sequenced nor quarantined, after all
            others were processed.
    """
    scans = scans or ScanStarts()
    known = sorted(work.policies.keys() - work.locked_routes.list_resting())
    with scans.received.scan() as begin, work.database.read() as transaction:
        found = transaction.execute(_RECEIVED, batch=batch, begin_seq=begin or 0, known_routes=known)
    keys = [(row.seq, row.route) for row in found]
    if keys and work.database.sql.is_postgres:
        scans.received.at = max(keys)[0] - SEQ_OVERLAP
    scans.is_behind = len(keys) >= batch

    def quarantine_one(key: Key, error: Exception) -> int:
        return int(quarantine(work, key, cause="unprocessable", error=error) is not None)

    parts = process_in_parts(
        work,
        STEP,
        keys,
        process=lambda some: _sequence(work, some),
        quarantine_one=quarantine_one,
        name=format_key,
        routes_of=lambda key: key[1:],
        least_items=OWN_TRANSACTION,
    )
    return sum(parts)


def _sequence(work: Work, keys: Sequence[Key]) -> int:
    """Sequence the deliveries that are still received: another relay may have been faster."""
    policies = work.policies
    with work.write() as transaction:
        now, (rows,) = transaction.take_order_lock_and_read({route for _, route in keys}, select_rows(keys, "none"))
        received = [as_open_delivery(row) for row in rows if row.state == State.RECEIVED]
        if received:
            received.sort(key=lambda row: row.seq)
            changed = supersede_covered(transaction, received, policies, now)
            settled = settle_lanes(transaction, changed, policies, now)
            transaction.queue_writes()
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


# --- coverage: by past successes, and by events of sweeps


def supersede_covered(
    transaction: Transaction, received: Sequence[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """Supersede deliveries that past successes of their lanes cover.

    On `latest` routes, these are changes that the last success certainly includes. On `strict` routes, they are webhooks
    of changes for which a sweep's event was delivered. Replayed and re-armed deliveries are never superseded here.
    """
    new = [row for row in received if row.run == 0 and row.route in policies and not row.lane.startswith(OWN_LANE)]
    lasts = read_last_delivered(transaction, {(row.route, row.lane) for row in new})
    superseded: dict[Key, facts.Superseded] = {}
    maybe_swept = []
    for row in new:
        last, policy = lasts.get((row.route, row.lane)), policies[row.route]
        if last is None:
            continue
        if policy.ordering == "strict":
            # If the last delivered event is older, as nearly always, no sweep's event of this instant was delivered.
            maybe_swept += [row] if row.occurred_at <= last.occurred_at else []
        elif covers(last, row.position, policy.skew):
            superseded[row.seq, row.route] = facts.Superseded(by=last.seq, because="covered")
    superseded |= _find_duplicates_of_swept(transaction, maybe_swept)
    return [
        apply_fact(row, superseded[row.seq, row.route], now) if (row.seq, row.route) in superseded else row
        for row in received
    ]


def _find_duplicates_of_swept(
    transaction: Transaction, webhooks: Sequence[OpenDelivery]
) -> dict[Key, facts.Superseded]:
    """Find the `webhooks` whose change a sweep's event has delivered on their route.

    Each sweep's event supersedes one webhook, the first that arrives. The event is found by its key, which derives from
    entity and instant: one index entry, however many events an entity has.
    """
    if not webhooks:
        return {}
    events = {event.seq: event for event in transaction.execute(_EVENTS, seqs={row.seq for row in webhooks})}
    asked = [
        (row.seq, row.route, event.source, _make_swept_key(event))
        for row in webhooks
        if (event := events.get(row.seq)) and event.entity_type is not None and event.entity_id is not None
    ]
    found = transaction.execute(_SWEPT, asked=asked) if asked else []
    superseded: dict[Key, facts.Superseded] = {}
    used = set[Key]()
    for row in sorted(found, key=lambda row: row.webhook_seq):
        if (row.seq, row.route) not in used and _is_same_change(events[row.webhook_seq], row):
            used.add((row.seq, row.route))
            superseded[row.webhook_seq, row.route] = facts.Superseded(by=row.seq, because="swept")
    return superseded


def _make_swept_key(event: Any) -> str:  # noqa: ANN401  # a result row
    return swept_key(event.entity_type, event.entity_id, to_nanoseconds(as_time(event.occurred_at)))


def _is_same_change(event: Any, swept: Any) -> bool:  # noqa: ANN401  # result rows
    """Return whether an event duplicates the sweep's event with the same entity, event type and instant.

    Two webhooks are compared by their keys (the source's `dedup`): different keys are different events, and in `strict`
    every event matters. A sweep's event has another kind of key, so a late webhook of the same change differs from it only
    in the key. A sweep's event stands for one webhook: a second webhook of the same instant is another change. The reverse
    case does not occur, as a sweep adds no event for a change that a webhook has reported.

    On a `latest` route the fetched entity counts, not the event: two changes in one second look the same, and the second
    must not be lost. There `covers` alone decides.
    """
    names = ("entity_type", "entity_id", "event_type", "occurred_at")
    return event.seq != swept.seq and all(getattr(event, name) == getattr(swept, name) for name in names)


MOST_SUPERSEDED = 500
"""Maximum number of dead deliveries that one transaction ends, over all its lanes: some 40 ms under the order lock."""


def supersede_older_dead(
    transaction: Transaction, delivered: Iterable[OpenDelivery], policies: Policies, now: datetime
) -> list[OpenDelivery]:
    """On `latest` routes, supersede dead deliveries that are older than the event just delivered in their lane.

    It ends at most `MOST_SUPERSEDED`; the next success of the lane ends the rest.
    """
    newest = {
        (row.route, row.lane): row.position
        for row in delivered
        if policies.get(row.route, UNKNOWN_ROUTE).ordering == "latest"
    }
    if not newest:
        return []
    lanes = [(*lane, *key) for lane, key in newest.items()]
    dead = [as_open_delivery(row) for row in transaction.execute(_DEAD, lanes=lanes, most=MOST_SUPERSEDED)]
    return [apply_fact(row, facts.Superseded(by=newest[row.route, row.lane][1], because="healed"), now) for row in dead]


def read_last_delivered(transaction: Transaction, lanes: Iterable[Lane]) -> dict[Lane, LastDelivered]:
    """Read the last success of each of these lanes that has one."""
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


_EVENTS = Statement(f"SELECT {_CHANGE} FROM {sql.rows('seqs', seq='bigint')} JOIN inbox i ON i.seq = seqs.seq")


_ASKED = sql.rows("asked", seq="bigint", route="text", source="text", key="text")
_USED_BY = sql.look_up("inbox n", "delivery_log f", "f.seq = n.seq AND f.route = asked.route AND f.kind = 'superseded'")
# Selects the sweeps' events that were delivered and have not superseded a later webhook of the same instant yet. With an
# EXISTS, Postgres would read the whole log.
_SWEPT = Statement(f"""
SELECT asked.seq AS webhook_seq, asked.route, {_CHANGE}
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
# Selects some dead deliveries before the given position of each lane, locked in key order.
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
"""Maximum number of waiting deliveries that one transaction folds, over all its lanes: some 40 ms under the order lock."""


def settle_lanes(
    transaction: Transaction,
    changed: Iterable[OpenDelivery],
    policies: Policies,
    now: datetime,
    more_lanes: Iterable[Lane] = (),
    *,
    first_waiting: Sequence[Any] | None = None,
    heads_are_known: bool = False,
) -> list[OpenDelivery]:
    """Choose the head of every lane of `changed` and of the `more_lanes`.

    `changed` has the deliveries that this transaction has changed so far: received ones, and heads that have ended, died,
    or are to be retried. The function reads the other deliveries of these lanes, and
    locks a ready head, which may be claimed meanwhile.

    If many wait on a `latest` route, the oldest are folded, `MOST_FOLDED` in all lanes together. The rest wait until their
    lane is settled again.

    `first_waiting` may have the rows that `select_first_waiting` selects for these lanes. With `heads_are_known`, `changed` has
    the head of each lane, so none is read.

    Returns:
        The deliveries to write: `changed` and others moved by settling, each in its final state.
    """
    lanes: dict[Lane, list[OpenDelivery]] = defaultdict(list, {lane: [] for lane in more_lanes})
    for row in changed:
        lanes[row.route, row.lane].append(row)
    known = {(row.seq, row.route) for rows in lanes.values() for row in rows}
    waiting = _read_waiting(transaction, lanes, policies, first_waiting)
    heads = read_heads(transaction, lanes) if lanes and not heads_are_known else []
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
    """The position of the last one, if more wait behind it."""


def select_first_waiting(lanes: Iterable[Lane], most: int = 2) -> Read:
    """Select the first waiting deliveries of each lane; two are enough to settle a lane that is not crowded."""
    return _FIRST_WAITING, {"lanes": list(lanes), "most": most}


def _read_waiting(
    transaction: Transaction,
    lanes: Mapping[Lane, Sequence[OpenDelivery]],
    policies: Policies,
    first_waiting: Sequence[Any] | None,
) -> dict[Lane, _Waiting]:
    """Read the waiting deliveries that settling needs: in `strict` the first, in `latest` as many as it may fold.

    A `latest` lane rarely has two waiting deliveries. Lanes that do share `MOST_FOLDED`. At least two of each lane are read,
    so that every lane makes progress.
    """
    found = (
        _group_by_lane(lanes, first_waiting)
        if first_waiting is not None
        else _read_first_waiting(transaction, lanes, lanes, 2)
    )
    crowded = [
        lane
        for lane, rows in found.items()
        if len(rows) > 1 and policies.get(lane[0], UNKNOWN_ROUTE).ordering == "latest"
    ]
    share = max(MOST_FOLDED // max(len(crowded), 1), 2)
    waiting = {lane: _Waiting(rows) for lane, rows in found.items()}
    for lane, rows in _read_first_waiting(transaction, lanes, crowded, share + 1).items():
        waiting[lane] = _Waiting(rows) if len(rows) <= share else _Waiting(rows[:share], rows[share - 1].position)
    return waiting


def _read_first_waiting(
    transaction: Transaction, lanes: Mapping[Lane, Sequence[OpenDelivery]], wanted: Collection[Lane], most: int
) -> dict[Lane, list[OpenDelivery]]:
    """Read the first waiting deliveries of each `wanted` lane, without those that this transaction has changed."""

    def read(some: Collection[Lane], most: int) -> dict[Lane, list[OpenDelivery]]:
        statement, parameters = select_first_waiting(some, most)
        return _group_by_lane(some, transaction.execute(statement, **parameters) if some else ())

    found = read(wanted, most)
    for lane, rows in found.items():
        changed = {row.seq for row in lanes[lane]}
        if any(row.seq in changed for row in rows):
            some = read([lane], most + len(changed))[lane]
            found[lane] = [row for row in some if row.seq not in changed][:most]
    return found


def _group_by_lane(wanted: Iterable[Lane], rows: Iterable[Any]) -> dict[Lane, list[OpenDelivery]]:
    found: dict[Lane, list[OpenDelivery]] = {lane: [] for lane in wanted}
    for row in rows:
        if (lane := (row.route, row.lane)) in found:
            found[lane].append(as_open_delivery(row))
    return {lane: sorted(some, key=lambda row: row.position) for lane, some in found.items()}


def read_heads(transaction: Transaction, lanes: Iterable[Lane], *, locked: bool = True) -> list[OpenDelivery]:
    """Read the heads of these lanes; with `locked`, lock the ready ones."""
    statement = _HEADS if locked else _HEADS_UNLOCKED
    return [as_open_delivery(row) for row in transaction.execute(statement, lanes=list(lanes))]


_LANES = sql.rows("lanes", route="text", lane="text")
_OF_LANE = "o.route = lanes.route AND o.lane = lanes.lane AND o.state"
# Locks the ready heads: a claim may be taking one, which then can't be folded.
#
# The other heads are only read. They leave their lane only under the order lock. Meanwhile only their leases may be renewed,
# and a lock would make the renewal skip them.
_IS_HEAD = f"{_OF_LANE} IN ('ready', 'in_flight', 'blocked')"
_FOUND_HEADS = f"SELECT {ROW} FROM {sql.look_up(_LANES, 'open_delivery o', _IS_HEAD)}"
_HEADS_UNLOCKED = Statement(_FOUND_HEADS)
_HEADS = Statement(f"""
WITH found AS MATERIALIZED (
    {_FOUND_HEADS}
), ready AS MATERIALIZED (
    SELECT {ROW}
    FROM {sql.look_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
    WHERE found.state = 'ready'
    ORDER BY o.seq, o.route
    {sql.lock("o")}
)
SELECT * FROM ready UNION ALL SELECT * FROM found WHERE state <> 'ready'
""")

# Reads a fixed number of index entries per lane, however many deliveries wait.
#
# Without statistics Postgres would hash all waiting rows (24,000 read for 32 lanes, 5.9 ms instead of 0.2), which a
# LATERAL with a LIMIT prevents.
_FIRST_OF_LANE = sql.select_first(_LANES, "open_delivery o", f"{_OF_LANE} = 'waiting'", "o.occurred_at, o.seq", ":most")
_FIRST_WAITING = Statement(f"SELECT {ROW} FROM {_FIRST_OF_LANE}")


_WRITES = frozenset({"create", "update", "delete"})


def find_lanes_in_doubt(attempts: Iterable[tuple[Delivery, Outcome]]) -> set[Lane]:
    """Return the lanes of failed attempts whose writes may have had an effect.

    If the entity then returns to its earlier state, its hash looks unchanged, although the counterpart differs.
    """
    return {
        (delivery.route, delivery.lane)
        for delivery, outcome in attempts
        if isinstance(outcome, Failed)
        and delivery.applied_hash is not None
        and any(call.step in _WRITES and call.sent != "not_sent" for call in outcome.calls)
    }


def forget_applied(transaction: Transaction, lanes: Iterable[Lane]) -> None:
    """Forget the last applied hash of these lanes, so that the next attempt writes without comparing."""
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
"""The outcome can't be recorded; the delivery can't be ordered, rescued or loaded; the payload has been deleted."""


def quarantine(work: Work, key: Key, *, cause: Cause, error: Exception, token: int | None = None) -> facts.Dead | None:
    """Make an unprocessable delivery dead: one in flight under the lease of `token` or, without a token, received or ready.

    Its lane continues, even if the database rejects the alert.

    Args:
        work: the context of the step.
        key: the delivery.
        cause: the cause of the death.
        error: the error to store.
        token: the token of its lease; None if it must not be leased.

    Returns:
        The fact; None if the delivery has changed meanwhile.

    Raises:
        Exception: the fact could not be written.
    """
    # Without a lease, the delivery was not attempted. It may not be a head, so its death does not block the lane.
    is_leased = token is not None
    blocks = is_leased and work.policies.get(key[1], UNKNOWN_ROUTE).blocks_on_death
    fact = facts.Dead(cause=cause, error=error_text(error), blocks_lane=blocks, counted=is_leased)

    with work.write() as transaction:
        now = transaction.take_order_lock([key[1]])
        row = _find(transaction, key, token, now)
        if row is None:
            return None
        dead = apply_fact(row, fact, now)
        store_alerts(transaction, list_deaths([dead]), now)
        if is_leased:  # the attempt may have changed the other system
            forget_applied(transaction, [(row.route, row.lane)])
        write_back(transaction, settle_lanes(transaction, [dead], work.policies, now))
    return fact


def _find(transaction: Transaction, key: Key, token: int | None, now: datetime) -> OpenDelivery | None:
    """Read and lock the delivery without its times, which may be the unreadable part."""
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
