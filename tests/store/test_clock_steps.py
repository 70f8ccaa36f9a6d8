"""The database's clock runs ahead and is put right, goes back, or jumps forward: on both databases, to the second."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from datetime import timedelta

import pytest

from inbox.events.timestamps import as_time
from relay.delivery.outcome import Delivered
from relay.operations.asks import Selection
from relay.store.leases import DatabaseClock, reap, renew
from relay.store.record import record
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, FakeClock, Monotonic, Steps, work_of
from tests.helpers.storing import START, an_event
from tests.store.verifying import differences

HOUR = 3600.0


@contextlib.contextmanager
def an_hour_ahead(steps: Steps) -> Iterator[None]:
    """The database's clock runs ahead, and is put right."""
    steps.advance(HOUR)
    yield
    steps.advance(-HOUR)


# --- it ran ahead, and is put right


def test_what_it_made_due_waits_until_an_operator_retries_it(steps: Steps) -> None:
    with an_hour_ahead(steps):
        steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    assert steps.claim_due(9, "strict") == []
    carry_out(steps.database, CONFIG, "retry", Selection(route="strict"), why="the clock was wrong")
    assert [delivery.seq for delivery in steps.claim_due(9, "strict")] == [1, 2]
    steps.facts_agree()
    assert differences(steps.database) == []


def test_the_lease_of_a_relay_that_died_then_is_rescued(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    with an_hour_ahead(steps):
        steps.claim()
    steps.claim()
    assert [fact[:2] for fact in steps.reap("r2")] == [(1, "strict")]


def test_who_has_seen_the_clock_go_back_leaves_others_the_time_to_renew(steps: Steps, two: Two) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    kept, lost = steps.claim_due(2, "strict")
    two.pass_by(1)
    two.reap("r2")
    steps.advance(-HOUR)
    taken = []
    for second in range(1, 20):
        two.pass_by(1)
        if second % 5 == 0:
            renew(steps.database, [(kept.seq, kept.route, kept.lease_token)])
        taken += two.reap("r2")
    assert taken == [lost.seq]
    assert two.told == [pytest.approx(-HOUR)]


# --- it jumps forward


class Two:
    """Two relays that look for leases that ran out, each second."""

    def __init__(self, steps: Steps, clock: FakeClock) -> None:
        self.own = Monotonic()
        self.told: list[float] = []
        self.clocks = {name: DatabaseClock(self.own, self.told.append) for name in ("r1", "r2")}
        self._steps, self._clock = steps, clock

    def pass_by(self, seconds: float) -> None:
        """Both clocks go on."""
        self.own.seconds += seconds
        self._clock.advance(seconds)

    def reap(self, name: str, trusted: Sequence[tuple[int, str, int]] = ()) -> list[int]:
        """Rescue deliveries with expired leases as this relay; return their seqs."""
        return [seq for seq, *_ in reap(work_of(self._steps.database, node=name), trusted, self.clocks[name])]


@pytest.fixture
def two(steps: Steps, clock: FakeClock) -> Two:
    made = Two(steps, clock)
    for name in made.clocks:
        made.reap(name)
    return made


def test_a_relay_takes_nothing_back_that_it_trusts_itself(steps: Steps) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    mine, lost = steps.claim_due(2, "strict")
    steps.advance(20)
    trusted = [(mine.seq, mine.route, mine.lease_token), (lost.seq, lost.route, lost.lease_token + 1)]
    assert [seq for seq, *_ in reap(steps.work, trusted)] == [lost.seq]
    assert [recorded.fact for recorded in steps.record([(mine, DONE)])] != [None]


def test_what_others_hold_is_safe_until_they_have_renewed_it_and_what_nobody_renews_is_taken_back(
    steps: Steps, two: Two
) -> None:
    steps.arrive(an_event(1, "u1"), an_event(2, "u2"))
    kept, lost = steps.claim_due(2, "strict")
    two.pass_by(1)
    two.reap("r2")
    steps.advance(15)
    taken = []
    for second in range(1, 20):
        two.pass_by(1)
        if second % 5 == 0:
            renew(steps.database, [(kept.seq, kept.route, kept.lease_token)])
        taken += two.reap("r2")
    assert taken == [lost.seq]
    assert two.told == [pytest.approx(15)]
    assert [recorded.fact for recorded in steps.record([(kept, DONE)])] != [None]


def test_without_a_step_what_ran_out_is_taken_back_at_once(steps: Steps, two: Two) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    taken = []
    for second in range(1, 18):
        two.pass_by(1)
        taken += [(second, seq) for seq in two.reap("r2")]
    assert taken == [(16, 1)]
    assert two.told == []


def test_a_step_while_the_order_lock_is_waited_for_is_noticed(
    steps: Steps, two: Two, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    two.pass_by(15.5)
    look = two.clocks["r2"].look

    def jumping(transaction: object) -> object:
        found = look(transaction)  # type: ignore[arg-type]  # a Transaction
        steps.advance(20)
        return found

    monkeypatch.setattr(two.clocks["r2"], "look", jumping)
    assert two.reap("r2") == []
    assert two.told == [pytest.approx(20)]


def test_a_fetch_that_a_host_timed_by_a_clock_ahead_covers_nothing_that_is_to_come(
    steps: Steps, clock: FakeClock
) -> None:
    """The relay's host is an hour ahead: its fetch began now, and not in an hour."""
    steps.arrive(an_event(1, routes=["latest"]))
    steps.advance(10)
    delivery = steps.claim("latest")
    an_hour_ahead = clock.now() + timedelta(hours=1)
    outcome = Delivered((), "updated", an_hour_ahead - timedelta(seconds=2))
    steps.advance(5)
    for _ in record(steps.work, [(delivery, outcome)], host_now=lambda: clock.now() + timedelta(hours=1)):
        pass
    (lane,) = steps.rows("SELECT fetch_began_at FROM lane")
    assert as_time(lane["fetch_began_at"]) == START + timedelta(seconds=8)
    steps.arrive(an_event(2, second=60, routes=["latest"]))
    assert steps.states() == [(2, "latest", "ready")]
