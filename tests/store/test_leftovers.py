"""No transaction under the order lock grows with what is open: what it may not do is left, and worked off in batches."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from inbox.config.retry import Retry
from relay.delivery.outcome import Delivered, Failed
from relay.delivery.policy import RoutePolicy, Schedule
from relay.store.audit.verify import verify
from relay.store.claim import claim
from relay.store.coverage import MOST_HEALED
from relay.store.database import Database
from relay.store.lanes import MOST_FOLDED
from relay.store.leftovers import Leftovers
from relay.store.reap import reap
from relay.store.record import record
from relay.store.sequence import BATCH, sequence
from tests.helpers.transactions import Transactions
from tests.store.conftest import POLICIES, FakeClock, Steps, an_event
from tests.store.test_replay import CONFIG

DONE = Delivered((), "forwarded")
HOPELESS = Failed((), "mapping", "email: no value")
UNWELL = Failed((), "server_error", "forward answered 503")
NOW_LATEST = {**POLICIES, "strict": RoutePolicy("latest", blocks_on_death=False, schedule=Schedule(Retry(jitter=0)))}
"""Once `ordering` of the route "strict" has been changed to "latest"."""


@pytest.fixture
def transactions(database: Database, monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Record the work of each transaction from now on."""
    seen = Transactions(monkeypatch)
    seen.watch(database)
    return seen


def fill(steps: Steps, *, waiting: int, lanes: int = 1, route: str = "strict") -> None:
    """So many deliveries of each lane, of which the first is ready, and all others wait."""
    numbers = range(1, waiting * lanes + 1)
    steps._receive(*(an_event(n, f"u{n % lanes}", routes=[route]) for n in numbers))
    while sequence(steps.database, POLICIES, "r1") == BATCH:
        pass


def work_off(steps: Steps) -> int:
    """Let maintenance do what is left; how many rounds it took."""
    leftovers, rounds = Leftovers(), 0
    while leftovers.work_off(steps.database, NOW_LATEST, "r1"):
        rounds += 1
        steps.facts_agree()
    return rounds


def attempt(steps: Steps, outcome: Delivered | Failed = DONE) -> int:
    """Make the next attempt of the route whose ordering has changed; gives its seq."""
    (delivery,) = claim(steps.database, "r1", [(["strict"], 1)])
    record(steps.database, NOW_LATEST, "r1", [(delivery, outcome)])
    return delivery.seq


def agreed(steps: Steps) -> bool:
    return not [found for checked in verify(steps.database, CONFIG) for found in checked.differences]


# --- folding


def test_when_ordering_becomes_latest_a_lane_is_folded_batch_by_batch_and_its_newest_is_left(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=3000)
    transactions.forget()

    assert work_off(steps) == 6
    assert steps.states() == [(3000, "strict", "ready")]
    assert steps.kinds().count((1, "superseded")) == 1
    assert len(steps.kinds()) == 2999
    assert transactions.largest[0] <= MOST_FOLDED + 10
    assert transactions.largest[1] <= MOST_FOLDED
    assert agreed(steps)


def test_what_is_recorded_meanwhile_folds_so_many_and_nothing_older_is_delivered_later(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=3000)
    transactions.forget()

    delivered = []
    while steps.states():
        delivered.append(attempt(steps))
        steps.facts_agree()
    assert delivered == [1, 501, 1001, 1501, 2001, 2501, 3000]
    assert transactions.largest[0] <= MOST_FOLDED + 20
    assert transactions.largest[1] <= MOST_FOLDED + 1


def test_the_lanes_of_one_transaction_share_what_it_may_fold(steps: Steps, transactions: Transactions) -> None:
    fill(steps, waiting=9, lanes=200)
    claimed = claim(steps.database, "r1", [(["strict"], 200)])
    transactions.forget()

    record(steps.database, NOW_LATEST, "r1", [(delivery, DONE) for delivery in claimed])
    looked_at_all, shared = 4 * 200, 3 * 200  # its lease, its head, and two that wait, of each lane; then three at most
    assert transactions.largest[0] <= looked_at_all + shared + 10
    assert transactions.largest[1] <= 200 + MOST_FOLDED
    steps.facts_agree()
    assert work_off(steps) <= 6
    assert [state for _, _, state in steps.states()] == ["ready"] * 200
    assert [seq for seq, _, _ in steps.states()] == list(range(1601, 1801))


def test_what_arrives_meanwhile_waits_behind_what_is_still_to_be_folded(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=1500)
    first = attempt(steps)
    steps._receive(an_event(2000, "u0"))
    sequence(steps.database, NOW_LATEST, "r1")
    steps.facts_agree()

    delivered = [first]
    while steps.states():
        delivered.append(attempt(steps))
    assert delivered == sorted(delivered)
    assert delivered[-1] == 1501  # the one that arrived last
    assert transactions.largest[1] <= MOST_FOLDED + 1


def test_a_lane_whose_head_waits_to_be_tried_again_is_folded_all_the_same(steps: Steps, clock: FakeClock) -> None:
    fill(steps, waiting=1200)
    (delivery,) = claim(steps.database, "r1", [(["strict"], 1)])
    record(steps.database, POLICIES, "r1", [(delivery, UNWELL)])

    assert work_off(steps) == 3
    assert steps.states() == [(1200, "strict", "ready")]
    assert steps.rows("SELECT attempt FROM open_delivery") == [{"attempt": 1}]
    assert agreed(steps)
    clock.advance(5)
    assert attempt(steps) == 1200


@pytest.mark.parametrize("waiting", [2, MOST_FOLDED + 2])
def test_no_single_one_is_forgotten_behind_a_head_that_waits(steps: Steps, waiting: int) -> None:
    fill(steps, waiting=waiting)
    work_off(steps)
    assert steps.states() == [(waiting, "strict", "ready")]


def test_behind_a_delivery_that_runs_all_but_the_newest_are_folded(steps: Steps) -> None:
    fill(steps, waiting=1200)
    claim(steps.database, "r1", [(["strict"], 1)])

    work_off(steps)
    assert steps.states() == [(1, "strict", "in_flight"), (1200, "strict", "waiting")]
    assert agreed(steps)


def test_an_abandoned_lane_is_reaped_without_folding_all_of_it(
    steps: Steps, clock: FakeClock, transactions: Transactions
) -> None:
    fill(steps, waiting=1500)
    claim(steps.database, "r1", [(["strict"], 1)])
    clock.advance(60)
    transactions.forget()

    assert len(reap(steps.database, NOW_LATEST, "r2")) == 1
    assert transactions.largest[1] <= MOST_FOLDED + 2
    steps.facts_agree()


def test_looking_for_leftovers_comes_round_to_every_lane_and_disturbs_none_where_one_waits(steps: Steps) -> None:
    """It takes several looks, and each goes on where the last has ended."""
    fill(steps, waiting=2, lanes=1200)
    steps._receive(*(an_event(n, "u7", second=n) for n in (5001, 5002, 5003)))
    sequence(steps.database, POLICIES, "r1")
    for _ in claim(steps.database, "r1", [(["strict"], 1200)]):
        pass
    before = steps.states()
    leftovers = Leftovers()
    looks = [leftovers.work_off(steps.database, NOW_LATEST, "r1") for _ in range(8)]
    assert sum(looks) == 3
    assert len(before) - len(steps.states()) == 3
    steps.facts_agree()


def test_a_route_in_strict_is_left_as_it_is(steps: Steps) -> None:
    fill(steps, waiting=30)
    assert Leftovers().work_off(steps.database, POLICIES, "r1") == 0
    assert len(steps.states()) == 30


# --- healing


def die(steps: Steps, number: int, *, lanes: int = 1) -> None:
    """Let so many deliveries be dead, as if each had died before the next one of its lane came."""
    steps._receive(*(an_event(n, f"u{n % lanes}") for n in range(1, number + 1)))
    with steps.database.write() as transaction:
        transaction.execute(text("UPDATE open_delivery SET state = 'dead', attempt = 1"))
        transaction.execute(
            text(
                """
INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)
SELECT occurred_at, seq, route, 'dead', 1, CAST(:detail AS jsonb) FROM open_delivery
"""
                if transaction.sql.is_postgres
                else """
INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)
SELECT occurred_at, seq, route, 'dead', 1, :detail FROM open_delivery
"""
            ),
            detail='{"cause": "mapping", "error": "email: no value"}',
        )


def test_a_success_that_ends_very_many_dead_ends_so_many_and_the_rest_follows(
    steps: Steps, transactions: Transactions
) -> None:
    die(steps, 1300)
    steps.arrive(an_event(1301, "u0"))
    transactions.forget()

    assert attempt(steps) == 1301
    assert len(steps.states()) == 1300 - MOST_HEALED
    assert work_off(steps) == 2
    assert steps.states() == []
    assert transactions.largest[0] <= MOST_HEALED + 20
    assert transactions.largest[1] <= MOST_HEALED + 1
    assert steps.rows("SELECT count(*) AS healed FROM delivery_log WHERE kind = 'superseded'") == [{"healed": 1300}]
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]
    assert agreed(steps)


def test_the_successes_of_one_transaction_share_what_it_may_heal(steps: Steps, transactions: Transactions) -> None:
    die(steps, 1200, lanes=30)
    steps.arrive(*(an_event(n, f"u{n % 30}") for n in range(1201, 1231)))
    claimed = claim(steps.database, "r1", [(["strict"], 30)])
    transactions.forget()

    record(steps.database, NOW_LATEST, "r1", [(delivery, DONE) for delivery in claimed])
    assert len(steps.states()) == 1200 - MOST_HEALED
    work_off(steps)
    assert steps.states() == []
    assert transactions.largest[1] <= MOST_HEALED + 30
    assert steps.rows("SELECT lane FROM lane WHERE healing_seq IS NOT NULL") == []
    assert agreed(steps)


def test_what_died_after_the_success_is_not_healed_by_it(steps: Steps) -> None:
    """It was tried later, so that its change may be one that was not fetched."""
    die(steps, 700)
    steps.arrive(an_event(701, "u0", second=701))
    attempt(steps)
    steps.arrive(an_event(702, "u0", second=5))
    assert attempt(steps, HOPELESS) == 702

    work_off(steps)
    assert steps.states() == [(702, "strict", "dead")]
    assert agreed(steps)


def test_a_later_success_stands_for_what_an_earlier_one_has_left(steps: Steps) -> None:
    die(steps, 1700)
    for number in (1701, 1702):
        steps.arrive(an_event(number, "u0"))
        attempt(steps)
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": 1702}]
    work_off(steps)
    assert steps.states() == []
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]


def test_a_late_success_does_not_stand_in_for_a_newer_one_that_is_healing(steps: Steps) -> None:
    die(steps, 1700)
    for number, second in ((1701, 1800), (1702, 1790)):
        steps.arrive(an_event(number, "u0", second=second))
        attempt(steps)
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": 1701}]
    work_off(steps)
    assert steps.states() == []


def test_on_a_route_that_is_strict_again_the_dead_are_left(steps: Steps) -> None:
    die(steps, 700)
    steps.arrive(an_event(701, "u0"))
    attempt(steps)
    assert Leftovers().work_off(steps.database, POLICIES, "r1") == 0
    assert len(steps.states()) == 700 - MOST_HEALED
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]
