"""The daemon itself, in a thread: what its loop does about slow services and an unwell database."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import Engine

from inbox import config_file
from inbox.db import engine as engines
from relay.daemon import Relay
from relay.destinations import build
from relay.store.database import Database
from tests.helpers.downstream import Downstream, always_well, serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.outage import disconnect, down
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment


@contextlib.contextmanager
def running(engine: Engine, downstream: Downstream, grace_seconds: float = 5.0) -> Iterator[Relay]:
    """A relay at work; it is stopped when the block ends."""
    config = config_file.parse(config_text("sqlite:///unused.db", downstream.url, schedule=("100ms", "100ms")))
    relay = Relay(Database(engine), config, build(config), grace_seconds=grace_seconds)
    thread = threading.Thread(target=relay.run)
    thread.start()
    try:
        yield relay
    finally:
        relay.stop()
        thread.join(30)
        assert not thread.is_alive()


def kinds(engine: Engine) -> list[str]:
    return [fact["kind"] for fact in facts(engine)]


def test_what_arrives_while_it_runs_is_delivered_and_what_fails_is_tried_again(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl", lambda _, attempt: 503 if attempt == 1 else 200) as downstream:
        with running(engine, downstream):
            seqs = fill(database_url, [("u1", moment(n)) for n in range(3)])
            until(lambda: kinds(engine).count("delivered") == 3, "all three are delivered")
        calls = [(line["seq"], line["attempt"]) for line in downstream.arrivals.lines()]

    assert calls == [(seq, attempt) for seq in seqs for attempt in (1, 2)]
    assert kinds(engine) == ["attempt_failed", "delivered"] * 3


def test_one_that_hangs_is_cut_when_the_grace_period_is_over(database_url: str, engine: Engine, tmp_path: Path) -> None:
    fill(database_url, [("u1", moment(0)), ("u1", moment(1))])
    with serving(tmp_path / "arrivals.jsonl", always_well, seconds=3.0) as downstream:
        with running(engine, downstream, grace_seconds=0.2):
            until(lambda: len(downstream.arrivals), "the call is under way")
            told = time.monotonic()
        assert time.monotonic() - told < 2.5

    assert kinds(engine) == ["attempt_failed"]
    assert open_states(engine) == {"ready": 1, "waiting": 1}


def test_a_database_that_goes_away_is_waited_for(database_url: str, engine: Engine, tmp_path: Path) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream, running(engine, downstream) as relay:
        fill(database_url, [("u1", moment(0))])
        until(lambda: kinds(engine) == ["delivered"], "the relay is at work")
        with down(database_url):
            until(lambda: relay._observer.counts["database_trouble"], "the relay has noticed", within=15)
        fill(database_url, [("u1", moment(1))])
        until(lambda: kinds(engine) == ["delivered"] * 2, "the relay goes on", within=15)


def test_broken_connections_cost_no_delivery_and_no_second_call(postgres_database_url: str, tmp_path: Path) -> None:
    engine = engines.connect(postgres_database_url, application="tests")
    seqs = fill(postgres_database_url, [(f"u{n % 20}", moment(n)) for n in range(200)])
    with serving(tmp_path / "arrivals.jsonl", seconds=0.01) as downstream:
        with running(engine, downstream):
            for part in (40, 80, 120):
                until(lambda: len(downstream.arrivals) >= part, "the drain goes on")  # noqa: B023
                disconnect(postgres_database_url)
            watching = engines.connect(postgres_database_url, application="tests")
            until(lambda: not open_states(watching), "everything is delivered", within=30)
        calls = [line["seq"] for line in downstream.arrivals.lines()]
    assert kinds(watching).count("delivered") == 200
    assert sorted(calls) == sorted(seqs)
    engine.dispose()
    watching.dispose()
