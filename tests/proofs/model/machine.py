"""A state machine of relays, a receiver and a downstream service, on the real store functions.

All invariants hold after every step, and at the end of a run everything is finished.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, Phase, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import run_state_machine_as_test

from relay.daemon.leases import TRUSTED_SECONDS
from relay.delivery import facts
from relay.delivery.lifecycle import State
from relay.delivery.ordering import LastDelivered
from relay.delivery.outcome import Skipped
from relay.operations.asks import Selection
from relay.store.leases import LEASE_SECONDS
from tests.proofs.model.actors import CUT, FAILURES, FETCHED, HOPELESS, SUCCEEDED, SUCCESSES, Relay, Violation
from tests.proofs.model.checks import healable, is_covered
from tests.proofs.model.rules import ENTITIES, MOST, SECOND, Calling, Commanding, gate_of
from tests.proofs.model.stage import SOME, WHICH, Evidence, Stage, one_of, step
from tests.proofs.model.world import POLICIES, ROUTES, SKEW, Entry, Key, World

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
    for kind in ("rescue", "judge", "sequence all"):
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


# --- A state machine of relays, a receiver and a downstream service, on the real store functions


MAKING_HEADS = st.sampled_from(["sequence all", "record", "rescue", "replay", "judge", "cancel", "unblock", "retry"])
MAKING_NONE = ["probe", "give_back", "renew", "verify", "rebuild"]
OVERLAPPING = st.sampled_from(["sequence all", "claim", "record", "rescue", "replay", "cancel", "retry", *MAKING_NONE])
ENDS = st.sampled_from([*SUCCESSES, *FAILURES, HOPELESS])
OVERLAP: dict[str, Any] = {
    "which": WHICH,
    "number": WHICH,
    "seconds": st.tuples(SECOND, SECOND),
    "outcome": ENDS,
    "turns": st.lists(st.integers(1, 7), max_size=5),
    "dies": st.sampled_from([*[""] * 6, "a", "b"]),
}
LAPSE = LEASE_SECONDS + 1
"""Seconds beyond a lease."""


class Machine(Calling, Commanding):
    """One run. Its rules choose among the possible operations by the drawn numbers."""

    # Relays and the database.

    @step(lambda self: self.active(), which=WHICH, number=WHICH, outcome=ENDS, until=st.integers(1, 4))
    def go_round(self, which: int, number: int, outcome: str, until: int) -> None:
        """Run one round of a relay, or a part of it: sequence, claim, call and record."""
        relay = one_of(self.active(), which)
        self.let(relay, "sequence", number)
        if until > 1:
            self.everything_holds()
            self.let(relay, "claim", number)
            self.let(relay, "probe", number)
        if until > 2:
            for held in self.beginnable(relay):
                self.end(relay, held, outcome)
        if until > 3:
            self.everything_holds()
            self.let(relay, "record")

    @step(lambda self: self.active() and self.any_open(State.RECEIVED), which=WHICH, number=WHICH)
    def sequence(self, which: int, number: int) -> None:
        self.let(one_of(self.active(), which), "sequence", number)

    @step(
        lambda self: self.active(),
        which=WHICH,
        entity=st.sampled_from(ENTITIES),
        seconds=st.lists(SECOND, min_size=3, max_size=6),
    )
    def ordering_becomes_latest(self, which: int, entity: str, seconds: list[int]) -> None:
        """Let many events wait in a lane, sequenced in `strict` by the previous configuration."""
        relay = one_of(self.active(), which)
        if len(self.sent) < MOST:
            self.arrive([(entity, second, ("latest",)) for second in seconds])
        self.everything_holds()
        if self.any_late():
            self.let(relay, "sequence all")
            return
        arrived = {(row.route, row.lane) for row in self.open.values() if row.state is State.RECEIVED}
        self.ledger.strict_once |= {lane for lane in arrived if lane[0] == "latest"}
        self.let(relay, "sequence by the old")

    @step(lambda self: self.active() and self.any_open(State.READY), which=WHICH, number=WHICH, answered=st.booleans())
    def claim(self, which: int, number: int, answered: bool) -> None:
        self.let(one_of(self.active(), which), "claim", number, answered=answered)

    @step(lambda self: self.active() and self.suspects(), which=WHICH)
    def claim_a_suspect(self, which: int) -> None:
        self.perform(self.make.claim_suspect(one_of(self.active(), which), [one_of(self.suspects(), which)]))

    @step(lambda self: self.active() and self.any_to_judge(), which=WHICH)
    def judge_duplicates(self, which: int) -> None:
        self.perform(self.make.judge(one_of(self.active(), which)))

    @step(lambda self: self.with_("record"), which=WHICH, some=SOME, answered=st.booleans())
    def record(self, which: int, some: int, answered: bool) -> None:
        self.let(one_of(self.with_("record"), which), "record", some, answered=answered)

    @step(lambda self: any(relay.recorded for relay in self.active()), trouble=True, which=WHICH)
    def record_the_same_again(self, which: int) -> None:
        relay = one_of([relay for relay in self.active() if relay.recorded], which)
        results = self.perform(self.make.record(relay, relay.recorded))
        if any(result.fact is not None for result in results):
            raise Violation("recorded twice", results)

    @step(lambda self: self.with_("renew"), which=WHICH, some=SOME, answered=st.booleans())
    def renew(self, which: int, some: int, answered: bool) -> None:
        relay = one_of(self.with_("renew"), which)
        self.let(relay, "renew", some, answered=answered)
        self.perform(self.make.heartbeat(relay))

    @step(lambda self: self.with_("give_back"), trouble=True, which=WHICH, some=SOME)
    def give_back(self, which: int, some: int) -> None:
        self.let(one_of(self.with_("give_back"), which), "give_back", some)

    @step(lambda self: self.active() and self.any_open(State.IN_FLIGHT), which=WHICH)
    def rescue(self, which: int) -> None:
        self.let(one_of(self.active(), which), "rescue")

    @step(lambda self: self.active() and self.any_open(State.IN_FLIGHT), trouble=True, which=WHICH, number=WHICH)
    def take_over(self, which: int, number: int) -> None:
        """Let one relay take over the work of others after their leases expired."""
        self.advance(LAPSE)
        relay = one_of(self.active(), which)
        self.let(relay, "rescue")
        self.everything_holds()
        self.let(relay, "claim", number)

    @step(lambda self: len(self.active()) > 1, kinds=st.tuples(OVERLAPPING, OVERLAPPING), **OVERLAP)
    def overlap(self, kinds: tuple[str, str], **drawn: Any) -> None:  # noqa: ANN401  # as in interleave_two
        """Run any operations of two relays at once."""
        self.interleave_two(kinds, **drawn)

    @step(lambda self: len(self.active()) > 1, kinds=st.tuples(MAKING_HEADS, MAKING_HEADS), **OVERLAP)
    def race_for_the_order_lock(self, kinds: tuple[str, str], **drawn: Any) -> None:  # noqa: ANN401
        """Run operations of two relays at once that end or make heads of lanes."""
        self.interleave_two(kinds, **drawn)

    def interleave_two(
        self,
        kinds: tuple[str, str],
        *,
        which: int,
        number: int,
        seconds: tuple[int, int],
        outcome: str,
        turns: Sequence[int],
        dies: str,
    ) -> None:
        """Run two operations in turns of so many statements; one process may die half-way."""
        self.give_work(kinds, which, seconds, outcome)
        first = one_of(self.with_(kinds[0]) or self.active(), which)
        others = [relay for relay in self.active() if relay is not first]
        second = one_of([relay for relay in others if self.can(relay, kinds[1])] or others, which)
        pairs = [(r, k if self.can(r, k) else "sequence all") for r, k in zip((first, second), kinds, strict=True)]
        if dies and pairs["ab".index(dies)][1] in {"verify", "rebuild"}:
            dies = ""  # these are operators' commands, which stop at an error
        self.interleave([self.operation(relay, kind, number) for relay, kind in pairs], turns, dies)
        if dies:
            self.restart(first if dies == "a" else second)

    def give_work(self, kinds: Sequence[str], which: int, seconds: tuple[int, int], outcome: str) -> None:
        """Prepare work in the same lanes for each of these operations."""
        relay = one_of(self.active(), which)
        arrivals = [(entity, second, ROUTES) for entity, second in zip(ENTITIES, seconds, strict=True)]
        if "claim" in kinds and not self.any_open(State.READY):
            self.arrive(arrivals)
            self.let(relay, "sequence all")
        if kinds.count("record") > len(self.with_("record")) and not self.list_calls():
            self.let(relay, "claim", which)
        if kinds.count("record") > len(self.with_("record")) and self.list_calls():
            self.answer(which, outcome)
        if "rescue" in kinds:
            self.advance(LAPSE)
        if "sequence all" in kinds and len(self.sent) < MOST:
            self.arrive(arrivals)
        self.everything_holds()

    # Trouble and time.

    @step(lambda self: any(relay.held or relay.paused for relay in self.relays), trouble=True, which=WHICH)
    def crash(self, which: int) -> None:
        self.restart(one_of([relay for relay in self.relays if relay.held or relay.paused], which))

    @step(lambda self: len(self.active()) > 1, trouble=True, which=WHICH)
    def pause(self, which: int) -> None:
        one_of([relay for relay in self.active() if relay.held] or self.active(), which).paused = True

    @step(lambda self: len(self.active()) < len(self.relays), which=WHICH, answer=st.sampled_from([*SUCCESSES, CUT]))
    def come_back(self, which: int, answer: str) -> None:
        """Resume a relay: its calls were answered meanwhile, or are cut without a trusted lease."""
        relay = one_of([relay for relay in self.relays if relay.paused], which)
        relay.paused = False
        if answer == CUT:
            relay.cut(self.world.clock.now)
        else:
            for held in relay.running():
                held.end_call(answer)

    @step(
        lambda self: self.any_open(State.IN_FLIGHT),
        trouble=True,
        seconds=st.sampled_from([LAPSE, LEASE_SECONDS, TRUSTED_SECONDS, 5]),
    )
    def let_time_pass(self, seconds: int) -> None:
        self.advance(seconds)

    @step(lambda self: self.next_due() > 0, kept=st.booleans())
    def let_a_retry_fall_due(self, kept: bool) -> None:
        """Advance to the next retry, with leases renewed or not."""
        seconds = self.next_due()
        while kept and seconds > 5:
            self.advance(5)
            seconds -= 5
            for relay in self.with_("renew"):
                self.perform(self.make.renew(relay, list(relay.held.values())))
                self.perform(self.make.heartbeat(relay))
        self.advance(seconds)

    def restart(self, relay: Relay) -> None:
        relay.restart()
        self.perform(self.make.start(relay))

    def teardown(self) -> None:
        if self.broken:
            for held in self.uncommitted:
                self.world.receiver.roll_back(held)
            return
        while self.uncommitted:
            self.commit_one(0)
        finish(self)


RUNS = int(os.environ.get("MODEL_RUNS", "120"))
STEPS = 50
SEED = os.environ.get("MODEL_SEED")
_SHRINK = os.environ.get("MODEL_SHRINK") != "no"


def run(world: World, *, runs: int = RUNS, shrink: bool = _SHRINK, its_seed: str | None = SEED) -> Evidence:
    """Run the model; the runs depend on the seed alone.

    Raises:
        Violation: from the first failing run, or with `shrink` from the shortest.
    """
    evidence = Evidence()

    def machine() -> Machine:
        return Machine(world, evidence)

    if its_seed is not None:
        seed(int(its_seed))(machine)
    run_state_machine_as_test(
        machine,  # type: ignore[arg-type]  # typed as a class, but takes any factory
        settings=settings(
            max_examples=runs,
            stateful_step_count=STEPS,
            phases=[Phase.generate, Phase.shrink] if shrink else [Phase.generate],
            derandomize=True,
            database=None,
            deadline=None,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
        ),
        _min_steps=STEPS - 1,  # no run ends early
    )
    return evidence
