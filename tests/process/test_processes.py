"""`relay run --processes`: a parent and its children, whatever happens to either, and relays that are woken or give up."""

from __future__ import annotations

import json
import os
import re
import signal
from pathlib import Path

from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.processes import Program, Site
from tests.helpers.receiver import post_json
from tests.helpers.relaying import fill
from tests.helpers.tables import count, facts, list_in_flight, open_states, rows
from tests.helpers.traffic import Held, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text, moment


def living(engine: Engine) -> set[int]:
    """The pids of the relays that have started and not stopped."""
    return {row["pid"] for row in rows(engine, "SELECT pid FROM relay_node WHERE stopped_at IS NULL")}


def at_work(place: Site, engine: Engine, *options: str) -> Program:
    """A parent whose two children have started."""
    parent = place.relay("--processes", "2", *options)
    until(lambda: not parent.runs or len(living(engine)) == 2, "both have started")
    assert set(parent.children()) == living(engine), parent.output
    return parent


def patched(statements: str) -> tuple[str, str]:
    """Arguments with which `python` is a relay after these statements, which give it another limit."""
    return "-c", f"import sys; sys.argv[0] = 'relay'; {statements}; from relay.cli.main import main; main()"


def test_each_child_is_a_relay_of_its_own_that_is_replaced_and_hears_of_another_configuration(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    parent = at_work(place, engine)
    before = living(engine)
    status = json.loads(place.invoke("relay", "status", "--json").stdout)
    assert {relay["pid"] for relay in status["relays"] if relay["health"] == "running"} == before

    killed, stopped = before
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGTERM)  # in order, but nobody told the parent to have fewer
    until(lambda: len(living(engine) - before) == 2, "both are replaced")
    assert f"child ended pid={killed} killed by SIGKILL, another starts in 1 s" in parent.output
    until(lambda: set(parent.children()) == living(engine) - {killed}, "there are two again")

    with serving(tmp_path / "arrivals.jsonl") as downstream:
        good = config_text(database_url, downstream.url)
        elsewhere = config_text("sqlite:///elsewhere.db")
        for number, bad in enumerate((elsewhere, good.replace("concurrency", "concurency"), "nonsense"), 1):
            place.configure(bad)
            parent.send(signal.SIGHUP)
            parent.writes("the old configuration stays", number)
        assert "[database] url: another value needs a restart" in parent.output
        place.configure(good)
        parent.send(signal.SIGHUP)
        parent.writes("reloaded node=", 2)
        fill(database_url, events(50))
        until(lambda: not open_states(engine), "everything is delivered")
        assert parent.stop() == 0
        assert len(downstream.arrivals) == 50
    assert len([line for line in parent.output.splitlines() if " ERROR " in line]) == 6, "mistakes are told once"
    assert checkers.find_complaints(place.logs()) == []
    assert living(engine) == {killed}
    assert count(engine, "relay_node") == 4


def test_children_whose_parent_was_killed_stop_in_order_by_themselves(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    fill(database_url, events(200))
    calls = Held()
    with serving(tmp_path / "arrivals.jsonl", calls) as downstream:
        place.configure(config_text(database_url, downstream.url))
        parent = at_work(place, engine)
        until(lambda: all(list_in_flight(engine, pid) for pid in parent.children()), "both work")
        parent.kill()
        until(lambda: parent.output.count("stopping node=") == 2, "both have noticed it")
        calls.go.set()
        until(lambda: not living(engine), "both have stopped")
        assert count(engine, "delivery_log") == len(downstream.arrivals) < 200
    assert checkers.find_complaints(place.logs()) == []
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert count(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0


def test_a_child_that_is_killed_while_it_drains_is_replaced(
    sqlite_database_url: str, sqlite_engine: Engine, sqlite_place: Site, tmp_path: Path
) -> None:
    fill(sqlite_database_url, events(50))
    calls = Held()
    with serving(tmp_path / "arrivals.jsonl", calls) as downstream:
        sqlite_place.configure(config_text(sqlite_database_url, downstream.url))
        parent = at_work(sqlite_place, sqlite_engine, "--drain")
        os.kill(min(living(sqlite_engine)), signal.SIGKILL)
        parent.writes("killed by SIGKILL, another starts in 1 s")
        calls.go.set()
        parent.stop()


def test_a_child_whose_parent_ended_before_it_began_stops_by_itself(sqlite_place: Site) -> None:
    assert sqlite_place.relay("--parent", "1000000000").ends() == 0


def test_a_child_that_ends_again_and_again_is_started_more_and_more_rarely(
    sqlite_place: Site, sqlite_engine: Engine
) -> None:
    parent = at_work(sqlite_place, sqlite_engine)
    sqlite_place.configure("nonsense")
    killed = min(living(sqlite_engine))
    os.kill(killed, signal.SIGKILL)
    parent.writes("exit status 2, another starts in 2 s")
    assert parent.stop() == 1  # one of them did not end in order
    waits = [float(seconds) for seconds in re.findall(r"another starts in ([\d.]+) s", parent.output)]
    assert waits == [1, 2, 4, 8][: len(waits)], "as many as there were until then"
    assert living(sqlite_engine) == {killed}


def test_a_relay_that_gives_up_exits_with_1_so_that_another_is_started(
    sqlite_engine: Engine, sqlite_place: Site
) -> None:
    """With 2, systemd would start none: a command that is used wrongly fails the next time, too."""
    fill(sqlite_engine.url.render_as_string(), events(1))
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER claims_fail BEFORE UPDATE OF state ON open_delivery WHEN NEW.state = 'in_flight'"
            " BEGIN SELECT RAISE(ABORT, 'planted'); END"
        )
    hurried = patched("from relay import steps; steps.LASTS_SECONDS = 0.5")
    assert sqlite_place.start("relay", *hurried, "run").ends() == 1


def test_every_worker_of_a_receiver_wakes_idle_relays(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        place.configure(config_text(database_url, downstream.url))
        hourly = patched("from relay.daemon import loop; loop.BUSY_POLL_SECONDS = loop.IDLE_POLL_SECONDS = 3600.0")
        relays = [place.start("relay", *hourly, "run") for _ in range(2)]
        _, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
        for relay in relays:
            relay.writes("started node=")
        for n in range(8):
            assert post_json(port, PATH, body("u1", moment(n)), dict(HEADERS)) == 200
            until(lambda: count(engine, "delivery_log") == n + 1, "it is delivered")
        assert [relay.stop() for relay in relays] == [0, 0]
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
