"""The daemon itself, in a thread: what is slow, failing or wrong in one place is nothing to the others."""

from __future__ import annotations

import threading
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.events.timestamps import as_time
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits
from relay.store.database import Database
from relay.store.nodes import read_nodes
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import Answer, Held, serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import at_work
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE, moment


def test_an_entity_that_always_fails_and_one_that_hangs_delay_no_other(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=1000))
    held = threading.Event()
    seqs = fill(database_url, [(f"u{n % 20}", moment(n)) for n in range(100)])
    failing, hanging = set(seqs[0::20]), set(seqs[1::20])

    def script(seq: int, _attempt: int) -> Answer:
        if seq in hanging:
            held.wait(30)
        return Answer(503 if seq in failing else 200)

    with serving(tmp_path / "arrivals.jsonl", script) as downstream:
        with running(engine, downstream, concurrency=2):
            until(lambda: kinds(engine).count("delivered") == 90, "all others are delivered")
            assert held.is_set() is False
            held.set()
            until(lambda: open_states(engine) == {"dead": 5}, "the one that hung goes on, the other is given up")
        lines = downstream.arrivals.lines()
    assert {line["seq"] for line in lines if line["attempt"] > 1} == failing


MORE = """
[destinations.{name}]
kind = "forward"
url = "{url}"
allow_private = true
allow_http = true
concurrency = 2
[routes.{name}]
source = "trivore"
destination = "{name}"
"""


def test_a_destination_that_hangs_delays_no_other(database_url: str, engine: Engine, tmp_path: Path) -> None:
    held = Held()
    with serving(tmp_path / "held.jsonl", held) as slow, serving(tmp_path / "well.jsonl") as well:
        more = MORE.format(name="well", url=well.url)
        fill_both(database_url, engine)
        with running(engine, slow, concurrency=2, more=more):
            until(lambda: len(well.arrivals) == 40, "the other has everything")
            assert len(held.seqs) == 2
            held.go.set()
            until(lambda: not open_states(engine), "and so has this one")


def fill_both(database_url: str, engine: Engine) -> None:
    """Forty events that both routes take."""
    first, *_ = fill(database_url, [(f"u{n}", moment(n)) for n in range(40)])
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "INSERT INTO open_delivery (seq, route, lane, occurred_at, state, attempt, run, crashes)"
            f" SELECT seq, 'well', lane, occurred_at, 'received', 0, 0, 0 FROM open_delivery WHERE seq >= {first}"
        )


def test_a_destination_never_has_more_calls_at_once_than_its_concurrency(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    held = Held()
    seqs = fill(database_url, [(f"u{n}", moment(n)) for n in range(60)])
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream, concurrency=3):
        until(lambda: len(held.seqs) == 3, "so many calls run at once")
        seqs += fill(database_url, [("another", moment(61))])
        until(lambda: not open_states(engine).get("received"), "the relay goes on, and has seen what has arrived since")
        assert open_states(engine)["in_flight"] > 3, "what is claimed ahead of its call is no call yet"
        assert len(held.seqs) == 3
        held.go.set()
        until(lambda: not open_states(engine), "all are delivered")
    assert sorted(held.seqs) == seqs


class WrongClock:
    """A machine's clock that is so far off."""

    def __init__(self, off: timedelta) -> None:
        self._off = off

    def now(self) -> datetime:
        """Return the time that this clock shows."""
        return SystemClock().now() + self._off


@pytest.fixture(params=[timedelta(hours=1), timedelta(hours=-1)], ids=["an hour ahead", "an hour behind"])
def clock(request: pytest.FixtureRequest) -> WrongClock:
    return WrongClock(request.param)


def test_a_relay_whose_own_clock_is_wrong_goes_by_the_databases(
    database_url: str, engine: Engine, tmp_path: Path, clock: WrongClock
) -> None:
    fill(database_url, [("u1", moment(0))])
    with serving(tmp_path / "arrivals.jsonl", lambda _seq, attempt: 503 if attempt == 1 else 200) as downstream:
        relay = Relay(Database(engine), prepare(configured(downstream.url)), grace_seconds=20, clock=clock)
        with at_work(relay):
            until(lambda: not open_states(engine), "it is delivered")
    failed, done = facts(engine)
    due = as_time(failed["detail"]["due_at"])
    assert timedelta(0) <= due - failed["at"] <= timedelta(milliseconds=150)
    assert due <= done["at"] < due + timedelta(minutes=1)
    assert abs(done["at"] - SystemClock().now()) < timedelta(minutes=1)


@ON_POSTGRES
def test_rows_that_a_person_keeps_locked_keep_their_route_alone(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    """Of the route, one in flight, whose outcome can't be recorded, and one that waits for it."""
    held = Held()
    with serving(tmp_path / "held.jsonl", held) as slow, serving(tmp_path / "well.jsonl") as well:
        fill_both(database_url, engine)
        with running(engine, slow, concurrency=16, more=MORE.format(name="well", url=well.url)) as relay:
            until(lambda: len(held.seqs) == 16, "many are under way")
            locked = f"SELECT seq FROM open_delivery WHERE route = '{ROUTE}' AND seq IN ({held.seqs[0]}, 40) FOR UPDATE"
            with locked_by_a_person(engine, locked):
                held.go.set()
                until(lambda: "record" in failing_steps_of(engine), "relay status says so", within=10)
                fill_both(database_url, engine)
                until(lambda: len(well.arrivals) == 80, "the other route is delivered", within=10)
                assert relay._rests.texts()
            until(lambda: not open_states(engine), "so are these")
            until(lambda: not failing_steps_of(engine), "and nothing is said any more", within=10)


def failing_steps_of(engine: Engine) -> set[str]:
    """The steps that fail, as the relay has stored them with its last sign of life."""
    with Database(engine).read() as transaction:
        return {step for relay in read_nodes(transaction) for step in relay["failing"]}
