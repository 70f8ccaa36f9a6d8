"""Several relays on one database, with nothing between them but the database."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

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
