"""The daemon itself, in a thread: deliveries, an unwell database, and another configuration while calls run."""

from __future__ import annotations

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, disconnect, down
from tests.helpers.tables import open_states
from tests.helpers.traffic import serving

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.dialect import as_json
from inbox.loader.load import parse_config
from relay.daemon.generation import WorkerPool, prepare
from relay.daemon.loop import Relay
from relay.delivery.policy import policies
from relay.observe import Observer
from relay.store.database import Database
from tests.helpers.daemon import Rig, configured, kinds, running, users
from tests.helpers.relaying import Steps
from tests.helpers.scripted import answer, reset
from tests.helpers.scripted import serving as scripted
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text


def test_arrivals_are_delivered_in_order_and_failures_are_tried_again(rig: Rig) -> None:
    rig.downstream.script = lambda _, attempt: 503 if attempt == 1 else 200
    with rig.relay():
        seqs = rig.arrive("u1", "u1", "u1")
        rig.until_left()
    calls = [(line["seq"], line["attempt"]) for line in rig.downstream.arrivals.lines()]
    assert calls == [(seq, attempt) for seq in seqs for attempt in (1, 2)]
    assert rig.kinds == ["attempt_failed", "delivered"] * 3


def test_a_call_that_may_have_been_processed_is_repeated_and_can_be_recognised(rig: Rig) -> None:
    rig.arrive("u1")
    with scripted(reset, answer(204)) as server, running(rig.engine, server):
        rig.until_left()
    first, second = server.seen
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == first.headers["webhook-id"] + "-0"
    assert [seen.headers["inbox-attempt"] for seen in server.seen] == ["1", "2"]
    assert first.body == second.body


def test_deliveries_a_process_may_have_died_of_are_made_one_at_a_time_beside_all_else(rig: Rig) -> None:
    seqs, held = rig.arrive(*users(4)), rig.hold()
    with rig.engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET crashes = 2 WHERE seq <= :last"), {"last": seqs[1]})
    with rig.relay():
        until(lambda: len(held.seqs) == 3, "one of them has begun, and both others")
        seqs += rig.arrive("u9")
        until(lambda: len(held.seqs) == 4, "what came afterwards has begun, too")
        assert len(set(held.seqs) & set(seqs[:2])) == 1
        held.go.set()
        rig.until_left()
    assert sorted(held.seqs) == seqs


def test_a_destination_never_has_more_calls_at_once_than_its_concurrency(rig: Rig) -> None:
    seqs, held = rig.arrive(*users(60)), rig.hold()
    with rig.relay(concurrency=3):
        until(lambda: len(held.seqs) == 3, "so many calls run at once")
        seqs += rig.arrive("another")
        until(lambda: not rig.left.get("received"), "the relay goes on, and has seen what has arrived since")
        assert rig.left["in_flight"] > 3, "what is claimed ahead of its call is no call yet"
        assert len(held.seqs) == 3
        held.go.set()
        rig.until_left()
    assert sorted(held.seqs) == seqs


def test_each_route_of_a_destination_has_its_turn_to_be_first() -> None:
    unused: Any = None
    pool = WorkerPool("audit", 0, dict.fromkeys("abc", unused), context_of=unused, finished=unused)
    assert {pool.take_turn()[0] for _ in range(3)} == set("abc")


@ON_BOTH
def test_a_database_that_goes_away_is_waited_for(rig: Rig, database_url: str) -> None:
    with rig.relay():
        rig.arrive("u1")
        rig.until_left()
        with down(database_url):
            rig.until_told("database_trouble")
        rig.arrive("u1")
        rig.until_left()
    assert rig.kinds == ["delivered"] * 2


@ON_POSTGRES
def test_broken_connections_cost_no_delivery_and_no_second_call(rig: Rig, database_url: str) -> None:
    seqs = rig.arrive(*users(200, 20))
    rig.downstream.seconds = 0.01
    with rig.relay():
        for part in (40, 80, 120):
            until(lambda: len(rig.downstream.arrivals) >= part, "the drain goes on")
            disconnect(database_url)
        watching = engines.connect(database_url, application="tests")
        until(lambda: not open_states(watching), "everything is delivered")
    assert kinds(watching).count("delivered") == 200
    assert sorted(rig.calls) == sorted(seqs)
    watching.dispose()


@ON_BOTH
def test_a_start_is_one_commit_which_has_the_routes(engine: Engine) -> None:
    """On a slow disk, each commit delays what a service manager waits for."""
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    at_start: list[tuple[int, list[str]]] = []

    class Watching(Observer):
        def tell(self, event: str, level: int | None = None, **values: Any) -> None:  # noqa: ANN401  # as there
            super().tell(event, level, **values)
            if event != "started":
                return
            made, node = len(commits), values["node"]
            with engine.connect() as connection:
                known = connection.scalar(text("SELECT routes FROM relay_node WHERE id = :node"), {"node": node})
            at_start.append((made, [*as_json(known)]))

    config = prepare(configured("http://127.0.0.1:9/"))
    Relay(Database(engine), config, grace_seconds=0, observer=Watching()).run(drain=True)
    assert at_start == [(1, ["everything"])]


def test_a_result_after_the_lease_was_taken_over_is_discarded_and_counted(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    (seq,), held = rig.arrive("u1"), rig.hold()
    other = Steps(rig.engine, policies(rig.config()))
    other.node = "another"
    with rig.relay():
        until(lambda: held.seqs, "the call is under way")
        other.clock.moment = SystemClock().now() + timedelta(minutes=1)
        assert len(other.reap()) == 1
        held.go.set()
        rig.until_told("result_discarded")
    assert f"route=everything seq={seq}" in caplog.text
    assert (rig.observer.counts["result_discarded"], rig.observer.counts["delivered"]) == (1, 0)
    assert rig.kinds == ["abandoned"]


def test_a_late_result_leaves_the_row_to_the_claim_that_has_it_now(rig: Rig) -> None:
    rig.arrive("u1")
    held = rig.hold()
    with rig.relay():
        until(lambda: held.seqs, "the call is under way")
        with rig.engine.begin() as connection:
            connection.execute(text("UPDATE open_delivery SET lease_token = lease_token + 1"))
        held.go.set()
        until(lambda: rig.observer.counts["result_discarded"] or rig.kinds, "the late result is looked at")
    assert (rig.left, rig.kinds) == ({"in_flight": 1}, [])


# --- another configuration


def pool_threads() -> int:
    """Count the threads that make calls to the destination of the tests."""
    return sum(thread.name.startswith("audit-") for thread in threading.enumerate())


def test_a_new_configuration_takes_unstarted_deliveries_and_running_calls_end_by_the_old(
    rig: Rig, tmp_path: Path
) -> None:
    seqs, held = rig.arrive(*users(3)), rig.hold()
    with serving(tmp_path / "new.jsonl") as new, rig.relay(concurrency=1) as relay:
        rig.until_left(in_flight=3)
        until(lambda: held.seqs, "one has begun")
        relay.reload(prepare(configured(new.url, concurrency=2)))
        until(lambda: len(new.arrivals) == 2, "the others go to the new address")
        assert pool_threads() == 1 + 2
        held.go.set()
        rig.until_left()
        until(lambda: pool_threads() == 2, "the old pool is closed")
        seqs += rig.arrive("u9")
        rig.until_left()
    assert rig.calls == held.seqs
    assert sorted(line["seq"] for line in new.arrivals.lines()) == [seq for seq in seqs if seq not in held.seqs]
    assert {line["attempt"] for line in new.arrivals.lines()} == {1}
    assert rig.kinds == ["delivered"] * 4


def test_a_call_on_a_route_that_a_new_configuration_lacks_is_recorded(rig: Rig) -> None:
    seqs, held = rig.arrive(*users(3)), rig.hold()
    with rig.relay(concurrency=1) as relay:
        until(lambda: held.seqs, "one has begun")
        other = config_text("sqlite:///unused.db", rig.downstream.url).replace("routes.everything", "routes.another")
        relay.reload(prepare(parse_config(other)))
        rig.until_left(ready=2, in_flight=1)
        held.go.set()
        rig.until_left(ready=2)
    assert held.seqs == seqs[:1]
    assert rig.kinds == ["delivered"]


def test_when_ordering_becomes_latest_a_lane_is_folded_when_its_head_has_ended(rig: Rig) -> None:
    seqs, held = rig.arrive(*["u1"] * 4), rig.hold()
    with rig.relay() as relay:
        until(lambda: held.seqs, "the first has begun")
        relay.reload(prepare(rig.config(ordering="latest")))
        rig.until_told("reloaded")
        held.go.set()
        rig.until_left()
    assert held.seqs == [seqs[0], seqs[-1]]
    assert rig.kinds.count("superseded") == 2
