"""Retention deletes expired rows, keeps those still needed, and leaves a database without findings of `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, Table, insert, select, text
from sqlalchemy.exc import OperationalError

from inbox.clock import SystemClock
from inbox.config.model import Retention, RetentionKind
from inbox.config.values import Age
from inbox.db import schema
from inbox.db.intake import Rejected
from inbox.db.leaves import LOCK_PAYLOADS, SHARE_PAYLOADS
from relay.delivery.outcome import Call, Outcome
from relay.delivery.policy import policies
from relay.store import retention
from relay.store.database import Database
from relay.store.duplicates import judge_duplicates
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from relay.store.retention import STEPS, LeasedPruner, Pruned, compute_expiry, read_kind_state
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import lock_by_hand
from tests.helpers.processes import Ended, invoke
from tests.helpers.relaying import AFTER_A_MONTH, CONFIG, DAY, DONE, HOPELESS, UNWELL, Steps, a_pruner, prune, work_of
from tests.helpers.storing import START, a_fact, an_event
from tests.helpers.tables import count
from tests.helpers.waiting import Stopwatch
from tests.helpers.webhooks import config_text
from tests.store.conftest import differences, mend

NOW = SystemClock().now()
FOREVER = Age("inf")


def seqs(engine: Engine) -> list[int]:
    with engine.connect() as connection:
        return list(connection.scalars(text("SELECT seq FROM inbox ORDER BY seq")))


@pytest.fixture
def full(steps: Steps) -> Steps:
    """Old events that no route takes."""
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 301)))
    return steps


def rows_gone(happened: dict[RetentionKind, list[Pruned]]) -> dict[RetentionKind, int]:
    """Count the rows of each kind that went."""
    found = {kind: sum(each.rows for each in events) for kind, events in happened.items()}
    return {kind: number for kind, number in found.items() if number}


@pytest.mark.parametrize("kind", STEPS)
def test_after_any_kind_verify_and_rebuild_find_nothing(lived_in: Steps, kind: RetentionKind) -> None:
    before = lived_in.states()
    prune(lived_in.database.engine, kind)
    assert differences(lived_in.database) == mend(lived_in.database) == []
    assert lived_in.states() == before


def test_an_event_goes_with_its_facts_but_open_ones_and_the_newest_stay(lived_in: Steps, engine: Engine) -> None:
    lived_in.intake.repeat(an_event(1), an_event(2))
    lived_in.do("UPDATE duplicate_request SET handled_at = '2026-01-02 00:00:00.000000Z' WHERE seq = 1")
    prune(engine, "events")
    assert seqs(engine) == [2, 3, 5, 6, 7, 8, 9, 10, 13], "2 has a duplicate that nobody judged, 13 is the newest"
    gone = "(SELECT seq FROM inbox)"
    assert count(engine, f"delivery_log WHERE seq NOT IN {gone}") == 0
    assert count(engine, f"duplicate_request WHERE seq NOT IN {gone}") == 0
    assert count(engine, "delivery_log WHERE seq = 3") > 0


def test_an_old_event_with_a_young_fact_stays(lived_in: Steps, engine: Engine) -> None:
    """It was replayed, or its receiver's clock was wrong."""
    lived_in.do(a_fact("cancelled", 1, at=NOW, who="kim", why="old"))
    prune(engine, "events")
    assert 1 in seqs(engine)


def test_an_event_with_a_slightly_younger_fact_is_not_left_to_the_next_lap(steps: Steps, engine: Engine) -> None:
    """A soak of an hour left a hundred events a minute behind."""
    arrivals = {n: START + timedelta(seconds=20 * n) for n in range(1, 7)}
    steps.receive(*(msgspec.structs.replace(an_event(n, routes=[]), received_at=at) for n, at in arrivals.items()))
    steps.do(*(a_fact("delivered", n, at=at + timedelta(seconds=10), did="x") for n, at in arrivals.items()))
    month = START + timedelta(days=30)
    prune(engine, "events", now=lambda: month + timedelta(seconds=85))  # the fourth has expired, and its fact has not
    prune(engine, "events", now=lambda: month + timedelta(seconds=150))
    assert seqs(engine) == [5, 6]


@pytest.mark.usefixtures("lived_in")
def test_payloads_go_while_their_events_stay_and_open_ones_keep_theirs(engine: Engine) -> None:
    before = seqs(engine)
    prune(engine, "payloads")
    assert seqs(engine) == before
    with engine.connect() as connection:
        kept = list(connection.scalars(text("SELECT seq FROM inbox_payload ORDER BY seq")))
    assert kept == [3, 5, 6, 7, 8, 9, 10], "dead, ready, waiting, in flight and blocked"


@ON_POSTGRES
@pytest.mark.usefixtures("lived_in")
def test_nothing_goes_while_a_delivery_is_being_opened(engine: Engine) -> None:
    """A replay shares the lock, then opens the delivery: its rows have to exist until it commits."""
    with lock_by_hand(engine, SHARE_PAYLOADS):
        happened = prune(engine, "payloads")
    assert not rows_gone(happened)
    assert rows_gone(prune(engine, "payloads"))


@ON_POSTGRES
@pytest.mark.usefixtures("lived_in")
def test_a_locked_fact_does_not_hold_up_steps_that_open_deliveries(engine: Engine) -> None:
    locking = "SELECT FROM delivery_log WHERE seq = 1 FOR UPDATE"
    with lock_by_hand(engine, locking), Database(engine).write() as deleting:
        with Stopwatch() as watch, pytest.raises(OperationalError):
            STEPS["events"](deleting, NOW - timedelta(days=30), 0, 100)
        assert watch.seconds < 1


@ON_POSTGRES
def test_rebuild_repairs_nothing_while_events_are_deleted(lived_in: Steps, engine: Engine) -> None:
    """It would take an event whose facts go at this moment for one that was never delivered."""
    lived_in.do("DELETE FROM open_delivery WHERE seq = 6")
    with lock_by_hand(engine, LOCK_PAYLOADS), pytest.raises(OperationalError):
        mend(Database(engine))
    assert [each.finding for each in mend(Database(engine))] == ["missing"]


def test_a_skipped_row_goes_in_a_later_lap(lived_in: Steps, engine: Engine) -> None:
    prune(engine, "events")
    lived_in.do("DELETE FROM open_delivery WHERE seq = 3")
    prune(engine, "events")
    assert 3 in seqs(engine), "the walk goes on at its position"
    lived_in.do("UPDATE pruning SET lap_began_at = '2026-01-02 00:00:00.000000Z'")
    prune(engine, "events")
    assert 3 not in seqs(engine)


def test_attempts_go_when_their_delivery_has_ended_before_the_age(steps: Steps, engine: Engine) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"), an_event(3, "u3"))
    steps.attempt_each(UNWELL, UNWELL, UNWELL)
    steps.advance(3600)
    steps.attempt(DONE)  # u1 has ended
    steps.advance(40 * DAY)
    steps.attempt(DONE)  # u2 ended later; u3 is open
    now = steps.clock.now() + timedelta(days=20)
    prune(engine, "attempts", now=lambda: now)
    assert [seq for seq, kind in steps.kinds() if kind == "attempt_failed"] == [2, 3]
    assert differences(Database(engine)) == []


def test_the_calls_of_an_ended_delivery_go_with_the_payloads_and_those_of_an_open_one_stay(
    steps: Steps, engine: Engine
) -> None:
    call = Call("forward", "POST", "https://audit.example.com/", "answered", 1.0, 422, request="about u1")
    steps.arrive(an_event(1), an_event(2, "u2"))
    for _ in range(2):
        steps.attempt(msgspec.structs.replace(HOPELESS, calls=(call,)))
    steps.do(
        "DELETE FROM open_delivery WHERE seq = 1", a_fact("cancelled", 1, attempt=1, at=START, who="kim", why="old")
    )
    assert count(engine, "delivery_log WHERE kind = 'dead' AND detail -> 'calls' IS NOT NULL") == 2
    assert rows_gone(
        prune(engine, retention=Retention(payloads=Age(30 * 86400), events=FOREVER, attempts=FOREVER))
    ) == {
        "payloads": 1,
        "calls": 1,
    }
    assert count(engine, "delivery_log WHERE seq = 1 AND detail -> 'calls' IS NOT NULL") == 0
    assert count(engine, "delivery_log WHERE seq = 2 AND detail -> 'calls' IS NOT NULL") == 1
    assert differences(Database(engine)) == []


def hours_apart(steps: Steps, route: str, *outcomes: Outcome) -> None:
    for outcome in outcomes:
        steps.attempt(outcome, route)
        steps.advance(3600)


def test_a_clearing_of_attempts_in_parts_leaves_nothing_to_verify(steps: Steps, engine: Engine) -> None:
    steps.arrive(an_event(1))
    hours_apart(steps, "strict", UNWELL, UNWELL, UNWELL, HOPELESS)
    later = START + timedelta(days=1)
    steps.do("DELETE FROM open_delivery", a_fact("cancelled", 1, attempt=4, at=later, who="kim", why="old"))
    with Database(engine).write() as transaction:
        assert STEPS["attempts"](transaction, NOW - timedelta(days=30), 0, 1).rows == 1
    assert differences(Database(engine)) == []


def test_a_delivery_that_is_rearmed_after_its_attempts_went_agrees_with_its_facts(steps: Steps, engine: Engine) -> None:
    steps.arrive(an_event(1, routes=["latest"]))
    hours_apart(steps, "latest", UNWELL, UNWELL, DONE)
    prune(engine, "attempts")
    assert [kind for _, kind in steps.kinds()] == ["delivered"]
    steps.intake.repeat(an_event(1, routes=["latest"]))
    assert judge_duplicates(work_of(steps.database)).rearmed == 1
    assert differences(Database(engine)) == []


def taken(engine: Engine, holder: str = "r1") -> tuple[LeasedPruner, datetime]:
    """A pruner that has the lease, and its clock."""
    made = a_pruner(engine, holder)
    clock = made.take()
    assert clock is not None
    return made, clock


def test_a_pruner_goes_on_where_another_stopped(steps: Steps, engine: Engine) -> None:
    steps.receive(*(an_event(n, routes=[]) for n in range(1, 2001)))
    died, clock = taken(engine)
    first = died.prune_batch("events", compute_expiry(AFTER_A_MONTH, "events", clock))
    assert first is not None
    assert 0 < first.rows < 2000
    assert first.position == first.rows, "each batch is committed, with its position"
    with Database(engine).read() as transaction:
        left = read_kind_state(transaction, "events")
    assert (left.position, left.behind_since is None) == (first.position, False), "it is behind by what is left"
    died.give_back()
    assert rows_gone(prune(engine, "events")) == {"events": 1999 - first.rows}
    with Database(engine).read() as transaction:
        assert (
            read_kind_state(transaction, "events").behind_seconds,
            read_kind_state(transaction, "events").behind_since,
        ) == (
            0,
            None,
        )
    assert seqs(engine) == [2000]


def test_a_batch_that_is_cut_off_has_done_nothing(full: Steps, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*_: object) -> None:
        raise ConnectionError("the primary is gone")

    cut, clock = taken(engine)
    with monkeypatch.context() as patched:
        patched.setattr(retention, "_write", gone)
        with pytest.raises(ConnectionError):
            cut.prune_batch("payloads", compute_expiry(AFTER_A_MONTH, "payloads", clock))
    assert len(full.rows("SELECT seq FROM inbox_payload")) == 300
    cut.give_back()
    assert rows_gone(prune(engine, "payloads")) == {"payloads": 300}


def test_an_old_event_behind_younger_ones_goes_too(steps: Steps, engine: Engine) -> None:
    """As after a receiver's clock was wrong for an hour: its events look young, and must not shield those behind them."""
    young = datetime(2199, 1, 1, tzinfo=UTC)
    events = [an_event(n, routes=[]) for n in range(1, 6001)]
    block = [msgspec.structs.replace(e, received_at=young) if 101 <= n <= 2100 else e for n, e in enumerate(events, 1)]
    for at in range(0, 6000, 500):
        steps.receive(*block[at : at + 500])
    prune(engine, "events")
    assert seqs(engine) == [*range(101, 2101), 6000]


def test_nothing_young_goes_whatever_the_position(steps: Steps, engine: Engine) -> None:
    steps.receive(*(msgspec.structs.replace(an_event(n, routes=[]), received_at=NOW) for n in range(1, 10)))
    prune(engine)
    assert len(seqs(engine)) == 9


def test_forever_keeps_everything(lived_in: Steps, engine: Engine) -> None:
    before = seqs(engine)
    prune(engine, "events", "attempts", retention=Retention(events=FOREVER, attempts=FOREVER))
    assert seqs(engine) == before
    assert ("attempt_failed") in {kind for _, kind in lived_in.kinds()}


@pytest.mark.parametrize("theirs", [1, 77])
def test_a_row_that_can_not_be_deleted_is_skipped_and_named(full: Steps, engine: Engine, theirs: int) -> None:
    """Another application refers to it, say. The first row of all holds up no other either."""
    full.do("CREATE TABLE theirs (seq BIGINT REFERENCES inbox (seq))", f"INSERT INTO theirs VALUES ({theirs})")
    if engine.dialect.name == "sqlite":  # it does not check references by default
        stays = f"BEFORE DELETE ON inbox WHEN OLD.seq = {theirs} BEGIN SELECT RAISE(ABORT, 'theirs'); END"
        full.do(f"CREATE TRIGGER theirs_stay {stays}")
    happened = prune(engine, "events")
    assert seqs(engine) == [theirs, 300]
    with Database(engine).read() as transaction:
        found = read_kind_state(transaction, "events")
    errors = [each.error for each in happened["events"] if each.error] + [str(found.error)]
    assert [error.partition(":")[0] for error in errors] == [f"seq={theirs}"] * 2
    assert found.passed_over == 1


@ON_POSTGRES
@pytest.mark.usefixtures("full")
def test_a_row_that_a_person_has_locked_is_skipped_at_once(engine: Engine) -> None:
    with lock_by_hand(engine, "SELECT 1 FROM inbox WHERE seq = 77 FOR UPDATE"):
        happened = prune(engine, "events")
        assert seqs(engine) == [77, 300]
    assert sum(each.passed_over for each in happened["events"]) == 1


def test_old_rows_of_each_kind_go_and_commands_only_once_they_have_ended(steps: Steps, engine: Engine) -> None:
    old = Rejected(START, "s", 401, "unauthenticated", "no", None, None, b"", None, None)
    steps.intake.reject(*[old] * 3, msgspec.structs.replace(old, received_at=NOW, body=b"{}"))
    ask = {"kind": "replay", "selection": {"everything": True}, "reason": "r"}
    node = {"host": "h", "pid": 1, "version": "1", "started_at": START}
    figure = {"kind": "source", "name": "s", "outcome": "stored", "count": 1}
    ended = (("done", START), ("asked", None), ("running", None), ("done", NOW))
    rows: dict[Table, list[dict[str, object]]] = {
        schema.relay_command: [{**ask, "state": state, "finished_at": at} for state, at in ended],
        schema.relay_node: [
            {"id": name, "heartbeat_at": at, **node} for name, at in (("old", START), ("still runs", NOW))
        ],
        schema.payload_reveal: [{"at": at, "seq": 1, "who": "kim", "reason": "r"} for at in (START, START, NOW)],
        schema.throughput_minute: [{**figure, "minute": at} for at in (START, NOW.replace(second=0, microsecond=0))],
    }
    with engine.begin() as connection:
        for table, given in rows.items():
            connection.execute(insert(table), given)
    prune(engine, "rejected", "commands", "relay_nodes", "reveals", "throughput")
    left = [count(engine, name) for name in ("rejected_request", "relay_node", "payload_reveal", "throughput_minute")]
    assert left == [1, 1, 1, 1]
    assert [row["id"] for row in steps.rows("SELECT id FROM relay_command ORDER BY id")] == [2, 3, 4]


def test_duplicates_go_by_age_once_they_are_judged(steps: Steps, engine: Engine) -> None:
    steps.receive(an_event(1), an_event(2))
    long_after = datetime(2199, 1, 1, tzinfo=UTC)
    made = [
        {"seq": seq, "received_at": received, "body_sha256": b"", "handled_at": handled}
        for seq, received, handled in ((1, START, None), (1, START, START), (2, long_after, START))
    ]
    with engine.begin() as connection:
        connection.execute(insert(schema.duplicate_request), made)
    prune(engine, "duplicates")
    assert count(engine, "duplicate_request") == 2
    assert count(engine, "duplicate_request WHERE seq = 1 AND handled_at IS NULL") == 1


def test_alerts_go_except_the_last_of_each_subject_and_unlogged_ones(engine: Engine) -> None:
    rows = [("a", True), ("a", False), ("b", True), ("b", False), ("b", True)]
    same = {"at": START, "kind": "endpoint_retired", "detail": {}, "told_at": START}
    with engine.begin() as connection:
        connection.execute(
            insert(schema.alert), [{"subject": subject, "firing": firing, **same} for subject, firing in rows]
        )
        connection.execute(text("UPDATE alert SET told_at = NULL WHERE id = 3"))
    prune(engine, "alerts")
    with engine.connect() as connection:
        assert list(connection.scalars(text("SELECT id FROM alert ORDER BY id"))) == [2, 3, 5]


def test_one_prunes_at_a_time_and_another_takes_over_from_one_that_died(engine: Engine) -> None:
    at = [NOW]
    first, second = (a_pruner(engine, name, lambda: at[0]) for name in ("r1", "r2"))
    assert first.take() is not None
    assert second.take() is None
    with Database(engine, lambda: at[0]).read() as transaction:
        assert not retention.is_due(transaction)
        assert transaction.connection.execute(select(schema.pruner.c.held_by)).scalar() == "r1"
    at[0] += timedelta(seconds=retention.LEASE_SECONDS + 1)
    assert second.take() is not None
    assert first.prune_batch("events", compute_expiry(AFTER_A_MONTH, "events", NOW)) is None


def test_a_lease_and_a_round_of_a_clock_that_was_ahead_delay_no_pruner(engine: Engine) -> None:
    ahead = a_pruner(engine, "r1", lambda: NOW + timedelta(days=365))
    assert ahead.take() is not None
    ahead.give_back(NOW)
    assert ahead.take() is not None
    assert a_pruner(engine, "r2", lambda: NOW).take() is not None


def test_a_clock_that_jumps_a_year_ahead_deletes_a_day_for_each_hour() -> None:
    clock = retention.limit_clock(NOW, None)
    assert clock == NOW
    rounds = int(3600 / retention.ROUND_EVERY_SECONDS)
    for _ in range(rounds):
        clock = retention.limit_clock(NOW + timedelta(days=365), clock)
    assert clock - NOW == timedelta(days=1)
    assert retention.limit_clock(NOW, clock) == NOW, "one that is set right again counts at once"


# --- `inbox prune`: a plan, and a command that this process carries out under the lease of pruners


RETENTION = '[retention]\npayloads = "30d"\nattempts = "30d"\nevents = "60d"\n'
YES = ("--reason", "the disk is full", "--yes")
MONTHLY = msgspec.structs.replace(CONFIG, retention=AFTER_A_MONTH)
Inbox = Callable[..., Ended]


@pytest.fixture
def inbox(tmp_path: Path, database_url: str, monkeypatch: pytest.MonkeyPatch) -> Inbox:
    file = tmp_path / "inbox.toml"
    file.write_text(config_text(database_url) + RETENTION, encoding="utf-8")
    monkeypatch.setenv("INBOX_CONFIG", str(file))
    return lambda *arguments: invoke("inbox", "prune", *arguments, COLUMNS="200")


def plan_of(ran: Ended, kind: str) -> dict[str, Any]:
    return next(dict(each) for each in json.loads(ran.stdout)["figures"] if each["name"] == kind)


@pytest.mark.usefixtures("full")
def test_the_command_deletes_what_its_plan_counts(inbox: Inbox, engine: Engine) -> None:
    assert plan_of(inbox("--json"), "events") == {"name": "events", "count": 299, "note": "older than 60d"}
    assert count(engine, "inbox") == 300, "a plan deletes nothing"
    assert inbox(*YES).status == 0
    assert (count(engine, "inbox"), count(engine, "inbox_payload")) == (1, 0)
    assert json.loads(inbox(*YES, "--kind", "events", "--json").stdout)["count"] == 0
    assert count(engine, "pruner WHERE held_by IS NULL") == 1, "the lease is given back"


@pytest.mark.usefixtures("full")
def test_a_plan_that_ends_early_says_that_there_may_be_more(inbox: Inbox, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "MOST_COUNTED", 10)
    assert plan_of(inbox("--json"), "events") == {"name": "events", "count": 10, "note": "or more; older than 60d"}


def ask_to_prune(steps: Steps, *kinds: RetentionKind) -> Callable[[], Command]:
    """Ask by a command for these kinds; the function does one step of it."""
    number = commands.ask(steps.database, "prune", {"kinds": [*kinds]}, who="kim", why="too large")

    def work() -> Command:
        execution.work_on(work_of(steps.database, policies(CONFIG), config=MONTHLY), number)
        found = commands.read_command(steps.database, number)
        assert found is not None
        return found

    return work


@pytest.mark.usefixtures("lived_in")
def test_a_command_waits_while_a_relay_prunes(steps: Steps, engine: Engine) -> None:
    relay = a_pruner(engine, "r7", steps.clock.now)
    assert relay.take() is not None
    work = ask_to_prune(steps, "rejected", "alerts")
    assert (work().state, work().answer) == ("running", "waits: a relay is pruning")
    relay.give_back()
    assert [work().state, work().state] == ["running", "done"], "one kind after the other"


def test_a_clock_of_the_database_that_has_jumped_ahead_deletes_nothing(steps: Steps, engine: Engine) -> None:
    arrived = SystemClock().now()
    steps.receive(*(msgspec.structs.replace(an_event(n, routes=[]), received_at=arrived) for n in range(3)))
    steps.clock.moment = arrived + timedelta(days=3650)
    work = ask_to_prune(steps, "payloads", "events")
    for _ in range(3):
        work()
    assert count(engine, "inbox") == count(engine, "inbox_payload") == 3


@ON_POSTGRES
def test_a_command_waits_for_the_rows_that_a_replay_uses(full: Steps, engine: Engine) -> None:
    """It took the kind for pruned, and ended as done with nothing deleted."""
    full.clock.moment = SystemClock().now()
    work = ask_to_prune(full, "events")
    with lock_by_hand(engine, SHARE_PAYLOADS):
        waits = work()
    assert (waits.state, waits.affected, waits.answer) == (
        "running",
        0,
        "waits: the rows are locked, or a relay is pruning",
    )
    work()
    assert count(engine, "inbox") < 300
