"""Items that the relay sets aside: one that fails alone, but none where every item would fail the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from types import SimpleNamespace
from typing import cast

import msgspec
import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from inbox.events.event import Event
from relay.daemon.loop import EVERY_SECONDS
from relay.observe import Observer
from relay.operations.asks import Selection
from relay.steps import AT_LEAST_EVERY_SECONDS
from relay.steps import Steps as StepsOfARelay
from relay.store.claim import FreeCapacity, claim
from relay.store.deliveries import lease_key_of
from relay.store.duplicates import Judged, Unjudged, judge_duplicates
from relay.store.leases import LEASE_SECONDS, give_back
from relay.store.operator import commands, execution
from relay.store.work import process_in_parts
from tests.helpers.daemon import maintenance_of
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import Transactions, lock_by_hand
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps, fetching
from tests.helpers.stepping import COMMIT, Stepper
from tests.helpers.storing import an_event
from tests.helpers.waiting import stand_still
from tests.store.conftest import Planter
from tests.store.test_coverage import deliver_fetched

pytestmark = pytest.mark.usefixtures("impatient")

# --- Items that the relay sets aside: one that fails alone, but none where every item would fail the same way


TEN = [an_event(number, f"u{number}") for number in range(1, 11)]


def refuse(steps: Steps, table: str, condition: str) -> None:
    """Let a trigger refuse new rows of a table where `condition` is true."""
    if steps.database.sql.is_postgres:
        steps.do(
            "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF {condition} THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$",
            f"CREATE TRIGGER refuse BEFORE INSERT ON {table} FOR EACH ROW EXECUTE FUNCTION refuse()",
        )
    else:
        raising = "BEGIN SELECT RAISE(ABORT, 'not this one'); END"
        steps.do(f"CREATE TRIGGER refuse BEFORE INSERT ON {table} WHEN {condition} {raising}")


def states(steps: Steps) -> Counter[str]:
    return Counter(state for _, _, state in steps.states())


def test_nothing_is_given_up_where_a_table_is_missing(steps: Steps) -> None:
    steps.receive(*TEN)
    with without("lane", steps), pytest.raises(DBAPIError):
        steps.sequence()
    assert states(steps) == {"received": 10}
    steps.sequence()
    claimed = steps.claim_due(10, "strict")
    with without("lane", steps), pytest.raises(DBAPIError):
        steps.record_all(claimed, DONE)
    assert states(steps) == {"in_flight": 10}
    steps.record_all(claimed, DONE)
    assert steps.states() == []


@contextmanager
def without(table: str, steps: Steps) -> Iterator[None]:
    steps.do(f"ALTER TABLE {table} RENAME TO away")
    yield
    steps.do(f"ALTER TABLE away RENAME TO {table}")


def test_one_that_can_not_even_be_set_aside_keeps_no_other_waiting(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.claim_due(10, "strict")
    steps.advance(100)
    refuse(steps, "delivery_log", "NEW.seq = 3")
    with pytest.raises(DBAPIError, match="not this one"):
        steps.rescue("r1")
    assert states(steps) == {"ready": 9, "in_flight": 1}


@ON_POSTGRES
def test_an_item_that_takes_too_long_alone_keeps_none_behind_it_from_being_done(steps: Steps) -> None:
    done: list[int] = []

    def process(some: Sequence[int]) -> None:
        with steps.database.write() as transaction:
            if 2 in some:
                transaction.connection.exec_driver_sql("SET LOCAL statement_timeout = '1ms'")
                transaction.connection.exec_driver_sql("SELECT pg_sleep(1)")
        done.extend(some)

    with pytest.raises(OperationalError, match="statement timeout"):
        list(process_in_parts(steps.work, "a step", [1, 2, 3, 4], process=process))
    assert done == [1, 3, 4]


def test_an_item_is_not_blamed_where_the_database_is_gone_while_it_is_set_aside(steps: Steps) -> None:
    tried: list[int] = []

    def process(some: Sequence[int]) -> None:
        tried.extend(some)
        raise ValueError("not these")

    def unreachable(_item: int, _error: Exception) -> None:
        raise OperationalError("SELECT", {}, ConnectionError("server closed the connection"))

    with pytest.raises(OperationalError, match="server closed the connection"):
        list(process_in_parts(steps.work, "a step", [1, 2], process=process, quarantine_one=unreachable))
    assert tried == [1, 2, 1], "no other item is tried"
    assert steps.heard.alone == []


def test_a_lane_that_can_not_be_settled_keeps_no_other_lease_from_being_given_back(steps: Steps) -> None:
    steps.arrive(*(an_event(number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    claimed = steps.claim_due(10, "latest")
    steps.arrive(*(an_event(10 + number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    refuse(steps, "delivery_log", "NEW.seq = 3")
    assert give_back(steps.work, list(map(lease_key_of, claimed)))[1] == 9
    assert states(steps) == {"ready": 9, "in_flight": 1, "waiting": 1}
    assert [(one.step, one.item) for one in steps.heard.alone] == [("give_back", "route=latest seq=3")]


def test_behind_many_heads_that_can_not_be_loaded_the_next_are_claimed(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.do("UPDATE open_delivery SET seq = seq - 1000 WHERE seq <= 8")  # no event has these numbers
    claims = [claim(steps.work, [FreeCapacity(["strict"], 2)]) for _ in range(5)]
    assert [[delivery.seq for delivery in claimed] for claimed in claims] == [[], [], [], [], [9, 10]]
    assert states(steps) == {"dead": 8, "in_flight": 2}


@ON_POSTGRES
def test_a_command_that_a_person_has_locked_is_skipped_until_it_is_free(steps: Steps) -> None:
    steps.arrive(*TEN)
    commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")
    working = execution.OpenCommands()
    with lock_by_hand(steps.database.engine, "SELECT 1 FROM relay_command FOR UPDATE"):
        assert working.work(steps.work) == 0
    assert working.work(steps.work) == 10


def test_an_alert_that_is_refused_keeps_nothing_from_being_recorded(steps: Steps) -> None:
    """As where a right was taken away, or a sequence is behind its table."""
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2", routes=["latest"]))
    refuse(steps, "alert", "NEW.kind = 'delivery_dead'")
    steps.attempt(HOPELESS)
    steps.attempt(DONE, "latest")
    assert steps.kinds() == [(1, "dead"), (3, "delivered")]
    assert (2, "strict", "ready") in steps.states()
    assert [(item.step, "not this one" in item.error) for item in steps.heard.alone] == [("log_alerts", True)]


def test_a_delivery_without_its_payload_ends_dead_and_is_never_attempted(steps: Steps, plant: Planter) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    plant("DELETE FROM inbox_payload WHERE seq = 1")
    assert [delivery.seq for delivery in steps.claim_due()] == [2]
    assert steps.rows("SELECT seq, cause FROM dead_letter") == [{"seq": 1, "cause": "payload_gone"}]


# --- The pace of maintenance when its scans take long, such as beside a forgotten transaction


def test_slow_looks_delay_no_command_and_no_takeover_for_long(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [1000.0], list[float]()

    def slow_look(*_: object) -> list[object]:
        looks.append(now[0])
        now[0] += 1.0
        return []

    monkeypatch.setattr("relay.steps.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("relay.store.leases.rescue_expired", slow_look)
    observer = Observer()
    ours = maintenance_of(steps.database, CONFIG, observer, StepsOfARelay(observer))
    ours()
    commands.ask(steps.database, "pause", {"route": "strict"}, who="kim", why="stop it")
    now[0] += 1.0
    ours()
    assert [row["state"] for row in steps.rows("SELECT state FROM relay_command")] == ["done"]
    while len(looks) < 3:
        now[0] += 0.25
        ours()
    pauses = [after - before - 1.0 for before, after in pairwise(looks)]
    assert all(EVERY_SECONDS < pause <= AT_LEAST_EVERY_SECONDS for pause in pauses)
    assert LEASE_SECONDS + 1.0 + AT_LEAST_EVERY_SECONDS <= 20, "guarantee 7"


# --- Repeated requests are judged by the event: one that repeats without end, or can't be judged yet, delays no other


LATEST = ["latest"]
TOO_SOON = deliver_fetched(1.4)
"""A fetch in the second of the event: a change later in that second is not in it."""


def repeat(steps: Steps, *events: Event, times: int = 1) -> None:
    """Receive events that are there already, each so many times, in batches as the receiver does."""
    requests = [each for each in events for _ in range(times)]
    for start in range(0, len(requests), 250):
        steps.intake.repeat(*requests[start : start + 250])


def some_events(numbers: Sequence[int]) -> list[Event]:
    return [an_event(number, f"u{number}", second=1, routes=LATEST) for number in numbers]


def deliver(steps: Steps, *events: Event) -> None:
    """Let these arrive, and deliver each by a fetch too early to cover a second change."""
    steps.arrive(*events)
    steps.record_all(steps.claim_due(1_000), TOO_SOON)


def judge(steps: Steps, rest: Unjudged | None = None) -> Judged:
    return judge_duplicates(steps.work, rest)


def judge_all(steps: Steps, rounds: int = 20) -> list[Judged]:
    """Rounds until nothing is left to be looked at."""
    done = [judge(steps)]
    while done[-1].rest is not None:
        assert len(done) < rounds, "it does not come to an end"
        done.append(judge(steps, done[-1].rest))
    return done


def read_rearmed(steps: Steps) -> list[int]:
    """Return the seqs of rearmed deliveries."""
    return [row["seq"] for row in steps.rows("SELECT seq FROM delivery_log WHERE kind = 'rearmed' ORDER BY seq")]


def waiting(steps: Steps) -> list[int]:
    """The events whose repeats are not judged yet."""
    found = steps.rows("SELECT DISTINCT seq FROM duplicate_request WHERE handled_at IS NULL ORDER BY seq")
    return [row["seq"] for row in found]


def count_stored(steps: Steps) -> tuple[int, int]:
    """Count the stored duplicate rows, and the requests that they stand for."""
    (row,) = steps.rows("SELECT count(*) AS number, CAST(sum(times) AS bigint) AS times FROM duplicate_request")
    return row["number"], row["times"]


# --- one event that comes again without end


def test_an_event_that_is_repeated_hundreds_of_times_delays_no_other(steps: Steps) -> None:
    often, *others = some_events(range(51))
    deliver(steps, often, *others)
    repeat(steps, often, times=500)
    assert count_stored(steps) == (20, 500), "a few rows count all"
    repeat(steps, *others)

    judged = judge(steps)

    assert judged.rearmed == 51
    assert read_rearmed(steps) == list(range(1, 52))
    assert (waiting(steps), judged.rest) == ([], None)
    steps.facts_agree()


def test_the_first_of_further_repeats_counts_and_is_judged_as_any_other(steps: Steps) -> None:
    """Two changes in one second look the same, however often the first was repeated."""
    (often,) = some_events([1])
    deliver(steps, often)
    repeat(steps, often, times=30)
    assert sum(judged.rearmed for judged in judge_all(steps)) == 1
    steps.record_all(steps.claim_due(1_000), TOO_SOON)

    repeat(steps, often)

    assert count_stored(steps) == (20, 31)
    assert waiting(steps) == [1]
    assert judge(steps) == Judged(handled=1, rearmed=1)
    assert read_rearmed(steps) == [1, 1]


def test_the_rows_read_of_an_event_do_not_grow_with_its_runs(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Thousands of facts of earlier runs; the number of the run is in the fact that began it."""
    often, other = some_events([1, 2])
    deliver(steps, often, other)
    plant_runs(steps, seq=1, number=2_000)
    repeat(steps, often, other)
    transactions = Transactions(monkeypatch)

    assert judge(steps) == Judged(handled=2, rearmed=2)

    assert transactions.largest[0] < 20, "rows read by one transaction"
    assert [row["run"] for row in steps.rows("SELECT run FROM open_delivery ORDER BY seq")] == [2_001, 1]
    transactions.forget()
    steps.sequence()
    steps.record_all(steps.claim_due(), UNWELL)
    assert transactions.largest[0] < 20, "rows read to claim and record it"


def plant_runs(steps: Steps, *, seq: int, number: int) -> None:
    """Facts of so many runs that have delivered the event."""
    numbers = f"(WITH RECURSIVE c(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c WHERE n < {number}) SELECT n FROM c)"
    made = "jsonb_build_object" if steps.database.sql.is_postgres else "json_object"
    facts = f"SELECT n, 0 AS part, 'rearmed' AS kind, 'received' AS state, {made}('duplicate', n) AS detail FROM {numbers} AS a"
    facts += f" UNION ALL SELECT n, 1, 'delivered', 'ended', {made}('did', 'updated') FROM {numbers} AS b"
    steps.do(
        "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, run, detail) SELECT '2026-01-01 00:00:00.000000Z',"
        f" {seq}, 'latest', kind, state, part, n, detail FROM ({facts}) AS made ORDER BY n, part"
    )


def test_an_event_without_payload_is_not_taken_up_again(steps: Steps) -> None:
    pruned, kept = some_events([1, 2])
    deliver(steps, pruned, kept)
    steps.do("DELETE FROM inbox_payload WHERE seq = 1")
    repeat(steps, pruned, kept)
    assert judge(steps) == Judged(handled=2, rearmed=1)
    assert read_rearmed(steps) == [2]


# --- those that can't be judged yet


def test_hundreds_of_events_in_flight_hold_no_other_up_and_are_looked_at_again(steps: Steps) -> None:
    *working, other = some_events(range(451))
    steps.arrive(*working)
    in_flight = steps.claim_due(1_000)
    deliver(steps, other)
    repeat(steps, *working, other)

    rounds = judge_all(steps)

    assert [judged.handled for judged in rounds] == [0, 0, 1], "each looks at the next 200 events, then it begins again"
    assert read_rearmed(steps) == [451]
    steps.record_all(in_flight[:1], TOO_SOON)
    judge_all(steps)
    assert read_rearmed(steps) == [in_flight[0].seq, 451]


def test_a_walk_ends_though_repeats_of_newer_events_keep_coming(steps: Steps) -> None:
    """Else those of older events, which come meanwhile, would wait for ever."""
    first, *newer = some_events(range(600))
    deliver(steps, first, *newer)
    repeat(steps, *newer[:250])
    judged = judge(steps)
    repeat(steps, first, *newer[250:])

    assert judged.rest is not None
    assert judge(steps, judged.rest).rest is None
    judge(steps)
    assert 1 in read_rearmed(steps)


# --- repeats that come while others are judged


class Meanwhile:
    """A relay that judges on Postgres, one statement at a time, and a receiver beside it. On SQLite only one can write."""

    def __init__(self, steps: Steps, repeated: int) -> None:
        self.steps = steps
        self.engine = steps.database.engine
        (self.event,) = some_events([1])
        deliver(self.steps, self.event)
        self.repeat(repeated)

    def repeat(self, times: int = 1) -> None:
        repeat(self.steps, self.event, times=times)

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
def meanwhile(steps: Steps, request: pytest.FixtureRequest) -> Meanwhile:
    return Meanwhile(steps, request.param)


READS, MARKS = "SELECT r.id, r.seq, r.times", "SET handled_at"
LATER = ["INSERT INTO delivery_log", MARKS, COMMIT]
"""Statements after the one that reads the repeats."""


@ON_POSTGRES
@pytest.mark.parametrize("before", LATER)
def test_a_repeat_that_commits_after_the_repeats_were_read_is_judged_later(meanwhile: Meanwhile, before: str) -> None:
    first = meanwhile.judge(before, meanwhile.repeat)
    assert first.rearmed == 1
    assert waiting(meanwhile.steps) == [1]
    meanwhile.steps.sequence()
    meanwhile.steps.record_all(meanwhile.steps.claim_due(1_000), TOO_SOON)
    assert judge(meanwhile.steps).rearmed == 1


@ON_POSTGRES
def test_a_number_that_commits_late_is_judged_late(meanwhile: Meanwhile) -> None:
    """Numbers are given in one order, and committed in another."""
    with meanwhile.engine.connect() as connection:
        stand_still(connection)
        connection.execute(text("INSERT INTO duplicate_request (seq, received_at, body_sha256) VALUES (1, now(), '')"))
        meanwhile.repeat(25)
        assert judge(meanwhile.steps).rearmed == 1
        connection.commit()
    assert waiting(meanwhile.steps) == [1]


@ON_POSTGRES
def test_a_receiver_that_has_not_committed_yet_does_not_hold_the_order_lock_up(meanwhile: Meanwhile) -> None:
    with meanwhile.engine.connect() as connection:
        stand_still(connection)
        connection.execute(
            text("UPDATE duplicate_request SET times = times + 1 WHERE id = (SELECT max(id) FROM duplicate_request)")
        )
        judged = judge(meanwhile.steps)
        connection.commit()
    assert judged.rearmed == 1
    assert waiting(meanwhile.steps) == [1], "it is judged again"
    assert judge(meanwhile.steps).rearmed == 0
    assert waiting(meanwhile.steps) == []


def test_an_event_is_made_again_once_though_another_route_of_it_is_in_flight_all_the_while(steps: Steps) -> None:
    routes = {**CONFIG.routes, "slow": msgspec.structs.replace(CONFIG.routes["latest"], name="slow")}
    steps.config = msgspec.structs.replace(CONFIG, routes=routes)
    steps.policies = fetching(steps.config)
    event = an_event(1, second=1, routes=["latest", "slow"])
    steps.arrive(event)
    slow = steps.claim("slow")
    steps.record_all(steps.claim_due(1_000), TOO_SOON)
    repeat(steps, event)
    for turn in range(6):
        if turn == 3:
            steps.record([(slow, TOO_SOON)])
        judge(steps)
        steps.record_all(steps.claim_due(1_000), TOO_SOON)
    made_again = steps.rows("SELECT route FROM delivery_log WHERE kind = 'rearmed' ORDER BY route")
    assert [row["route"] for row in made_again] == ["latest", "slow"]
