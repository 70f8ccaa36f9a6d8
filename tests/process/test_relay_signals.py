"""One relay process and its signals: a stop, a second one, the end of the grace period, another configuration."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from sqlalchemy import Engine

from tests.helpers import checkers
from tests.helpers.processes import Site, site
from tests.helpers.relaying import fill
from tests.helpers.tables import count as count_rows
from tests.helpers.tables import facts, in_flight_of, open_states, stored
from tests.helpers.traffic import events, never_greeting, serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text, moment

HANGS_SECONDS = 30.0
AT_ONCE_SECONDS = 8.0
"""Far less than the grace period and the hanging call; what it takes on a busy machine is mostly the end of Python."""


@pytest.mark.parametrize("relays", [1, 2], ids=["alone", "a parent"])
def test_a_call_that_hangs_is_cut_and_repeated_without_using_an_attempt(
    database_url: str, engine: Engine, tmp_path: Path, relays: int
) -> None:
    seqs = fill(database_url, events(24, entities=12))
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=HANGS_SECONDS) as downstream,
        site(tmp_path, config_text(database_url, downstream.url, concurrency=1)) as place,
    ):
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
        assert count_rows(engine, "open_delivery WHERE attempt > 0") == 0

        downstream.seconds = 0
        assert place.relay("--drain").ends() == 0
        calls = [(line["seq"], line["attempt"]) for line in downstream.arrivals.lines()]
        assert checkers.complaints(place.logs()) == []

    assert (seqs[0], 1) in calls[:relays]  # either relay may be the first to call
    assert sorted(calls) == sorted((seq, 1) for seq in [fact["seq"] for fact in cut] + seqs)
    assert [fact["kind"] for fact in facts(engine)] == ["attempt_failed"] * relays + ["delivered"] * 24


def test_a_call_whose_connection_is_not_set_up_is_cut_without_a_trace(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(1))
    with never_greeting() as (url, has_come), site(tmp_path, config_text(database_url, url)) as place:
        relay = place.relay("--grace", "0.3")
        until(has_come, "the call is under way")
        assert relay.stop(within=AT_ONCE_SECONDS) == 0
        assert "cutting" in relay.output
        assert "running=1" in relay.output
        assert checkers.complaints(place.logs()) == []

    assert facts(engine) == []
    assert open_states(engine) == {"ready": 1}
    assert count_rows(engine, "open_delivery WHERE attempt > 0 OR lease_token IS NOT NULL") == 0


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
    assert checkers.complaints(sqlite_place.logs()) == []


SPOILED = (
    ("[database]", "this is not TOML", ["inbox.toml is not TOML"]),
    ("concurrency = 8", 'concurency = 8\ntimeout = "long"', ["concurency", "timeout"]),
    (
        "[database]\nurl = ",
        "[database]\nurl = 'sqlite:///elsewhere.db' # ",
        ["[database] url: another value needs a restart"],
    ),
)
"""A part of a good file, what stands there instead, and what is told of it."""


def test_a_configuration_that_can_not_be_used_is_refused_and_the_old_one_stays(
    sqlite_database_url: str, tmp_path: Path
) -> None:
    with serving(tmp_path / "old.jsonl") as old, serving(tmp_path / "new.jsonl") as new:
        config = config_text(sqlite_database_url, old.url)
        with site(tmp_path, config) as place:
            relay = place.relay()
            relay.writes("started node=")
            for number, (good, bad, mistakes) in enumerate(SPOILED, 1):
                written = len(relay.output)
                assert good in config
                place.configure(config.replace(good, bad))
                relay.send(signal.SIGHUP)
                relay.writes("the old configuration stays", number)
                told = [line for line in relay.output[written:].splitlines() if " ERROR " in line]
                assert len(told) == len(mistakes) + 1
                assert all(mistake in line for mistake, line in zip(mistakes, told, strict=False))
                fill(sqlite_database_url, [("u1", moment(number))])
                until(lambda: len(old.arrivals) == number, "it still works")
            place.configure(config_text(sqlite_database_url, new.url))
            relay.send(signal.SIGHUP)
            relay.writes("reloaded node=")
            fill(sqlite_database_url, [("u1", moment(9))])
            until(lambda: len(new.arrivals) == 1, "a good one takes effect afterwards")
            assert relay.stop() == 0
            assert checkers.complaints(place.logs()) == []


def test_a_new_relay_that_starts_before_the_old_one_is_told_to_stop_takes_over_without_a_trace(
    database_url: str, engine: Engine, tmp_path: Path
) -> None:
    fill(database_url, events(400))
    with (
        serving(tmp_path / "arrivals.jsonl", seconds=0.3) as downstream,
        site(tmp_path, config_text(database_url, downstream.url)) as place,
    ):
        old = place.relay()
        until(lambda: len(downstream.arrivals) >= 40, "the drain is under way")
        for _ in range(2):
            new = place.relay()
            until(lambda: in_flight_of(engine, new.pid), "the new one works, too")
            until(lambda: in_flight_of(engine, old.pid), "the old one still does")
            assert old.stop() == 0
            old = new
        downstream.seconds = 0.02
        until(lambda: not open_states(engine), "everything is delivered", within=60)
        assert old.stop() == 0
        arrivals, logs = downstream.arrivals.lines(), place.logs()

    assert sorted(line["seq"] for line in arrivals) == [line["seq"] for line in stored(engine)]
    assert {line["attempt"] for line in arrivals} == {1}
    assert {fact["kind"] for fact in facts(engine)} == {"delivered"}
    assert len({fact["relay_node"] for fact in facts(engine)}) == 3
    assert checkers.unfinished(stored(engine), facts(engine)) == []
    assert checkers.out_of_order(arrivals, facts(engine)) == []
    assert checkers.complaints(logs) == []
