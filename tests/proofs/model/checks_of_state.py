"""Checks of what is stored and follows from the facts, of who holds a lane, and of what goes first in it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import pairwise

from relay.daemon.leases import SAFETY_SECONDS
from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Delivery
from relay.delivery.policy import CRASHES_UNTIL_DEAD
from tests.helpers.agreement import NOTHING_YET, follows, lanes_without_their_head
from tests.proofs.model.history import Entry, History, LaneKey
from tests.proofs.model.receiver import KEPT_REPEATS
from tests.proofs.model.snapshot import Snapshot
from tests.proofs.model.world import SCHEDULE, Repeat


def acknowledged_is_stored_once(snapshot: Snapshot) -> Sequence[object]:
    expected = sorted((seq, event.dedup_key) for seq, event in snapshot.ledger.events.items())
    return [] if expected == snapshot.stored.inbox else [(expected, snapshot.stored.inbox)]


def every_delivery_is_open_or_ended(snapshot: Snapshot) -> Sequence[object]:
    return [
        key
        for key in snapshot.ledger.lanes
        if key not in snapshot.after and snapshot.history.standing.get(key, NOTHING_YET).state is not State.ENDED
    ]


def nothing_is_made_up(snapshot: Snapshot) -> Sequence[object]:
    return sorted((snapshot.after.keys() | snapshot.history.standing.keys()) - snapshot.ledger.lanes.keys())


def facts_fold_to_the_rows(snapshot: Snapshot) -> Sequence[object]:
    evidence: list[object] = list(snapshot.history.impossible.items())
    for key, row in snapshot.after.items():
        standing = snapshot.history.standing.get(key, NOTHING_YET)
        if not follows(standing, row.state, attempt=row.attempt, run=row.run, crashes=row.crashes, due_at=row.due_at):
            evidence.append((standing, row))
    return evidence + [
        key
        for key, standing in snapshot.history.standing.items()
        if standing.state is State.ENDED and key in snapshot.after
    ]


def waiting_lanes_have_one_head(snapshot: Snapshot) -> Sequence[object]:
    return list(lanes_without_their_head(((row.route, row.lane), row.state) for row in snapshot.after.values()))


def lane_remembers_its_last_success(snapshot: Snapshot) -> Sequence[object]:
    return [] if snapshot.lasts == snapshot.stored.lanes else [(snapshot.lasts, snapshot.stored.lanes)]


def every_repeat_is_stored(snapshot: Snapshot) -> Sequence[object]:
    """As a row or as a count, which is to be judged; of each event so many rows at most."""
    repeats = snapshot.stored.repeats.values()
    rows, stored = Counter(repeat.seq for repeat in repeats), _times(repeats)
    too_many = [seq for seq, number in rows.items() if number > KEPT_REPEATS]
    to_judge = {repeat.seq for repeat in repeats if not repeat.is_handled}
    unseen = (stored - _times(snapshot.earlier.repeats.values())).keys() - to_judge
    agrees = stored == snapshot.ledger.repeats and not too_many and not unseen
    return [] if agrees else [(stored, snapshot.ledger.repeats, too_many, unseen)]


def _times(repeats: Iterable[Repeat]) -> Counter[int]:
    """Count the duplicates of each event."""
    times: Counter[int] = Counter()
    for repeat in repeats:
        times[repeat.seq] += repeat.times
    return times


def verify_agrees(snapshot: Snapshot) -> Sequence[object]:
    return snapshot.doing.differences


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


def crash_loops_are_abandoned_in_a_row(snapshot: Snapshot) -> Sequence[object]:
    """Set aside only after so many abandoned attempts in a row."""
    evidence = []
    for entry in snapshot.new:
        if isinstance(entry.fact, facts.Dead) and entry.fact.cause == "crash_loop":
            row = snapshot.before[entry.key]
            before = _abandoned_in_a_row(snapshot.history, entry)
            holders = [(str(row.relay_node), snapshot.now), *before][:CRASHES_UNTIL_DEAD]
            if len(holders) != CRASHES_UNTIL_DEAD:
                evidence.append((entry, holders))
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
                case facts.TookOver() as taken:
                    taker, key = key[0], (taken.of, key[1])
                    number = _superseded_by(taker, history.entries[key], entry, taken)
                    break
                case _:
                    return found
        else:
            return found


def _superseded_by(taker: int, entries: Sequence[Entry], took_over: Entry, taken: facts.TookOver) -> int:
    """Return the number of the fact with which it gave its attempts to the taker: facts of one moment have any order.

    In the same moment it may begin another run and be superseded by the taker again, which takes no attempts over then.
    """
    given = (entry for entry in entries if isinstance(entry.fact, facts.Superseded) and entry.fact.by == taker)
    numbers = (
        entry.number
        for entry in given
        if entry.at <= took_over.at
        and (entry.standing.attempt, entry.standing.crashes) == (taken.attempt, taken.crashes)
    )
    return max(numbers, default=took_over.number)


def first_claims_are_in_order(snapshot: Snapshot) -> Sequence[object]:
    """Of those that were in their lane before, the earliest is claimed first, and first again when it was given back.

    Afterwards only a replay goes back.
    """
    return [
        (delivery, row)
        for delivery in snapshot.doing.claimed
        if delivery.run == 0
        and (delivery.attempt == 1 or snapshot.ledger.claimed[delivery.seq, delivery.route] == snapshot.ledger.step)
        and not snapshot.ledger.is_kept_in_place((delivery.route, delivery.lane), delivery.attempt)
        for key, row in snapshot.before.items()
        if (row.route, row.lane) == (delivery.route, delivery.lane)
        and row.state in _UNTOUCHED
        and row.order < (delivery.occurred_at, delivery.seq)
        and key in snapshot.after
        and snapshot.after[key].state in _UNTOUCHED
    ]


_UNTOUCHED = frozenset({State.WAITING, State.READY})


def claims_are_due(snapshot: Snapshot) -> Sequence[object]:
    return [
        (delivery, standing)
        for delivery in snapshot.doing.claimed
        if (standing := snapshot.history.standing.get((delivery.seq, delivery.route)))
        and standing.due_at is not None
        and standing.due_at > snapshot.now
    ]


def first_calls_are_in_order(snapshot: Snapshot) -> Sequence[object]:
    """Require that a delivery called after a later one of its lane came into the lane after that one was claimed."""
    ledger = snapshot.ledger
    return [
        (call, key)
        for call in snapshot.doing.calls
        if call.run == 0 and len(ledger.calls[call.key]) == 1
        for key, claimed in ledger.claimed.items()
        if ledger.calls[key]
        and not ledger.is_kept_in_place(ledger.lanes[key], ledger.calls[key][0].attempt)
        and ledger.lanes[key] == ledger.lanes[call.key]
        and ledger.order(key) > ledger.order(call.key)
        and claimed > ledger.ordered[call.key]
    ]


def late_is_marked(snapshot: Snapshot) -> Sequence[object]:
    """Require the mark `late` exactly where a later event of the lane has been delivered."""
    return [
        delivery
        for delivery in snapshot.doing.claimed
        if delivery.late
        != any(
            snapshot.ledger.lanes[success.key] == (delivery.route, delivery.lane)
            and snapshot.ledger.order(success.key) > (delivery.occurred_at, delivery.seq)
            for success in snapshot.history.successes
        )
    ]


def retries_that_are_taken_over_go_on(snapshot: Snapshot) -> Sequence[object]:
    """With the attempts of the older one, no sooner than its next was due, and no later than the first delay."""
    return [
        (entry, snapshot.history.entries[entry.fact.of, entry.key[1]])
        for entry in snapshot.new
        if isinstance(entry.fact, facts.TookOver) and not _goes_on(snapshot, entry, entry.fact)
    ]


def _goes_on(snapshot: Snapshot, entry: Entry, taken: facts.TookOver) -> bool:
    """From where the older one stood when it was superseded; that may have happened to it more than once in a step."""
    latest = entry.at + SCHEDULE[0]
    entries = snapshot.history.entries[taken.of, entry.key[1]]
    return any(
        taken.attempt == superseded.attempt
        and min(getattr(before.fact, "due_at", before.at), latest) <= taken.due_at <= latest
        for before, superseded in pairwise(entries)
        if superseded in snapshot.new and getattr(superseded.fact, "by", None) == entry.key[0]
    )
