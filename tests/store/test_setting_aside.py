"""Items that the relay sets aside: one that fails alone, but none where every item would fail the same way."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from types import SimpleNamespace

import pytest
from sqlalchemy.exc import DBAPIError, OperationalError

from relay.daemon.loop import EVERY_SECONDS
from relay.observe import Observer
from relay.operations.asks import Selection
from relay.steps import AT_LEAST_EVERY_SECONDS
from relay.steps import Steps as StepsOfARelay
from relay.store.claim import Room, claim
from relay.store.deliveries import claim_of
from relay.store.leases import LEASE_SECONDS, give_back
from relay.store.operator import commands, execution
from relay.store.work import in_parts
from tests.helpers.daemon import maintenance_of
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import locked_by_a_person
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import Planter

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


def test_no_command_is_failed_where_a_table_is_missing(steps: Steps) -> None:
    steps.arrive(*TEN)
    number = commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")
    with without("order_lock", steps), suppress(DBAPIError):  # SQLite's transactions have no need of that table
        execution.work_on(steps.work, number)
    (row,) = steps.rows("SELECT state FROM relay_command")
    assert row["state"] in {"asked", "running"}


def test_one_that_can_not_even_be_set_aside_keeps_no_other_waiting(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.claim_due(10, "strict")
    steps.advance(100)
    refuse(steps, "delivery_log", "NEW.seq = 3")
    with pytest.raises(DBAPIError, match="not this one"):
        steps.reap("r1")
    assert states(steps) == {"ready": 9, "in_flight": 1}


@ON_POSTGRES
def test_an_item_that_takes_too_long_alone_keeps_none_behind_it_from_being_done(steps: Steps) -> None:
    done: list[int] = []

    def part(some: Sequence[int]) -> None:
        with steps.database.write() as transaction:
            if 2 in some:
                transaction.connection.exec_driver_sql("SET LOCAL statement_timeout = '1ms'")
                transaction.connection.exec_driver_sql("SELECT pg_sleep(1)")
        done.extend(some)

    with pytest.raises(OperationalError, match="statement timeout"):
        list(in_parts(steps.work, "a step", [1, 2, 3, 4], part=part))
    assert done == [1, 3, 4]


def test_an_item_is_not_blamed_where_the_database_is_gone_while_it_is_set_aside(steps: Steps) -> None:
    tried: list[int] = []

    def part(some: Sequence[int]) -> None:
        tried.extend(some)
        raise ValueError("not these")

    def unreachable(_item: int, _error: Exception) -> None:
        raise OperationalError("SELECT", {}, ConnectionError("server closed the connection"))

    with pytest.raises(OperationalError, match="server closed the connection"):
        list(in_parts(steps.work, "a step", [1, 2], part=part, alone=unreachable))
    assert tried == [1, 2, 1], "no other item is tried"
    assert steps.heard.alone == []


def test_a_lane_that_can_not_be_settled_keeps_no_other_lease_from_being_given_back(steps: Steps) -> None:
    steps.arrive(*(an_event(number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    claimed = steps.claim_due(10, "latest")
    steps.arrive(*(an_event(10 + number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    refuse(steps, "delivery_log", "NEW.seq = 3")
    assert give_back(steps.work, list(map(claim_of, claimed)))[1] == 9
    assert states(steps) == {"ready": 9, "in_flight": 1, "waiting": 1}
    assert [(one.step, one.item) for one in steps.heard.alone] == [("give_back", "route=latest seq=3")]


def test_behind_many_heads_that_can_not_be_loaded_the_next_are_claimed(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.do("UPDATE open_delivery SET seq = seq - 1000 WHERE seq <= 8")  # no event has these numbers
    claims = [claim(steps.work, [Room(["strict"], 2)]) for _ in range(5)]
    assert [[delivery.seq for delivery in claimed] for claimed in claims] == [[], [], [], [], [9, 10]]
    assert states(steps) == {"dead": 8, "in_flight": 2}


@ON_POSTGRES
def test_a_command_that_a_person_has_locked_is_skipped_until_it_is_free(steps: Steps) -> None:
    steps.arrive(*TEN)
    commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")
    working = execution.OpenCommands()
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM relay_command FOR UPDATE"):
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


# --- The pace of maintenance where its looks take long, such as beside a transaction that somebody left open


def test_slow_looks_delay_no_command_and_no_takeover_for_long(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    now, looks = [1000.0], list[float]()

    def slow_look(*_: object) -> list[object]:
        looks.append(now[0])
        now[0] += 1.0
        return []

    monkeypatch.setattr("relay.steps.time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr("relay.store.leases.reap", slow_look)
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
