"""The daemon itself, in a thread: deliveries, an unwell database or destination, another configuration, and retention."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, event, text, update

from inbox.clock import SystemClock
from inbox.db.dialect import as_json
from inbox.db.schema import pruning
from inbox.loader.load import parse_config
from relay.daemon.generation import WorkerPool, prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import Breaker, BreakerLimits, BreakerState, Gate, Gates
from relay.delivery.policy import policies
from relay.observe import Observer
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.retention import KindState, expiry_of, state_of
from tests.helpers.daemon import Rig, make_config, running, users
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, disconnect, down, open_engine
from tests.helpers.relaying import AFTER_A_MONTH, CONFIG, Steps, a_pruner, batches, prune, work_of
from tests.helpers.scripted import answer, reset
from tests.helpers.scripted import serving as scripted
from tests.helpers.storing import an_event
from tests.helpers.tables import count, open_states
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text


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


@pytest.mark.long
@ON_POSTGRES
def test_broken_connections_cost_no_delivery_and_no_second_call(rig: Rig, database_url: str) -> None:
    seqs = rig.arrive(*users(200, 20))
    rig.downstream.seconds = 0.01
    with rig.relay():
        for part in (40, 80, 120):
            until(lambda: len(rig.downstream.arrivals) >= part, "the drain goes on")
            disconnect(database_url)
        with open_engine(database_url) as watching:
            until(lambda: not open_states(watching), "everything is delivered")
    assert rig.kinds.count("delivered") == 200
    assert sorted(rig.calls) == sorted(seqs)


@ON_BOTH
def test_a_start_is_one_commit_which_has_the_routes(engine: Engine) -> None:
    """On a slow disk, each commit delays the start that a service manager waits for."""
    commits: list[object] = []
    event.listen(engine, "commit", commits.append)
    at_start: list[tuple[int, list[str]]] = []

    class Watching(Observer):
        def log(self, event: str, level: int | None = None, **values: Any) -> None:  # noqa: ANN401  # as there
            super().log(event, level, **values)
            if event != "started":
                return
            made, node = len(commits), values["node"]
            with engine.connect() as connection:
                known = connection.scalar(text("SELECT routes FROM relay_node WHERE id = :node"), {"node": node})
            at_start.append((made, [*as_json(known)]))

    config = prepare(make_config("http://127.0.0.1:9/"))
    Relay(Database(engine), config, grace_seconds=0, observer=Watching()).run(drain=True)
    assert at_start == [(1, ["everything"])]


def test_a_result_after_a_lost_lease_is_discarded_and_counted(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
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


# --- another configuration


def pool_threads() -> int:
    """Count the threads that make calls to the destination of the tests."""
    return sum(thread.name.startswith("audit-") for thread in threading.enumerate())


def test_a_new_configuration_takes_unstarted_deliveries_and_the_old_ends_its_calls(rig: Rig, tmp_path: Path) -> None:
    seqs, held = rig.arrive(*users(3)), rig.hold()
    with serving(tmp_path / "new.jsonl") as new, rig.relay(concurrency=1) as relay:
        rig.until_left(in_flight=3)
        until(lambda: held.seqs, "one has begun")
        relay.reload(prepare(make_config(new.url, concurrency=2)))
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


# --- A relay prunes by itself, by the ages of its configuration, and says when it is behind


MONTH = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "30d"\n'


def test_it_prunes_after_its_start_and_by_other_ages_after_a_reload(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.store.retention.ROUND_EVERY_SECONDS", 0.1)
    Steps(rig.engine).receive(*(an_event(n, routes=[]) for n in range(1, 201)))
    with rig.relay(more='[retention]\nevents = "forever"\n') as relay:
        until(lambda: count(rig.engine, "pruner WHERE ran_at IS NOT NULL"), "a round has ended")
        assert count(rig.engine, "inbox") == 200
        relay.reload(prepare(rig.config(more=MONTH)))
        until(lambda: count(rig.engine, "inbox") == 1, "by the new age they have expired")
        rig.until_told("pruned", 199)
    assert count(rig.engine, "pruner WHERE held_by IS NULL") == 1


def test_a_kind_that_is_behind_for_an_hour_is_alerted_once_and_recovers(engine: Engine) -> None:
    watch, now = Watch(), SystemClock().now()
    prune(engine, "events")

    def alerts(hours: float | None) -> tuple[int, int]:
        since = None if hours is None else now - timedelta(hours=hours)
        with engine.begin() as connection:
            connection.execute(
                update(pruning).values(behind_since=since, behind_seconds=0 if hours is None else 90_000)
            )
        watch.check(work_of(Database(engine), config=CONFIG))
        of_events = "alert WHERE kind = 'retention_behind' AND subject = 'events'"
        return count(engine, f"{of_events} AND firing"), count(engine, f"{of_events} AND NOT firing")

    assert [alerts(hours) for hours in (0.5, 2, 3, None)] == [(0, 0), (1, 0), (1, 0), (1, 1)]


def test_rows_that_a_round_leaves_make_it_behind(engine: Engine) -> None:
    """The pruner has no time for more than one batch."""
    Steps(engine).receive(*(an_event(n, routes=[]) for n in range(1, 2001)))
    one = a_pruner(engine)
    clock = one.take()
    assert clock is not None
    expiry = expiry_of(AFTER_A_MONTH, "events", clock)

    def found() -> KindState:
        with Database(engine).read() as transaction:
            return state_of(transaction, "events")

    one.prune_batch("events", expiry)
    assert found().behind_seconds > 86400
    assert found().behind_since is not None
    assert list(batches(one, "events", expiry))
    assert (found().behind_seconds, found().behind_since) == (0, None)


# --- The daemon itself, in a thread: a destination that is down or paused, and its alerts


BREAKER = 'breaker = { open_for = "300ms" }'
ALERTS = '[alerts]\nurl = "{url}"\nallow_private = true\nallow_http = true\n'


@ON_BOTH
def test_a_destination_that_is_down_gets_few_calls_then_everything(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(policy, "BREAKER", BreakerLimits(calls=3, longest=0.3))
    seqs = rig.arrive(*users(40))
    rig.downstream.script = lambda _seq, _attempt: 503
    with scripted(answer(200)) as chat:
        with rig.relay(2, destination=BREAKER, more=ALERTS.format(url=chat.url)):
            until(lambda: len(chat.seen) == 1, "its opening is posted")
            assert len(rig.calls) < 40, "not each delivery had to find out for itself"
            rig.downstream.script = lambda _seq, _attempt: 200
            rig.until_left()
            until(lambda: len(chat.seen) == 2, "its recovery is posted")
        posts = [json.loads(seen.body) for seen in chat.seen]
    assert sorted({line["seq"] for line in rig.downstream.arrivals.lines() if line["status"] == 200}) == seqs
    assert [(post["kind"], post["subject"], post["firing"]) for post in posts] == [
        ("breaker_open", "destination audit", True),
        ("breaker_open", "destination audit", False),
    ]
    assert rig.kinds.count("delivered") == 40
    assert "dead" not in rig.kinds


def test_a_drain_ends_though_something_is_held_back(rig: Rig) -> None:
    rig.arrive("u1", "u2")
    config = rig.config()
    for gate in (Gate(source="trivore", entity_type="USER", entity_id="u1"), Gate(route="everything")):
        number = commands.ask(rig.database, "pause", gate, who="kim", why="odd")
        execution.work_on(work_of(rig.database, policies(config), config=config), number)
        Relay(rig.database, prepare(config), grace_seconds=20).run(drain=True)
        assert rig.left == {"ready": 1}


def test_a_pause_by_command_counts_from_the_next_claim_on(rig: Rig) -> None:
    relay = Relay(rig.database, prepare(rig.config()), grace_seconds=0)
    commands.ask(rig.database, "pause", Gate(route="everything"), who="kim", why="odd")
    relay._work_on_commands()
    assert ("route", "everything") in relay._claimer.gates.paused
    relay._generations.close()


def test_a_drain_does_not_end_before_a_breaker_is_tried_that_may_be(rig: Rig) -> None:
    rig.arrive("u1")
    relay = Relay(rig.database, prepare(rig.config()), grace_seconds=0)
    for seconds, is_drained in ((-1, False), (60, True)):
        until_then = SystemClock().now() + timedelta(seconds=seconds)
        shut = Breaker(BreakerState.OPEN, until=until_then)
        relay._claimer.gates = Gates(SystemClock().now(), breakers={("destination", "audit"): shut})
        assert relay._is_drained() is is_drained
    relay._generations.close()
