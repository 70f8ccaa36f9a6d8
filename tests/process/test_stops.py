"""Relays and receivers that are told to stop, once or twice, early or late: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.receiver.writer import GroupCommit
from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.processes import Site, site
from tests.helpers.receiver import a_link
from tests.helpers.relaying import fill
from tests.helpers.storing import an_event
from tests.helpers.tables import count, facts, list_in_flight, open_states, read_inbox
from tests.helpers.traffic import Downstream, Held, Script, Sender, always_well, endless, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

GRACE_SECONDS = 20
AT_ONCE_SECONDS = 8.0
"""Far less than the grace period and a hanging call; what it takes on a busy machine is mostly the end of Python."""


@contextlib.contextmanager
def calling(
    folder: Path, database_url: str, script: Script = always_well, seconds: float = 0.0, concurrency: int = 8
) -> Iterator[tuple[Downstream, Site]]:
    """A destination that takes so long for a call, and a site whose programs complain of nothing."""
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
def test_a_relay_that_is_told_to_stop_in_mid_drain_repeats_no_call_and_uses_no_attempt(
    database_url: str, engine: Engine, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """By a service manager that signals all processes of a service."""
    fill(database_url, events(300))
    calls = Held(passing=40)
    with calling(tmp_path, database_url, calls, seconds=0.1) as (downstream, place):
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
    with calling(tmp_path, database_url, seconds=30.0, concurrency=1) as (downstream, place):
        relay = place.relay("--processes", str(relays))
        until(lambda: len(downstream.arrivals) == relays, "each makes a call")
        relay.send(signal.SIGTERM)
        relay.writes("stopping node=", relays)  # signals of one kind that wait for a process are one
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
def test_signals_that_come_while_it_ends_change_nothing(sqlite_place: Site, options: tuple[str, ...]) -> None:
    relay = sqlite_place.relay(*options)
    relay.writes("started node=")

    def has_ended() -> bool:
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
            relay.send(number)
        return not relay.runs

    until(has_ended, "the relay ends", poll=0.001)
    assert relay.ends(within=0) == 0
    assert checkers.find_complaints(sqlite_place.logs()) == []


def test_a_new_relay_that_starts_before_the_old_one_is_told_to_stop_takes_over_without_a_trace(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(400))
    with calling(tmp_path, database_url, seconds=0.3) as (downstream, place):
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


def test_an_event_that_a_receiver_acknowledged_before_it_was_told_to_stop_is_stored(
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


async def test_a_receiver_that_stops_stores_all_that_waits_in_as_many_batches_as_it_takes(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.writer.MAX_ROWS", 2)
    writer = GroupCommit(a_link(sqlite_database_url), SystemClock())
    waiting = [asyncio.create_task(writer.append([an_event(number)])) for number in range(7)]
    await asyncio.sleep(0)
    await writer.close()
    assert [len(receipts) for receipts in await asyncio.gather(*waiting)] == [1] * 7
