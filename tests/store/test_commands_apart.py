"""Commands keep each other, and themselves, from no work that can be done. Dry runs say what would be done."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError

from inbox.db.dialect import as_json
from inbox.db.reads import Row
from inbox.errors import UnusableCommand
from relay.delivery.gates import Gate
from relay.operations.asks import Selection
from relay.store import gates
from relay.store.database import Database
from relay.store.operator import changes, commands, execution, plan, tasks
from relay.store.operator.plan import Bound, preview
from relay.store.operator.selection import Choice
from relay.store.transaction import Transaction
from tests.helpers.patience import stand_still
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Monotonic, Steps, work_of
from tests.helpers.storing import an_event


def fill_with_dead(steps: Steps, number: int, route: str = "strict", first: int = 1) -> None:
    steps.arrive(*(an_event(n, f"u{n}", routes=[route]) for n in range(first, first + number)))
    steps.record_all(steps.claim_due(number, route), HOPELESS)


def work(steps: Steps) -> None:
    working = execution.OpenCommands()
    while working.work(steps.work):
        pass


def command(steps: Steps, number: int) -> Row:
    (row,) = steps.rows("SELECT * FROM relay_command WHERE id = :id", id=number)
    return row


def ask(steps: Steps, kind: Any, selection: Any, *, dry_run: bool = False) -> int:  # noqa: ANN401  # as `commands.ask` takes them
    return commands.ask(steps.database, kind, selection, who="kim", why="mended", dry_run=dry_run)


ONE = Selection(source="trivore", entity_type="USER", entity_id="u20")


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_OPEN", 3)
    monkeypatch.setattr(tasks, "BATCH", 3)


@pytest.mark.usefixtures("few")
def test_replayed_deliveries_behind_a_blocked_head_keep_no_replay_waiting(steps: Steps) -> None:
    steps.arrive(*(an_event(n, "u1", routes=["blocking"]) for n in range(1, 7)))
    for _ in range(5):
        steps.attempt(DONE, "blocking")
    steps.attempt(HOPELESS, "blocking")
    fill_with_dead(steps, 1, first=20)
    numbers = [ask(steps, "replay", Selection(seq=seq, force=True)) for seq in range(1, 6)]
    numbers.append(ask(steps, "replay", ONE))
    work(steps)
    assert [command(steps, number)["state"] for number in numbers] == ["done"] * 6
    assert sorted(state for _, _, state in steps.states()) == ["blocked", "ready"] + ["waiting"] * 5


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("gate", [("route", "latest"), ("entity", "trivore|USER|u1")])
def test_replayed_deliveries_behind_a_closed_gate_keep_no_replay_waiting(steps: Steps, gate: tuple[str, str]) -> None:
    steps.arrive(*(an_event(n, "u1", routes=["strict"]) for n in range(1, 6)))
    for _ in range(5):
        steps.attempt(HOPELESS)
    fill_with_dead(steps, 1, first=20)
    kind, name = gate
    with steps.database.write() as transaction:
        gates.pause(transaction, (kind, name.replace("latest", "strict")), who="kim", why="maintenance")
    number = ask(steps, "replay", Selection(everything=True))
    work(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 6)


@pytest.mark.usefixtures("few")
def test_a_full_route_that_moves_is_waited_for_and_named(steps: Steps) -> None:
    fill_with_dead(steps, 5)
    number = ask(steps, "replay", Selection(everything=True))
    work(steps)
    waiting = command(steps, number)
    assert (waiting["state"], waiting["affected"]) == ("running", 3)
    assert waiting["answer"] == "waits: 3 deliveries are due on route strict"
    steps.record_all(steps.claim_due())
    work(steps)
    assert command(steps, number)["state"] == "done"


@pytest.mark.usefixtures("few")
def test_replayed_deliveries_that_wait_for_a_later_attempt_keep_no_replay_waiting(steps: Steps) -> None:
    fill_with_dead(steps, 4)
    ask(steps, "replay", Selection(route="strict", everything=True))
    for _ in range(2):
        work(steps)
        steps.record_all(steps.claim_due(), UNWELL)
    fill_with_dead(steps, 1, route="latest", first=20)
    steps.arrive(*(an_event(n, f"u{n}", routes=["strict"]) for n in (10, 11)))
    steps.record_all(steps.claim_due(), HOPELESS)
    number = ask(steps, "replay", Selection(everything=True))
    work(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 3)


def test_two_relays_do_each_step_of_a_command_once(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    acted = []

    def step_of(it: tasks.Working) -> tasks.Act:
        def act(_: Transaction, _now: datetime) -> commands.Command:
            acted.append(1)
            return it.command.after(progress=len(acted))

        return act

    def look(it: tasks.Working) -> tasks.Act:
        if not acted:  # the other relay looks, too, and is faster
            monkeypatch.setitem(tasks.TASKS, task_kind, step_of)
            execution.work_on(it.work, it.command.id)
        return step_of(it)

    for task_kind, selection in TASKS_ASKED.items():
        acted.clear()
        monkeypatch.setitem(tasks.TASKS, task_kind, look)
        number = ask(steps, task_kind, selection)
        execution.work_on(steps.work, number)
        assert (len(acted), command(steps, number)["progress_seq"]) == (1, 1)


@pytest.mark.parametrize("nth", [1, 2, 3])
def test_deliveries_that_another_command_has_just_replayed_are_left_alone(
    steps: Steps, monkeypatch: pytest.MonkeyPatch, nth: int
) -> None:
    fill_with_dead(steps, 3)
    (newest,) = steps.rows("SELECT max(id) AS id FROM delivery_log")
    first, second = (ask(steps, "replay", {"route": "strict", "until_fact": newest["id"]}) for _ in range(2))
    beside, write, begun = Database(steps.database.engine, steps.clock), steps.database.write, list[int]()

    def meanwhile(*given: Any, **named: Any) -> AbstractContextManager[Transaction]:  # noqa: ANN401  # handed through
        begun.append(1)
        if len(begun) == nth:
            execution.work_on(work_of(beside), second)
        return write(*given, **named)

    monkeypatch.setattr(steps.database, "write", meanwhile)
    execution.work_on(steps.work, first)
    assert (command(steps, first)["failed"], [kind for _, kind in steps.kinds()].count("replayed")) == (0, 3)


TASKS_ASKED: dict[str, dict[str, object]] = {
    "erase": {"source": "trivore", "entity_type": "USER", "entity_id": "u1"},
    "prune": {},
    "readmit": {"everything": True},
    "sweep": {"source": "trivore"},
    "stop": {"command": 1},
    "continue": {"command": 1},
}


def test_a_mistake_that_a_slow_relay_finds_ends_no_command_that_another_has_gone_on_with(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    def look(it: tasks.Working) -> tasks.Act:
        monkeypatch.setitem(tasks.TASKS, "prune", lambda it: lambda *_: it.command.after(progress=1))
        execution.work_on(it.work, it.command.id)
        raise UnusableCommand("there is nothing any more")

    number = ask(steps, "prune", {})
    monkeypatch.setitem(tasks.TASKS, "prune", look)
    execution.work_on(steps.work, number)
    assert command(steps, number)["state"] == "running"


@pytest.mark.parametrize(("act", "outcome"), [("cancel", None), ("retry", UNWELL), ("replay", HOPELESS)])
def test_what_arrives_after_a_command_was_asked_is_left_alone(steps: Steps, act: str, outcome: Any) -> None:  # noqa: ANN401  # of an attempt
    def arrive(number: int) -> None:
        steps.arrive(an_event(number, f"u{number}"))
        if outcome is not None:
            steps.record_all(steps.claim_due(), outcome)

    arrive(1)
    number = ask(steps, act, {"route": "strict"})
    arrive(2)
    before = steps.rows("SELECT * FROM open_delivery WHERE seq = 2")
    work(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 1)
    assert steps.rows("SELECT * FROM open_delivery WHERE seq = 2") == before


def test_a_locked_route_stops_no_command_about_another(steps: Steps) -> None:
    """On SQLite nobody can lock a row."""
    if not steps.database.sql.is_postgres:
        return
    steps.arrive(an_event(1, routes=["strict"]), an_event(2, "u2", routes=["latest"]))
    numbers = [ask(steps, "pause", Gate(route="latest")), ask(steps, "cancel", {"route": "latest"})]
    with steps.database.engine.connect() as person:
        stand_still(person)
        person.execute(text("SELECT 1 FROM route_lock WHERE route = 'strict' FOR UPDATE"))
        work(steps)
        assert [command(steps, number)["state"] for number in numbers] == ["done", "done"]
        person.rollback()


@pytest.mark.parametrize(
    ("columns", "values"),
    [
        ("id", "0"),
        ("id", "-1"),
        ("id", f"{2**63 - 1}"),
        ("asked_by", f"'{'k' * 2001}'"),
    ],
)
def test_a_number_or_name_beyond_its_limits_is_refused_at_once(steps: Steps, columns: str, values: str) -> None:
    with pytest.raises(IntegrityError):
        steps.do(
            f"INSERT INTO relay_command (kind, selection, reason, {columns}) VALUES ('prune', '{{}}', 'mended', {values})"
        )


def test_a_command_that_meets_a_fault_keeps_none_behind_it_waiting_and_is_tried_again(steps: Steps) -> None:
    steps.arrive(an_event(1))
    paused = ask(steps, "pause", Gate(route="strict"))
    cancelled = ask(steps, "cancel", Selection(seq=1))
    clock = Monotonic()
    working = execution.OpenCommands(clock)
    steps.do("ALTER TABLE gate RENAME TO away")
    for _ in range(3):
        working.work(steps.work)
    assert command(steps, cancelled)["state"] == "done"
    assert command(steps, paused)["state"] == "asked"
    assert command(steps, paused)["answer"].startswith("waits: ")
    steps.do("ALTER TABLE away RENAME TO gate")
    working.work(steps.work)
    assert command(steps, paused)["state"] == "asked"
    clock.seconds += execution.FAULTY_SECONDS
    working.work(steps.work)
    assert command(steps, paused)["state"] == "done"


def test_a_batch_that_waits_for_a_locked_row_is_split_so_that_all_before_it_is_done(steps: Steps) -> None:
    """On SQLite nobody can lock a row."""
    if not steps.database.sql.is_postgres:
        return
    fill_with_dead(steps, 6)
    number = ask(steps, "replay", Selection(route="strict"))
    with steps.database.engine.connect() as person:
        stand_still(person)
        person.execute(text("SELECT 1 FROM open_delivery WHERE seq = 4 FOR UPDATE"))
        working = execution.OpenCommands()
        working.work(steps.work)
        assert [state for _, _, state in steps.states()] == ["ready"] * 3 + ["dead"] * 3
        assert command(steps, number)["answer"].startswith("waits: ")
        person.rollback()
    work(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 6)


def test_the_plan_of_a_retry_counts_all_but_a_delivery_that_cannot_be_read(steps: Steps) -> None:
    """SQLite has no time that Python can't read."""
    if not steps.database.sql.is_postgres:
        return
    steps.arrive(*(an_event(n, f"u{n}") for n in (1, 3, 4)))
    steps.record_all(steps.claim_due(), UNWELL)
    steps.arrive(an_event(2, "u2"))
    steps.do(
        "UPDATE open_delivery SET due_at = (SELECT max(due_at) FROM open_delivery)",
        "ALTER TABLE open_delivery DROP CONSTRAINT ck_open_delivery_due_at,"
        " DROP CONSTRAINT ck_open_delivery_due_at_is_readable",
        "UPDATE open_delivery SET due_at = 'infinity' WHERE seq = 4",
    )
    planned = preview(steps.database, Choice("retry", Selection(route="strict"), CONFIG), Bound(listed=10))
    assert (planned.count, planned.left_out) == (3, {"unreadable": 1})
    assert [row["seq"] for row in planned.deliveries] == [1, 2, 3]
    (group,) = planned.groups
    assert (group.count, group.first_due_at == group.last_due_at, group.first_due_at is None) == (3, True, False)


@pytest.mark.parametrize("act", ["replay", "cancel"])
def test_a_dry_run_answers_what_the_plan_shows_and_changes_nothing(
    steps: Steps,
    monkeypatch: pytest.MonkeyPatch,
    act: Any,  # noqa: ANN401  # a kind of command
) -> None:
    monkeypatch.setattr(plan, "_PAGE", 4)
    fill_with_dead(steps, 13)
    steps.arrive(an_event(14, "u1"))
    steps.attempt(DONE)
    before = steps.rows("SELECT * FROM open_delivery ORDER BY seq")
    chosen = Selection(route="strict")
    number = ask(steps, act, chosen, dry_run=True)
    work(steps)
    planned = preview(steps.database, Choice(act, chosen, CONFIG), Bound())
    row = command(steps, number)
    sample = as_json(row["sample"])
    assert (row["state"], row["affected"], row["matched"]) == ("done", 0, planned.count)
    assert row["answer"].startswith(f"dry run: {planned.count} deliveries would be {act}")
    assert [each["seq"] for each in sample["deliveries"]] == [each["seq"] for each in planned.deliveries]
    assert sample["left_out"] == planned.left_out
    assert [group["count"] for group in sample["groups"]] == [group.count for group in planned.groups]
    assert steps.rows("SELECT * FROM open_delivery ORDER BY seq") == before
    assert "replayed" not in json.dumps(steps.kinds())


def test_a_dry_run_of_what_cannot_be_meant_is_refused(steps: Steps) -> None:
    number = ask(steps, "replay", Selection(cause="maping"), dry_run=True)
    work(steps)
    row = command(steps, number)
    assert (row["state"], row["answer"]) == ("refused", "there is no cause 'maping'; did you mean 'mapping'?")
