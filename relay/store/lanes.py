"""Lanes: reads and settles them (the shell around `relay.delivery.ordering`), and sets aside what stops them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Literal, NamedTuple

from inbox.db.dialect import error_text
from relay.delivery import facts
from relay.delivery.alerts import deaths
from relay.delivery.lifecycle import OpenDelivery, State, append
from relay.delivery.ordering import LanePosition, settle
from relay.delivery.outcome import Delivery, Failed, Outcome
from relay.delivery.policy import UNKNOWN_ROUTE, Policies
from relay.store.alerts import note
from relay.store.deliveries import ROW, Key, Lane, as_open_delivery, write_back
from relay.store.statement import Statement, sql
from relay.store.transaction import Read, Transaction
from relay.store.work import Work

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
    SELECT {ROW} FROM {sql.looked_up(_LANES, "open_delivery o", f"{_OF_LANE} IN ('ready', 'in_flight', 'blocked')")}
), ready AS MATERIALIZED (
    SELECT {ROW}
    FROM {sql.looked_up("found", "open_delivery o", "o.seq = found.seq AND o.route = found.route")}
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
        now = transaction.lock_order([key[1]])
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
