"""`relay run --processes`: a parent and its children, whatever happens to either."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.db import engine as engines
from tests.helpers import checkers
from tests.helpers.downstream import serving
from tests.helpers.evidence import facts, in_flight_of, open_states, stored
from tests.helpers.filling import fill
from tests.helpers.processes import Program, Site, site
from tests.helpers.reading import count as count_rows
from tests.helpers.reading import rows
from tests.helpers.sender import Event
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

ENTITIES = 60
HANGS_SECONDS = 30.0
AT_ONCE_SECONDS = 8.0
"""Far less than the grace period and the hanging call; what it takes on a busy machine is mostly the end of Python."""


def events(number: int) -> list[Event]:
    return [(f"u{n % ENTITIES}", moment(n)) for n in range(number)]


def living(engine: Engine) -> set[int]:
    """The pids of the relays that have started and not stopped."""
    return {row["pid"] for row in rows(engine, "SELECT pid FROM relay_node WHERE stopped_at IS NULL")}


def at_work(place: Site, engine: Engine, processes: int, *options: str) -> Program:
    """A parent whose children have all started."""
    parent = place.relay("--processes", str(processes), *options)
    until(lambda: not parent.runs or len(living(engine)) == processes, "all have started", within=30)
    assert set(parent.children()) == living(engine), parent.output
    return parent


def test_each_child_is_a_relay_of_its_own_and_one_that_is_killed_is_replaced(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with site(tmp_path, config_text(database_url)) as place:
        parent = at_work(place, engine, 3)
        before = living(engine)
        status = place.start("status", "-c", "from relay.cli.main import main; main()", "status")
        assert status.ends(within=20) == 0
        assert "relays running: 3" in status.output
        assert all(f"pid {pid}" in status.output for pid in before)

        killed = min(before)
        os.kill(killed, signal.SIGKILL)
        until(lambda: len(living(engine) - before) == 1, "another has started", within=20)
        assert f"child ended pid={killed} killed by SIGKILL, another starts in 1 s" in parent.output
        until(lambda: set(parent.children()) == living(engine) - {killed}, "there are three again")

        stopped = max(before - {killed})
        os.kill(stopped, signal.SIGTERM)  # in order, but nobody told the parent to have fewer
        until(lambda: len(living(engine) - before) == 2, "that one is replaced, too", within=20)
        parent.send(signal.SIGTERM)
        assert parent.ends(within=20) == 0
        assert checkers.complaints(place.logs()) == []

    assert living(engine) == {killed}
    assert count_rows(engine, "relay_node") == 5


def test_a_parent_that_is_told_to_stop_in_mid_drain_ends_all_in_order(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(600))
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=0.1) as downstream,
        site(tmp_path, config_text(database_url, downstream.url)) as place,
    ):
        parent = at_work(place, engine, 2)
        until(lambda: all(in_flight_of(engine, pid) for pid in parent.children()), "both work", within=20)
        parent.send(signal.SIGTERM)
        assert parent.ends(within=20) == 0
        called = len(downstream.arrivals)
        assert count_rows(engine, "delivery_log WHERE kind = 'delivered'") == called < 600
        assert count_rows(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0

        downstream.seconds = 0.01
        assert place.relay("--drain", "--processes", "2").ends(within=60) == 0
        arrivals, logs = downstream.arrivals.lines(), place.logs()

    assert sorted(line["seq"] for line in arrivals) == [line["seq"] for line in stored(engine)]
    assert {line["attempt"] for line in arrivals} == {1}
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert checkers.out_of_order(arrivals, facts(engine)) == []
    assert checkers.complaints(logs) == []
    assert living(engine) == set()
    assert count_rows(engine, "relay_node") == 4


def test_children_whose_parent_was_killed_stop_in_order_by_themselves(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(600))
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=0.1) as downstream,
        site(tmp_path, config_text(database_url, downstream.url)) as place,
    ):
        parent = at_work(place, engine, 2)
        until(lambda: all(in_flight_of(engine, pid) for pid in parent.children()), "both work", within=20)
        parent.kill()
        until(lambda: not living(engine), "both have stopped", within=20)
        assert count_rows(engine, "delivery_log") == len(downstream.arrivals) < 600
        assert parent.output.count("the parent process is gone") == 2
        assert checkers.complaints(place.logs()) == []

    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert count_rows(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_reaches_parent_and_children_alike_is_one_signal_and_not_two(
    sqlite_database_url: str, tmp_path: Path, number: signal.Signals
) -> None:
    """As from Ctrl-C in a terminal, or a service manager that signals all processes of a service."""
    engine = engines.connect(sqlite_database_url, application="tests")
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=1.0) as downstream,
        site(tmp_path, config_text(sqlite_database_url, downstream.url)) as place,
    ):
        parent = at_work(place, engine, 2)
        fill(sqlite_database_url, events(1))
        until(lambda: len(downstream.arrivals), "a call is under way")
        os.killpg(parent.pid, number)
        assert parent.ends(within=20) == 0
        assert checkers.complaints(place.logs()) == []
    assert [fact["kind"] for fact in facts(engine)] == ["delivered"]
    assert living(engine) == set()
    engine.dispose()


def test_a_second_signal_cuts_the_calls_of_all_children(database_url: str, engine: Engine, tmp_path: Path) -> None:
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=HANGS_SECONDS) as downstream,
        site(tmp_path, config_text(database_url, downstream.url, concurrency=1)) as place,
    ):
        parent = at_work(place, engine, 2)
        fill(database_url, events(12))
        until(lambda: len(downstream.arrivals) == 2, "both make a call")
        parent.send(signal.SIGTERM)
        until(lambda: parent.output.count("stopping node=") == 2, "both have heard the first")
        parent.send(signal.SIGTERM)
        assert parent.ends(within=AT_ONCE_SECONDS) == 0
        assert checkers.complaints(place.logs()) == []
    assert [fact["detail"]["counted"] for fact in facts(engine)] == [False, False]
    assert open_states(engine) == {"ready": 12}
    assert count_rows(engine, "open_delivery WHERE attempt > 0") == 0


def test_another_configuration_reaches_all_children_and_mistakes_are_told_once(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with serving(tmp_path / "old.jsonl") as old, serving(tmp_path / "new.jsonl") as new:
        with site(tmp_path, config_text(sqlite_database_url, old.url)) as place:
            parent = at_work(place, engine, 2)
            place.configure("nonsense")
            parent.send(signal.SIGHUP)
            until(lambda: "the old configuration stays" in parent.output, "it is refused")
            place.configure(config_text(sqlite_database_url, new.url))
            parent.send(signal.SIGHUP)
            until(lambda: parent.output.count("reloaded node=") == 2, "both have read it")
            fill(sqlite_database_url, events(50))
            until(lambda: not open_states(engine), "everything is delivered", within=20)
            parent.send(signal.SIGTERM)
            assert parent.ends(within=20) == 0
            assert len([line for line in parent.output.splitlines() if " ERROR " in line]) == 2
            assert checkers.complaints(place.logs()) == []
        assert (len(old.arrivals), len(new.arrivals)) == (0, 50)
    engine.dispose()


def test_a_configuration_that_can_not_be_used_is_told_once_before_any_child_starts(tmp_path: Path) -> None:
    with site(tmp_path, config_text(f"sqlite:///{tmp_path}/inbox.db").replace("concurrency", "concurency")) as place:
        parent = place.relay("--processes", "3")
        assert parent.ends(within=20) == 2
        assert parent.output.count("concurency") == 1
        assert "child" not in parent.output


def test_a_child_that_ends_again_and_again_is_started_more_and_more_rarely(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    engine = engines.connect(sqlite_database_url, application="tests")
    with site(tmp_path, config_text(sqlite_database_url)) as place:
        parent = at_work(place, engine, 2)
        place.configure("nonsense")
        killed = min(living(engine))
        os.kill(killed, signal.SIGKILL)
        until(lambda: "exit status 2, another starts in 4 s" in parent.output, "it was tried three times", within=20)
        parent.send(signal.SIGTERM)
        assert parent.ends(within=20) == 1  # what was to run did not end in order
    waits = [float(seconds) for seconds in re.findall(r"another starts in ([\d.]+) s", parent.output)]
    assert waits == [1, 2, 4]
    assert living(engine) == {killed}
    engine.dispose()
