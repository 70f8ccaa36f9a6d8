"""Several relays on one database, with nothing between them but the database."""

from __future__ import annotations

import random
import threading
from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import event

from relay.delivery.lifecycle import State
from relay.delivery.outcome import Outcome
from relay.store.claim import Room, claim
from relay.store.database import Database
from relay.store.deliveries import claim_of
from relay.store.leases import give_back, reap, renew
from relay.store.sequence import heads_of, sequence
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.patience import be_patient
from tests.helpers.relaying import DONE, POLICIES, UNWELL, FakeClock, Steps, record, work_of
from tests.helpers.storing import an_event

EVENTS, ENTITIES, RELAYS = 300, 30, 3

ENDED = """
SELECT l.seq, l.kind, i.entity_id FROM delivery_log l JOIN inbox i ON i.seq = l.seq
WHERE l.kind IN ('delivered', 'superseded') ORDER BY l.id
"""


def one_round(database: Database, name: str, route: str, rng: random.Random) -> int:
    """Every step once; some attempts fail, some are given back. Returns how much there was to do."""
    moved = sequence(work_of(database, node=name), batch=20)
    claimed = claim(work_of(database, node=name), [Room([route], 8)])
    kept = [delivery for delivery in claimed if rng.random() > 0.05]
    give_back(work_of(database, node=name), [claim_of(delivery) for delivery in claimed if delivery not in kept])
    record(work_of(database, node=name), [(delivery, an_outcome(rng)) for delivery in kept])
    reap(work_of(database, node=name))
    return moved + len(claimed)


def an_outcome(rng: random.Random) -> Outcome:
    return UNWELL if rng.random() < 0.1 else DONE


def run_relay(database: Database, clock: FakeClock, name: str, route: str, received_all: threading.Event) -> None:
    rng = random.Random(name)
    while True:
        last = received_all.is_set()
        if not one_round(database, name, route, rng) and last:
            return
        clock.advance(0.1)  # so that retries fall due, and no lease runs out


@pytest.mark.parametrize("route", ["strict", "latest"])
def test_three_relays_and_a_receiver_at_once_lose_nothing_keep_order_and_leave_no_lane_stuck(
    steps: Steps, clock: FakeClock, database: Database, route: str
) -> None:
    received_all = threading.Event()
    be_patient(database.engine)
    with ThreadPoolExecutor(RELAYS) as pool:
        relays = [pool.submit(run_relay, database, clock, f"r{n}", route, received_all) for n in range(RELAYS)]
        for first in range(1, EVENTS + 1, 20):
            steps.receive(*(an_event(n, f"u{n % ENTITIES}", routes=[route]) for n in range(first, first + 20)))
        received_all.set()
        for relay in relays:
            relay.result()
    for _ in range(12):  # what failed is due later and later, eleven times at most
        clock.advance(100_000)
        run_relay(database, clock, "last", route, received_all)

    assert steps.states() == []
    ended = steps.rows(ENDED)
    assert sorted(row["seq"] for row in ended) == list(range(1, EVENTS + 1))
    delivered: dict[str, list[int]] = defaultdict(list)
    for row in ended:
        if row["kind"] == "delivered":
            delivered[row["entity_id"]].append(row["seq"])
    assert len(delivered) == ENTITIES
    assert all(seqs == sorted(seqs) for seqs in delivered.values())
    if route == "strict":
        assert sum(len(seqs) for seqs in delivered.values()) == EVENTS


def test_two_relays_share_two_hundred_routes_and_neither_fails_nor_makes_a_transaction_of_each_delivery(
    steps: Steps, clock: FakeClock
) -> None:
    routes = [f"r{number:03}" for number in range(200)]
    known = dict.fromkeys(routes, POLICIES["strict"])
    steps.receive(*(an_event(n, "u1", routes=routes) for n in range(1, 3)))
    commits: list[object] = []
    event.listen(steps.database.engine, "commit", commits.append)

    def work(name: str) -> int:
        database, recorded = Database(steps.database.engine, clock), 0
        while sequence(work_of(database, known, node=name)):
            pass
        while claimed := claim(work_of(database, node=name), [Room(routes, 64)]):
            recorded += len(record(work_of(database, known, node=name), [(delivery, DONE) for delivery in claimed]))
        return recorded

    with ThreadPoolExecutor(2) as pool:
        recorded = sum(pool.map(work, "ab"))
    recorded += work("a")  # heads that one relay has made after the other one's last look
    assert (recorded, steps.states()) == (2 * len(routes), [])
    assert len(commits) < len(routes)
    steps.facts_agree()


@ON_POSTGRES
def test_who_settles_a_lane_holds_up_no_renewal_of_its_head_and_locks_one_that_is_ready(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    working = steps.claim()
    lanes = [("strict", "USER|a"), ("strict", "USER|b")]
    lease = claim_of(working)
    be_patient(steps.database.engine)
    with steps.database.write() as settling:
        settling.take_order_lock()
        assert [(head.seq, head.state) for head in sorted(heads_of(settling, lanes), key=lambda head: head.seq)] == [
            (1, State.IN_FLIGHT),
            (2, State.READY),
        ]
        assert renew(steps.database, [lease]) == {lease}
        assert claim(work_of(steps.database, node="r2"), [Room(["strict"], 8)]) == []
    assert [delivery.seq for delivery in claim(work_of(steps.database, node="r2"), [Room(["strict"], 8)])] == [2]
