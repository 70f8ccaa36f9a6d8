"""The daemon itself, in a thread: deliveries, an unwell database or destination, another configuration, and retention."""

from __future__ import annotations

import json
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine, text, update

from inbox.clock import SystemClock
from inbox.db.schema import pruning
from inbox.loader.load import parse_config
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery import policy
from relay.delivery.gates import BreakerLimits, Gate
from relay.delivery.policy import policies
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from relay.store.operator import commands, execution
from tests.helpers.daemon import Rig, make_config, running, users
from tests.helpers.databases import ON_BOTH, down
from tests.helpers.relaying import CONFIG, Steps, prune, work_of
from tests.helpers.scripted import answer, reset
from tests.helpers.scripted import serving as scripted
from tests.helpers.storing import an_event
from tests.helpers.tables import count
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
