"""Repeated requests are judged by the event: one that repeats without end, or can't be judged yet, delays no other."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from typing import Literal, cast

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db import engine as engines
from inbox.db.dialect import Sql
from inbox.db.intake import STORES
from inbox.events.event import Event
from relay.delivery.outcome import Delivered, Delivery
from relay.delivery.policy import policies
from relay.observe import Observer
from relay.steps import Steps as StepsOfARelay
from relay.store import duplicates
from relay.store.claim import claim
from relay.store.database import Database
from relay.store.duplicates import Judged, Rest, judge_duplicates
from relay.store.record import record
from relay.store.sequence import sequence
from tests.helpers.daemon import maintenance_of
from tests.helpers.stepping import COMMIT, Stepper
from tests.store.conftest import POLICIES, FakeClock, Steps, an_event
from tests.store.test_coverage import fetched
from tests.store.test_replay import CONFIG

LATEST = ["latest"]
TOO_SOON = fetched(1.4)
"""A fetch in the second of the event: a change later in that second is not in it."""

Repeat = Callable[..., None]


@pytest.fixture
def repeat(database_url: str) -> Repeat:
    """Receive events that are there already, each so many times, in batches as the receiver does."""

    def _repeat(*events: Event, times: int = 1) -> None:
        async def _append() -> None:
            engine = engines.connect_async(database_url, application="tests")
            async with engine.connect() as connection:
                store = STORES[engine.dialect.name]()
                requests = [each for each in events for _ in range(times)]
                for start in range(0, len(requests), 250):
                    await store.note_duplicates(connection, requests[start : start + 250])
            await engine.dispose()

        asyncio.run(_append())

    return _repeat


def some_events(numbers: Sequence[int]) -> list[Event]:
    return [an_event(number, f"u{number}", second=1, routes=LATEST) for number in numbers]


def claim_all(steps: Steps) -> list[Delivery]:
    return claim(steps.database, "r1", [(LATEST, 1_000)])


def record_all(steps: Steps, claimed: Sequence[Delivery], outcome: Delivered = TOO_SOON) -> None:
    record(steps.database, POLICIES, "r1", [(delivery, outcome) for delivery in claimed])


def delivered(steps: Steps, *events: Event) -> None:
    """These arrive and are delivered, each by a fetch that may not have a second change in it."""
    steps.arrive(*events)
    record_all(steps, claim_all(steps))


def judge(steps: Steps, rest: Rest | None = None) -> Judged:
    return judge_duplicates(steps.database, CONFIG, POLICIES, "r1", rest)


def judge_all(steps: Steps, rounds: int = 20) -> list[Judged]:
    """Rounds until nothing is left to be looked at."""
    done = [judge(steps)]
    while done[-1].rest is not None:
        assert len(done) < rounds, "it does not come to an end"
        done.append(judge(steps, done[-1].rest))
    return done


def rearmed(steps: Steps) -> list[int]:
    """The seqs of what was made again."""
    return [row["seq"] for row in steps.rows("SELECT seq FROM delivery_log WHERE kind = 'rearmed' ORDER BY seq")]


def waiting(steps: Steps) -> list[int]:
    """The events whose repeats are not judged yet."""
    found = steps.rows("SELECT DISTINCT seq FROM duplicate_request WHERE handled_at IS NULL ORDER BY seq")
    return [row["seq"] for row in found]


def stored(steps: Steps) -> tuple[int, int]:
    """Count the stored duplicate rows, and the requests that they stand for."""
    (row,) = steps.rows("SELECT count(*) AS number, CAST(sum(times) AS bigint) AS times FROM duplicate_request")
    return row["number"], row["times"]


# --- one event that comes again without end


def test_an_event_that_is_repeated_thousands_of_times_delays_no_other(steps: Steps, repeat: Repeat) -> None:
    often, *others = some_events(range(51))
    delivered(steps, often, *others)
    repeat(often, times=5_000)
    repeat(*others)

    judged = judge(steps)

    assert judged.rearmed == 51
    assert rearmed(steps) == list(range(1, 52))
    assert (waiting(steps), judged.rest) == ([], None)
    steps.facts_agree()


def test_thousands_of_repeats_of_one_event_are_a_few_rows_that_count_all(steps: Steps, repeat: Repeat) -> None:
    steps.arrive(an_event(1))
    repeat(an_event(1), times=5_000)
    assert stored(steps) == (20, 5_000)


def test_rows_of_one_event_beyond_a_batch_delay_the_others_by_one_round(
    steps: Steps, repeat: Repeat, engine: Engine
) -> None:
    """However they came: no receiver writes so many."""
    often, *others = some_events(range(51))
    delivered(steps, often, *others)
    plant_rows(engine, seq=1, number=5_000)
    repeat(*others)

    first, second, *_ = judge_all(steps)

    assert (first.rearmed, second.rearmed) == (1, 50)
    assert first.handled <= 1_000
    for _ in range(6):
        judge_all(steps)
    assert (waiting(steps), len(rearmed(steps))) == ([], 51)


def plant_rows(engine: Engine, *, seq: int, number: int) -> None:
    numbers = (
        f"generate_series(1, {number})"
        if Sql(engine.dialect.name).is_postgres
        else f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {number}) SELECT n FROM c)"
    )
    body = "decode('00', 'hex')" if Sql(engine.dialect.name).is_postgres else "x'00'"
    with engine.begin() as connection:
        connection.execute(
            text(
                "INSERT INTO duplicate_request (seq, received_at, body_sha256)"
                f" SELECT {seq}, '2026-01-01 00:00:00.000000Z', {body} FROM {numbers} AS made"
            )
        )


def test_the_first_of_further_repeats_counts_and_is_judged_as_any_other(steps: Steps, repeat: Repeat) -> None:
    """Two changes in one second look the same, however often the first was repeated."""
    (often,) = some_events([1])
    delivered(steps, often)
    repeat(often, times=30)
    assert sum(judged.rearmed for judged in judge_all(steps)) == 1
    record_all(steps, claim_all(steps))

    repeat(often)

    assert stored(steps) == (20, 31)
    assert waiting(steps) == [1]
    assert judge(steps) == Judged(handled=1, rearmed=1)
    assert rearmed(steps) == [1, 1]


def test_the_fact_names_the_newest_of_the_repeats_that_were_judged(steps: Steps, repeat: Repeat) -> None:
    (often,) = some_events([1])
    delivered(steps, often)
    repeat(often, times=3)
    judge(steps)
    (fact,) = steps.rows("SELECT detail FROM delivery_log WHERE kind = 'rearmed'")
    (newest,) = steps.rows("SELECT max(id) AS id FROM duplicate_request")
    assert fact["detail"] == {"duplicate": newest["id"]}


# --- those that can't be judged yet


def test_repeats_of_one_delivery_in_flight_hold_no_other_up(steps: Steps, repeat: Repeat) -> None:
    working, *others = some_events(range(21))
    steps.arrive(working)
    in_flight = claim_all(steps)
    delivered(steps, *others)
    repeat(working, times=300)
    repeat(*others)

    assert judge(steps).rearmed == 20
    assert waiting(steps) == [1]

    record_all(steps, in_flight)
    judge_all(steps)
    assert (rearmed(steps), waiting(steps)) == (list(range(1, 22)), [])


def test_hundreds_of_events_in_flight_hold_no_other_up_and_are_looked_at_again(steps: Steps, repeat: Repeat) -> None:
    *working, other = some_events(range(451))
    steps.arrive(*working)
    in_flight = claim_all(steps)
    delivered(steps, other)
    repeat(*working, other)

    rounds = judge_all(steps)

    assert [judged.handled for judged in rounds] == [0, 0, 1], "each looks at the next 200 events, then it begins again"
    assert rearmed(steps) == [451]
    record_all(steps, in_flight[:1])
    judge_all(steps)
    assert rearmed(steps) == [in_flight[0].seq, 451]


def test_a_walk_ends_though_repeats_of_newer_events_keep_coming(steps: Steps, repeat: Repeat) -> None:
    """Else those of older events, which come meanwhile, would wait for ever."""
    first, *newer = some_events(range(600))
    delivered(steps, first, *newer)
    repeat(*newer[:250])
    judged = judge(steps)
    repeat(first, *newer[250:])

    assert judged.rest is not None
    assert judge(steps, judged.rest).rest is None
    judge(steps)
    assert 1 in rearmed(steps)


def test_a_relay_looks_at_the_rest_at_once(steps: Steps, repeat: Repeat) -> None:
    """And not once a second: each run of its maintenance is one round, and returns whether there is more to do."""
    events = some_events(range(401))
    delivered(steps, *events)
    repeat(*events)
    observer = Observer()
    maintenance = maintenance_of(steps.database, CONFIG, observer, StepsOfARelay(observer))

    more = [maintenance.run() > 0 for _ in range(3)]

    assert more == [True, True, False]
    assert (waiting(steps), observer.counts["rearmed"]) == ([], 401)


# --- repeats that come while others are judged


class Meanwhile:
    """A relay that judges on Postgres, one statement at a time, and a receiver beside it. On SQLite only one can write."""

    def __init__(self, url: str, repeated: int) -> None:
        self.engine = engines.connect(url, application="tests")
        self.steps = Steps(Database(self.engine, FakeClock()), lambda *events: self.receive("append", *events))
        self._url = url
        (self.event,) = some_events([1])
        delivered(self.steps, self.event)
        self.receive("note_duplicates", *[self.event] * repeated)

    def receive(self, what: Literal["append", "note_duplicates"], *events: Event) -> list[int | None]:
        async def _receive() -> list[int | None]:
            engine = engines.connect_async(self._url, application="tests")
            async with engine.connect() as connection:
                seqs = await getattr(STORES[engine.dialect.name](), what)(connection, events)
            await engine.dispose()
            return list(seqs)

        return asyncio.run(_receive())

    def judge(self, before: str, act: Callable[[], object]) -> Judged:
        """Judge, and do something just before the statement in which this text stands."""
        with Stepper(self.engine) as stepper:
            judging = stepper.begin("judge", lambda: judge(self.steps))
            while judging.before is not None and before not in judging.before:
                judging.step()
            assert not judging.finished, f"no statement has {before}"
            act()
            stepper.finish(judging)
        assert judging.error is None
        return cast("Judged", judging.result)


@pytest.fixture(params=[3, 30], ids=["as a row", "as a count"])
def meanwhile(postgres_database_url: str, request: pytest.FixtureRequest) -> Iterator[Meanwhile]:
    made = Meanwhile(postgres_database_url, request.param)
    yield made
    made.engine.dispose()


READS, MARKS = "SELECT r.id, r.seq, r.times", "SET handled_at"
LATER = ["SELECT i.seq, i.routes", "INSERT INTO delivery_log", MARKS, COMMIT]
"""Statements after the one that reads the repeats."""


@pytest.mark.parametrize("before", LATER)
def test_a_repeat_that_commits_after_the_repeats_were_read_is_judged_later(meanwhile: Meanwhile, before: str) -> None:
    first = meanwhile.judge(before, lambda: meanwhile.receive("note_duplicates", meanwhile.event))
    assert first.rearmed == 1
    assert waiting(meanwhile.steps) == [1]
    record_all(meanwhile.steps, claim_after_sequence(meanwhile.steps))
    assert judge(meanwhile.steps).rearmed == 1


def test_one_that_commits_before_is_judged_with_them(meanwhile: Meanwhile) -> None:
    meanwhile.judge(READS, lambda: meanwhile.receive("note_duplicates", meanwhile.event))
    assert waiting(meanwhile.steps) == []


def test_repeats_that_are_marked_by_their_event_lose_one(meanwhile: Meanwhile, monkeypatch: pytest.MonkeyPatch) -> None:
    """Why a row is marked as it was read."""
    by_event = """
UPDATE duplicate_request SET handled_at = CAST(:at AS timestamptz)
WHERE handled_at IS NULL AND :decided <> '[]' RETURNING id
"""
    monkeypatch.setattr(duplicates, "_handle", lambda _: text(by_event))
    meanwhile.judge(MARKS, lambda: meanwhile.receive("note_duplicates", meanwhile.event))
    assert waiting(meanwhile.steps) == []


def test_a_number_that_commits_late_is_judged_late(meanwhile: Meanwhile) -> None:
    """Numbers are given in one order, and committed in another."""
    with meanwhile.engine.connect() as connection:
        connection.execute(
            text(
                "INSERT INTO duplicate_request (seq, received_at, body_sha256)"
                " VALUES (1, '2026-01-01 00:00:00Z', decode('00', 'hex'))"
            )
        )
        meanwhile.receive("note_duplicates", *[meanwhile.event] * 25)
        assert judge(meanwhile.steps).rearmed == 1
        connection.commit()
    assert waiting(meanwhile.steps) == [1]


def test_a_receiver_that_has_not_committed_yet_does_not_hold_the_order_lock_up(meanwhile: Meanwhile) -> None:
    with meanwhile.engine.connect() as connection:
        connection.execute(
            text("UPDATE duplicate_request SET times = times + 1 WHERE id = (SELECT max(id) FROM duplicate_request)")
        )
        judged = judge(meanwhile.steps)
        connection.commit()
    assert judged.rearmed == 1
    assert waiting(meanwhile.steps) == [1], "it is judged again"
    assert judge(meanwhile.steps).rearmed == 0
    assert waiting(meanwhile.steps) == []


def claim_after_sequence(steps: Steps) -> list[Delivery]:
    sequence(steps.database, POLICIES, "r1")
    return claim_all(steps)


def test_an_event_is_made_again_once_though_another_route_of_it_is_in_flight_all_the_while(
    steps: Steps, repeat: Repeat
) -> None:
    routes = {**CONFIG.routes, "slow": msgspec.structs.replace(CONFIG.routes["latest"], name="slow")}
    config = msgspec.structs.replace(CONFIG, routes=routes)
    event = an_event(1, second=1, routes=["latest", "slow"])
    steps.arrive(event)
    known = {**POLICIES, "slow": POLICIES["latest"]}
    (slow,) = claim(steps.database, "r1", [(["slow"], 1)])
    record_all(steps, claim_all(steps))
    repeat(event)
    for _ in range(3):
        judge_duplicates(steps.database, config, policies(config), "r1")
        record_all(steps, claim_all(steps))
    record(steps.database, known, "r1", [(slow, TOO_SOON)])
    for _ in range(3):
        judge_duplicates(steps.database, config, policies(config), "r1")
        record_all(steps, claim_all(steps))
    assert sorted(
        (row["route"], row["number"])
        for row in steps.rows(
            "SELECT route, count(*) AS number FROM delivery_log WHERE kind = 'rearmed' GROUP BY route"
        )
    ) == [("latest", 1), ("slow", 1)]
