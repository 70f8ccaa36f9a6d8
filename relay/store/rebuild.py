"""Rebuild: repairs the findings of `verify` in place, chunk by chunk, while receivers and relays run.

It locks only deliveries with findings, and examines them again under the lock. Replacing whole tables would lose rows
written meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial

import msgspec

from inbox.config.model import Config
from inbox.config.routing import OWN_LANE, name_lane
from inbox.events.timestamps import as_time
from relay.delivery import facts
from relay.delivery.lifecycle import OPEN, OpenDelivery, State, restore
from relay.delivery.policy import policies
from relay.store.audit import Checked, Difference, Stored, examine, examine_all
from relay.store.database import Database
from relay.store.deliveries import Lane, remove, write_back
from relay.store.record import LaneRow, remember_delivered
from relay.store.reopen import insert
from relay.store.sequence import settle_lanes
from relay.store.statement import Statement, sql
from relay.store.transaction import Transaction
from relay.store.work import Work, process_in_parts


def rebuild(database: Database, config: Config, *, who: str, why: str) -> Iterator[Checked]:
    """Restore `open_delivery` and `lane` to the state that follows from the log.

    A delivery that lost its row gets it back, an ended delivery loses its row, and a lane without a head gets one. If a
    fact can't follow the previous one, both stay, and a fact `corrected` confirms the last one. Running calls are not
    disturbed, unless their delivery must not be open.

    Yields:
        The repaired differences of each chunk. Differences in flight or beyond repair are left out; `verify` reports them.
    """
    work = Work(database, config, policies(config))
    for checked, wrong in examine_all(database, config):
        parts = process_in_parts(
            work,
            "rebuild",
            sorted({stored.seq for stored in wrong}),
            process=partial(_repair, work, who, why),
            name=lambda seq: f"seq={seq}",
        )
        yield msgspec.structs.replace(checked, differences=tuple(found for part in parts for found in part))


def _repair(work: Work, who: str, why: str, seqs: Sequence[int]) -> list[Difference]:
    """Examine these seqs again under the order lock, and repair the differences that remain.

    Receivers don't take that lock, but the events that they add have different seqs.
    """
    with work.database.write() as transaction:
        now = transaction.take_order_lock(keeps_payloads=True)  # retention deletes no event whose facts are read here
        _, wrong = examine(transaction, seqs, work.config, locked=True)
        gone = _remove_strays(transaction, [stored for stored in wrong if stored.event is None])
        planned = [(stored, _restore(stored, work.config, who, why)) for stored in wrong if stored.event is not None]
        mended = [(stored, must) for stored, must in planned if must.state is not State.IN_FLIGHT]
        # A ready head waits behind a restored blocked delivery; behind one in flight, it can be restored by a later run.
        blocked = [(must.route, must.lane) for _, must in mended if must.state is State.BLOCKED]
        transaction.execute(_DEMOTE, lanes=blocked)
        new = [(stored.row, must) for stored, must in mended if _is_new(stored.row, must)]
        remove(transaction, (row for row, _ in new if row is not None))
        if new:
            insert(transaction, (must for _, must in new))
        changed = [must for _, must in mended]
        lanes = {(stored.row.route, stored.row.lane) for stored in wrong if stored.row is not None}
        write_back(transaction, settle_lanes(transaction, changed, work.policies, now, lanes))
        remember_delivered(transaction, _list_last_delivered(wrong))
    done = {id(stored) for stored in (*gone, *(stored for stored, _ in mended))}
    return [
        found
        for stored in wrong
        for found in stored.differences
        if id(stored) in done or found.finding == "last_delivered"
    ]


def _restore(stored: Stored, config: Config, who: str, why: str) -> OpenDelivery:
    """Return the delivery as its facts imply, with any fact to append; unchanged if it may stay in flight."""
    row, event, log = stored.row, stored.event, stored.log
    if row is not None and not stored.is_expected:
        return msgspec.structs.replace(row, state=State.ENDED)
    if row is None or row.lane not in stored.lanes or row.occurred_at != as_time(event.occurred_at):
        row = OpenDelivery(
            stored.seq, stored.route, _choose_lane(stored, config), as_time(event.occurred_at), State.RECEIVED
        )
    elif row.state is State.IN_FLIGHT and log.last.state in OPEN:
        return row
    must = restore(row, log.last, log.due_at)
    if not log.contradiction:
        return must
    corrected = facts.Corrected(who=who, why=f"{why}: {log.contradiction}")
    return msgspec.structs.replace(must, facts=(corrected,), standings=(log.last,))


def _choose_lane(stored: Stored, config: Config) -> str:
    """Return the lane that the event would get if it arrived now; on an unknown route, its entity's."""
    event = stored.event
    if stored.route in config.routes:
        route = config.routes[stored.route]
        return name_lane(route, entity_type=event.entity_type, entity_id=event.entity_id, key=event.dedup_key)
    return max(stored.lanes, key=lambda lane: (not lane.startswith(OWN_LANE), len(lane)))


def _is_new(row: OpenDelivery | None, must: OpenDelivery) -> bool:
    """Return whether the delivery needs a new row: it has none, or one with another lane or time."""
    fits = row is not None and (row.lane, row.occurred_at) == (must.lane, must.occurred_at)
    return must.state is not State.ENDED and not fits


def _remove_strays(transaction: Transaction, strays: Sequence[Stored]) -> list[Stored]:
    """Remove rows without an event, and return the removed ones.

    The statement checks for the event itself: on Postgres it may have been committed after the rows were read.
    """
    if not strays:
        return []
    keys = [(stored.seq, stored.route) for stored in strays]
    removed = {(row.seq, row.route) for row in transaction.execute(_REMOVE, strays=keys)}
    return [stored for stored in strays if (stored.seq, stored.route) in removed]


def _list_last_delivered(wrong: Iterable[Stored]) -> list[LaneRow]:
    """Return the newest delivery of each lane that does not remember it, without its hash, which the log lacks."""
    newest: dict[Lane, LaneRow] = {}
    late = [stored for stored in wrong if any(found.finding == "last_delivered" for found in stored.differences)]
    for stored in sorted(late, key=lambda stored: (as_time(stored.event.occurred_at), stored.seq)):
        began, modified = stored.log.delivered.fetch_began_at, stored.log.delivered.last_modified
        lane, at = (stored.route, stored.lane_of_success or ""), as_time(stored.event.occurred_at)
        newest[lane] = (*lane, at, stored.seq, began and as_time(began), modified and as_time(modified), None)
    return list(newest.values())


_REMOVE = Statement(f"""
DELETE FROM open_delivery
WHERE (seq, route) IN (SELECT strays.seq, strays.route FROM {sql.keys("strays")})
  AND NOT EXISTS (SELECT 1 FROM inbox i WHERE i.seq = open_delivery.seq)
RETURNING seq, route
""")

_DEMOTE = Statement(f"""
UPDATE open_delivery SET state = 'waiting', due_at = NULL
WHERE (route, lane) IN (SELECT lanes.route, lanes.lane FROM {sql.rows("lanes", route="text", lane="text")}) AND state = 'ready'
""")
