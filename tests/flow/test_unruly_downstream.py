"""The daemon itself, in a thread, and a downstream service that breaks off, asks for odd delays, or answers too late."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.events.timestamps import as_time
from relay.daemon.generation import prepare
from relay.daemon.loop import Relay
from relay.delivery.outcome import Delivered
from relay.delivery.policy import policies
from relay.observe import Observer
from relay.store.database import Database
from tests.helpers.daemon import configured, kinds, running
from tests.helpers.downstream import Held, serving
from tests.helpers.evidence import facts, open_states
from tests.helpers.filling import fill
from tests.helpers.relaying import Steps
from tests.helpers.scripted import Act, ScriptedServer, answer, hang, hundred_megabytes, raw, reset, then_close
from tests.helpers.scripted import serving as scripted
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment


@contextlib.contextmanager
def calling(engine: Engine, *acts: Act, timeout: str = "30s") -> Iterator[ScriptedServer]:
    """A relay whose downstream does this, one call after the other; each call may take so long."""
    with scripted(*acts) as server, running(engine, server, 20, concurrency=1, destination=f'timeout = "{timeout}"'):
        yield server


@pytest.mark.parametrize(
    "broken",
    [reset, then_close(raw(b"")), then_close(raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nfi")), hang],
    ids=["a reset", "no answer", "half an answer", "a deadline"],
)
def test_a_call_that_may_have_been_processed_is_repeated_and_can_be_recognised(
    database_url: str, engine: Engine, broken: Act
) -> None:
    fill(database_url, [("u1", moment(0))])
    with calling(engine, broken, answer(204), timeout="1s" if broken is hang else "30s") as server:
        until(lambda: not open_states(engine), "it is delivered")
    first, second = server.seen
    assert first.headers["idempotency-key"] == second.headers["idempotency-key"] == first.headers["webhook-id"] + "-0"
    assert first.headers["webhook-id"] == second.headers["webhook-id"]
    assert [seen.headers["inbox-attempt"] for seen in server.seen] == ["1", "2"]
    assert first.body == second.body
    assert [(fact["kind"], fact["detail"].get("error_class")) for fact in facts(engine)] == [
        ("attempt_failed", "unknown"),
        ("delivered", None),
    ]


def test_a_success_with_a_hundred_megabytes_is_a_success(database_url: str, engine: Engine) -> None:
    fill(database_url, [("u1", moment(0)), ("u1", moment(1))])
    large = hundred_megabytes(b"HTTP/1.1 200 OK\r\nContent-Length: 104857600\r\n\r\n")
    with calling(engine, large, answer(204)) as server:
        until(lambda: not open_states(engine), "both are delivered")
    assert kinds(engine) == ["delivered", "delivered"]
    assert [seen.connection for seen in server.seen] == [1, 2]


@pytest.mark.parametrize("status", [200, 429, 403])
def test_a_rate_limit_that_is_used_up_only_delays_what_comes(
    database_url: str, engine: Engine, caplog: pytest.LogCaptureFixture, status: int
) -> None:
    fill(database_url, [(f"u{n}", moment(n)) for n in range(6)])
    used_up = answer(status, b"", x_ratelimit_remaining="0", x_ratelimit_reset="1")
    with calling(engine, used_up, answer(204)) as server:
        until(lambda: not open_states(engine), "all are delivered")
    all_facts = facts(engine)
    attempts = [fact["detail"] for fact in all_facts if fact["kind"] == "attempt_failed"]
    assert [attempt["counted"] for attempt in attempts] == [False] * len(attempts)
    assert {attempt["error_class"] for attempt in attempts} <= {"throttled"}
    assert len(server.seen) == 6 + (status != 200)
    assert [fact["kind"] for fact in all_facts].count("delivered") == 6
    assert "held destination audit until " in caplog.text


A_DAY = timedelta(hours=24)


@pytest.mark.parametrize(
    ("asked", "waits"),
    [
        ("3155760000", A_DAY),
        ("Fri, 24 Nov 2126 00:00:00 GMT", A_DAY),
        ("2.25", timedelta(seconds=2.25)),
        ("0.001", timedelta(milliseconds=100)),
    ],
    ids=["a century in seconds", "a century as a date", "a fraction", "less than our own delay"],
)
def test_what_is_asked_for_is_honoured_between_our_own_delay_and_a_day(
    sqlite_database_url: str, asked: str, waits: timedelta
) -> None:
    due, at = failed_once(sqlite_database_url, asked)
    assert abs(due - at - waits) < timedelta(seconds=1), "the record and the delay are not timed at one moment"


@pytest.mark.parametrize("asked", ["banana", "-1", "", "Thu, 01 Jan 1970 00:00:00 GMT", "9" * 40, "NaN", "1e3"])
def test_what_can_not_be_read_is_ignored(sqlite_database_url: str, asked: str) -> None:
    due, at = failed_once(sqlite_database_url, asked)
    assert due - at < timedelta(seconds=30), "our own delay: 100 ms, which count from some time after the record"


def failed_once(database_url: str, retry_after: str) -> tuple[datetime, datetime]:
    """Fail an attempt by 503 with this header; return the next attempt's due time and the time of the record."""
    fill(database_url, [("u1", moment(0))])
    engine = engines.connect(database_url, application="tests")
    with scripted(answer(503, b"", retry_after=retry_after), answer(204)) as server:
        config = configured(server.url)
        Relay(Database(engine), prepare(config), grace_seconds=20).run(drain=True)
    failed = facts(engine)[0]
    engine.dispose()
    assert failed["kind"] == "attempt_failed"
    return as_time(failed["detail"]["due_at"]), failed["at"]


def test_a_result_that_comes_after_the_lease_was_taken_over_is_discarded_counted_and_logged(
    database_url: str, engine: Engine, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = Held()
    (seq,) = fill(database_url, [("u1", moment(0))])
    other = Steps(engine, policies(configured("http://127.0.0.1:9/")))
    other.node = "another"
    with serving(tmp_path / "arrivals.jsonl", held) as downstream, running(engine, downstream) as relay:
        until(lambda: held.seqs, "the call is under way")
        other.clock.moment = SystemClock().now() + timedelta(minutes=1)
        assert len(other.reap()) == 1
        (taken,) = other.claim_due()
        held.go.set()
        observer: Observer = relay._observer
        until(lambda: observer.counts["result_discarded"], "the late result was looked at")
        (recorded,) = other.record([(taken, Delivered((), "forwarded"))])
        assert recorded.fact is not None
    assert f"discarded a late result: another claim holds the lease route=everything seq={seq}" in caplog.text
    assert (observer.counts["result_discarded"], observer.counts["delivered"]) == (1, 0)
    assert kinds(engine) == ["abandoned", "delivered"]
