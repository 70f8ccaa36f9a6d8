"""The order lock by route: different routes go on beside each other, and who locks everything waits for all of them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from inbox.db import order_lock
from inbox.db.dialect import is_turn_timeout, is_wait_timeout
from relay.delivery.lifecycle import State
from relay.store import alerts, claim, leases, reap, record, sequence
from relay.store.alert_conditions import Watch
from relay.store.clock import DatabaseClock
from relay.store.quarantine import quarantine
from relay.store.scan_positions import Floor
from relay.store.transaction import HASTY_WAIT_MS, Transaction
from relay.store.turns import FORGOTTEN_SECONDS, BackOffs, Stalls
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.order_locks import is_kept_waiting, lock, locking
from tests.helpers.patience import stand_still
from tests.helpers.relaying import CONFIG, DONE, POLICIES, Monotonic, Steps
from tests.helpers.sent_statements import counted_statements
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.storing import an_event
from tests.store.verifying import Planter

pytestmark = ON_POSTGRES

_STATE_OF_NOTHING = text("UPDATE open_delivery SET state = 'nothing'")
_END = text("DELETE FROM open_delivery")


@pytest.fixture
def locked(steps: Steps) -> Iterator[Transaction]:
    """A transaction that has the lock of `latest`."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    with locking(steps, ["latest"]) as transaction:
        yield transaction


class SettledAtTimes(DatabaseClock):
    """A clock that says these, one after the other, when it is asked whether it is settled."""

    def __init__(self, answers: list[bool]) -> None:
        super().__init__()
        self._answers = iter(answers)

    def is_settled(self) -> bool:
        return next(self._answers)


def test_only_who_locks_the_same_route_or_everything_waits(steps: Steps, locked: Transaction) -> None:  # noqa: ARG001
    waiting = {
        str(routes): is_kept_waiting(steps, routes)
        for routes in (["strict"], ["latest"], ["latest", "strict"], ["new"], None)
    }
    assert waiting == {
        "['strict']": False,
        "['latest']": True,
        "['latest', 'strict']": True,
        "['new']": False,
        "None": True,
    }


def test_who_only_tries_gets_the_lock_alone_or_fails_at_once(steps: Steps, locked: Transaction) -> None:  # noqa: ARG001
    with contextlib.ExitStack() as trying:
        trying.enter_context(steps.database.trying(at_once=True))
        transaction = trying.enter_context(steps.database.write())
        transaction.lock_order(["strict"])
        stand_still(transaction.connection)
        for routes in (["latest"], ["strict"], ["latest", "new"]):
            with pytest.raises(DBAPIError, match="somebody has locked") as raised, steps.database.write() as another:
                another.lock_order_and_read(set(routes))
            assert is_turn_timeout(raised.value)
        with steps.database.trying(at_once=False):
            assert is_kept_waiting(steps, ["strict"])
    lock(steps, ["strict"])


def test_another_route_is_sequenced_and_recorded_meanwhile(steps: Steps, locked: Transaction) -> None:  # noqa: ARG001
    steps.receive(an_event(3, "u3"))
    assert steps.sequence() == 1
    (recorded, _) = steps.record_all(steps.claim_due(2, "strict"), DONE)
    assert recorded.fact is not None


def test_a_route_that_stays_locked_keeps_no_other_from_being_sequenced(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(3, 3 + sequence.OWN_TRANSACTION)))
    steps.receive(*(an_event(n, f"u{n}") for n in range(100, 103)))
    with locking(steps, ["latest"]):
        assert steps.sequence() == 3
        assert {route for _, route, state in steps.states() if state == "received"} == {"latest"}


def test_other_routes_are_sequenced_as_they_arrive_while_one_is_not_tried_again_yet(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(an_event(3, "u3", routes=["latest"]))
    left = steps.hear_of_left()
    with locking(steps, ["latest"]):
        steps.database.stalls.began(["latest"])  # so that each wait for it is short
        steps.database.back_offs = BackOffs(Monotonic())  # whose time stands still
        assert steps.sequence() == 0
        for number in range(4, 7):
            steps.receive(an_event(number, f"u{number}"))
            assert sequence.any_received(steps.database, steps.policies)
            assert steps.sequence() == 1
            assert steps.database.arrivals.left == {"latest"}
    assert [one.routes for one in left] == [["latest"], (), (), ()], "it was tried once"
    assert steps.sequence() == 0
    steps.try_again()
    assert steps.sequence() == 1
    assert steps.database.arrivals.left == set()


def test_a_look_for_others_does_not_read_again_what_a_locked_route_has(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(*(an_event(number, f"u{number}", routes=["latest"]) for number in range(3, 6)))
    steps.do("SELECT setval('inbox_seq_seq', 5000)")
    steps.receive(an_event(6, "u6"))
    steps.database.arrivals.floor = Floor(whole_every=1e9)
    with locking(steps, ["latest"]):
        steps.database.stalls.began(["latest"])
        assert steps.sequence() == 1
        assert steps.database.arrivals.floor.at == 5001 - sequence.LATE_SEQS
        assert sequence.any_received(steps.database, steps.policies)
        assert steps.database.arrivals.floor.at == 5001 - sequence.LATE_SEQS
        steps.try_again()
        assert steps.sequence() == 0
        assert steps.database.arrivals.floor.at == 5001 - sequence.LATE_SEQS
    steps.try_again()
    assert steps.sequence() == 3
    assert steps.database.arrivals.floor.at is None, "what arrived before is looked for from the beginning"


def test_a_head_that_cannot_be_loaded_and_whose_route_is_locked_keeps_no_other_from_being_claimed(
    steps: Steps, plant: Planter
) -> None:
    steps.arrive(*(an_event(number, f"u{number}", routes=["latest"]) for number in (1, 2)), an_event(3, "u3"))
    plant("DELETE FROM inbox_payload WHERE seq = 1")
    with locking(steps, ["latest"]):
        assert [delivery.seq for delivery in steps.claim_due()] == [2, 3]
        assert steps.claim_due() == [], "it stays as it is until its lease has run out"
    steps.advance(100)
    steps.reap("r1")
    assert [delivery.seq for delivery in steps.claim_due()] == [2, 3]
    assert steps.rows("SELECT seq, cause FROM dead_letter") == [{"seq": 1, "cause": "payload_gone"}]


def test_a_suspect_that_cannot_be_loaded_and_whose_route_is_locked_keeps_no_other_from_being_claimed(
    steps: Steps, plant: Planter
) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, "u2"))
    steps.do("UPDATE open_delivery SET crashes = 2")
    plant("DELETE FROM inbox_payload WHERE seq = 1")
    with locking(steps, ["latest"]):
        with pytest.raises(DBAPIError, match="lock timeout"):
            claim.claim_suspect(steps.database, "r1", list(POLICIES), policies=POLICIES)
        claimed = claim.claim_suspect(steps.database, "r1", list(POLICIES), policies=POLICIES)
    assert [delivery.seq for delivery in claimed] == [2]


def test_a_breaker_is_probed_while_another_route_is_locked_and_not_waited_for_while_its_own_is(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    breaker = [("destination", "strict")]

    def probe() -> list[int]:
        return [each.seq for each in claim.claim_probe(steps.database, "r1", "strict", breaker, policies=POLICIES)]

    left = steps.hear_of_left()
    half_open = (
        "INSERT INTO gate (kind, name, breaker, breaker_until) VALUES ('destination', 'strict', 'open', '2000-01-01')"
    )
    steps.do(half_open)
    monotonic = Monotonic()
    steps.database.back_offs = BackOffs(monotonic)
    with locking(steps, ["strict"]):
        assert [probe(), probe()] == [[], []]
        assert [one.routes for one in left] == [()], "another relay may have had it for a moment"
        monotonic.seconds += 1
        assert probe() == []
        assert left[-1].routes == ["strict"]
        assert "somebody has locked" in str(left[-1].error), "and nobody waited"
    steps.try_again()
    with locking(steps, ["latest"]):
        assert probe() == [1]


def test_who_finds_a_full_batch_that_another_relay_has_sequenced_knows_that_there_may_be_more(steps: Steps) -> None:
    steps.receive(an_event(1), an_event(2, "u2"))
    found = sequence._LookForReceived(steps.database, POLICIES, "r1", 2)._keys()
    assert steps.sequence(batch=2) == 2
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(sequence._LookForReceived, "_keys", lambda _: found)
        assert steps.sequence(batch=2) == 0
    assert steps.database.arrivals.is_behind
    assert steps.sequence(batch=2) == 0
    assert not steps.database.arrivals.is_behind


def test_many_locked_routes_cost_a_step_little_more_than_one(steps: Steps) -> None:
    routes = [f"r{number:02}" for number in range(40)]
    steps.policies = dict.fromkeys(routes, POLICIES["strict"])
    steps.receive(*(an_event(n, f"u{n}", routes=[route]) for n, route in enumerate(routes, start=1)))
    steps.database.add_routes({*routes})
    with locking(steps, routes[:30]):
        for sequenced in (10, 0):
            with counted_statements() as seen:
                assert steps.sequence() == sequenced
            assert sum("FOR UPDATE OF l" in statement for statement in seen) <= 4
            steps.try_again()
    assert steps.database.arrivals.left == {*routes[:30]}
    assert steps.sequence() == 30


def test_what_commits_late_on_another_route_is_found_while_one_is_left(steps: Steps) -> None:
    monotonic = Monotonic()
    steps.database.arrivals.floor = Floor(monotonic=monotonic)
    steps.do("SELECT setval('inbox_seq_seq', 50000)")
    steps.receive(an_event(1, routes=["latest"]), an_event(2, "u2"))
    with locked_by_a_person(steps.database.engine, "SELECT seq FROM open_delivery WHERE seq = 50001 FOR UPDATE"):
        for second in range(2):
            sequence.any_received(steps.database, steps.policies)
            steps.sequence()
            monotonic.seconds += second
        steps.do("SELECT setval('inbox_seq_seq', 9)")
        steps.receive(an_event(3, "late"))
        for _ in range(5):
            monotonic.seconds += 0.5
            if sequence.any_received(steps.database, steps.policies):
                steps.sequence()
        assert (10, "strict", State.READY) in steps.states()


def test_a_route_with_many_expired_leases_that_stays_locked_hides_no_others(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reap, "BATCH", 2)
    steps.arrive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 6)), an_event(6, "u6"))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locking(steps, ["latest"]):
        steps.database.stalls.began(["latest"])
        assert [seq for seq, _, _ in steps.reap()] == []
        assert [seq for seq, _, _ in steps.reap()] == [6]
    steps.try_again()
    assert sorted(seq for _ in range(3) for seq, _, _ in steps.reap()) == [1, 2, 3, 4, 5]
    assert steps.database.unreaped == set()


def test_a_clock_that_is_not_settled_makes_no_reap_well_that_has_left_leases(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locking(steps, ["strict"]):
        steps.database.stalls.began(["strict"])
        assert steps.reap() == []
    left = steps.hear_of_left()
    steps.try_again()
    for is_settled in ([False], [True, False, False]):  # seen at once, or under the lock
        assert reap.reap(steps.database, POLICIES, "r1", clock=SettledAtTimes(is_settled)) == []
    assert [(one.step, one.routes) for one in left] == [("reap", ()), ("reap", ())]


@pytest.mark.usefixtures("locked")
def test_alerts_are_stored_while_a_route_stays_locked(steps: Steps) -> None:
    alerts.step_failed(steps.database, "sequence", "latest: lock timeout")
    Watch().look(steps.database, CONFIG)
    assert [row["kind"] for row in steps.rows("SELECT kind FROM alert")] == ["step_failed", "step_failed"], (
        "no relay says that it fails, so it has ended"
    )


def test_a_short_wait_for_all_routes_in_vain_does_not_shorten_the_next_ones_for_good(steps: Steps) -> None:
    steps.arrive(an_event(1))
    monotonic = Monotonic()
    steps.database.stalls = Stalls(monotonic)
    with locking(steps, ["strict"]):
        assert is_kept_waiting(steps, None)
        monotonic.seconds = FORGOTTEN_SECONDS - 1
        assert is_kept_waiting(steps, None)
    monotonic.seconds = FORGOTTEN_SECONDS + 1
    assert not steps.database.stalls.locked()


def test_who_has_waited_for_all_routes_in_vain_waits_shortly_until_they_are_granted(steps: Steps) -> None:
    steps.arrive(an_event(1))
    with locking(steps, ["strict"]):
        assert is_kept_waiting(steps, None)
    waits = []
    for _ in range(2):
        with steps.database.write() as transaction:
            transaction.lock_order()
            waits += [row.wait for row in transaction.execute(text("SELECT current_setting('lock_timeout') AS wait"))]
    assert waits == [f"{HASTY_WAIT_MS}ms", "2s"]


def test_routes_are_added_before_anybody_needs_them(steps: Steps) -> None:
    steps.database.add_routes({"strict", "latest"})
    steps.database.add_routes({"strict", "blocking"})
    assert [row["route"] for row in steps.rows("SELECT route FROM route_lock ORDER BY route")] == [
        "blocking", "latest", "strict",
    ]  # fmt: skip
    with locking(steps, None):
        steps.database.add_routes({"strict"})


def test_a_route_that_stays_locked_keeps_no_other_from_being_recorded(steps: Steps) -> None:
    steps.arrive(
        *(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 1 + record.OWN_TRANSACTION)), an_event(100)
    )
    claimed = steps.claim_due()
    with locking(steps, ["latest"]):
        assert {recorded.delivery.route for recorded in steps.record_all(claimed)} == {"strict"}
        assert {route for _, route, _ in steps.states()} == {"latest"}


def test_a_bad_delivery_is_set_aside_and_leases_are_given_back_while_another_route_is_locked(
    steps: Steps,
    locked: Transaction,  # noqa: ARG001
) -> None:
    claimed = steps.claim("strict")
    lease = (claimed.seq, claimed.route, claimed.lease_token)
    assert leases.give_back(steps.database, steps.policies, steps.node, [lease]) == 1
    key = (claimed.seq, claimed.route)
    bad = ValueError("bad")
    assert quarantine(steps.database, steps.policies, steps.node, key, cause="unprocessable", error=bad) is not None


def test_a_route_that_stays_locked_hides_no_other_whose_deliveries_arrived_later(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(3, 8)), an_event(8, "u8"))
    with locking(steps, ["latest"]):
        steps.database.stalls.began(["latest"])  # so that each wait for it is short
        assert [steps.sequence(batch=2) for _ in range(2)] == [1, 0], "the first look was full, so another followed"
        assert steps.states()[-1] == (8, "strict", State.READY)
        assert len([state for _, _, state in steps.states() if state == "received"]) == 5
    steps.try_again()
    assert [steps.sequence(batch=2) for _ in range(4)] == [2, 2, 1, 0]
    assert steps.database.arrivals.left == set()
    assert not steps.database.stalls.has(["latest"])


def test_of_a_route_that_is_free_again_the_oldest_come_first_wherever_other_routes_are(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["latest"]), an_event(2))
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(3, 6)))
    with locking(steps, ["latest"]):
        steps.database.stalls.began(["latest"])  # so that each wait for it is short
        assert steps.sequence(batch=2) == 0
    steps.try_again()
    steps.do("SELECT setval('inbox_seq_seq', 5000)")
    steps.receive(an_event(6, "u6", routes=["latest"]), an_event(7, "u7"))
    assert steps.sequence(batch=2) == 3, "the other route's, and two of this one"
    assert steps.sequence(batch=1) == 1
    assert [seq for seq, _, state in steps.states() if state == "received"] == [5001]


def test_a_route_that_another_relay_has_sequenced_meanwhile_is_claimed_again(steps: Steps) -> None:
    steps.database.arrivals.left = {"latest"}
    assert not sequence.any_received(steps.database, steps.policies)
    assert steps.database.arrivals.left == set()


def test_the_limit_of_a_lock_is_shorter_than_one_that_the_server_has(steps: Steps) -> None:
    given = {"given": '[{"route": "strict"}]', "now": None}
    lock = text(order_lock.given_routes(steps.database.sql).text.replace(f"{order_lock.HELD_SECONDS}s", "100ms"))
    with steps.database.engine.connect() as connection:
        connection.execute(text("SET transaction_timeout = '1min'"))
        connection.commit()
        connection.execute(lock, given)
        with pytest.raises(DBAPIError, match="transaction timeout") as raised:
            connection.execute(text("SELECT pg_sleep(30)"))
        assert is_wait_timeout(raised.value), "fewer items may take less time"
        connection.invalidate()


def test_a_route_that_was_waited_for_in_vain_is_waited_for_only_shortly_until_it_is_granted(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.database.stalls.began(["strict"])
    waits = []
    for _ in range(2):
        with steps.database.write() as transaction:
            transaction.lock_order_and_read({"strict"})
            waits += [row.wait for row in transaction.execute(text("SELECT current_setting('lock_timeout') AS wait"))]
    assert waits == [f"{HASTY_WAIT_MS}ms", "2s"]


def test_of_many_routes_that_were_left_each_gets_its_share_of_a_look(steps: Steps) -> None:
    steps.receive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 5)), an_event(5, "u5"))
    steps.database.arrivals.left = {"latest", "strict"}
    assert steps.sequence(batch=2) == 2
    assert (5, "strict", State.READY) in steps.states()


def test_a_route_that_is_free_is_recorded_before_another_is_waited_for(steps: Steps) -> None:
    """So two relays that have outcomes of the same routes don't stand behind each other."""
    steps.arrive(*(an_event(n, f"u{n}", routes=["latest"]) for n in range(1, 1 + record.OWN_TRANSACTION)))
    steps.arrive(an_event(100))
    claimed = sorted(steps.claim_due(), key=lambda delivery: delivery.route)
    outcomes = [(delivery, DONE) for delivery in claimed]
    with steps.database.engine.connect() as another:
        another.execute(text("SELECT route FROM route_lock WHERE route = 'latest' FOR UPDATE"))
        parts = record.record_each(steps.database, POLICIES, steps.node, outcomes)
        (first,) = next(parts)
        assert first.delivery.route == "strict"
        another.rollback()
        (rest,) = parts
    assert {recorded.delivery.route for recorded in rest} == {"latest"}
    assert steps.states() == []


def test_small_parts_of_many_routes_are_recorded_but_for_the_one_that_stays_locked(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}", routes=[route]) for n, route in enumerate(POLICIES, 1)))
    claimed = steps.claim_due()
    with locking(steps, ["blocking"]):
        for recorded in (len(POLICIES) - 1, 0):
            assert len(steps.record_all(claimed)) == recorded
            assert [route for _, route, _ in steps.states()] == ["blocking"]
            assert steps.database.stalls.has(["blocking"])
            assert not steps.database.stalls.has(["latest", "strict"])
            claimed = [delivery for delivery in claimed if delivery.route == "blocking"]
            steps.try_again()
    steps.record_all(claimed)
    assert steps.states() == []


def test_expired_leases_are_taken_back_while_another_route_is_locked(steps: Steps) -> None:
    steps.arrive(an_event(1), *(an_event(n, f"u{n}", routes=["latest"]) for n in range(2, 2 + reap.OWN_TRANSACTION)))
    steps.claim_due()
    steps.do("UPDATE open_delivery SET lease_until = '2000-01-01'")
    with locking(steps, ["latest"]):
        assert len(steps.reap()) == 1
        assert {route for _, route, state in steps.states() if state == "in_flight"} == {"latest"}
    steps.try_again()
    assert len(steps.reap()) == reap.OWN_TRANSACTION


def test_who_has_everything_keeps_a_route_waiting_that_has_no_row_yet(steps: Steps) -> None:
    with locking(steps, None):
        assert is_kept_waiting(steps, ["new"])
    assert not is_kept_waiting(steps, ["new"])


def test_a_row_that_somebody_has_removed_is_added_again(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.do("DELETE FROM route_lock")
    steps.record_all(steps.claim_due(1, "strict"), DONE)
    assert steps.rows("SELECT route FROM route_lock") == [{"route": "strict"}]
    assert steps.states() == []


def test_who_only_tries_adds_a_row_that_is_missing(steps: Steps) -> None:
    steps.arrive(an_event(1))
    with steps.database.trying(at_once=True), steps.database.write() as transaction:
        transaction.lock_order_and_read({"strict", "latest"})
    assert [row["route"] for row in steps.rows("SELECT route FROM route_lock ORDER BY route")] == ["latest", "strict"]


def test_who_has_some_of_its_routes_does_not_wait_for_who_is_about_to_lock_everything(steps: Steps) -> None:
    """Else the two would wait for each other."""
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]))
    steps.do("DELETE FROM route_lock WHERE route = 'latest'")
    with steps.database.write() as another:
        another.execute(order_lock.FIRST)
        with pytest.raises(DBAPIError, match="could not obtain lock"), steps.database.write() as transaction:
            transaction.lock_order_and_read({"strict", "latest"})
        another.execute(order_lock.every_route(another.sql))
    lock(steps, ["strict", "latest"])
    assert steps.rows("SELECT route FROM route_lock ORDER BY route") == [{"route": "latest"}, {"route": "strict"}]


def test_the_limit_of_a_lock_ends_with_its_transaction(steps: Steps) -> None:
    steps.arrive(an_event(1))
    limit = text("SELECT current_setting('transaction_timeout') AS limit")
    with steps.database.engine.connect() as connection:
        for _ in range(2):
            with connection.begin():
                assert connection.execute(limit).scalar_one() == "0"
                given = {"given": '[{"route": "strict"}]', "now": None}
                connection.execute(order_lock.given_routes(steps.database.sql), given)
                assert connection.execute(limit).scalar_one() == f"{order_lock.HELD_SECONDS}s"


def test_a_lock_that_is_waited_for_in_vain_is_named_by_a_pipeline_too(steps: Steps, locked: Transaction) -> None:  # noqa: ARG001

    def read() -> None:
        with steps.database.write() as another:
            another.limit_waits(50)
            another.lock_order_and_read({"latest"}, (_END, {}))

    with pytest.raises(DBAPIError, match="lock timeout") as raised:
        read()
    assert "route_lock" in str(raised.value.statement)
