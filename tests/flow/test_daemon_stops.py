"""The daemon itself, in a thread: how it ends, told to or not."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path

import pytest
from sqlalchemy import Engine

from relay import steps
from relay.daemon import leases
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.store import claim, work
from relay.store.database import Database
from tests.flow.test_daemon_order import nobody_can_order
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import Downstream, Held, never_greeting, serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.outage import down
from tests.helpers.reading import count as count_rows
from tests.helpers.reading import rows
from tests.helpers.relaying import at_work
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE, moment


def test_one_that_hangs_is_cut_when_the_grace_period_is_over(database_url: str, engine: Engine, tmp_path: Path) -> None:
    fill(database_url, [("u1", moment(0)), ("u1", moment(1))])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream:
        with running(engine, downstream, grace_seconds=0.2):
            until(lambda: held.seqs, "the call is under way")
        assert not held.go.is_set(), "it is not waited for"
        held.go.set()

    (cut,) = facts(engine)
    assert (cut["kind"], cut["detail"]["error_class"], cut["detail"]["counted"]) == (
        "attempt_failed",
        "lease_lost",
        False,
    )
    assert open_states(engine) == {"ready": 1, "waiting": 1}
    assert count_rows(engine, "open_delivery WHERE attempt > 0") == 0


def test_a_call_that_is_to_be_cut_is_cut_though_its_lease_is_renewed_all_the_time(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "RENEW_EVERY_SECONDS", 0.001)
    fill(database_url, [("u1", moment(0))])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream:
        with running(engine, downstream, grace_seconds=0.2):
            until(lambda: held.seqs, "the call is under way")
        assert kinds(engine) == ["attempt_failed"]
        held.go.set()


def test_a_relay_that_can_claim_nothing_for_long_ends_what_runs_in_order_and_itself_as_one_that_died(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(steps, "LASTS_SECONDS", 0.3)

    fill(database_url, [(f"u{n}", moment(n)) for n in range(20)])
    with serving(tmp_path / "arrivals.jsonl", seconds=0.8) as downstream, ThreadPoolExecutor(1) as pool:
        config = configured(downstream.url, concurrency=1)
        relay = Relay(Database(engine), prepare(config), grace_seconds=20)
        ends = pool.submit(relay.run)
        until(lambda: len(downstream.arrivals), "the call is under way")
        monkeypatch.setattr(claim, "claim", broken)
        ended = wait([ends], timeout=60).done
        relay.stop()
        assert ended
        assert isinstance(ends.exception(), ZeroDivisionError)

    assert kinds(engine) == ["delivered"] * len(downstream.arrivals)
    assert open_states(engine) != {}
    assert count_rows(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0
    assert count_rows(engine, "relay_node WHERE stopped_at IS NULL") == 1


def test_what_can_not_be_given_back_at_once_is_given_back_when_the_database_is_well_again(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database_url, [(f"u{n}", moment(n)) for n in range(3)])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream:
        with running(engine, downstream, grace_seconds=20, concurrency=1) as relay:
            until(lambda: count_rows(engine, "open_delivery WHERE state = 'in_flight'") == 3, "all are claimed")
            until(lambda: held.seqs, "one has begun")
            with down(database_url):
                relay.stop()
                until(lambda: "trouble while giving back" in caplog.text, "the relay has tried")
                held.go.set()
        assert kinds(engine) == ["delivered"]
    assert open_states(engine) == {"ready": 2}
    assert count_rows(engine, "open_delivery WHERE attempt > 0") == 0


@ON_POSTGRES
def test_what_can_not_be_ordered_at_a_stop_stays_claimed_until_its_lease_expires(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Without the order lock nobody knows whether an older event has come meanwhile, which would go first."""
    fill(database_url, [(f"u{n}", moment(n)) for n in range(3)])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, contextlib.ExitStack() as trouble:
        with running(engine, downstream, grace_seconds=0.0, concurrency=1):
            until(lambda: held.seqs, "one has begun")
            until(lambda: open_states(engine) == {"in_flight": 3}, "all are claimed")
            trouble.enter_context(nobody_can_order(engine))
        held.go.set()
    assert open_states(engine) == {"in_flight": 3}


@ON_POSTGRES
def test_what_was_cut_unsent_while_the_database_was_away_is_given_back_when_it_returns(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    fill(database_url, [("u1", moment(0))])
    with (
        never_greeting() as (url, has_come),
        at_work(Relay(Database(engine), prepare(configured(url)), grace_seconds=0.1)) as relay,
    ):
        until(has_come, "the call is under way")
        with down(database_url):
            relay.stop()
            until(lambda: "trouble while giving back" in caplog.text, "the relay has tried")
    assert rows(engine, "SELECT state, attempt FROM open_delivery") == [{"state": "ready", "attempt": 0}]
    assert facts(engine) == []


@contextlib.contextmanager
def one_of_three_is_called(
    database_url: str, engine: Engine, tmp_path: Path
) -> Iterator[tuple[Relay, Downstream, Held]]:
    """A relay at work that has claimed three deliveries, and makes one call at a time, which hangs until `held.go`."""
    fill(database_url, [(f"u{number}", moment(number)) for number in range(3)])
    held = Held()
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream, concurrency=1) as relay:
        until(lambda: count_rows(engine, "open_delivery WHERE state = 'in_flight'") == 3, "all are claimed")
        until(lambda: held.seqs, "one is called")  # until then, all three could be withdrawn
        yield relay, downstream, held


@ON_POSTGRES
def test_what_is_left_of_a_give_back_stays_leased_and_is_given_back_later(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with one_of_three_is_called(database_url, engine, tmp_path) as (relay, downstream, held):
        with nobody_can_order(engine):
            relay.reload(prepare(configured(downstream.url)))
            until(lambda: "give_back" in failing(relay), "two are to be given back")
            for _ in range(2):
                relay.wake()
                assert len(relay._leases.trusted()) == 3
        until(lambda: "give_back" not in failing(relay), "they are given back")
        held.go.set()
        until(lambda: not count_rows(engine, "open_delivery"), "all are delivered")
    assert kinds(engine) == ["delivered"] * 3
    assert len(downstream.arrivals.lines()) == 3


def failing(relay: Relay) -> set[str]:
    return {*relay._steps.failing, *relay._rests.texts()}


@ON_POSTGRES
def test_a_route_whose_outcomes_cannot_be_recorded_takes_no_more_places(engine: Engine, tmp_path: Path) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream) as relay:
        pass
    assert relay._claimer._admitted([ROUTE]) == [ROUTE]
    relay._rests.begin("record", {ROUTE}, OSError("locked"))
    assert relay._claimer._admitted([ROUTE]) == []


@ON_POSTGRES
def test_what_could_not_be_recorded_as_its_route_was_locked_is_recorded_before_the_end_though_its_next_try_is_far(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(work, "REST_SECONDS", 600.0)
    with one_of_three_is_called(database_url, engine, tmp_path) as (relay, downstream, held), nobody_can_order(engine):
        relay.reload(prepare(configured(downstream.url)))
        until(lambda: "give_back" in failing(relay), "two are left, and their calls never begin")
        held.go.set()
        until(lambda: relay._unrecorded, "the third is left, too")
        relay._give_back()
    assert kinds(engine) == ["delivered"]
    assert open_states(engine) == {"ready": 2}
    assert [
        line.getMessage().partition(":")[0] for line in caplog.records if "given_back deliv" in line.getMessage()
    ] == ["given_back deliveries=2"]
