"""`relay run --processes`: a parent and its children; relays that wake, stop and give up; and receivers that stop."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.receiver.writer import GroupCommit
from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.processes import Program, Site, site
from tests.helpers.receiver import a_link, post_json
from tests.helpers.relaying import fill
from tests.helpers.storing import an_event
from tests.helpers.tables import count, facts, list_in_flight, open_states, read_inbox, rows
from tests.helpers.traffic import Downstream, Held, Script, Sender, always_well, endless, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, PATH, body, config_text, moment


def living(engine: Engine) -> set[int]:
    """Return the pids of the relays that have started and not stopped."""
    return {row["pid"] for row in rows(engine, "SELECT pid FROM relay_node WHERE stopped_at IS NULL")}


def start_parent(place: Site, engine: Engine, *options: str) -> Program:
    """Start a parent and wait for its two children."""
    parent = place.relay("--processes", "2", *options)
    until(lambda: not parent.runs or len(living(engine)) == 2, "both have started")
    assert set(parent.children()) == living(engine), parent.output
    return parent


def patch_relay(statements: str) -> tuple[str, str]:
    """Make arguments for `python` that run these statements and then a relay."""
    return "-c", f"import sys; sys.argv[0] = 'relay'; {statements}; from relay.cli.main import main; main()"


def test_a_child_is_a_relay_that_is_replaced_when_it_ends_and_reloads_with_its_parent(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    parent = start_parent(place, engine)
    before = living(engine)
    status = json.loads(place.invoke("relay", "status", "--json").stdout)
    assert {relay["pid"] for relay in status["relays"] if relay["health"] == "running"} == before

    killed, stopped = before
    os.kill(killed, signal.SIGKILL)
    os.kill(stopped, signal.SIGTERM)  # in order, but the parent still needs two
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
        parent = start_parent(place, engine)
        until(lambda: all(list_in_flight(engine, pid) for pid in parent.children()), "both work")
        parent.kill()
        until(lambda: parent.output.count("stopping node=") == 2, "both have noticed it")
        calls.go.set()
        until(lambda: not living(engine), "both have stopped")
        assert count(engine, "delivery_log") == len(downstream.arrivals) < 200
    assert checkers.find_complaints(place.logs()) == []
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert count(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0


def test_a_child_whose_parent_ended_before_it_began_stops_by_itself(sqlite_place: Site) -> None:
    assert sqlite_place.relay("--parent", "1000000000").ends() == 0


def test_a_child_that_keeps_ending_is_restarted_with_growing_delays(sqlite_place: Site, sqlite_engine: Engine) -> None:
    parent = start_parent(sqlite_place, sqlite_engine)
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
    """Status 2, wrong use, would keep systemd from starting another."""
    fill(sqlite_engine.url.render_as_string(), events(1))
    with sqlite_engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TRIGGER claims_fail BEFORE UPDATE OF state ON open_delivery WHEN NEW.state = 'in_flight'"
            " BEGIN SELECT RAISE(ABORT, 'planted'); END"
        )
    hurried = patch_relay("from relay import steps; steps.LASTS_SECONDS = 0.5")
    assert sqlite_place.start("relay", *hurried, "run").ends() == 1


def test_every_worker_of_a_receiver_wakes_idle_relays(
    database_url: str, engine: Engine, place: Site, tmp_path: Path
) -> None:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        place.configure(config_text(database_url, downstream.url))
        hourly = patch_relay("from relay.daemon import loop; loop.BUSY_POLL_SECONDS = loop.IDLE_POLL_SECONDS = 3600.0")
        relays = [place.start("relay", *hourly, "run") for _ in range(2)]
        _, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
        for relay in relays:
            relay.writes("started node=")
        for n in range(8):
            assert post_json(port, PATH, body("u1", moment(n)), dict(HEADERS)) == 200
            until(lambda: count(engine, "delivery_log") == n + 1, "it is delivered")
        assert [relay.stop() for relay in relays] == [0, 0]
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}


# --- Relays and receivers that are told to stop lose nothing and repeat nothing


GRACE_SECONDS = 20
AT_ONCE_SECONDS = 8.0
"""Far less than the grace period and a hanging call; a busy machine needs most of it to end Python."""


@contextlib.contextmanager
def downstream_and_site(
    folder: Path, database_url: str, script: Script = always_well, seconds: float = 0.0, concurrency: int = 8
) -> Iterator[tuple[Downstream, Site]]:
    """Serve a destination that takes `seconds` for a call, and a site whose programs must log no complaint."""
    with (
        serving(folder / "arrivals.jsonl", script, seconds) as downstream,
        site(folder, config_text(database_url, downstream.url, concurrency=concurrency)) as place,
    ):
        yield downstream, place
        assert checkers.find_complaints(place.logs()) == []


def assert_each_was_delivered_once_in_order(downstream: Downstream, engine: Engine) -> None:
    arrivals = downstream.arrivals.lines()
    assert sorted(line["seq"] for line in arrivals) == [line["seq"] for line in read_inbox(engine)]
    assert {line["attempt"] for line in arrivals} == {1}
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert checkers.find_unfinished(read_inbox(engine), facts(engine)) == []
    assert checkers.find_out_of_order(arrivals, facts(engine)) == []


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "a parent"])
def test_a_relay_that_stops_in_mid_drain_repeats_no_call_and_uses_no_attempt(
    database_url: str, engine: Engine, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """A service manager signals all processes of a service."""
    fill(database_url, events(300))
    calls = Held(passing=40)
    with downstream_and_site(tmp_path, database_url, calls, seconds=0.1) as (downstream, place):
        relay = place.relay(*options)

        def all_work() -> bool:
            relays = relay.children() or [relay.pid]
            return len(downstream.arrivals) >= 40 and all(list_in_flight(engine, pid) for pid in relays)

        until(all_work, "the drain is under way")
        os.killpg(relay.pid, signal.SIGTERM)
        relay.writes("stopping node=", 2 if options else 1)
        calls.go.set()
        assert relay.ends(within=GRACE_SECONDS) == 0
        called = len(downstream.arrivals)
        assert count(engine, "delivery_log WHERE kind = 'delivered'") == count(engine, "delivery_log") == called < 300
        assert count(engine, "open_delivery WHERE attempt = 0 AND state <> 'in_flight'") == 300 - called

        downstream.seconds = 0.01
        assert place.relay("--drain", *options).ends(within=60) == 0
    assert_each_was_delivered_once_in_order(downstream, engine)
    assert count(engine, "relay_node WHERE stopped_at IS NULL") == 0
    assert count(engine, "relay_node") == (4 if options else 2)


@pytest.mark.parametrize("relays", [1, 2], ids=["alone", "a parent"])
def test_a_call_that_hangs_is_cut_and_repeated_without_using_an_attempt(
    database_url: str, engine: Engine, tmp_path: Path, relays: int
) -> None:
    seqs = fill(database_url, events(24, entities=12))
    with downstream_and_site(tmp_path, database_url, seconds=30.0, concurrency=1) as (downstream, place):
        relay = place.relay("--processes", str(relays))
        until(lambda: len(downstream.arrivals) == relays, "each makes a call")
        relay.send(signal.SIGTERM)
        relay.writes("stopping node=", relays)  # pending signals of one kind are merged
        assert relay.runs
        assert relay.stop(within=AT_ONCE_SECONDS) == 0
        cut = facts(engine)
        assert sorted(fact["seq"] for fact in cut) == sorted(line["seq"] for line in downstream.arrivals.lines())
        for fact in cut:
            assert (fact["kind"], fact["detail"]["error_class"]) == ("attempt_failed", "lease_lost")
            assert (fact["detail"]["counted"], fact["detail"]["error"]) == (False, "forward: cut: the lease ended")
        assert open_states(engine) == {"ready": 12, "waiting": 12}
        assert count(engine, "open_delivery WHERE attempt > 0") == 0

        downstream.seconds = 0
        assert place.relay("--drain").ends() == 0
    calls = sorted((line["seq"], line["attempt"]) for line in downstream.arrivals.lines())
    assert calls == sorted((seq, 1) for seq in [fact["seq"] for fact in cut] + seqs)
    assert [fact["kind"] for fact in facts(engine)] == ["attempt_failed"] * relays + ["delivered"] * 24


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "a parent"])
def test_signals_during_the_end_of_a_relay_change_nothing(sqlite_place: Site, options: tuple[str, ...]) -> None:
    relay = sqlite_place.relay(*options)
    relay.writes("started node=")

    def has_ended() -> bool:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            relay.send(number)
        return not relay.runs

    until(has_ended, "the relay ends", poll=0.001)
    assert relay.ends(within=0) == 0
    assert checkers.find_complaints(sqlite_place.logs()) == []


def test_a_new_relay_takes_over_from_an_old_one_without_a_repeated_call(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(400))
    with downstream_and_site(tmp_path, database_url, seconds=0.3) as (downstream, place):
        old = place.relay()
        until(lambda: len(downstream.arrivals) >= 40, "the drain is under way")
        for _ in range(2):
            new = place.relay()
            until(lambda: list_in_flight(engine, new.pid), "the new one works, too")
            until(lambda: list_in_flight(engine, old.pid), "the old one still does")
            assert old.stop() == 0
            old = new
        downstream.seconds = 0.02
        until(lambda: not open_states(engine), "everything is delivered", within=60)
        assert old.stop() == 0
    assert_each_was_delivered_once_in_order(downstream, engine)
    assert len({fact["relay_node"] for fact in facts(engine)}) == 3


def test_an_event_acknowledged_before_a_stop_is_stored(
    database_url: str, engine: Engine, tmp_path: Path, place: Site
) -> None:
    receiver, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
    with Sender(tmp_path / "sends.jsonl", port, endless(), connections=8, tries=1) as sender:
        until(lambda: sender.acknowledged >= 300, "the receiver is under load")
        assert receiver.stop() == 0
    sends = sender.sends.lines()
    assert checkers.find_unstored(sends, read_inbox(engine)) == []
    assert checkers.find_two_numbers(sends, read_inbox(engine)) == []
    assert {line["status"] for line in sends if line["outcome"] == "failed"} <= {503}
    assert checkers.find_complaints(place.logs()) == []
    assert not {"ok", "unknown"} - {line["outcome"] for line in sends}


async def test_a_receiver_that_stops_stores_all_waiting_events_in_batches(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.writer.MAX_ROWS", 2)
    writer = GroupCommit(a_link(sqlite_database_url), SystemClock())
    waiting = [asyncio.create_task(writer.append([an_event(number)])) for number in range(7)]
    await asyncio.sleep(0)
    await writer.close()
    assert [len(receipts) for receipts in await asyncio.gather(*waiting)] == [1] * 7
