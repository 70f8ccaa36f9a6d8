"""The daemon itself, in a thread: how it ends, told to or not."""

from __future__ import annotations

import contextlib
import socket
from concurrent.futures import ThreadPoolExecutor, wait

import pytest
from tests.helpers.databases import ON_POSTGRES, down
from tests.helpers.tables import count, facts

from relay import steps
from relay.daemon.generation import prepare
from relay.daemon.leases import Leases
from relay.daemon.loop import Relay
from relay.store import claim, work
from relay.store.leases import LEASE_SECONDS
from tests.flow.test_daemon_order import no_relay_can_order
from tests.helpers.daemon import Rig, configured, users
from tests.helpers.relaying import at_work
from tests.helpers.waiting import until


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
        config = configured(f"https://127.0.0.1:{silent.getsockname()[1]}/")
        relay = Relay(rig.database, prepare(config), grace_seconds=0.2, observer=rig.observer)
        with at_work(relay):
            connection, _ = silent.accept()
        connection.close()
    assert (rig.kinds, rig.left) == ([], {"ready": 1})
    assert rig.observer.counts["given_back"] == 1
    assert not relay._generations.in_hand


def test_a_relay_that_can_claim_nothing_for_long_ends_what_runs_in_order_and_itself_as_one_that_died(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_claims_that_can_not_be_given_back_at_once_are_given_back_when_the_database_is_well_again(
    rig: Rig, database_url: str, caplog: pytest.LogCaptureFixture
) -> None:
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
def test_a_stop_records_and_gives_back_what_a_locked_route_kept_from_it_though_its_next_try_is_far(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(work, "REST_SECONDS", 600.0)
    rig.arrive(*users(3))
    held = rig.hold()
    with rig.relay(concurrency=1) as relay:
        rig.until_left(in_flight=3)
        until(lambda: held.seqs, "one is called")  # until then, all three could be withdrawn
        with no_relay_can_order(rig.engine):
            relay.reload(prepare(rig.config()))
            until(lambda: "give_back" in {*relay._steps.failing, *relay._rests.texts()}, "two are left")
            assert len(relay._leases.trusted()) == 3, "they stay leased"
            held.go.set()
            until(lambda: relay._unrecorded, "the third is left, too")
    assert rig.kinds == ["delivered"]
    assert rig.left == {"ready": 2}
    assert rig.observer.counts["given_back"] == 2


def test_a_lease_is_trusted_for_less_time_than_others_wait_for_its_end() -> None:
    """By the database's clock it began before the answer, so a claim is timed from the moment it was asked for."""
    leases = Leases()
    began = leases.began_asking()
    leases.granted([(1, "everything", 1)], began)
    assert leases.trusted_until((1, "everything", 1)) < began + LEASE_SECONDS
