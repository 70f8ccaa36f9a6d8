"""The end of every run: a healthy relay finishes everything."""

from __future__ import annotations

from datetime import timedelta

from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.ordering import LastDelivered
from relay.delivery.outcome import Skipped
from relay.operations.asks import Selection
from tests.proofs.model.actors import FETCHED, SUCCEEDED, Relay, Violation
from tests.proofs.model.checks_of_coverage import healable, is_covered
from tests.proofs.model.rules import gate_of
from tests.proofs.model.stage import Stage
from tests.proofs.model.world import POLICIES, ROUTES, SKEW, Entry, Key

_LONG_ENOUGH = 100
"""Seconds after which all leases have expired and all retries are due."""
_ROUNDS = 100
"""More rounds than deliveries in a run; each round ends at least one."""


def finish(stage: Stage) -> None:
    """Let a new relay finish everything.

    Raises:
        Violation: a delivery is stuck or ended wrongly.
    """
    relay = stage.relays[0]
    for each in stage.relays:
        each.restart()
    stage.perform(stage.make.start(relay))
    for gate in stage.list_paused_gates():
        stage.perform(stage.make.turn("resume", gate_of(gate)))
    stage.everything_holds()
    for _ in range(_ROUNDS):
        if not is_left(stage):
            break
        if not _go_round(stage, relay) and is_left(stage):
            raise Violation("a delivery is stuck", list(stage.open.values()))
    else:
        raise Violation("it takes for ever", list(stage.open.values()))
    stage.perform(stage.make.verify())
    stage.everything_holds()
    if evidence := find_left_dead(stage):
        raise Violation("dead though a later one succeeded", evidence)
    if evidence := [*find_wrong_ends(stage), *find_lost_changes(stage)]:
        raise Violation("it ended wrongly", evidence)


def _go_round(stage: Stage, relay: Relay) -> bool:
    """Run a round of a relay, and of an operator for blocked lanes; return whether anything was done."""
    stage.advance(_LONG_ENOUGH)
    for kind in ("reap", "judge", "sequence all"):
        stage.let(relay, kind)
    stage.everything_holds()
    stage.perform(stage.make.claim(relay, ROUTES, 500))
    for route in stage.suspects():
        stage.perform(stage.make.claim_suspect(relay, [route]))
    for route in ROUTES if stage.list_stopped_gates() else ():
        stage.perform(stage.make.probe(relay, [route]))
    if relay.held:
        stage.everything_holds()
    for held in relay.held.values():
        stage.end(relay, held, FETCHED if held.delivery.seq % 2 else SUCCEEDED)
    done = len(relay.held)
    if done:
        stage.perform(stage.make.record(relay, relay.list_finished()))
    else:
        done += stage.perform(stage.make.command("replay", Selection(route="blocking")))
        done += stage.perform(stage.make.command("unblock", Selection(route="blocking")))
    stage.everything_holds()
    return done > 0


def is_left(stage: Stage) -> bool:
    """Return whether anything is left besides dead deliveries."""
    is_open = any(row.state is not State.DEAD for row in stage.open.values())
    return is_open or any(not repeat.is_handled for repeat in stage.stored.repeats.values())


def find_left_dead(stage: Stage) -> list[object]:
    """Return, on routes in `latest`, deliveries that died before the newest success of their lane."""
    evidence: list[object] = []
    for lane in {lane for lane in stage.ledger.lanes.values() if POLICIES[lane[0]].ordering == "latest"}:
        successes = [success for success in stage.history.successes if stage.ledger.lanes[success.key] == lane]
        if successes:
            newest = max(successes, key=lambda success: (stage.ledger.order(success.key), success.number))
            evidence += healable(stage.history, stage.ledger, stage.open, newest)
    return evidence


_ENDS = facts.DeliveredFact | Skipped | facts.Superseded | facts.Cancelled | facts.Dead | facts.Unblocked


def find_wrong_ends(stage: Stage) -> list[object]:
    """Return deliveries with a forbidden end."""
    entries = stage.history.entries
    return [(key, entries[key][-1]) for key in stage.ledger.lanes if not isinstance(entries[key][-1].fact, _ENDS)]


def find_lost_changes(stage: Stage) -> list[object]:
    """Return, on routes in `latest`, events whose change no success of their lane certainly includes.

    A success includes it if its fetch began after the last request or the times prove it; without a fetch, if it is of
    this event or a later one, certainly later if the event was dropped for it. A dead, cancelled or skipped event stands
    for those folded into it.
    """
    history, ledger = stage.history, stage.ledger
    evidence: list[object] = []
    for key, lane in ledger.lanes.items():
        if POLICIES[lane[0]].ordering == "latest" and not _is_given_up(stage, key):
            successes = [success for success in history.successes if ledger.lanes[success.key] == lane]
            if not any(_has(stage, success, key) for success in successes):
                evidence.append((key, ledger.arrived[key[0]], successes))
    return evidence


def _is_given_up(stage: Stage, key: Key) -> bool:
    while isinstance(ended := stage.history.entries[key][-1].fact, facts.Superseded):
        if ended.because == "covered":
            return False
        key = (ended.by, key[1])
    return isinstance(ended, facts.Dead | facts.Cancelled | Skipped)


def _has(stage: Stage, success: Entry, key: Key) -> bool:
    ledger = stage.ledger
    assert isinstance(success.fact, facts.DeliveredFact)
    made = (success.before.run, success.standing.attempt, success.relay_node)
    (*_, call) = (call for call in ledger.calls[success.key] if (call.run, call.attempt, call.node) == made)
    came_after = call.step >= ledger.arrived[key[0]]
    if success.fact.fetch_began_at is None:
        return _stands_for(stage, success.key, key) or (success.key == key and came_after)
    last = LastDelivered(*ledger.order(success.key), success.fact.fetch_began_at, success.fact.last_modified)
    return came_after or is_covered(ledger, key, last)


def _stands_for(stage: Stage, newer: Key, key: Key) -> bool:
    """Return whether `newer`, delivered without a fetch, stands for `key`, which may have been dropped for it."""
    (at, seq), (newer_at, newer_seq) = stage.ledger.order(key), stage.ledger.order(newer)
    ended = stage.history.entries[key][-1].fact
    was_dropped = isinstance(ended, facts.Superseded) and ended.because == "covered"
    resolution = timedelta(seconds=1) if at.microsecond == 0 else timedelta(milliseconds=1)
    is_proven = newer_seq > seq or newer_at > at + resolution + SKEW
    return (newer_at, newer_seq) > (at, seq) and (is_proven or not was_dropped)
