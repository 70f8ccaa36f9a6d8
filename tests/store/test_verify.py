"""`verify` finds every way in which stored state can differ from the log, and `rebuild` repairs each, while relays run."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Literal

import msgspec
import pytest
from sqlalchemy import Engine, event

from inbox.config.model import Config
from inbox.db.reads import Row
from inbox.events.event import Enrolment, Event
from relay.delivery import facts
from relay.store import audit
from tests.helpers.agreement import decode
from tests.helpers.relaying import CONFIG, DONE, Steps, record
from tests.helpers.storing import a_fact, a_row, an_event, drop_checks
from tests.helpers.tables import count
from tests.helpers.waiting import be_patient, until
from tests.store.conftest import ROUTES, Planter, differences, findings, mend
from tests.store.test_relay_cycle import one_round

LATER = "2026-01-02 00:00:00.000000Z"

CORRUPTIONS = {
    "DELETE FROM open_delivery WHERE seq = 6": "missing 6 strict",
    "DELETE FROM open_delivery WHERE seq = 7": "missing 7 strict, no_head 8 strict",
    "DELETE FROM delivery_log WHERE seq = 2": "missing 2 strict",
    "DELETE FROM delivery_log WHERE seq = 5": "attempt 5 strict",
    "DELETE FROM delivery_log WHERE seq = 3": "attempt 3 strict, state 3 strict",
    "DELETE FROM inbox WHERE seq = 6": "no_event 6 strict",
    "DELETE FROM lane WHERE route = 'strict'": "last_delivered 1 strict, last_delivered 2 strict, last_delivered 4 strict",
    a_fact("skipped", 5, attempt=2, why="a slip"): "ended 5 strict",
    a_fact("abandoned", 5, attempt=2, crashes=1, relay_node="r9"): "attempt 5 strict, crashes 5 strict",
    a_fact("delivered", 1, attempt=1, did="forwarded"): "contradiction 1 strict",
    a_row(1): "ended 1 strict",
    a_row(1, "latest"): "unrouted 1 latest",
    a_row(99): "no_event 99 strict",
    **{f"UPDATE delivery_log SET {change}": found for change, found in {
        """kind = 'dead', state = 'dead', detail = '{"cause": "exhausted", "error": "503"}' WHERE seq = 5""": "state 5 strict",
        """kind = 'superseded', detail = '{"by": 6}' WHERE seq = 5""": "contradiction 5 strict",
        "run = 1 WHERE seq = 5": "contradiction 5 strict, run 5 strict",
        f"""detail = '{{"error_class": "unknown", "error": "", "due_at": "{LATER}"}}' WHERE seq = 5""": "due_at 5 strict",
    }.items()},
    **{f"UPDATE open_delivery SET {change}": found for change, found in {
        "attempt = 3 WHERE seq = 5": "attempt 5 strict",
        "run = 1 WHERE seq = 8": "run 8 strict",
        "crashes = 2 WHERE seq = 5": "crashes 5 strict",
        "due_at = '2026-01-01 00:00:01.000000Z' WHERE seq = 5": "due_at 5 strict",
        "state = 'waiting' WHERE seq = 3": "no_head 3 strict, state 3 strict",
        "state = 'dead' WHERE seq = 8": "state 8 strict",
        "state = 'dead' WHERE seq = 9": "no_head 10 blocking, state 9 blocking",
        f"occurred_at = '{LATER}' WHERE seq = 6": "occurred_at 6 strict",
        "lane = 'USER|another' WHERE seq = 6": "lane 6 strict, no_head 6 strict",
        "state = 'waiting', due_at = NULL WHERE seq = 5": "no_head 5 strict, no_head 6 strict",
    }.items()},
}  # fmt: skip
"""Statements, with the findings after each."""


@pytest.mark.parametrize("corruption", CORRUPTIONS)
def test_each_corruption_is_found_for_what_it_is_and_mended(lived_in: Steps, plant: Planter, corruption: str) -> None:
    plant(corruption)
    expected = CORRUPTIONS[corruption].split(", ")
    assert sorted(f"{finding} {seq} {route}" for finding, seq, route in findings(lived_in.database)) == expected

    mended = mend(lived_in.database)

    found_first = {each.split()[0] for each in expected}
    assert {found.finding for found in mended} >= found_first - {"no_head", "last_delivered"}
    assert differences(lived_in.database) == []
    lived_in.facts_agree()


# --- `rebuild` restores lost rows, and leaves the rest to its next run


def test_an_emptied_table_comes_back_as_it_was_but_for_leases(lived_in: Steps, plant: Planter) -> None:
    columns = "seq, route, lane, occurred_at, CASE WHEN state = 'in_flight' THEN 'ready' ELSE state END AS state, run, crashes"
    query = f"SELECT {columns} FROM open_delivery ORDER BY seq, route"
    before = lived_in.rows(query)
    due = lived_in.rows("SELECT due_at FROM open_delivery WHERE seq = 5")
    plant("DELETE FROM open_delivery")
    plant("DELETE FROM lane")

    mend(lived_in.database)

    assert lived_in.rows(query) == before
    assert lived_in.rows("SELECT due_at FROM open_delivery WHERE seq = 5") == due
    assert differences(lived_in.database) == []


def test_one_in_flight_is_left_until_its_call_has_ended(lived_in: Steps, plant: Planter) -> None:
    plant("UPDATE open_delivery SET attempt = 3 WHERE seq = 7")
    before = lived_in.rows("SELECT * FROM open_delivery WHERE seq = 7")

    assert mend(lived_in.database) == []
    assert findings(lived_in.database) == [("attempt", 7, "strict")]
    assert lived_in.rows("SELECT * FROM open_delivery WHERE seq = 7") == before


TAKEN = "UPDATE open_delivery SET state = 'ready', due_at = '2026-01-01 00:00:00.000000Z' WHERE seq = 10"
"""The one behind the blocked one takes its place."""


@pytest.mark.parametrize(
    "lost",
    [
        ("DELETE FROM open_delivery WHERE seq = 9", TAKEN),
        ("UPDATE open_delivery SET lane = 'USER|another' WHERE seq = 9",),
    ],
    ids=["its row is gone", "it stands in another lane"],
)
def test_a_blocked_one_gets_its_place_back_first(lived_in: Steps, plant: Planter, lost: tuple[str, ...]) -> None:
    for statement in lost:
        plant(statement)

    mend(lived_in.database)

    assert lived_in.states()[-2:] == [(9, "blocking", "blocked"), (10, "blocking", "waiting")]
    assert differences(lived_in.database) == []


def test_a_blocked_one_waits_for_the_one_in_flight_that_took_its_place(lived_in: Steps, plant: Planter) -> None:
    plant("DELETE FROM open_delivery WHERE seq = 9")
    plant(TAKEN)
    working = lived_in.claim("blocking")

    assert mend(lived_in.database) == []
    assert findings(lived_in.database) == [("missing", 9, "blocking")]

    record(lived_in.work, [(working, DONE)])
    assert [found.finding for found in mend(lived_in.database)] == ["missing"]
    assert lived_in.states()[-1] == (9, "blocking", "blocked")


def test_a_contradiction_is_put_right_by_a_fact_that_says_who_and_why(lived_in: Steps, plant: Planter) -> None:
    plant(a_fact("delivered", 1, did="forwarded"))
    mend(lived_in.database)

    (row,) = lived_in.rows("SELECT state, attempt, detail FROM delivery_log WHERE seq = 1 ORDER BY id DESC LIMIT 1")
    corrected = decode("corrected", json.dumps(row["detail"]))
    assert isinstance(corrected, facts.Corrected)
    assert corrected.who == "ann"
    assert corrected.why.startswith("a check: fact 10 (delivered) leads to ended in run 0 with 1 attempts")
    assert (row["state"], row["attempt"]) == ("ended", 1)
    (shown,) = lived_in.rows("SELECT state FROM delivery WHERE seq = 1")
    assert shown == {"state": "corrected"}


@pytest.mark.parametrize("size", [1, 3])
def test_the_size_of_a_chunk_does_not_matter(
    lived_in: Steps, plant: Planter, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant("DELETE FROM open_delivery WHERE seq IN (3, 5, 9)")
    plant(a_row(99, lane="x", state="dead"))
    whole = findings(lived_in.database)
    monkeypatch.setattr(audit, "SPAN_SEQS", size)

    assert findings(lived_in.database) == whole
    mend(lived_in.database)
    assert differences(lived_in.database) == []


def test_verify_and_rebuild_beside_relays_and_a_receiver_find_nothing_that_is_not_there(steps: Steps) -> None:
    """Every commit of the others leaves everything in agreement, and no chunk sees half of one."""
    received_all = threading.Event()
    database = steps.database
    be_patient(database.engine)
    found: list[object] = []

    def run_relay(name: str) -> None:
        rng = random.Random(name)
        while True:
            last = received_all.is_set()
            if not sum(one_round(database, name, route, rng) for route in ROUTES) and last:
                return
            steps.advance(0.1)

    rounds: list[int] = []

    def check() -> None:
        while not received_all.is_set():
            found.extend(differences(database))
            found.extend(mend(database))
            rounds.append(len(found))

    with ThreadPoolExecutor(3) as pool:
        relays = [pool.submit(run_relay, name) for name in ("r1", "r2")]
        checking = pool.submit(check)
        for first in range(1, 161, 10):
            steps.receive(*(an_event(n, f"u{n % 20}", routes=ROUTES) for n in range(first, first + 10)))
            until(lambda: checking.done() or len(rounds) * 50 >= first - 10, "it is checked meanwhile", within=60)
        received_all.set()
        for relay in relays:
            relay.result()
        checking.result()
        assert len(rounds) >= 3
    assert found == []
    assert differences(database) == []


# --- `rebuild` beside receivers: an event that arrives between two statements keeps its deliveries


A_STRAY_ROW = a_row(1_000_000, lane="USER|u9", state="dead")
"""A row of no event, with a number that no event of these tests has: the last span has something to mend."""


@contextmanager
def before_every_statement(engine: Engine, act: Callable[[], object]) -> Iterator[list[str]]:
    """Act before each statement, on SQLite but where it holds the write lock; gives those statements."""
    interrupted: list[str] = []

    def _before(connection: Any, _cursor: object, statement: str, *_: object) -> None:  # noqa: ANN401  # SQLAlchemy's
        writes = connection.get_execution_options().get("sqlite_begin") != "DEFERRED"
        others_wait = connection.dialect.name == "sqlite" and writes and statement != "BEGIN IMMEDIATE"
        if not others_wait:
            interrupted.append(statement)
            act()

    event.listen(engine, "before_cursor_execute", _before)
    yield interrupted
    event.remove(engine, "before_cursor_execute", _before)


def test_an_event_that_arrives_during_a_rebuild_keeps_its_delivery(lived_in: Steps, plant: Planter) -> None:
    plant(A_STRAY_ROW)
    plant("UPDATE open_delivery SET state = 'waiting', due_at = NULL WHERE seq = 5")
    plant("DELETE FROM open_delivery WHERE seq = 9")
    arrived: list[int] = []

    def arrive() -> None:
        number = 20 + len(arrived)
        arrived.append(number)
        lived_in.receive(an_event(number, f"u{number % 7}", routes=("strict", "latest")))

    with before_every_statement(lived_in.database.engine, arrive) as interrupted:
        mend(lived_in.database)

    assert len(interrupted) >= (20 if lived_in.database.sql.is_postgres else 8)
    assert count(lived_in.database.engine, "open_delivery WHERE state = 'received'") == 2 * len(arrived)
    lived_in.facts_agree()
    assert differences(lived_in.database) == []


# --- After a change of a route's `lane`, earlier deliveries are judged by the earlier setting


Kind = Literal["entity", "route", "event"]
CHANGES: list[tuple[Kind, Kind]] = [("entity", "route"), ("route", "entity"), ("route", "event"), ("event", "entity")]


def an_event_of(kind: Kind, number: int, *, second: int | None = None) -> Event:
    """An event of u1 in the lane that the setting makes."""
    event = an_event(number, second=second)
    lane = {"entity": "USER|u1", "route": "*", "event": f"|{event.dedup_key}"}[kind]
    return msgspec.structs.replace(event, enrolments=(Enrolment("strict", lane),))


def with_lane(kind: Kind) -> Config:
    route = msgspec.structs.replace(CONFIG.routes["strict"], lane=kind)
    return msgspec.structs.replace(CONFIG, routes={**CONFIG.routes, "strict": route})


def deliver(steps: Steps, *events: Event) -> None:
    for each in events:
        steps.arrive(each)
        steps.attempt(DONE)


def read_lanes(steps: Steps) -> list[Row]:
    return steps.rows("SELECT * FROM lane ORDER BY route, lane")


@pytest.mark.parametrize(("then", "now"), CHANGES)
def test_deliveries_of_an_earlier_lane_setting_agree_and_are_left_alone(steps: Steps, then: Kind, now: Kind) -> None:
    """With one delivered before the change and two since, the last of which is older than all."""
    deliver(steps, an_event_of(then, 1, second=10))
    for more in ([], [an_event_of(now, 2, second=11), an_event_of(now, 3, second=9)]):
        deliver(steps, *more)
        before = read_lanes(steps)
        config = with_lane(now)
        assert differences(steps.database, config) == mend(steps.database, config) == []
        assert read_lanes(steps) == before


# --- An older relay beside facts that only a newer version knows: their columns say all that it needs


@pytest.fixture
def of_tomorrow(steps: Steps) -> Steps:
    """A delivered event with a fact of a newer version."""
    steps.arrive(an_event(1))
    steps.attempt(DONE)
    drop_checks(steps.database.engine, "delivery_log", "kind")
    steps.do(a_fact("of_tomorrow", run=1))
    return steps


def test_verify_and_rebuild_go_by_the_state_that_it_tells(of_tomorrow: Steps) -> None:
    before = of_tomorrow.kinds()
    assert differences(of_tomorrow.database) == []
    assert mend(of_tomorrow.database) == []
    assert of_tomorrow.kinds() == before
