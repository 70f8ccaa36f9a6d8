"""Relays and receivers that are told to stop, or end by themselves: nothing is lost, and nothing is done twice."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.databases import is_postgres
from tests.helpers.processes import site
from tests.helpers.relaying import fill
from tests.helpers.tables import count as count_rows
from tests.helpers.tables import facts, in_flight_of, stored
from tests.helpers.traffic import Held, Sender, endless, events, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

GRACE_SECONDS = 20
EVENTS = 300


@pytest.mark.parametrize("options", [(), ("--processes", "2")], ids=["alone", "a parent"])
def test_a_relay_that_is_told_to_stop_in_mid_drain_repeats_no_call_and_uses_no_attempt(
    database_url: str, engine: Engine, tmp_path: Path, options: tuple[str, ...]
) -> None:
    """By a service manager that signals all processes of a service."""
    fill(database_url, events(EVENTS))
    calls = Held(passing=40)
    with (
        serving(tmp_path / "arrivals.jsonl", calls, seconds=0.1) as downstream,
        site(tmp_path, config_text(database_url, downstream.url)) as place,
    ):
        relay = place.relay(*options)

        def all_work() -> bool:
            relays = relay.children() or [relay.pid]
            return len(downstream.arrivals) >= 40 and all(in_flight_of(engine, pid) for pid in relays)

        until(all_work, "the drain is under way")
        os.killpg(relay.pid, signal.SIGTERM)
        relay.writes("stopping node=", 2 if options else 1)
        calls.go.set()
        assert relay.ends(within=GRACE_SECONDS) == 0

        called = len(downstream.arrivals)
        assert called < EVENTS
        assert count_rows(engine, "delivery_log WHERE kind = 'delivered'") == called
        assert count_rows(engine, "delivery_log WHERE kind <> 'delivered'") == 0
        assert count_rows(engine, "open_delivery WHERE attempt > 0 OR state = 'in_flight'") == 0
        assert count_rows(engine, "open_delivery") == EVENTS - called

        downstream.seconds = 0.01
        assert place.relay("--drain", *options).ends(within=60) == 0
        arrivals, logs = downstream.arrivals.lines(), place.logs()

    assert sorted(line["seq"] for line in arrivals) == sorted(line["seq"] for line in stored(engine))
    assert {line["attempt"] for line in arrivals} == {1}
    assert checkers.unfinished(stored(engine), facts(engine)) == []
    assert checkers.out_of_order(arrivals, facts(engine)) == []
    assert checkers.complaints(logs) == []
    assert count_rows(engine, "relay_node WHERE stopped_at IS NULL") == 0
    assert count_rows(engine, "relay_node") == (4 if options else 2)


def test_what_a_receiver_acknowledged_before_it_was_told_to_stop_is_stored(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    with site(tmp_path, config_text(database_url)) as place:
        receiver, port = place.receiver(workers=2 if is_postgres(database_url) else 1)
        sender = Sender(tmp_path / "sends.jsonl", port, endless(), connections=8, tries=1)
        try:
            until(lambda: sender.acknowledged() >= 300, "the receiver is under load")
            assert receiver.stop() == 0
        finally:
            sender.stop()
        sends, logs = sender.sends.lines(), place.logs()

    assert checkers.unstored(sends, stored(engine)) == []
    assert checkers.two_numbers(sends, stored(engine)) == []
    assert {line["status"] for line in sends if line["outcome"] == "failed"} <= {503}
    assert checkers.complaints(logs) == []
    assert not {"ok", "unknown"} - {line["outcome"] for line in sends}
