"""Checks of the stored state against the facts, of leases, and of the order in lanes."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from datetime import timedelta
from itertools import pairwise

from relay.daemon.leases import SAFETY_SECONDS
from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.outcome import Delivery
from relay.delivery.policy import CRASHES_UNTIL_DEAD
from tests.helpers.agreement import NOTHING_YET, follows, lanes_without_their_head
from tests.proofs.model.actors import Snapshot
from tests.proofs.model.world import KEPT_REPEATS, SCHEDULE, Entry, LaneKey, Repeat

TO_SPARE = timedelta(seconds=SAFETY_SECONDS)
_UNTOUCHED = frozenset({State.WAITING, State.READY})


def find_an_acknowledged_event_is_not_stored_once(snapshot: Snapshot) -> Iterator[object]:
    expected = sorted((seq, event.dedup_key) for seq, event in snapshot.ledger.events.items())
    if expected != snapshot.stored.inbox:
        yield expected, snapshot.stored.inbox


def find_a_delivery_is_lost(snapshot: Snapshot) -> Iterator[object]:
    for key in snapshot.ledger.lanes.keys() - snapshot.after.keys():
        if snapshot.history.standing.get(key, NOTHING_YET).state is not State.ENDED:
            yield key


def find_an_unexpected_delivery(snapshot: Snapshot) -> Iterator[object]:
    yield from (snapshot.after.keys() | snapshot.history.standing.keys()) - snapshot.ledger.lanes.keys()


def find_the_facts_say_something_else(snapshot: Snapshot) -> Iterator[object]:
    yield from snapshot.history.impossible.items()
    for key, row in snapshot.after.items():
        said = snapshot.history.standing.get(key, NOTHING_YET)
        if not follows(said, row.state, attempt=row.attempt, run=row.run, crashes=row.crashes, due_at=row.due_at):
            yield said, row


def find_a_lane_without_its_one_head(snapshot: Snapshot) -> Iterator[object]:
    yield from lanes_without_their_head((row.lane_key, row.state) for row in snapshot.after.values())


def find_the_lane_remembers_something_else(snapshot: Snapshot) -> Iterator[object]:
    if snapshot.lasts != snapshot.stored.lanes:
        yield snapshot.lasts, snapshot.stored.lanes


def find_a_repeat_is_lost(snapshot: Snapshot) -> Iterator[object]:
    """Require every duplicate as a row or a count to be judged, with a limited number of rows for each event."""
    repeats = snapshot.stored.repeats.values()
    rows, stored = Counter(repeat.seq for repeat in repeats), _times(repeats)
    too_many = [seq for seq, number in rows.items() if number > KEPT_REPEATS]
    to_judge = {repeat.seq for repeat in repeats if not repeat.is_handled}
    unseen = (stored - _times(snapshot.earlier.repeats.values())).keys() - to_judge
    if stored != snapshot.ledger.repeats or too_many or unseen:
        yield stored, snapshot.ledger.repeats, too_many, unseen


def _times(repeats: Iterable[Repeat]) -> Counter[int]:
    """Count the duplicates of each event."""
    times: Counter[int] = Counter()
    for repeat in repeats:
        times[repeat.seq] += repeat.times
    return times


def find_verify_finds_a_difference(snapshot: Snapshot) -> Iterator[object]:
    yield from snapshot.doing.differences


def find_two_trust_a_lease_of_one_lane(snapshot: Snapshot) -> Iterator[object]:
    """Require one trusted lease per lane, except for those with an outcome, which make no more calls."""
    trusting: dict[LaneKey, list[tuple[str, Delivery]]] = defaultdict(list)
    for relay, held in snapshot.held():
        if held.outcome is None:
            trusting[held.lane].append((relay.node, held.delivery))
    yield from ((lane, holders) for lane, holders in trusting.items() if len(holders) > 1)


def find_a_trusted_lease_is_not_in_force(snapshot: Snapshot) -> Iterator[object]:
    """Require that a lease outlasts the relay's trust in it, until it is recorded or given back."""
    for relay, held in snapshot.held():
        row = snapshot.after.get(held.key)
        is_his = row and (row.lease_token, row.relay_node) == (held.delivery.lease_token, relay.node)
        lasts = row is not None and row.lease_until is not None and row.lease_until - TO_SPARE >= held.trusted_until
        if not held.is_handed_in and not (is_his and lasts):
            yield relay.node, held, row


def find_abandoned_by_another_relay(snapshot: Snapshot) -> Iterator[object]:
    for entry, fact in snapshot.told(facts.Abandoned):
        if fact.relay_node != snapshot.before[entry.key].relay_node:
            yield entry, snapshot.before[entry.key]


def find_a_crash_loop_of_too_few_attempts(snapshot: Snapshot) -> Iterator[object]:
    """Require enough consecutive abandoned attempts for a crash loop, including those taken over."""
    for entry, fact in snapshot.told(facts.Dead):
        if fact.cause == "crash_loop" and entry.before.crashes + 1 < CRASHES_UNTIL_DEAD:
            yield entry, snapshot.history.entries[entry.key]


def find_claimed_before_an_earlier_one(snapshot: Snapshot) -> Iterator[object]:
    """Require that the earliest delivery of a lane is claimed first, and first again after it was given back.

    Only a replay goes back later.
    """
    for delivery in snapshot.doing.claimed:
        lane, is_again = (delivery.route, delivery.lane), delivery.attempt > 1
        is_first = not is_again or snapshot.ledger.claimed.get((delivery.seq, delivery.route)) == snapshot.ledger.step
        if delivery.run == 0 and is_first and not snapshot.ledger.is_kept_in_place(lane, delivery.attempt):
            for key, row in snapshot.before.items():
                is_older = row.lane_key == lane and row.order < (delivery.occurred_at, delivery.seq)
                still_waits = key in snapshot.after and snapshot.after[key].state in _UNTOUCHED
                if is_older and still_waits and row.state in _UNTOUCHED:
                    yield delivery, row


def find_claimed_before_it_is_due(snapshot: Snapshot) -> Iterator[object]:
    for delivery in snapshot.doing.claimed:
        said = snapshot.history.standing.get((delivery.seq, delivery.route), NOTHING_YET)
        if said.due_at is not None and said.due_at > snapshot.now:
            yield delivery, said


def find_called_after_a_later_one(snapshot: Snapshot) -> Iterator[object]:
    """Require that a delivery called after a later one entered the lane after the claim of that one."""
    ledger = snapshot.ledger
    for call in snapshot.doing.calls:
        if call.run == 0 and len(ledger.calls[call.key]) == 1:
            for key, claimed in ledger.claimed.items():
                is_later = ledger.lanes[key] == ledger.lanes[call.key] and ledger.order(key) > ledger.order(call.key)
                calls = ledger.calls[key] if is_later and claimed > ledger.ordered[call.key] else []
                if calls and not ledger.is_kept_in_place(ledger.lanes[key], calls[0].attempt):
                    yield call, key


def find_late_is_marked_wrongly(snapshot: Snapshot) -> Iterator[object]:
    """Require the mark `late` exactly after the delivery of a later event of the lane."""
    for delivery in snapshot.doing.claimed:
        is_late = any(
            snapshot.ledger.lanes[success.key] == (delivery.route, delivery.lane)
            and snapshot.ledger.order(success.key) > (delivery.occurred_at, delivery.seq)
            for success in snapshot.history.successes
        )
        if delivery.late != is_late:
            yield delivery


def find_a_retry_that_does_not_go_on(snapshot: Snapshot) -> Iterator[object]:
    """Require that a takeover keeps attempts and crashes, and is due between the old due time and the first delay."""
    for entry, taken in snapshot.told(facts.TookOver):
        entries = snapshot.history.entries[taken.of, entry.key[1]]
        if not any(_goes_on(entry, taken, *pair) for pair in pairwise(entries) if pair[1] in snapshot.new):
            yield entry, entries


def _goes_on(entry: Entry, taken: facts.TookOver, before: Entry, superseded: Entry) -> bool:
    """Return whether the takeover continues this superseded delivery."""
    latest = entry.at + SCHEDULE[0]
    given = (superseded.standing.attempt, superseded.standing.crashes)
    is_due = min(getattr(before.fact, "due_at", before.at), latest) <= taken.due_at <= latest
    return is_due and given == (taken.attempt, taken.crashes) and getattr(superseded.fact, "by", None) == entry.key[0]
