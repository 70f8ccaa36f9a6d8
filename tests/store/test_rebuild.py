"""`rebuild` gives back what was lost, beside whatever runs, and what it can't do it leaves to the next run."""

from __future__ import annotations

import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from relay.delivery import facts
from relay.store import audit
from relay.store.database import Database
from tests.helpers.folding import decode
from tests.helpers.patience import be_patient
from tests.helpers.relaying import DONE, FakeClock, Steps, record, work_of
from tests.helpers.storing import a_fact, a_row, an_event
from tests.helpers.waiting import until
from tests.store.test_many_relays import one_round
from tests.store.verifying import ROUTES, Planter, differences, findings, mend


def test_an_emptied_table_comes_back_as_it_was_but_for_leases(lived_in: Steps, plant: Planter) -> None:
    columns = "seq, route, lane, occurred_at, CASE WHEN state = 'in_flight' THEN 'ready' ELSE state END AS state, run, crashes"
    query = f"SELECT {columns} FROM open_delivery ORDER BY seq, route"
    before = lived_in.rows(query)
    due = lived_in.rows("SELECT due_at FROM open_delivery WHERE seq = 5")
    plant("DELETE FROM open_delivery")
    plant("DELETE FROM lane")

    mend(lived_in.database)

    assert lived_in.rows(query) == before
    assert lived_in.rows("SELECT due_at FROM open_delivery WHERE seq = 5") == due
    assert differences(lived_in.database) == []


def test_what_was_rebuilt_is_delivered_in_order(lived_in: Steps, plant: Planter, clock: FakeClock) -> None:
    plant("DELETE FROM open_delivery")
    mend(lived_in.database)
    clock.advance(60)

    assert [lived_in.attempt(DONE).seq for _ in range(4)] == [7, 5, 6, 8]
    assert lived_in.states() == [(3, "strict", "dead"), (9, "blocking", "blocked"), (10, "blocking", "waiting")]


def test_one_in_flight_is_left_until_its_call_has_ended(lived_in: Steps, plant: Planter) -> None:
    plant("UPDATE open_delivery SET attempt = 3 WHERE seq = 7")
    before = lived_in.rows("SELECT * FROM open_delivery WHERE seq = 7")

    assert mend(lived_in.database) == []
    assert findings(lived_in.database) == [("attempt", 7, "strict")]
    assert lived_in.rows("SELECT * FROM open_delivery WHERE seq = 7") == before


def test_one_in_flight_that_has_ended_loses_its_lease_and_its_result(
    steps: Steps, plant: Planter, database: Database
) -> None:
    steps.arrive(an_event(1))
    working = steps.claim()
    plant(a_fact("skipped", 1, why="a slip"))
    mend(database)

    (recorded,) = record(work_of(database), [(working, DONE)])
    assert recorded.fact is None
    assert steps.states() == []


TAKEN = "UPDATE open_delivery SET state = 'ready', due_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 10"
"""The one behind the blocked one takes its place."""


@pytest.mark.parametrize(
    "lost",
    [
        ("DELETE FROM open_delivery WHERE seq = 9", TAKEN),
        ("UPDATE open_delivery SET lane = 'USER|somebody else' WHERE seq = 9",),
    ],
    ids=["its row is gone", "it stands in another lane"],
)
def test_a_blocked_one_gets_its_place_back_before_the_one_behind_it(
    lived_in: Steps, plant: Planter, lost: tuple[str, ...]
) -> None:
    for statement in lost:
        plant(statement)

    mend(lived_in.database)

    assert lived_in.states()[-2:] == [(9, "blocking", "blocked"), (10, "blocking", "waiting")]
    assert differences(lived_in.database) == []


def test_a_blocked_one_waits_for_the_one_in_flight_that_took_its_place(lived_in: Steps, plant: Planter) -> None:
    plant("DELETE FROM open_delivery WHERE seq = 9")
    plant(TAKEN)
    working = lived_in.claim("blocking")

    assert mend(lived_in.database) == []
    assert findings(lived_in.database) == [("missing", 9, "blocking")]

    record(lived_in.work, [(working, DONE)])
    assert [found.finding for found in mend(lived_in.database)] == ["missing"]
    assert lived_in.states()[-1] == (9, "blocking", "blocked")


def test_a_contradiction_is_put_right_by_a_fact_that_says_who_and_why(lived_in: Steps, plant: Planter) -> None:
    plant(a_fact("delivered", 1, did="forwarded"))
    mend(lived_in.database)

    (row,) = lived_in.rows("SELECT state, attempt, detail FROM delivery_log WHERE seq = 1 ORDER BY id DESC LIMIT 1")
    corrected = decode("corrected", json.dumps(row["detail"]))
    assert isinstance(corrected, facts.Corrected)
    assert corrected.who == "ann"
    assert (
        corrected.why
        == "fact 10 (delivered) leads to ended in run 0 with 1 attempts, after ended in run 0 with 1 attempts"
    )
    assert (row["state"], row["attempt"]) == ("ended", 1)
    (shown,) = lived_in.rows("SELECT state FROM delivery WHERE seq = 1")
    assert shown == {"state": "corrected"}


@pytest.mark.parametrize("size", [1, 2, 3])
def test_it_does_not_matter_where_one_chunk_ends_and_the_next_begins(
    lived_in: Steps, plant: Planter, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant("DELETE FROM open_delivery WHERE seq IN (3, 5, 9)")
    plant(a_row(99, lane="x", state="dead"))
    whole = findings(lived_in.database)
    monkeypatch.setattr(audit, "SPAN_SEQS", size)

    assert findings(lived_in.database) == whole
    mend(lived_in.database)
    assert differences(lived_in.database) == []


def test_deliveries_of_a_route_that_is_not_configured_are_verified_and_rebuilt_too(
    steps: Steps, plant: Planter
) -> None:
    steps.receive(an_event(1, routes=["gone"]))
    assert differences(steps.database) == []
    plant("DELETE FROM open_delivery")
    mend(steps.database)
    assert steps.rows("SELECT route, lane, state FROM open_delivery") == [
        {"route": "gone", "lane": "USER|u1", "state": "ready"}
    ]


def test_an_event_that_takes_no_route_is_complete(steps: Steps) -> None:
    steps.receive(an_event(1, routes=[]))
    assert differences(steps.database) == []


def test_verify_and_rebuild_beside_relays_and_a_receiver_find_nothing_that_is_not_there(steps: Steps) -> None:
    """Every commit of the others leaves everything in agreement, and no chunk sees half of one."""
    received_all = threading.Event()
    database = steps.database
    be_patient(database.engine)
    found: list[object] = []

    def run_relay(name: str) -> None:
        rng = random.Random(name)
        while True:
            last = received_all.is_set()
            if not sum(one_round(database, name, route, rng) for route in ROUTES) and last:
                return
            steps.advance(0.1)

    rounds: list[int] = []

    def check() -> None:
        while not received_all.is_set():
            found.extend(differences(database))
            found.extend(mend(database))
            rounds.append(len(found))

    with ThreadPoolExecutor(3) as pool:
        relays = [pool.submit(run_relay, name) for name in ("r1", "r2")]
        checking = pool.submit(check)
        for first in range(1, 161, 10):
            steps.receive(*(an_event(n, f"u{n % 20}", routes=ROUTES) for n in range(first, first + 10)))
            until(lambda: checking.done() or len(rounds) * 50 >= first - 10, "it is checked meanwhile", within=60)
        received_all.set()
        for relay in relays:
            relay.result()
        checking.result()
        assert len(rounds) >= 3
    assert found == []
    assert differences(database) == []
