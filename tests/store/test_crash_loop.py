"""A delivery that kills the process which works on it is set aside; those that were merely in hand with it are not."""

from __future__ import annotations

from itertools import count

import pytest

from relay.delivery import facts
from relay.delivery.outcome import Delivery
from relay.delivery.policy import CRASHES_UNTIL_DEAD, LEFT_TO_OTHERS
from relay.operations.asks import Selection
from relay.store.claim import Room, claim, claim_suspect
from relay.store.leases import LEASE_SECONDS, give_back, reap
from relay.store.nodes import describe, heartbeat
from tests.helpers.relaying import DONE, POLICIES, UNWELL, Steps, record, work_of
from tests.helpers.storing import an_event
from tests.store.test_replay import replay_all

_numbers = count(1)


class Relays:
    """Relay processes that come and go."""

    def __init__(self, steps: Steps) -> None:
        self.database = steps.database
        self._steps = steps

    def start(self) -> str:
        node = f"node-{next(_numbers)}"
        describe(work_of(self.database, node=node), "host", 1, "0")
        return node

    def claim(self, node: str, route: str = "strict") -> list[Delivery]:
        work = work_of(self.database, node=node)
        return [*claim(work, [Room([route], 10)]), *claim_suspect(work, [route])]

    def crash_over(self, route: str = "strict", times: int = 1) -> list[int]:
        """So many processes claim what they may and die, and another one takes their leases back. What the last one had."""
        claimed: list[Delivery] = []
        for _ in range(times):
            claimed = self.claim(self.start(), route)
            self.leases_run_out()
        return [delivery.seq for delivery in claimed]

    def freeze_over(self) -> None:
        """A process claims what it may, and comes to itself when its leases have been taken back."""
        node = self.start()
        self.claim(node)
        self.leases_run_out()
        self._steps.advance(1)
        heartbeat(self.database, node)

    def leases_run_out(self) -> None:
        self._steps.advance(LEASE_SECONDS + 1)
        self._steps.reap(self.start())


@pytest.fixture
def relays(steps: Steps) -> Relays:
    return Relays(steps)


def test_what_was_abandoned_three_times_in_a_row_is_dead(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1), an_event(2))
    for _ in range(CRASHES_UNTIL_DEAD):
        assert relays.crash_over() == [1]

    (row,) = steps.rows("SELECT seq, state, cause, attempts, error FROM dead_letter")
    assert (row["seq"], row["state"], row["cause"], row["attempts"]) == (1, "dead", "crash_loop", CRASHES_UNTIL_DEAD)
    assert "3 attempts in a row were abandoned" in row["error"]
    assert steps.kinds() == [(1, "abandoned"), (1, "abandoned"), (1, "dead")]
    assert steps.states()[-1] == (2, "strict", "ready")
    steps.facts_agree()


def test_on_a_route_that_blocks_it_blocks_its_lane(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1, routes=["blocking"]))
    relays.crash_over("blocking", CRASHES_UNTIL_DEAD)
    assert steps.states() == [(1, "blocking", "blocked")]


def test_a_relay_that_lacks_the_route_leaves_it_to_one_that_has_it(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    relays.crash_over("blocking", CRASHES_UNTIL_DEAD - 1)
    relays.claim(relays.start(), "blocking")
    steps.advance(LEASE_SECONDS + 1)
    without = {name: known for name, known in POLICIES.items() if name != "blocking"}
    assert reap(work_of(relays.database, without, node="other")) == []
    steps.reap()
    assert steps.states() == [(1, "blocking", "blocked"), (2, "blocking", "waiting")]


def test_without_a_relay_that_has_the_route_a_lease_is_taken_back_late_and_nothing_is_given_up(
    steps: Steps, relays: Relays
) -> None:
    steps.arrive(an_event(1, routes=["blocking"]))
    relays.crash_over("blocking", CRASHES_UNTIL_DEAD - 1)
    node = relays.start()
    relays.claim(node, "blocking")
    steps.advance(LEFT_TO_OTHERS.total_seconds() + LEASE_SECONDS + 1)
    without = {name: known for name, known in POLICIES.items() if name != "blocking"}
    assert [fact for _, _, fact in reap(work_of(relays.database, without, node="other"))] == [
        facts.Abandoned(relay_node=node)
    ]
    assert steps.states() == [(1, "blocking", "ready")]
    steps.facts_agree()


def test_an_attempt_that_came_to_an_end_breaks_the_row(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    for _ in range(CRASHES_UNTIL_DEAD):
        relays.crash_over(times=CRASHES_UNTIL_DEAD - 1)
        node = relays.start()
        record(work_of(relays.database, node=node), [(delivery, UNWELL) for delivery in relays.claim(node)])
        steps.advance(100_000)
    assert steps.states() == [(1, "strict", "ready")]
    assert steps.rows("SELECT crashes FROM open_delivery") == [{"crashes": 0}]


def test_a_process_that_was_only_frozen_counts_as_one_that_died(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    for _ in range(CRASHES_UNTIL_DEAD):
        assert steps.states() == [(1, "strict", "ready")]
        relays.freeze_over()
    assert steps.states() == [(1, "strict", "dead")]


def test_those_that_were_in_hand_with_the_culprit_come_through_alone(steps: Steps, relays: Relays) -> None:
    """u2 kills every process that works on it. After two crashes each is tried by itself, and only u2 crashes again."""
    steps.arrive(*(an_event(n, f"u{n}") for n in (1, 2, 3)))
    for _ in range(CRASHES_UNTIL_DEAD - 1):
        claim(work_of(relays.database, node=relays.start()), [Room(["strict"], 10)])
        relays.leases_run_out()
    assert claim(work_of(relays.database, node=relays.start()), [Room(["strict"], 10)]) == []

    crashed = 0
    for _ in range(3):
        node = relays.start()
        (suspect,) = claim_suspect(work_of(relays.database, node=node), ["strict"])
        assert suspect.is_suspect
        if suspect.entity_id == "u2":
            relays.leases_run_out()
            crashed += 1
        else:
            record(work_of(relays.database, node=node), [(suspect, DONE)])

    assert crashed == 1
    assert steps.states() == [(2, "strict", "dead")]
    assert claim_suspect(work_of(relays.database, node="node"), ["strict"]) == []


def test_a_suspect_that_is_given_back_stays_one(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    relays.crash_over(times=CRASHES_UNTIL_DEAD - 1)
    (suspect,) = claim_suspect(work_of(relays.database, node="node"), ["strict"])
    give_back(work_of(relays.database, node="node"), [(suspect.seq, suspect.route, suspect.lease_token)])
    assert claim(work_of(relays.database, node="node"), [Room(["strict"], 10)]) == []
    assert len(claim_suspect(work_of(relays.database, node="node"), ["strict"])) == 1


def test_a_newer_event_that_takes_over_a_suspect_is_suspect_too(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    relays.crash_over("latest", CRASHES_UNTIL_DEAD - 1)
    steps.arrive(an_event(2, routes=["latest"]))
    assert steps.rows("SELECT seq, crashes FROM open_delivery") == [{"seq": 2, "crashes": CRASHES_UNTIL_DEAD - 1}]
    steps.facts_agree()
    relays.crash_over("latest")
    assert steps.states() == [(2, "latest", "dead")]


def test_a_replay_begins_without_suspicion(steps: Steps, relays: Relays) -> None:
    steps.arrive(an_event(1))
    relays.crash_over(times=CRASHES_UNTIL_DEAD)
    assert replay_all(steps, Selection(cause="crash_loop")) == 1
    assert steps.rows("SELECT state, crashes, run FROM open_delivery") == [{"state": "ready", "crashes": 0, "run": 1}]


def test_a_relay_that_has_entered_itself_and_was_not_told_so_enters_itself_again(steps: Steps) -> None:
    """The answer to the commit is lost when Postgres restarts: then it tries again."""
    for _ in range(2):
        describe(work_of(steps.database, node="r1"), "host", 1, "0")
    assert steps.rows("SELECT id FROM relay_node") == [{"id": "r1"}]
