"""Checks of the relays that work on a lane, and of those that are taken to have died."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta

from relay.daemon.lease_renewal import SAFETY_SECONDS
from relay.delivery import facts
from relay.delivery.outcome import Delivery
from relay.delivery.policy import CRASHES_ALLOWED
from tests.proofs.model.history import Entry, History, LaneKey
from tests.proofs.model.snapshot import Snapshot


def one_trusted_lease_per_lane(snapshot: Snapshot) -> Sequence[object]:
    """Require one trusted lease per lane. One with only a result to record does not count: nothing more is done under it."""
    trusting: dict[LaneKey, list[tuple[str, Delivery]]] = defaultdict(list)
    for relay in snapshot.relays:
        for held in relay.held.values():
            if held.outcome is None and snapshot.now < held.trusted_until:
                trusting[held.lane].append((relay.node, held.delivery))
    return [(lane, holders) for lane, holders in trusting.items() if len(holders) > 1]


def every_trusted_lease_is_in_force(snapshot: Snapshot) -> Sequence[object]:
    """In the database it ends later than the relay's trust in it, whatever others do; until it is recorded or given back."""
    evidence = []
    for relay in snapshot.relays:
        for held in relay.held.values():
            if held.is_handed_in or snapshot.now >= held.trusted_until:
                continue
            row = snapshot.after.get(held.key)
            if (
                row is None
                or row.lease_until is None
                or (row.lease_token, row.relay_node) != (held.delivery.lease_token, relay.node)
                or row.lease_until - TO_SPARE < held.trusted_until
            ):
                evidence.append((relay.node, held, row))
    return evidence


TO_SPARE = timedelta(seconds=SAFETY_SECONDS)


def abandoned_by_their_holders(snapshot: Snapshot) -> Sequence[object]:
    return [
        (entry, snapshot.before[entry.key])
        for entry in snapshot.new
        if isinstance(entry.fact, facts.Abandoned) and entry.fact.relay_node != snapshot.before[entry.key].relay_node
    ]


def is_abandoned(fact: facts.AnyFact) -> bool:
    return isinstance(fact, facts.Abandoned) or (isinstance(fact, facts.Dead) and fact.cause == "crash_loop")


def crash_loops_are_of_the_dead(snapshot: Snapshot) -> Sequence[object]:
    """Set aside only when the last holders, so many in a row, were never heard of again."""
    evidence = []
    for entry in snapshot.new:
        if isinstance(entry.fact, facts.Dead) and entry.fact.cause == "crash_loop":
            row = snapshot.before[entry.key]
            before = _abandoned_in_a_row(snapshot.history, entry)
            holders = [(str(row.relay_node), snapshot.now), *before][:CRASHES_ALLOWED]
            heard = [node for node, at in holders if snapshot.ledger.heartbeats[node] > at]
            if len(holders) != CRASHES_ALLOWED or heard:
                evidence.append((entry, holders, heard))
    return evidence


def _abandoned_in_a_row(history: History, dead: Entry) -> list[tuple[str, datetime]]:
    """List who abandoned it before, and when. One that took over an older one's retry continues that one's attempts."""
    found: list[tuple[str, datetime]] = []
    key, number = dead.key, dead.number
    while True:
        for entry in reversed(history.entries[key]):
            if entry.number >= number:
                continue
            match entry.fact:
                case facts.Abandoned(relay_node=node):
                    found.append((node, entry.at))
                case facts.TookOver(of=of):
                    key, number = (of, key[1]), entry.number
                    break
                case facts.Superseded():
                    continue  # what it was superseded by took over from it
                case _:
                    return found
        else:
            return found
