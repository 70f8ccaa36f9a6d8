"""Payloads expire: whole leaves at once on Postgres, row by row elsewhere; none waits for their lock with the order lock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import datetime, timedelta

import msgspec
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db import leaves as payload_leaves
from inbox.db.dialect import takes_too_long
from inbox.db.leaves import DEFAULT, LEAST_EVENTS, LOCK_PAYLOADS, MOST_EVENTS, leaf_size
from relay.operations.asks import Selection
from relay.store import rebuild
from relay.store.database import Database
from relay.store.duplicates import judge_duplicates
from relay.store.operator import commands, execution
from relay.store.reopen import keep_payloads
from relay.store.retention import STEPS, Pruned
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps
from tests.helpers.storing import START, a_row, an_event
from tests.helpers.tables import count, rows
from tests.helpers.waiting import stand_still, until

AGE = timedelta(days=10)
NOW = START + AGE
CUT = START + timedelta(hours=1)
DAY = timedelta(days=1)

FILL = """
WITH made AS (
    INSERT INTO inbox (seq, source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type, body_bytes,
                       body_sha256)
    SELECT n, 's', 'key ' || n, 'e', 'other', :at, :at, '{strict}', 'text/plain', 1000, ''
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
)
INSERT INTO inbox_payload (seq, headers, body)
SELECT n, '{}', convert_to(repeat(md5(CAST(n AS text)), 31), 'UTF8')
FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) AS n
"""


FIGURE = """
INSERT INTO throughput_minute (kind, name, outcome, minute, count)
VALUES ('source', 's', 'stored', date_trunc('minute', now()) - make_interval(secs => :seconds_old), :count)
ON CONFLICT (kind, name, outcome, minute) DO UPDATE SET count = throughput_minute.count + excluded.count
"""


def fill(engine: Engine, first: int, last: int, *, days_old: float) -> None:
    """Events of this age, which all have ended, their payloads of about 1 kB, and their figure."""
    with engine.begin() as connection:
        connection.execute(text(FILL), {"first": first, "last": last, "at": NOW - timedelta(days=days_old)})
        connection.execute(text(FIGURE), {"seconds_old": 86400 * days_old, "count": last - first + 1})
        connection.execute(
            text("SELECT setval('inbox_seq_seq', greatest(:last, last_value)) FROM inbox_seq_seq"), {"last": last}
        )


def step(engine: Engine, expiry: datetime = CUT, position: int = 0, most: int = 500) -> Pruned:
    with Database(engine).write() as transaction:
        return STEPS["payloads"](transaction, expiry, position, most)


def walk(engine: Engine, expiry: datetime = CUT, most: int = 500) -> list[Pruned]:
    """A whole walk, step by step."""
    done: list[Pruned] = []
    position = 0
    while not done or not done[-1].is_done:
        done.append(step(engine, expiry, position, most))
        position = done[-1].position
        assert len(done) < 1000, "it ends"
    return done


def kept(engine: Engine) -> list[int]:
    return [row["seq"] for row in rows(engine, "SELECT seq FROM inbox_payload ORDER BY seq")]


def leaves(engine: Engine) -> list[tuple[int, int]]:
    with engine.connect() as connection:
        return [(leaf.first, leaf.beyond) for leaf in payload_leaves.list_leaves(connection)]


def prepare(engine: Engine, age: timedelta | None = AGE) -> int:
    """Make leaves as long as there are too few; returns their number."""
    made = 0
    while True:
        with engine.begin() as connection:
            if not payload_leaves.prepare(connection, age):
                return made
        made += 1


@contextmanager
def holding(engine: Engine, *statements: str) -> Iterator[Connection]:
    """Open a transaction that stays open for the block, unless it commits."""
    with engine.connect() as connection:
        stand_still(connection)
        for statement in statements:
            connection.execute(text(statement))
        yield connection


# --- on both databases


@ON_SQLITE
def test_a_sqlite_file_shrinks_as_its_payloads_go(engine: Engine, steps: Steps) -> None:
    steps.receive(*(msgspec.structs.replace(an_event(n, routes=[]), body=b"x" * 500_000) for n in range(40)))
    (before,) = rows(engine, "PRAGMA page_count")
    walk(engine)
    (after,) = rows(engine, "PRAGMA page_count")
    assert after["page_count"] < 0.2 * before["page_count"]
    assert rows(engine, "PRAGMA freelist_count") == [{"freelist_count": 0}]


# --- leaves


def test_a_leaf_holds_a_day_and_at_most_a_tenth_of_the_age() -> None:
    assert leaf_size(1_000_000, None) == leaf_size(1_000_000, timedelta(days=30)) == 1_000_000
    assert leaf_size(1_000_000, timedelta(days=1)) == 100_000
    assert leaf_size(10, None) == LEAST_EVENTS
    assert leaf_size(1e12, None) == MOST_EVENTS


@ON_POSTGRES
def test_leaves_are_ready_for_coming_events_and_grow_with_their_rate(engine: Engine) -> None:
    assert prepare(engine) == 0, "the first one is large enough"
    for hour in range(24):
        fill(engine, 1 + hour * 4000, (hour + 1) * 4000, days_old=1 - hour / 24)
    assert prepare(engine) == payload_leaves.AHEAD
    first, *others = leaves(engine)
    assert first == (1, 100_001)
    assert [beyond for _, beyond in leaves(engine)][:-1] == [begin for begin, _ in others], "without gaps"
    assert all(80_000 < beyond - begin < 110_000 for begin, beyond in others), "about a day each"
    assert prepare(engine) == 0


@ON_POSTGRES
def test_events_after_those_in_the_default_leaf_get_a_leaf_of_their_own(engine: Engine) -> None:
    fill(engine, 1, 120_000, days_old=1)
    assert rows(engine, f"SELECT count(*) AS n FROM {DEFAULT}") == [{"n": 20_000}]
    assert prepare(engine) > 0
    assert leaves(engine)[1][0] == 120_000 + LEAST_EVENTS
    fill(engine, 140_000, 140_010, days_old=0)
    assert rows(engine, f"SELECT count(*) AS n FROM {DEFAULT}") == [{"n": 20_000}]
    assert sum(pruned.rows for pruned in walk(engine, NOW - 0.5 * DAY)) == 120_000


ARRIVING = """
WITH arrived AS (
    INSERT INTO inbox (source, dedup_key, event_type, action, occurred_at, received_at, routes, content_type, body_bytes,
                       body_sha256)
    VALUES ('s', 'new', 'e', 'other', now(), now(), '{r}', 'text/plain', 4, '') RETURNING seq
), opened AS (
    INSERT INTO open_delivery (seq, route, lane, occurred_at, state) SELECT seq, 'r', 'l', now(), 'received' FROM arrived
)
INSERT INTO inbox_payload SELECT seq, '{}', 'body' FROM arrived
"""


@ON_POSTGRES
def test_an_event_that_arrives_while_the_default_leaf_expires_keeps_its_payload(engine: Engine) -> None:
    fill(engine, 100_001, 102_000, days_old=9)
    with engine.begin() as connection:  # else it goes on after 100 ms without the lock, before a slow test has looked
        connection.execute(text("ALTER FUNCTION inbox_payload_expire_leaf SET lock_timeout = '1min'"))
    with ThreadPoolExecutor(1) as others:
        with holding(engine, ARRIVING) as arriving:
            expired = others.submit(step, engine, NOW - 8 * DAY)
            until(lambda: expired.done() or count(engine, "pg_locks WHERE NOT granted") > 0, "it waits")
            arriving.commit()
        assert expired.result().rows == 2000
    assert kept(engine) == [102_001]


@ON_POSTGRES
def test_an_event_from_a_clock_that_was_ahead_holds_up_nothing_behind_it(engine: Engine) -> None:
    fill(engine, 1, 99_994, days_old=9)
    fill(engine, 99_995, 99_995, days_old=-3650)
    fill(engine, 99_996, 100_010, days_old=9)
    fill(engine, 100_011, 100_011, days_old=0)
    walk(engine, NOW - 8 * DAY, most=20_000)
    assert kept(engine) == [99_995, 100_011]


def dead(engine: Engine, *seqs: int) -> None:
    with engine.begin() as connection:
        for seq in seqs:
            connection.execute(text(a_row(seq, lane=str(seq), state="dead").replace(":", "\\:")))


@ON_POSTGRES
def test_a_leaf_expires_at_once_and_keeps_what_is_open(engine: Engine) -> None:
    fill(engine, 1, 101_000, days_old=9)
    dead(engine, 7, 99_999)
    done = [pruned for pruned in walk(engine, NOW - 8 * DAY) if pruned.rows]
    assert (done[0].rows, done[0].position) == (99_998, 100_000)
    assert sum(pruned.rows for pruned in done) == 100_998
    assert kept(engine) == [7, 99_999]
    (size,) = rows(engine, "SELECT pg_total_relation_size('inbox_payload_1') AS bytes")
    assert size["bytes"] < 200_000


@ON_POSTGRES
def test_a_leaf_that_is_being_read_is_skipped_and_expires_the_next_time(engine: Engine) -> None:
    fill(engine, 1, 100_500, days_old=9)
    cut = NOW - 8 * DAY
    with holding(engine, "SELECT count(*) FROM inbox_payload_1"):
        done = walk(engine, cut)
        assert (sum(pruned.passed_over for pruned in done), sum(pruned.rows for pruned in done)) == (1, 500)
    assert sum(pruned.rows for pruned in walk(engine, cut)) == 100_000


@ON_POSTGRES
def test_a_leaf_with_a_young_event_at_its_end_stays(engine: Engine) -> None:
    fill(engine, 1, 99_990, days_old=9)
    fill(engine, 99_991, 100_000, days_old=1)
    fill(engine, 100_001, 100_002, days_old=0)
    assert step(engine, NOW - 8 * DAY, most=10).rows == 10, "row by row"
    assert step(engine, NOW - 0.5 * DAY).rows == 99_990


@ON_POSTGRES
def test_the_oldest_leaves_are_retired_when_there_are_many(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(payload_leaves, "MOST_LEAVES", 2)
    fill(engine, 1, 100_500, days_old=9)
    dead(engine, 7)
    prepare(engine)
    walk(engine, NOW - 8 * DAY)
    prepare(engine)
    assert leaves(engine)[0][0] > 1
    assert rows(engine, f"SELECT seq FROM {DEFAULT}") == [{"seq": 7}], "its last payload moved"


# --- The lock between retention and steps that reopen deliveries: no step waits for it with the order lock


def replaying(steps: Steps) -> None:
    number = commands.ask(steps.database, "replay", Selection(everything=True), who="kim", why="a test")
    execution.work_on(steps.work, number)


def judging(steps: Steps) -> None:
    judge_duplicates(steps.work)


def rebuilding(steps: Steps) -> None:
    list(rebuild.rebuild(steps.database, CONFIG, who="kim", why="a check"))


@ON_POSTGRES
@pytest.mark.parametrize("open_again", [replaying, judging, rebuilding])
def test_a_wait_for_retention_is_without_the_lock(steps: Steps, open_again: Callable[[Steps], None]) -> None:
    engine = steps.database.engine
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]), an_event(3, "u3"))
    steps.attempt(HOPELESS)
    steps.attempt(DONE, "latest")
    steps.intake.repeat(an_event(2, "u2", routes=["latest"]))
    steps.do("DELETE FROM open_delivery WHERE seq = 3")
    with holding(engine, LOCK_PAYLOADS), ThreadPoolExecutor(1) as others:
        waiting = others.submit(open_again, steps)
        until(lambda: count(engine, "pg_locks WHERE NOT granted") > 0 or waiting.done(), "it waits")
        steps.do("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE NOWAIT")
        with pytest.raises(OperationalError) as raised:
            waiting.result()
    assert "payload_lock" in str(raised.value.statement)
    assert not takes_too_long(raised.value), "smaller parts would wait as long, one after the other"
    open_again(steps)


@ON_POSTGRES
def test_a_delivery_is_never_opened_without_the_lock(steps: Steps) -> None:
    with steps.database.write() as transaction:
        transaction.take_order_lock()
        with pytest.raises(RuntimeError, match="keeps_payloads"):
            keep_payloads(transaction, [1])
