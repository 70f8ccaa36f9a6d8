"""Items that the relay sets aside: one that fails alone, but none where every item would fail the same way."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress

import msgspec
import pytest
from psycopg.errors import DeadlockDetected
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError, OperationalError

from inbox.config.model import Config
from inbox.db.engine import LOCK_TIMEOUT_SECONDS
from relay.daemon.lease_renewal import claim_of
from relay.delivery.gates import RateLimit
from relay.observe import Observer
from relay.operations.asks import Selection
from relay.steps import LONGEST_WAIT_SECONDS
from relay.steps import Steps as StepsOfARelay
from relay.store import database, sequence
from relay.store.bulkhead import in_parts
from relay.store.claim import Room, claim
from relay.store.leases import give_back
from relay.store.operator import commands, execution
from relay.store.quarantine import quarantine
from relay.store.record import record
from relay.store.transaction import FailedAlone, Key
from tests.helpers.daemon import maintenance_of
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, POLICIES, Steps
from tests.helpers.standing_still import locked_by_a_person
from tests.helpers.storing import an_event
from tests.store.verifying import Planter

TEN = [an_event(number, f"u{number}") for number in range(1, 11)]


def refuse(steps: Steps, table: str, condition: str, event: str = "INSERT") -> None:
    """Let a trigger refuse new rows of a table, or another `event`, where `condition` is true."""
    if steps.database.sql.is_postgres:
        steps.do(
            f"CREATE FUNCTION refuse_{table}() RETURNS trigger LANGUAGE plpgsql AS"
            f" $$ BEGIN IF {condition} THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$",
            f"CREATE TRIGGER refuse BEFORE {event} ON {table} FOR EACH ROW EXECUTE FUNCTION refuse_{table}()",
        )
    else:
        steps.do(
            f"CREATE TRIGGER refuse_{table} BEFORE {event} ON {table} WHEN {condition}"
            " BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )


def states(steps: Steps) -> Counter[str]:
    return Counter(state for _, _, state in steps.states())


def test_nothing_is_given_up_where_a_table_is_missing_when_it_is_ordered(steps: Steps) -> None:
    steps.receive(*TEN)
    steps.do("ALTER TABLE lane RENAME TO away")
    with pytest.raises(DBAPIError):
        steps.sequence()
    assert states(steps) == {"received": 10}


def test_nothing_is_given_up_where_a_column_is_missing_when_it_is_loaded(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.do("ALTER TABLE lane RENAME COLUMN applied_hash TO away")
    with pytest.raises(DBAPIError):
        claim(steps.database, "r1", [Room(["strict"], 4)], policies=POLICIES)
    assert states(steps) == {"ready": 10}


def test_nothing_is_given_up_where_a_table_is_missing_when_it_is_recorded(steps: Steps) -> None:
    steps.arrive(*TEN)
    claimed = steps.claim_due(10, "strict")
    steps.do("ALTER TABLE lane RENAME TO away")
    with pytest.raises(DBAPIError):
        steps.record_all(claimed, DONE)
    assert states(steps) == {"in_flight": 10}
    steps.do("ALTER TABLE away RENAME TO lane")
    steps.record_all(claimed, DONE)
    assert steps.states() == []


def test_no_command_is_failed_where_a_table_is_missing(steps: Steps) -> None:
    steps.arrive(*TEN)
    number = commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")
    steps.do("ALTER TABLE order_lock RENAME TO away")
    with suppress(DBAPIError):  # SQLite's transactions have no need of that table
        execution.work_on(steps.database, CONFIG, POLICIES, number)
    (row,) = steps.rows("SELECT state FROM relay_command")
    assert row["state"] in {"asked", "running"}


def test_one_that_can_not_even_be_set_aside_keeps_no_other_waiting(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.claim_due(10, "strict")
    steps.advance(100)
    refuse(steps, "delivery_log", "NEW.seq = 3")
    left = steps.hear_of_left()
    assert len(steps.reap("r1")) == 9
    assert [(one.step, one.routes, "not this one" in str(one.error)) for one in left] == [("reap", ["strict"], True)]
    assert states(steps) == {"ready": 9, "in_flight": 1}


def test_what_comes_after_one_that_can_not_be_set_aside_in_its_lane_is_left_with_it_on_strict(steps: Steps) -> None:
    steps.receive(*(an_event(number, "u1") for number in (1, 2, 3)), an_event(4, "u2"))
    refuse(steps, "open_delivery", "NEW.seq = 2", event="UPDATE")
    refuse(steps, "delivery_log", "NEW.seq = 2")
    for _ in range(2):
        steps.sequence()
        assert steps.states() == [
            (1, "strict", "ready"), (2, "strict", "received"), (3, "strict", "received"), (4, "strict", "ready"),
        ]  # fmt: skip
        steps.try_again()


def test_what_was_left_alone_is_known_though_its_look_fails_then(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    refuse(steps, "open_delivery", "NEW.seq IN (1, 2)", event="UPDATE")
    refuse(steps, "delivery_log", "NEW.seq IN (1, 2)")
    steps.receive(an_event(1, "u1"))
    steps.sequence()
    steps.try_again()
    steps.receive(an_event(2, "u2"))
    part = sequence._LookForReceived._part

    def is_busy(look: sequence._LookForReceived, some: Sequence[Key]) -> int:
        if list(some) == [(1, "strict")]:
            raise OperationalError("", None, DeadlockDetected("deadlock detected"))
        return part(look, some)

    with monkeypatch.context() as patched:
        patched.setattr(sequence._LookForReceived, "_part", is_busy)
        with pytest.raises(OperationalError):
            steps.sequence()
    steps.receive(an_event(3, "u2"))
    steps.sequence()
    assert {state for _, _, state in steps.states()} == {"received"}


def test_a_few_at_fault_keep_no_other_of_their_route_waiting(steps: Steps) -> None:
    refuse(steps, "open_delivery", "NEW.seq <= 5", event="UPDATE")
    refuse(steps, "delivery_log", "NEW.seq <= 5")
    steps.receive(*(an_event(n, f"u{n}") for n in range(1, 6)))
    for number in (6, 7):
        steps.sequence()
        steps.receive(an_event(number, f"u{number}"))
        assert steps.sequence() == 1
        steps.try_again()


def test_that_a_route_with_one_at_fault_has_more_is_known(steps: Steps) -> None:
    """Else claims could begin before an older one of a lane is sequenced."""
    refuse(steps, "open_delivery", "NEW.seq <= 2", event="UPDATE")
    refuse(steps, "delivery_log", "NEW.seq <= 2")
    steps.receive(an_event(1, "a"), an_event(2, "b", routes=["latest"]))
    steps.sequence(batch=5)
    steps.receive(*(an_event(n, "u1", second=50 - n) for n in range(3, 7)))
    for is_behind in (True, True, False):
        assert steps.sequence(batch=5) == 2 * is_behind
        assert steps.database.arrivals.is_behind is is_behind


def test_a_lane_that_can_not_be_settled_keeps_no_lease_from_being_given_back(steps: Steps) -> None:
    steps.arrive(*(an_event(number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    claimed = steps.claim_due(10, "latest")
    steps.arrive(*(an_event(10 + number, f"u{number}", routes=["latest"]) for number in range(1, 11)))
    alone: list[FailedAlone] = []
    steps.database.on_failed_alone = alone.append
    refuse(steps, "delivery_log", "NEW.seq = 3")
    assert give_back(steps.database, POLICIES, "r1", list(map(claim_of, claimed))) == 10
    assert states(steps) == {"ready": 10, "waiting": 1}
    assert [(one.step, one.item) for one in alone] == [("give_back", "route=latest seq=3")]


def test_behind_many_heads_that_can_not_be_loaded_the_next_are_claimed(steps: Steps) -> None:
    steps.arrive(*TEN)
    steps.do("UPDATE open_delivery SET seq = seq - 1000 WHERE seq <= 8")  # no event has these numbers
    claims = [claim(steps.database, "r1", [Room(["strict"], 2)], policies=POLICIES) for _ in range(5)]
    assert [[delivery.seq for delivery in claimed] for claimed in claims] == [[], [], [], [], [9, 10]]
    assert states(steps) == {"dead": 8, "in_flight": 2}


Work = Callable[[], object]


def ordering(steps: Steps) -> Work:
    steps.receive(*TEN)
    return steps.sequence


def recording(steps: Steps) -> Work:
    steps.arrive(*TEN)
    outcomes = [(delivery, DONE) for delivery in steps.claim_due(10, "strict")]
    return lambda: record(steps.database, POLICIES, "r1", outcomes)


def giving_back(steps: Steps) -> Work:
    steps.arrive(*TEN)
    claimed = list(map(claim_of, steps.claim_due(10, "strict")))
    return lambda: give_back(steps.database, POLICIES, "r1", claimed)


def cancelling(steps: Steps) -> Work:
    steps.arrive(*TEN)
    for seq in (2, 3, 4):
        commands.ask(steps.database, "cancel", Selection(seq=seq), who="kim", why="no")
    working = execution.OpenCommands(steps.database)

    def work() -> None:
        working.work(CONFIG, POLICIES)
        for _, error in working.troubled:
            raise error

    return work


@ON_POSTGRES
@pytest.mark.parametrize(
    ("step", "meanwhile", "then"),
    [
        (ordering, {"ready": 9, "received": 1}, {"ready": 10}),
        (recording, {"in_flight": 1}, {}),
        (giving_back, {"ready": 9, "in_flight": 1}, {"ready": 10}),
        (cancelling, {"ready": 8}, {"ready": 7}),
    ],
)
def test_a_row_that_stays_locked_keeps_no_other_waiting_and_is_itself_waited_for_once(
    steps: Steps, step: Callable[[Steps], Work], meanwhile: dict[str, int], then: dict[str, int]
) -> None:
    """The waiting transaction has the order lock: all other relays would wait as long at each retry of the step."""
    work = step(steps)
    took = []
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM open_delivery WHERE seq = 3 FOR UPDATE"):
        for _ in range(3):
            began = time.monotonic()
            with suppress(DBAPIError):
                work()
            took.append(time.monotonic() - began)
            steps.try_again()
        assert states(steps) == meanwhile
    work()
    assert states(steps) == then
    assert min(took[1:]) < LOCK_TIMEOUT_SECONDS <= took[0]


@ON_POSTGRES
def test_a_locked_order_lock_is_waited_for_once(steps: Steps) -> None:
    steps.receive(*TEN)
    alone: list[FailedAlone] = []
    steps.database.on_failed_alone = alone.append
    left = steps.hear_of_left()
    with locked_by_a_person(steps.database.engine, "SELECT id FROM order_lock FOR UPDATE"):
        assert steps.sequence() == 0
    ((step, routes, error, _),) = map(msgspec.structs.astuple, left)
    assert (step, routes, "lock timeout" in str(error)) == ("sequence", ["strict"], True)
    assert alone == []


@ON_POSTGRES
def test_a_command_that_a_person_has_locked_is_skipped_until_it_is_free(steps: Steps) -> None:
    steps.arrive(*TEN)
    commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")
    working = execution.OpenCommands(steps.database)
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM relay_command FOR UPDATE"):
        assert working.work(CONFIG, POLICIES) == 0
    assert working.work(CONFIG, POLICIES) == 10


@ON_POSTGRES
def test_a_gate_that_a_person_has_locked_keeps_no_other_destination_waiting(steps: Steps) -> None:
    steps.receive(an_event(1, routes=["strict", "latest"]))
    steps.sequence()
    limits = {name: [RateLimit(("destination", name), 10, 1)] for name in POLICIES}
    wanted = [Room(["strict"], 1), Room(["latest"], 1)]
    steps.do("INSERT INTO gate (kind, name) VALUES ('destination', 'strict')")
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM gate FOR UPDATE"):
        claimed = claim(steps.database, "r1", wanted, limits)
        with pytest.raises(DBAPIError, match="lock timeout"):
            claim(steps.database, "r1", [Room(["strict"], 1)], limits)
    assert [delivery.route for delivery in claimed] == ["latest"]


def test_a_step_that_finds_commands_and_can_not_do_them_waits_longer_each_time(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="no")

    def fails(_commands: execution.OpenCommands, _config: Config) -> int:
        raise ValueError("no")

    monkeypatch.setattr(execution.OpenCommands, "work", fails)
    monkeypatch.setattr("relay.daemon.maintenance.EVERY_SECONDS", 0.0)
    observer, now = Observer(), [0.0]
    running = StepsOfARelay(observer, monotonic=lambda: now[0])
    maintenance = maintenance_of(steps.database, CONFIG, observer, running)
    for _ in range(3):
        maintenance.run()
        now[0] += 1
    assert [(name, failing.times) for name, failing in running._failing.items()] == [("commands", 3)]


def test_an_alert_that_is_refused_keeps_nothing_from_being_recorded(steps: Steps) -> None:
    """As where a right was taken away, or a sequence is behind its table."""
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2", routes=["latest"]))
    refuse(steps, "alert", "NEW.kind = 'delivery_dead'")
    alone: list[FailedAlone] = []
    steps.database.on_failed_alone = alone.append
    steps.attempt(HOPELESS)
    steps.attempt(DONE, "latest")
    assert steps.kinds() == [(1, "dead"), (3, "delivered")]
    assert steps.rows("SELECT cause FROM dead_letter") == [{"cause": "mapping"}]
    assert (2, "strict", "ready") in steps.states()
    assert [(item.step, item.item) for item in alone] == [("log_alerts", "alert delivery_dead of strict")]
    assert "not this one" in alone[0].error


def test_a_delivery_without_its_payload_ends_dead_and_is_never_attempted(steps: Steps, plant: Planter) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    plant("DELETE FROM inbox_payload WHERE seq = 1")
    assert [delivery.seq for delivery in steps.claim_due()] == [2]
    assert steps.rows("SELECT seq, cause FROM dead_letter") == [{"seq": 1, "cause": "payload_gone"}]


def test_a_lane_goes_on_behind_one_that_was_set_aside_though_its_alert_is_refused(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    refuse(steps, "alert", "NEW.kind = 'delivery_dead'")
    quarantine(steps.database, POLICIES, "r1", (1, "strict"), cause="unprocessable", error=ValueError("no event"))
    assert steps.rows("SELECT cause FROM dead_letter") == [{"cause": "unprocessable"}]
    assert (2, "strict", "ready") in steps.states()


def test_where_the_database_is_gone_while_an_item_is_set_aside_the_step_ends_and_the_item_is_not_blamed(
    steps: Steps,
) -> None:
    tried: list[int] = []
    alone: list[FailedAlone] = []
    steps.database.on_failed_alone = alone.append

    def part(some: Sequence[int]) -> None:
        tried.extend(some)
        raise ValueError("not these")

    def unreachable(_item: int, _error: Exception) -> None:
        raise OperationalError("SELECT", {}, ConnectionError("server closed the connection"))

    with pytest.raises(OperationalError, match="server closed the connection"):
        list(in_parts(steps.database, "a step", [1, 2], part=part, alone=unreachable))
    assert tried == [1, 2, 1], "no other item is tried"
    assert alone == []


@ON_POSTGRES
def test_a_statement_that_does_not_mean_to_wait_makes_nobody_hasty(steps: Steps) -> None:
    steps.arrive(*TEN)
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM open_delivery WHERE seq = 3 FOR UPDATE"):
        with pytest.raises(DBAPIError), steps.database.write() as transaction:
            transaction.execute(text("SELECT 1 FROM open_delivery WHERE seq = 3 FOR UPDATE NOWAIT"))
        assert not hasty(steps)


@ON_POSTGRES
def test_haste_ends_though_the_row_stays_locked(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """The short waits that haste brings about, in vain as well, do not begin it again."""
    monkeypatch.setattr(database, "HASTE_SECONDS", 0.5)
    work = giving_back(steps)
    full_waits = 0
    with locked_by_a_person(steps.database.engine, "SELECT 1 FROM open_delivery WHERE seq = 3 FOR UPDATE"):
        for _ in range(60):
            began = time.monotonic()
            work()
            steps.try_again()
            full_waits += time.monotonic() - began >= LOCK_TIMEOUT_SECONDS
            if full_waits == 2:
                return
    pytest.fail("it goes on")


def hasty(steps: Steps) -> bool:
    with steps.database.write() as transaction:
        return transaction.is_hasty


def test_haste_lasts_longer_than_the_pause_of_any_step() -> None:
    assert database.HASTE_SECONDS > LONGEST_WAIT_SECONDS
