"""Transactions under the order lock have a bounded size: the next settle of the lane does the rest."""

from __future__ import annotations

import pytest

from benchmarks.order_lock import CASES, World
from relay.delivery.outcome import Delivered, Failed
from relay.store.sequence import BATCH, sequence
from tests.helpers.locks import Transactions
from tests.helpers.relaying import DONE, POLICIES, Steps, record, work_of
from tests.helpers.storing import an_event
from tests.store.conftest import differences

NOW_LATEST = {**POLICIES, "strict": POLICIES["latest"]}
"""Once `ordering` of the route "strict" has been changed to "latest"."""


MOST = 50


@pytest.fixture(autouse=True)
def _smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the limits of a transaction to a tenth; `test_nothing_grows.py` has the full ones."""
    for name in ("MOST_FOLDED", "MOST_SUPERSEDED"):
        monkeypatch.setattr(f"relay.store.sequence.{name}", MOST)


@pytest.fixture
def transactions(monkeypatch: pytest.MonkeyPatch) -> Transactions:
    """Record the work of each transaction from now on."""
    return Transactions(monkeypatch)


def fill(steps: Steps, *, waiting: int, lanes: int = 1, route: str = "strict") -> None:
    """So many deliveries of each lane, of which the first is ready, and all others wait."""
    numbers = range(1, waiting * lanes + 1)
    steps.receive(*(an_event(n, f"u{n % lanes}", routes=[route]) for n in numbers))
    while steps.sequence() == BATCH:
        pass


def attempt(steps: Steps, outcome: Delivered | Failed = DONE) -> int:
    """Make the next attempt of the route whose ordering has changed; gives its seq."""
    delivery = steps.claim()
    record(work_of(steps.database, NOW_LATEST), [(delivery, outcome)])
    return delivery.seq


# --- folding


def test_a_record_folds_so_many_and_nothing_older_is_delivered_later(steps: Steps, transactions: Transactions) -> None:
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

    record(work_of(steps.database, NOW_LATEST), [(delivery, DONE) for delivery in claimed])
    looked_at_all, shared = 4 * 20, 3 * 20  # its lease, its head, and two that wait, of each lane; then three at most
    assert transactions.largest[0] <= looked_at_all + shared + 10
    assert transactions.largest[1] <= 20 + MOST
    steps.facts_agree()
    while steps.states():
        claimed = steps.claim_due()
        record(work_of(steps.database, NOW_LATEST), [(delivery, DONE) for delivery in claimed])
        steps.facts_agree()
    assert {delivery.seq for delivery in claimed} <= set(range(161, 181))


def test_an_arrival_waits_behind_what_is_still_to_be_folded(steps: Steps, transactions: Transactions) -> None:
    fill(steps, waiting=150)
    first = attempt(steps)
    steps.receive(an_event(200, "u0"))
    sequence(work_of(steps.database, NOW_LATEST))
    steps.facts_agree()

    delivered = [first]
    while steps.states():
        delivered.append(attempt(steps))
    assert delivered == sorted(delivered)
    assert delivered[-1] == 151  # the one that arrived last
    assert transactions.largest[1] <= MOST + 1


# --- healing


def die(steps: Steps, number: int, *, lanes: int = 1) -> None:
    """Let so many deliveries be dead, as if each had died before the next one of its lane came."""
    steps.receive(*(an_event(n, f"u{n % lanes}") for n in range(1, number + 1)))
    steps.do(
        "UPDATE open_delivery SET state = 'dead', attempt = 1",
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
        """ SELECT occurred_at, seq, route, 'dead', 'dead', 1, '{"cause": "mapping", "error": "email: no value"}'
        FROM open_delivery""",
    )


def test_a_success_ends_some_dead_and_the_next_of_the_lane_the_rest(steps: Steps, transactions: Transactions) -> None:
    die(steps, 90)
    steps.arrive(an_event(91, "u0"))
    transactions.forget()
    assert attempt(steps) == 91
    assert len(steps.states()) == 90 - MOST
    steps.arrive(an_event(92, "u0"))
    assert attempt(steps) == 92
    assert steps.states() == []
    assert transactions.largest[0] <= MOST + 20
    assert transactions.largest[1] <= MOST + 1
    assert steps.rows("SELECT count(*) AS healed FROM delivery_log WHERE kind = 'superseded'") == [{"healed": 90}]
    assert differences(steps.database) == []


# --- Transactions under the order lock do no more work when more is open: counts the cases of `benchmarks.order_lock`


FEW, MANY = 1500, 3000


def largest(database_url: str, monkeypatch: pytest.MonkeyPatch, case: str, number: int) -> tuple[int, int]:
    """The most rows that one transaction reads, and the most facts that one writes, with so many open."""
    with monkeypatch.context() as patched:
        world, transactions = World(database_url), Transactions(patched)
        world.empty()
        transactions.forget()
        CASES[case](world, number)
        world.engine.dispose()
    return transactions.largest


@pytest.mark.parametrize("case", CASES)
def test_transactions_stay_small(sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch, case: str) -> None:
    few = largest(sqlite_database_url, monkeypatch, case, FEW)
    many = largest(sqlite_database_url, monkeypatch, case, MANY)
    assert all(of_many <= of_few + 10 for of_few, of_many in zip(few, many, strict=True)), (few, many)
