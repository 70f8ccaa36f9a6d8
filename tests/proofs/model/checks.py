"""Checks after every step: the stored state, leases, the order in lanes, results, and coverage."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from datetime import timedelta

from relay.daemon.leases import SAFETY_SECONDS
from relay.delivery import facts
from relay.delivery.gates import BreakerState, GateKey, make_entity_key
from relay.delivery.lifecycle import State
from relay.delivery.ordering import LastDelivered, covers
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.delivery.policy import CRASHES_UNTIL_DEAD
from relay.store.claim import PROBE_GIVEN_UP_AFTER
from tests.helpers.agreement import NOTHING_YET, follows, lanes_without_their_head
from tests.proofs.model.actors import Ledger, Snapshot, is_swept
from tests.proofs.model.world import (
    KEPT_REPEATS,
    OPEN_GATE,
    POLICIES,
    SKEW,
    Entry,
    History,
    Key,
    LaneKey,
    Repeat,
    Row,
    Stored,
)

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


# --- Checks of calls and results, and of gates.
# With two operations at once, a gate may change between its reading and a claim: only a gate that was the same before and
# after counts.


def find_a_repeated_call_that_nothing_explains(snapshot: Snapshot) -> Iterator[object]:
    """Require a failed or abandoned attempt before another call in a run, and its own number for each counted attempt.

    An uncounted attempt leaves its number to the next.
    """
    for call in snapshot.doing.calls:
        calls = [other for other in snapshot.ledger.calls[call.key] if other.run == call.run]
        failures = [
            entry
            for entry in snapshot.history.entries[call.key]
            if entry.before.run == call.run and isinstance(entry.fact, facts.AttemptFailed | facts.Abandoned)
        ]
        same = [other for other in calls if other.attempt == call.attempt]
        left = [entry for entry in failures if is_uncounted(entry.fact) and entry.standing.attempt + 1 == call.attempt]
        if len(calls) > 1 + len(failures) or len(same) > 1 + len(left):
            yield call, calls, failures


def is_uncounted(fact: facts.AnyFact) -> bool:
    return isinstance(fact, facts.AttemptFailed) and not fact.counted


_WORK = facts.DeliveredFact | Skipped | facts.AttemptFailed | facts.Dead | facts.Abandoned


def find_a_result_of_no_attempt(snapshot: Snapshot) -> Iterator[object]:
    """Require that every logged result is of an attempt of this relay, and agrees with the results returned to relays."""
    written = Counter(entry.key for entry in snapshot.new if isinstance(entry.fact, _WORK))
    told = Counter((r.delivery.seq, r.delivery.route) for r in snapshot.doing.results if r.fact is not None)
    told.update((seq, route) for seq, route, _ in snapshot.doing.rescued)
    if told != written:
        yield told, written
    for entry in snapshot.new:
        is_abandoned = isinstance(entry.fact, facts.Abandoned) or getattr(entry.fact, "cause", None) == "crash_loop"
        if isinstance(entry.fact, _WORK) and not is_abandoned:
            attempt = entry.standing.attempt + int(is_uncounted(entry.fact))
            made = (entry.relay_node, *entry.key, entry.before.run, attempt)
            if not any(
                made == (node, d.seq, d.route, d.run, d.attempt) and _comes_of(entry.fact, d, outcome)
                for node, d, outcome in snapshot.doing.handed_in
            ):
                yield entry, snapshot.doing.handed_in


def _comes_of(fact: facts.AnyFact, delivery: Delivery, outcome: Outcome) -> bool:
    match outcome, fact:
        case Delivered(), facts.DeliveredFact(late=late, fetch_began_at=began, last_modified=modified):
            return (late, began, modified) == (delivery.late, outcome.fetch_began_at, outcome.last_modified)
        case Failed(error_class=error_class), facts.AttemptFailed():
            return error_class == fact.error_class
        case Failed(error_class=error_class), facts.Dead(cause=cause):
            return cause in {error_class, "exhausted"}
        case _:
            return isinstance(outcome, Skipped) and isinstance(fact, Skipped)


def find_a_refused_result_changed_something(snapshot: Snapshot) -> Iterator[object]:
    results = snapshot.doing.results
    are_refused = bool(results) and all(result.fact is None for result in results)
    has_changed = snapshot.before != snapshot.after or snapshot.new
    if snapshot.doing.operations == 1 and are_refused and has_changed:
        yield results, snapshot.new


def breaker(stored: Stored, gate: GateKey) -> BreakerState:
    return stored.gates.get(gate, OPEN_GATE).breaker


def is_paused(stored: Stored, ledger: Ledger, key: Key) -> bool:
    event = ledger.events[key[0]]
    entity = make_entity_key(event.source, event.entity_type or "", event.entity_id or "")
    return any(stored.gates.get(gate, OPEN_GATE).is_paused for gate in (*POLICIES[key[1]].gates, entity))


def find_claimed_while_it_is_paused(snapshot: Snapshot) -> Iterator[object]:
    for delivery in snapshot.doing.claimed:
        key = (delivery.seq, delivery.route)
        if all(is_paused(stored, snapshot.ledger, key) for stored in (snapshot.earlier, snapshot.stored)):
            yield delivery


def find_claimed_while_the_endpoint_is_stopped(snapshot: Snapshot) -> Iterator[object]:
    probes = {delivery.lease_token for delivery in snapshot.doing.probes}
    for delivery in snapshot.doing.claimed:
        for gate in POLICIES[delivery.route].breakers if delivery.lease_token not in probes else ():
            if BreakerState.CLOSED not in {breaker(snapshot.earlier, gate), breaker(snapshot.stored, gate)}:
                yield delivery, gate


def find_two_try_one_breaker(snapshot: Snapshot) -> Iterator[object]:
    """Require that a probe begins when the breaker is due, after the end of the previous probe."""
    probed = [(delivery, gate) for delivery in snapshot.doing.probes for gate in POLICIES[delivery.route].breakers]
    times = Counter(gate for _, gate in probed)
    for delivery, gate in probed:
        before, after = (stored.gates.get(gate, OPEN_GATE) for stored in (snapshot.earlier, snapshot.stored))
        is_due = before.until is not None and before.until <= snapshot.now
        is_noted = after.breaker is BreakerState.HALF_OPEN and after.until == snapshot.now + PROBE_GIVEN_UP_AFTER
        is_wrong = not is_due or (snapshot.doing.operations == 1 and (not is_noted or times[gate] > 1))
        if is_wrong and before.breaker is not BreakerState.CLOSED:  # otherwise it was opened meanwhile
            yield delivery, before, after


# --- Checks of superseded events (folded, dropped or healed), and of those that a duplicate rearms


_NO_REPEAT = Repeat(0, 0, is_handled=False)


def find_superseded_without_a_stand_in(snapshot: Snapshot) -> Iterator[object]:
    """Require that a superseded event has a stand-in of its lane.

    In `latest`, a newer open or delivered event, or a success that covers it; in `strict`, a delivered sweep's event of
    the same change that stands for no other.
    """
    for entry, fact in snapshot.told(facts.Superseded):
        by = (fact.by, entry.key[1])
        of_its_lane = snapshot.ledger.lanes.get(by) == snapshot.ledger.lanes[entry.key]
        ordering = "strict" if fact.because == "swept" else "latest"
        if not of_its_lane or POLICIES[entry.key[1]].ordering != ordering or not _stands_for(snapshot, entry, by):
            yield entry


def _stands_for(snapshot: Snapshot, entry: Entry, by: Key) -> bool:
    newer, successes = snapshot.ledger.order(by) > snapshot.ledger.order(entry.key), snapshot.history.successes
    match entry.fact:
        case facts.Superseded(because="newer"):
            return newer and entry.before.state is State.RECEIVED
        case facts.Superseded(because="healed"):
            died = max(each.number for each in snapshot.history.entries[entry.key] if each.number < entry.number)
            later = {each.key for each in successes if each.number > died}
            return newer and entry.before.state is State.DEAD and by in later
        case facts.Superseded(because="swept"):
            event, swept = (snapshot.ledger.events[key[0]] for key in (entry.key, by))
            same = (event.event_type, event.occurred_at) == (swept.event_type, swept.occurred_at)
            was = any(each.key == by and each.number < entry.number for each in successes)
            alone = snapshot.history.told[by] == [entry]
            return same and was and alone and is_swept(swept) and not is_swept(event) and entry.before == NOTHING_YET
        case _:
            last = snapshot.last_before(entry)
            is_by = last is not None and last.seq == by[0]
            return is_by and is_covered(snapshot.ledger, entry.key, last) and entry.before == NOTHING_YET


def is_covered(ledger: Ledger, key: Key, last: LastDelivered | None) -> bool:
    """Return whether the lane's last success certainly includes the change of this event."""
    return last is not None and covers(last, ledger.order(key), SKEW)


def find_dead_though_a_later_one_succeeded(snapshot: Snapshot) -> Iterator[object]:
    """Require in `latest` that the dead are healed by the delivery of a later event of their lane."""
    for success, _ in snapshot.told(facts.DeliveredFact):
        if POLICIES[success.key[1]].ordering == "latest":
            for key in healable(snapshot.history, snapshot.ledger, snapshot.after, success):
                yield key, success


def healable(history: History, ledger: Ledger, rows: Mapping[Key, Row], success: Entry) -> list[Key]:
    """Return the dead deliveries that this success heals."""
    return [
        key
        for key, row in rows.items()
        if row.state is State.DEAD
        and ledger.lanes[key] == ledger.lanes[success.key]
        and ledger.order(key) < ledger.order(success.key)
        and history.entries[key][-1].number < success.number
    ]


def find_rearmed_without_need(snapshot: Snapshot) -> Iterator[object]:
    for entry, fact in snapshot.told(facts.Rearmed):
        was, is_now = (each.repeats.get(fact.duplicate, _NO_REPEAT) for each in (snapshot.earlier, snapshot.stored))
        last, is_right = snapshot.last_before(entry), is_now == Repeat(entry.key[0], was.times, is_handled=True)
        is_needed = POLICIES[entry.key[1]].ordering == "latest" and not is_covered(snapshot.ledger, entry.key, last)
        if was.is_handled or not is_right or not is_needed:
            yield entry, was, is_now, last


def find_a_repeat_is_judged_wrongly(snapshot: Snapshot) -> Iterator[object]:
    """Require that all duplicates are judged, except for deliveries in flight that are not covered."""
    rearmed = {entry.key for entry, _ in snapshot.told(facts.Rearmed)}
    is_alone = snapshot.doing.judged and snapshot.doing.operations == 1
    for number, repeat in snapshot.earlier.repeats.items() if is_alone else ():
        key = (repeat.seq, "latest")
        lane, row = snapshot.ledger.lanes.get(key), snapshot.before.get(key)
        needed = lane is not None and not is_covered(snapshot.ledger, key, snapshot.lasts.get(lane))
        waits = needed and row is not None and row.state is State.IN_FLIGHT
        again = needed and (row is None or row.state is State.DEAD)
        if not repeat.is_handled and (
            snapshot.stored.repeats[number].is_handled == waits or (again and key not in rearmed)
        ):
            yield number, repeat, row, lane and snapshot.lasts.get(lane)
