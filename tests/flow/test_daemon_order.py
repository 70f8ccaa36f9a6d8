"""The daemon itself, in a thread: claims while arrivals can't be ordered, leases whose rows are locked, and its end.

On SQLite a relay that can't order can't claim either.
"""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import pytest
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from relay import steps
from relay.daemon.generation import PreparedConfig, prepare
from relay.daemon.leases import RENEW_EVERY_SECONDS, TRUSTED_SECONDS, Leases
from relay.daemon.loop import Relay
from relay.store import claim, work
from relay.store.database import Database
from relay.store.deliveries import lease_key_of
from relay.store.leases import LEASE_SECONDS
from relay.store.sequence import sequence
from tests.bulkheads.test_steps import LOCKED
from tests.helpers.daemon import Rig, make_config, users
from tests.helpers.databases import ON_POSTGRES, down
from tests.helpers.locks import lock_by_hand
from tests.helpers.relaying import CONFIG, POLICIES, FakeClock, Steps, run_relay, work_of
from tests.helpers.storing import an_event
from tests.helpers.tables import count, facts, rows
from tests.helpers.waiting import stand_still, until
from tests.helpers.webhooks import ROUTE


@contextlib.contextmanager
def no_relay_can_order(engine: Engine) -> Iterator[None]:
    """Another relay stands still in a transaction that has the order lock."""
    with engine.connect() as connection:
        stand_still(connection)
        connection.execute(text("SELECT id FROM order_lock FOR UPDATE"))
        connection.execute(text("SELECT route FROM route_lock FOR UPDATE"))
        yield


def could_not_order(relay: Relay) -> bool:
    return "sequence" in {*relay._steps.failing, *relay._locked_routes.as_texts()}


@pytest.fixture
def _an_older_one_has_come(rig: Rig) -> None:
    """A head is due, and an older event of its entity is not ordered yet."""
    steps = Steps(rig.engine)
    steps.receive(an_event(1, second=2, routes=[ROUTE]))
    sequence(work_of(rig.database, {ROUTE: POLICIES["strict"]}, node="another"))
    steps.receive(an_event(2, second=1, routes=[ROUTE]))


@pytest.mark.usefixtures("_an_older_one_has_come")
def test_nothing_is_claimed_before_older_arrivals_are_ordered(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    let_go = threading.Event()

    def held_up(*given: Any) -> int:  # noqa: ANN401  # passed on
        if not let_go.is_set():
            raise LOCKED
        return sequence(*given)

    monkeypatch.setattr("relay.store.sequence.sequence", held_up)
    with rig.relay() as relay:
        until(lambda: could_not_order(relay), "it can't be ordered")
        let_go.set()
        rig.until_left()
    assert rig.calls == [2, 1]


@ON_POSTGRES
@pytest.mark.usefixtures("_an_older_one_has_come")
def test_a_route_whose_lock_another_step_gets_first_is_not_claimed_from_before_it_is_ordered(rig: Rig) -> None:
    with rig.database.write() as earlier:
        earlier.take_order_lock([ROUTE])  # so that the route has its row
    with contextlib.ExitStack() as trouble:
        trouble.enter_context(no_relay_can_order(rig.engine))
        with rig.relay() as relay:
            until(lambda: could_not_order(relay), "it can't be ordered")
            trouble.close()
            with relay._database.write() as another_step:
                another_step.take_order_lock([ROUTE])
            relay.wake()
            rig.until_left()
    assert rig.calls == [2, 1]


# --- leases


def read_renewed(engine: Engine) -> list[int]:
    since = "SELECT seq FROM open_delivery WHERE lease_until > '2026-01-01 00:00:01.000000Z' ORDER BY seq"
    return [row["seq"] for row in rows(engine, since)]


@ON_POSTGRES
def test_a_lease_whose_row_is_locked_is_renewed_in_the_next_round(engine: Engine) -> None:
    steps = Steps(engine, clock=FakeClock(SystemClock().now()))
    steps.arrive(an_event(1, "a"), an_event(2, "b"))
    claimed = [lease_key_of(steps.claim()) for _ in range(2)]
    steps.do("UPDATE open_delivery SET lease_until = '2026-01-01 00:00:00.000000Z'")
    relay = Relay(Database(engine), PreparedConfig(CONFIG), grace_seconds=0)
    relay._leases.trust(claimed, relay._leases.now())
    with lock_by_hand(engine, "SELECT 1 FROM open_delivery WHERE seq = 1 FOR UPDATE"):
        relay._renew()
        assert read_renewed(engine) == [2]
    relay._renew()
    assert read_renewed(engine) == [1, 2]
    assert 2 * RENEW_EVERY_SECONDS < TRUSTED_SECONDS, "it is asked for twice more before its calls are cut"


def test_a_lease_that_is_forgotten_while_it_is_renewed_is_not_trusted_again_nor_is_any_after_a_revocation() -> None:
    recorded, open_still = (1, "strict", 7), (2, "strict", 7)
    seconds = [100.0]
    leases = Leases(lambda: seconds[0])
    leases.trust([recorded, open_still], leases.now())
    assert leases.trusts_until(recorded) < 100 + LEASE_SECONDS, "for less time than others wait for its end"
    seconds[0] += 5
    asked_at = leases.now()
    leases.forget([recorded])
    leases.extend([recorded, open_still], asked_at)
    assert (leases.list_trusted(), leases.held()) == ([open_still], [open_still])
    assert leases.trusts_until(recorded) == 0
    assert leases.trusts_until(open_still) == 105 + TRUSTED_SECONDS
    leases.revoke()
    leases.extend([open_still], leases.now())
    assert (leases.list_trusted(), leases.held(), leases.trusts_until(open_still)) == ([], [], 0)


# --- The daemon itself, in a thread: how it ends, told to or not


def test_a_call_that_hangs_is_cut_when_the_grace_period_is_over(rig: Rig) -> None:
    rig.arrive("u1", "u1")
    held = rig.hold()
    with rig.relay(grace=0.2):
        until(lambda: held.seqs, "the call is under way")
    assert not held.go.is_set(), "it is not waited for"
    held.go.set()
    (cut,) = facts(rig.engine)
    assert (cut["detail"]["error_class"], cut["detail"]["counted"]) == ("lease_lost", False)
    assert rig.left == {"ready": 1, "waiting": 1}
    assert count(rig.engine, "open_delivery WHERE attempt > 0") == 0


def test_a_call_that_is_cut_before_it_is_sent_counts_as_never_made(rig: Rig) -> None:
    rig.arrive("u1")
    with socket.create_server(("127.0.0.1", 0)) as silent:  # no handshake ever ends
        config = make_config(f"https://127.0.0.1:{silent.getsockname()[1]}/")
        relay = Relay(rig.database, prepare(config), grace_seconds=0.2, observer=rig.observer)
        with run_relay(relay):
            connection, _ = silent.accept()
        connection.close()
    assert (rig.kinds, rig.left) == ([], {"ready": 1})
    assert rig.observer.counts["given_back"] == 1
    assert not relay._generations.in_hand


def test_a_relay_that_can_not_claim_ends_its_calls_and_then_itself(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(steps, "LASTS_SECONDS", 0.1)
    rig.arrive(*users(20))
    rig.downstream.seconds = 0.3
    relay = Relay(rig.database, prepare(rig.config(concurrency=1)), grace_seconds=20)
    with ThreadPoolExecutor(1) as pool:
        ends = pool.submit(relay.run)
        until(lambda: rig.calls, "the call is under way")
        monkeypatch.setattr(claim, "claim", broken)
        ended = wait([ends], timeout=60).done
        relay.stop()
        assert ended
        assert isinstance(ends.exception(), ZeroDivisionError)
    assert rig.kinds == ["delivered"] * len(rig.calls)
    assert rig.left != {}
    assert count(rig.engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0
    assert count(rig.engine, "relay_node WHERE stopped_at IS NULL") == 1


def test_claims_are_given_back_after_an_outage(rig: Rig, database_url: str, caplog: pytest.LogCaptureFixture) -> None:
    rig.arrive(*users(3))
    held = rig.hold()
    with rig.relay(concurrency=1, grace=20) as relay:
        rig.until_left(in_flight=3)
        until(lambda: held.seqs, "one has begun")
        with down(database_url):
            relay.stop()
            until(lambda: "trouble while giving back" in caplog.text, "the relay has tried")
            held.go.set()
    assert rig.kinds == ["delivered"]
    assert rig.left == {"ready": 2}
    assert count(rig.engine, "open_delivery WHERE attempt > 0") == 0
    assert relay._leases.held() == [], "none of them is renewed any more"


@ON_POSTGRES
def test_claims_that_can_not_be_ordered_at_a_stop_stay_until_their_leases_expire(rig: Rig) -> None:
    """Without the order lock no relay knows whether an older event has come meanwhile, which would go first."""
    rig.arrive(*users(3))
    held = rig.hold()
    with contextlib.ExitStack() as trouble:
        with rig.relay(concurrency=1, grace=0.0):
            until(lambda: held.seqs, "one has begun")
            rig.until_left(in_flight=3)
            trouble.enter_context(no_relay_can_order(rig.engine))
        held.go.set()
    assert rig.left == {"in_flight": 3}


@ON_POSTGRES
def test_a_stop_ends_the_work_that_a_locked_route_delayed(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(work, "REST_SECONDS", 600.0)
    rig.arrive(*users(3))
    held = rig.hold()
    with rig.relay(concurrency=1) as relay:
        rig.until_left(in_flight=3)
        until(lambda: held.seqs, "one is called")  # until then, all three could be withdrawn
        with no_relay_can_order(rig.engine):
            relay.reload(prepare(rig.config()))
            until(lambda: "give_back" in {*relay._steps.failing, *relay._locked_routes.as_texts()}, "two are left")
            assert len(relay._leases.list_trusted()) == 3, "they stay leased"
            held.go.set()
            until(lambda: relay._unrecorded, "the third is left, too")
    assert rig.kinds == ["delivered"]
    assert rig.left == {"ready": 2}
    assert rig.observer.counts["given_back"] == 2
