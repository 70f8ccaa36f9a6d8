"""No transaction under the order lock grows with what is open: what it may not do is left, and worked off in batches."""

from __future__ import annotations

from collections import Counter

import pytest

from relay.delivery.outcome import Delivered, Failed
from relay.store import coverage, lanes, leftovers
from relay.store.database import Database
from relay.store.leftovers import Leftovers
from relay.store.reap import reap
from relay.store.record import record
from relay.store.sequence import BATCH, sequence
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import DONE, HOPELESS, POLICIES, UNWELL, Steps
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.storing import an_event
from tests.helpers.transactions import Transactions
from tests.store.verifying import differences

NOW_LATEST = {**POLICIES, "strict": POLICIES["latest"]}
"""Once `ordering` of the route "strict" has been changed to "latest"."""


MOST = 50


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what a transaction may do; `test_nothing_grows.py` has all of it."""
    for module, name in ((lanes, "MOST_FOLDED"), (coverage, "MOST_HEALED"), (leftovers, "LOOKED_AT")):
        monkeypatch.setattr(module, name, MOST)


@pytest.fixture
def transactions(database: Database, monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Record the work of each transaction from now on."""
    seen = Transactions(monkeypatch)
    seen.watch(database)
    return seen


def fill(steps: Steps, *, waiting: int, lanes: int = 1, route: str = "strict") -> None:
    """So many deliveries of each lane, of which the first is ready, and all others wait."""
    numbers = range(1, waiting * lanes + 1)
    steps.receive(*(an_event(n, f"u{n % lanes}", routes=[route]) for n in numbers))
    while steps.sequence() == BATCH:
        pass


def work_off(steps: Steps) -> int:
    """Let maintenance do what is left; how many rounds it took."""
    rest, rounds = Leftovers(), 0
    while rest.work_off(steps.database, NOW_LATEST, "r1"):
        rounds += 1
        steps.facts_agree()
    return rounds


def attempt(steps: Steps, outcome: Delivered | Failed = DONE) -> int:
    """Make the next attempt of the route whose ordering has changed; gives its seq."""
    delivery = steps.claim()
    record(steps.database, NOW_LATEST, "r1", [(delivery, outcome)])
    return delivery.seq


# --- folding


def test_when_ordering_becomes_latest_a_lane_is_folded_batch_by_batch_and_its_newest_is_left(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=300)
    transactions.forget()

    assert work_off(steps) == 6
    assert steps.states() == [(300, "strict", "ready")]
    assert steps.kinds().count((1, "superseded")) == 1
    assert len(steps.kinds()) == 299
    assert transactions.largest[0] <= MOST + 10
    assert transactions.largest[1] <= MOST
    assert differences(steps.database) == []


@ON_POSTGRES
def test_a_lane_whose_head_a_person_has_locked_is_folded_later_and_the_others_at_once(steps: Steps) -> None:
    fill(steps, waiting=2 * MOST, lanes=3)
    rest = Leftovers()
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        for _ in range(12):
            rest.work_off(steps.database, NOW_LATEST, "r1")
        numbers = Counter(row["lane"] for row in steps.rows("SELECT lane FROM open_delivery"))
        assert sorted(numbers.values()) == [1, 1, 2 * MOST]
    work_off(steps)
    assert [state for _, _, state in steps.states()] == ["ready"] * 3


def test_what_is_recorded_meanwhile_folds_so_many_and_nothing_older_is_delivered_later(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=300)
    transactions.forget()

    delivered = []
    while steps.states():
        delivered.append(attempt(steps))
        steps.facts_agree()
    assert delivered == [1, 51, 101, 151, 201, 251, 300]
    assert transactions.largest[0] <= MOST + 20
    assert transactions.largest[1] <= MOST + 1


def test_the_lanes_of_one_transaction_share_what_it_may_fold(steps: Steps, transactions: Transactions) -> None:
    fill(steps, waiting=9, lanes=20)
    claimed = steps.claim_due()
    transactions.forget()

    record(steps.database, NOW_LATEST, "r1", [(delivery, DONE) for delivery in claimed])
    looked_at_all, shared = 4 * 20, 3 * 20  # its lease, its head, and two that wait, of each lane; then three at most
    assert transactions.largest[0] <= looked_at_all + shared + 10
    assert transactions.largest[1] <= 20 + MOST
    steps.facts_agree()
    assert work_off(steps) <= 6
    assert [state for _, _, state in steps.states()] == ["ready"] * 20
    assert [seq for seq, _, _ in steps.states()] == list(range(161, 181))


def test_what_arrives_meanwhile_waits_behind_what_is_still_to_be_folded(
    steps: Steps, transactions: Transactions
) -> None:
    fill(steps, waiting=150)
    first = attempt(steps)
    steps.receive(an_event(200, "u0"))
    sequence(steps.database, NOW_LATEST, "r1")
    steps.facts_agree()

    delivered = [first]
    while steps.states():
        delivered.append(attempt(steps))
    assert delivered == sorted(delivered)
    assert delivered[-1] == 151  # the one that arrived last
    assert transactions.largest[1] <= MOST + 1


def test_a_lane_whose_head_waits_to_be_tried_again_is_folded_all_the_same(steps: Steps) -> None:
    fill(steps, waiting=120)
    delivery = steps.claim()
    steps.record([(delivery, UNWELL)])

    assert work_off(steps) == 3
    assert steps.states() == [(120, "strict", "ready")]
    assert steps.rows("SELECT attempt FROM open_delivery") == [{"attempt": 1}]
    assert differences(steps.database) == []
    steps.advance(5)
    assert attempt(steps) == 120


@pytest.mark.parametrize("waiting", [2, MOST + 2])
def test_no_single_one_is_forgotten_behind_a_head_that_waits(steps: Steps, waiting: int) -> None:
    fill(steps, waiting=waiting)
    work_off(steps)
    assert steps.states() == [(waiting, "strict", "ready")]


def test_behind_a_delivery_that_runs_all_but_the_newest_are_folded(steps: Steps) -> None:
    fill(steps, waiting=120)
    steps.claim_due(1, "strict")

    work_off(steps)
    assert steps.states() == [(1, "strict", "in_flight"), (120, "strict", "waiting")]
    assert differences(steps.database) == []


def test_an_abandoned_lane_is_reaped_without_folding_all_of_it(steps: Steps, transactions: Transactions) -> None:
    fill(steps, waiting=150)
    steps.claim_due(1, "strict")
    steps.advance(60)
    transactions.forget()

    assert len(reap(steps.database, NOW_LATEST, "r2")) == 1
    assert transactions.largest[1] <= MOST + 2
    steps.facts_agree()


def test_looking_for_leftovers_comes_round_to_every_lane_and_disturbs_none_where_one_waits(steps: Steps) -> None:
    """It takes several looks, and each goes on where the last has ended."""
    fill(steps, waiting=2, lanes=120)
    steps.receive(*(an_event(n, "u7", second=n) for n in (501, 502, 503)))
    steps.sequence()
    for _ in steps.claim_due(120, "strict"):
        pass
    before = steps.states()
    rest = Leftovers()
    looks = [rest.work_off(steps.database, NOW_LATEST, "r1") for _ in range(8)]
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
    steps.receive(*(an_event(n, f"u{n % lanes}") for n in range(1, number + 1)))
    steps.do(
        "UPDATE open_delivery SET state = 'dead', attempt = 1",
        "INSERT INTO delivery_log (at, seq, route, kind, attempt, detail)"
        """ SELECT occurred_at, seq, route, 'dead', 1, '{"cause": "mapping", "error": "email: no value"}' FROM open_delivery""",
    )


def test_a_success_that_ends_very_many_dead_ends_so_many_and_the_rest_follows(
    steps: Steps, transactions: Transactions
) -> None:
    die(steps, 130)
    steps.arrive(an_event(131, "u0"))
    transactions.forget()

    assert attempt(steps) == 131
    assert len(steps.states()) == 130 - MOST
    assert work_off(steps) == 2
    assert steps.states() == []
    assert transactions.largest[0] <= MOST + 20
    assert transactions.largest[1] <= MOST + 1
    assert steps.rows("SELECT count(*) AS healed FROM delivery_log WHERE kind = 'superseded'") == [{"healed": 130}]
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]
    assert differences(steps.database) == []


def test_the_successes_of_one_transaction_share_what_it_may_heal(steps: Steps, transactions: Transactions) -> None:
    die(steps, 120, lanes=3)
    steps.arrive(*(an_event(n, f"u{n % 3}") for n in range(121, 124)))
    claimed = steps.claim_due(30, "strict")
    transactions.forget()

    record(steps.database, NOW_LATEST, "r1", [(delivery, DONE) for delivery in claimed])
    assert len(steps.states()) == 120 - MOST
    work_off(steps)
    assert steps.states() == []
    assert transactions.largest[1] <= MOST + 3
    assert steps.rows("SELECT lane FROM lane WHERE healing_seq IS NOT NULL") == []
    assert differences(steps.database) == []


def test_what_died_after_the_success_is_not_healed_by_it(steps: Steps) -> None:
    """It was tried later, so that its change may be one that was not fetched."""
    die(steps, 70)
    steps.arrive(an_event(71, "u0", second=71))
    attempt(steps)
    steps.arrive(an_event(72, "u0", second=5))
    assert attempt(steps, HOPELESS) == 72

    work_off(steps)
    assert steps.states() == [(72, "strict", "dead")]
    assert differences(steps.database) == []


@pytest.mark.parametrize(
    ("seconds", "healing"),
    [((171, 172), 172), ((180, 179), 171)],
    ids=["the later one is newer", "the later one came late"],
)
def test_the_newest_success_stands_for_what_an_earlier_one_has_left(
    steps: Steps, seconds: tuple[int, int], healing: int
) -> None:
    die(steps, 170)
    for number, second in enumerate(seconds, 171):
        steps.arrive(an_event(number, "u0", second=second))
        attempt(steps)
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": healing}]
    work_off(steps)
    assert steps.states() == []
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]


def test_on_a_route_that_is_strict_again_the_dead_are_left(steps: Steps) -> None:
    die(steps, 70)
    steps.arrive(an_event(71, "u0"))
    attempt(steps)
    assert Leftovers().work_off(steps.database, POLICIES, "r1") == 0
    assert len(steps.states()) == 70 - MOST
    assert steps.rows("SELECT healing_seq FROM lane") == [{"healing_seq": None}]
