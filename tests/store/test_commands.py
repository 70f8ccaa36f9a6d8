"""Commands: what an operator asks for by SQL or the command line, batch by batch, by whichever process gets to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db import intake
from inbox.db.dialect import as_json
from inbox.db.intake import Rejected
from inbox.db.reads import Row
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.event import Enrolment, Event
from inbox.events.states import says_why
from inbox.events.timestamps import as_time
from relay.delivery.gates import Gate, GateKey
from relay.delivery.lifecycle import OpenDelivery
from relay.operations.asks import OneCommand, Rejections, Selection
from relay.store import gates, reopen
from relay.store.deliveries import Key
from relay.store.operator import changes, commands, execution, plan, readmit, tasks
from relay.store.operator.commands import Command
from relay.store.operator.plan import Bound, preview
from relay.store.operator.selection import Choice
from relay.store.transaction import Transaction
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Monotonic, Steps
from tests.helpers.storing import START, an_event, drop_checks
from tests.helpers.waiting import stand_still
from tests.helpers.webhooks import body

pytestmark = pytest.mark.usefixtures("impatient")

# --- Commands: what an operator asks for by SQL or the command line, batch by batch, by whichever process gets to it


def by_sql(steps: Steps, kind: str, selection: object) -> int:
    value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
    statement = f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at)
VALUES ('{kind}', {value}, 'the CRM is back', 'dba', CURRENT_TIMESTAMP) RETURNING id"""
    with steps.database.write() as transaction:
        (row,) = transaction.execute(text(statement), selection=json.dumps(selection))
    return int(row.id)


def the(steps: Steps, number: int) -> tuple[str, int, str | None]:
    progress = commands.progress(steps.database, number)
    assert progress is not None
    return progress.state, progress.affected, progress.answer


def work(steps: Steps) -> int:
    return execution.OpenCommands().work(steps.work)


def test_what_a_dba_writes_into_the_table_is_done_and_answered(steps: Steps) -> None:
    fill_with_dead(steps, 3)
    number = by_sql(steps, "replay", {"cause": "mapping"})
    assert commands.next_open(steps.database, after=0, most=1)
    assert [work(steps), work(steps)] == [3, 0]
    assert the(steps, number) == ("done", 3, "3 deliveries replayed")
    assert not commands.next_open(steps.database, after=0, most=1)
    facts = steps.rows("SELECT detail FROM delivery_log WHERE kind = 'replayed'")
    assert [row["detail"] for row in facts] == [{"who": "dba", "why": "the CRM is back"}] * 3
    (row,) = steps.rows("SELECT finished_at FROM relay_command")
    assert row["finished_at"] is not None


REFUSED_BY_A_RELAY: list[tuple[str, dict[str, object], str]] = [
    ("replay", {"since": "9999-12-31T23:59:59Z"}, "since the year 9999?"),
    ("replay", {"backfill": True, "route": "strikt"}, "a backfill of which route?"),
    ("replay", {"backfill": True, "route": "strict", "cause": "mapping"}, "leave those out"),
    ("replay", {"state": "delivered", "route": "strict"}, "ended deliveries are replayed of named events"),
    ("cancel", {"state": "ready", "status": 503}, "a delivery that is ready has no failure"),
    ("pause", {"destination": "crm"}, "there is no destination 'crm'"),
    ("replay", {"route": "strikt"}, "there is no route 'strikt'; did you mean 'strict'?"),
]


def work_all(steps: Steps) -> int:
    """Round after round, until no command is open; how many deliveries were changed."""
    changed, working = 0, execution.OpenCommands()
    while commands.next_open(steps.database, after=0, most=1):
        changed += working.work(steps.work)
    return changed


def test_three_columns_are_enough(steps: Steps) -> None:
    steps.do("INSERT INTO relay_command (kind, reason) VALUES ('prune', 'the disk is full')")
    (row,) = steps.rows("SELECT selection, asked_by, asked_at, dry_run, state FROM relay_command")
    role = steps.rows("SELECT session_user AS role")[0]["role"] if steps.database.sql.is_postgres else "sqlite"
    assert (as_json(row["selection"]), row["asked_by"], bool(row["dry_run"]), row["state"]) == (
        {},
        role,
        False,
        "asked",
    )
    assert abs(as_time(row["asked_at"]) - SystemClock().now()) < timedelta(minutes=5)


def test_a_reason_has_a_letter_or_a_digit_of_any_script(steps: Steps) -> None:
    asking = "INSERT INTO relay_command (kind, reason) VALUES ('prune', '{}')"
    for reason in ("ä", "…a", "3", "理由", "-x-", "\N{PILE OF POO}"):
        assert says_why(reason)
        steps.do(asking.format(reason))
    for reason in ("", "   ", " \t\r\n ", "…", " -- ", "''…''", "\\ [%] $$ ;"):
        with pytest.raises(IntegrityError, match="reason"):
            steps.do(asking.format(reason))


def test_nobody_makes_a_command_look_done_or_lets_that_of_another_person_go_on(steps: Steps) -> None:
    """As an operator may, who has the right to set the state alone."""
    fill_with_dead(steps, 1)
    number = by_sql(steps, "replay", {"everything": True})
    for state in ("done", "failed", "refused"):
        with pytest.raises(IntegrityError, match="only a relay ends a command"):
            steps.do(f"UPDATE relay_command SET state = '{state}'")
    steps.do("UPDATE relay_command SET state = 'cancelled'")
    with pytest.raises(IntegrityError, match="relay continue --command"):
        steps.do("UPDATE relay_command SET state = 'running'")
    turn(steps, "continue", number)
    assert work(steps) == 1


AGREED = (
    *("kind = 'cancel'", "asked_at = '2020-01-01 00:00:00Z'", "dry_run = true", "reason = 'another one'"),
    *("selection = '{\"everything\": true}'", "selection = '{}'", "asked_by = 'somebody else'"),
)


@pytest.mark.parametrize("state", ["asked", "cancelled", "done"])
def test_what_was_agreed_stays_also_when_a_command_ends_or_goes_on(steps: Steps, state: str) -> None:
    """A stopped one went on with another selection, if that was written meanwhile or at once."""
    by_sql(steps, "replay", {"route": "strict"})
    steps.do(f"UPDATE relay_command SET state = '{state}', finished_at = asked_at")
    more = {"asked": "state = 'done', ", "cancelled": "state = 'running', finished_at = NULL, ", "done": ""}
    for change in (further + change for further in ("", more[state]) for change in AGREED):
        with pytest.raises(IntegrityError, match="a command stays as it was asked"):
            steps.do(f"UPDATE relay_command SET {change}")


def test_an_ended_command_stays_as_it_is_but_erasure_may_take_names_out(steps: Steps) -> None:
    by_sql(steps, "replay", {"route": "strict", "source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    steps.do("UPDATE relay_command SET state = 'done', answer = 'done', finished_at = asked_at")
    for state in ("asked", "running", "failed", "cancelled"):
        with pytest.raises(IntegrityError, match="a command that has ended stays as it is"):
            steps.do(f"UPDATE relay_command SET state = '{state}'")
    erased = '{"route": "strict", "source": "trivore", "entity_type": "USER", "entity_id": "erased:1f"}'
    steps.do(f"UPDATE relay_command SET selection = '{erased}', answer = NULL")
    (row,) = steps.rows("SELECT selection FROM relay_command")
    assert as_json(row["selection"])["entity_id"] == "erased:1f"
    with pytest.raises(IntegrityError, match="a command stays as it was asked"):
        steps.do("UPDATE relay_command SET reason = 'erased'")


def test_a_person_cancels_an_open_command_by_sql(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    number = by_sql(steps, "replay", {"everything": True})
    with pytest.raises(IntegrityError, match="cancel it first"):
        steps.do("DELETE FROM relay_command")
    steps.do("UPDATE relay_command SET state = 'cancelled'")
    assert work(steps) == 0
    assert the(steps, number) == ("cancelled", 0, "cancelled by hand")
    assert steps.rows("SELECT 1 FROM relay_command WHERE finished_at IS NOT NULL")
    steps.do("DELETE FROM relay_command")


def test_names_that_only_the_configuration_knows_are_refused_by_a_relay(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    numbers = [by_sql(steps, kind, selection) for kind, selection, _ in REFUSED_BY_A_RELAY]
    assert work_all(steps) == 0
    for number, (kind, selection, answer) in zip(numbers, REFUSED_BY_A_RELAY, strict=True):
        state, affected, told = the(steps, number)
        assert (state, affected) == ("refused", 0), (kind, selection)
        assert answer in str(told), (kind, selection)
    assert [state for _, _, state in steps.states()] == ["dead"]


def without_constraint(steps: Steps) -> None:
    """As a database is that has other constraints."""
    drop_checks(steps.database.engine, "relay_command", "selection_is_readable", "kind")


def test_one_that_cannot_be_understood_ends_alone_and_the_next_is_done(steps: Steps) -> None:
    without_constraint(steps)
    fill_with_dead(steps, 1)
    selections: tuple[object, ...] = ([], "a text", 7, None, {"route": "\ufffd"}, {"route": "x", "cause": "mapping"})
    bad = [by_sql(steps, "pause", selection) for selection in selections]
    worse = [by_sql(steps, "replay", selection) for selection in selections]
    good = by_sql(steps, "replay", {"cause": "mapping"})
    assert work_all(steps) == 1
    assert {the(steps, number)[0] for number in bad} <= {"failed", "refused"}
    assert {the(steps, number)[0] for number in worse} <= {"failed", "refused", "done"}
    assert the(steps, good) == ("done", 1, "1 delivery replayed")


def test_commands_that_wait_keep_no_other_waiting(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    for _ in range(2 * execution.MOST_AT_ONCE):
        waiting = by_sql(steps, "cancel", {"route": "strict", "seq": 10_000})
        steps.do(f"UPDATE relay_command SET state = 'running' WHERE id = {waiting}")
    last = by_sql(steps, "replay", {"cause": "mapping"})
    open_commands = execution.OpenCommands()
    for _ in range(4):
        open_commands.work(steps.work)
    assert the(steps, last) == ("done", 1, "1 delivery replayed")


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: int) -> None:
    """Let every change of this event's deliveries fail."""

    def find(
        transaction: Transaction, config: Config, keys: Sequence[Key], *, locked: bool = True
    ) -> list[OpenDelivery]:
        if any(seq == spoilt for seq, _ in keys):
            raise ValueError("odd")
        return reopen.find(transaction, config, keys, locked=locked)

    monkeypatch.setattr(changes, "find", find)


def test_a_delivery_that_cannot_be_changed_is_passed_over_and_the_others_are_done(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, 2)
    steps.arrive(*(an_event(n, "u1") for n in range(1, 4)))
    for _ in range(3):
        steps.attempt(DONE)
    number = by_sql(steps, "replay", {"entity_type": "USER", "entity_id": "u1", "source": "trivore"})
    assert [work(steps), work(steps)] == [2, 0]
    progress = commands.progress(steps.database, number)
    assert progress is not None
    assert (progress.state, progress.affected, progress.failed) == ("done", 2, 1)
    assert progress.answer == "2 deliveries replayed; 1 could not be: see error"
    assert progress.error is not None
    assert progress.error.startswith("route=strict seq=2: ValueError: odd")


def test_pause_and_resume_by_sql(steps: Steps) -> None:
    paused = by_sql(steps, "pause", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    work(steps)
    assert the(steps, paused) == ("done", 0, "paused")
    assert gates.read_gates(steps.work).paused_entities == 1
    by_sql(steps, "resume", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    again = by_sql(steps, "resume", {"route": "strict"})
    work(steps)
    assert gates.read_gates(steps.work).paused_entities == 0
    assert the(steps, again)[2] == "nothing holds it back"


def test_what_was_removed_from_the_configuration_while_it_was_closed_can_be_resumed(steps: Steps) -> None:
    with steps.database.write() as transaction:
        gates.pause(transaction, ("destination", "old"), who="kim", why="it moves")
    asked = [by_sql(steps, kind, {"destination": "old"}) for kind in ("pause", "resume", "resume")]
    work(steps)
    assert gates.held_back(steps.database) == []
    assert [the(steps, number)[0] for number in asked] == ["refused", "done", "refused"]


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of what a batch has, and of what a replay may have open."""
    monkeypatch.setattr(tasks, "BATCH", 20)
    monkeypatch.setattr(changes, "MOST_OPEN", 100)


@pytest.mark.usefixtures("smaller")
def test_a_replay_of_a_mountain_keeps_a_part_of_it_open(steps: Steps) -> None:
    fill_with_dead(steps, 130)
    number = commands.ask(steps.database, "replay", Selection(route="strict"), who="kim", why="mended")
    while work(steps):
        pass
    states = [state for _, _, state in steps.states()]
    assert (states.count("ready"), states.count("dead")) == (100, 30)
    assert the(steps, number)[2] == "waits: 100 deliveries are due on route strict"
    steps.record_all(steps.claim_due(40))
    while work(steps):
        pass
    assert the(steps, number) == ("done", 130, "130 deliveries replayed")
    steps.facts_agree()


@pytest.mark.usefixtures("smaller")
def test_a_replay_looks_at_no_delivery_twice_though_it_dies_again(steps: Steps) -> None:
    fill_with_dead(steps, 25)
    number = commands.ask(steps.database, "replay", Selection(everything=True), who="kim", why="mended")
    assert work(steps) == 20
    steps.record_all(steps.claim_due(20), HOPELESS)
    assert [work(steps), work(steps)] == [5, 0]
    assert the(steps, number) == ("done", 25, "25 deliveries replayed")


def turn(steps: Steps, act: commands.CommandAct, number: int) -> None:
    commands.turn(steps.database, act, number, who="lee", why="wrong route")


def test_who_stops_a_command_has_a_row_of_his_own(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    number = by_sql(steps, "cancel", {"everything": True})
    turn(steps, "stop", number)
    turn(steps, "continue", number)
    rows = steps.rows("SELECT kind, asked_by, reason, state, answer FROM relay_command WHERE id > 1 ORDER BY id")
    assert [tuple(row.values()) for row in rows] == [
        ("stop", "lee", "wrong route", "done", f"command {number} is stopped"),
        ("continue", "lee", "wrong route", "done", f"command {number} goes on"),
    ]
    with pytest.raises(NoSuchCommand):
        turn(steps, "stop", 99)
    with pytest.raises(UnusableCommand, match="is a stop itself"):
        turn(steps, "stop", number + 1)


@pytest.mark.usefixtures("smaller")
def test_one_that_is_stopped_stays_where_it_is_until_it_goes_on(steps: Steps) -> None:
    fill_with_dead(steps, 25)
    number = commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="switched off")
    work(steps)
    turn(steps, "stop", number)
    assert work(steps) == 0
    assert the(steps, number) == ("cancelled", 20, "stopped by lee: wrong route")
    with pytest.raises(UnusableCommand, match="has ended, and can't be stopped"):
        turn(steps, "stop", number)
    planned = plan.plan(steps.database, steps.work.config, "stop", OneCommand(command=number), Bound(listed=1))
    assert planned.obstacle == "it has ended, and can't be stopped any more"
    turn(steps, "continue", number)
    with pytest.raises(UnusableCommand, match="is running: only one that was stopped goes on"):
        turn(steps, "continue", number)
    assert [work(steps), work(steps)] == [5, 0]
    assert the(steps, number) == ("done", 25, "25 deliveries cancelled")


def test_a_replay_whose_batch_is_taken_apart_replays_none_twice_when_the_process_dies_between_the_parts(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 9)))
    for _ in range(8):
        steps.attempt(DONE)
    spoil(monkeypatch, 4)
    number = commands.ask(steps.database, "replay", Selection(route="strict", backfill=True), who="kim", why="lost")
    with monkeypatch.context() as patch:
        dying = Dying(at=6)  # the batch, it as a part, a half, 1 and 2, 3 and 4; now 3
        patch.setattr(tasks, "change", dying)
        with pytest.raises(KeyboardInterrupt):
            execution.work_on(steps.work, number)
    while claimed := steps.claim_due(8, "strict"):
        steps.record_all(claimed, DONE)
    while work(steps):
        pass
    replayed = sorted(seq for seq, kind in steps.kinds() if kind == "replayed")
    assert replayed == [1, 2, 3, 5, 6, 7, 8]
    (row,) = steps.rows("SELECT affected, failed, progress_seq, state FROM relay_command")
    assert row == {"affected": 7, "failed": 1, "progress_seq": 8, "state": "done"}


class Dying:
    """In place of what changes deliveries: the process dies the time that is told."""

    def __init__(self, at: int) -> None:
        self._left = at
        self._change = changes.change

    def __call__(self, *arguments: Any, **named: Any) -> int:  # noqa: ANN401  # passed through
        self._left -= 1
        if self._left == 0:
            raise KeyboardInterrupt
        return self._change(*arguments, **named)


# --- Commands keep each other, and themselves, from no work that can be done. Dry runs say what would be done


def fill_with_dead(steps: Steps, number: int) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, number + 1)))
    steps.record_all(steps.claim_due(number), HOPELESS)


def work_on(steps: Steps) -> None:
    working = execution.OpenCommands()
    while working.work(steps.work):
        pass


def command(steps: Steps, number: int) -> Row:
    (row,) = steps.rows("SELECT * FROM relay_command WHERE id = :id", id=number)
    return row


def ask(steps: Steps, kind: Any, selection: Any, *, dry_run: bool = False) -> int:  # noqa: ANN401  # as `commands.ask` takes them
    return commands.ask(steps.database, kind, selection, who="kim", why="mended", dry_run=dry_run)


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "MOST_OPEN", 3)
    monkeypatch.setattr(tasks, "BATCH", 3)


@pytest.mark.usefixtures("few")
@pytest.mark.parametrize("gate", [("route", "strict"), ("entity", "trivore|USER|u1"), None])
def test_replayed_deliveries_behind_a_closed_gate_keep_no_replay_waiting(steps: Steps, gate: GateKey | None) -> None:
    own_lanes = ({"enrolments": (Enrolment("strict", f"|{n}"),)} for n in range(1, 7))
    steps.arrive(*(msgspec.structs.replace(an_event(n, "u1"), **lane) for n, lane in enumerate(own_lanes, 1)))
    steps.record_all(steps.claim_due(6), HOPELESS)
    if gate is not None:
        with steps.database.write() as transaction:
            gates.pause(transaction, gate, who="kim", why="maintenance")
    number = ask(steps, "replay", Selection(everything=True))
    work_on(steps)
    expected = ("running", 3) if gate is None else ("done", 6)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == expected


@pytest.mark.usefixtures("few")
def test_replayed_deliveries_that_wait_for_a_later_attempt_keep_no_replay_waiting(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 7)))
    steps.record_all(steps.claim_due(6), HOPELESS)
    number = ask(steps, "replay", Selection(everything=True))
    work_on(steps)
    assert command(steps, number)["affected"] == 3
    steps.record_all(steps.claim_due(), UNWELL)
    work_on(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 6)


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


TASKS_ASKED: dict[str, dict[str, object]] = {
    "erase": {"source": "trivore", "entity_type": "USER", "entity_id": "u1"},
    "prune": {},
    "readmit": {"everything": True},
    "sweep": {"source": "trivore"},
    "stop": {"command": 1},
    "continue": {"command": 1},
}


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
    work_on(steps)
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
        work_on(steps)
        assert [command(steps, number)["state"] for number in numbers] == ["done", "done"]
        person.rollback()


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
    work_on(steps)
    assert (command(steps, number)["state"], command(steps, number)["affected"]) == ("done", 6)


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
    work_on(steps)
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


# --- Readmission by a command: step by step, by any relay, and one bad request stops no other


_HEADERS = {"content-type": "application/json"}


def a_rejected(content: bytes | None = None, source: str = "trivore") -> Rejected:
    return Rejected(START, source, 422, "invalid_event", "no version", None, None, b"\0" * 32, _HEADERS, content)


def a_body(number: int) -> bytes:
    return body(f"u{number}", f"2026-01-01T00:00:{number:02d}Z")


def ask_to_readmit(steps: Steps, selection: dict[str, object], *, dry_run: bool = False) -> int:
    return commands.ask(steps.database, "readmit", selection, who="kim", why="the preset is fixed", dry_run=dry_run)


def end(steps: Steps, number: int) -> Command:
    while (progress := commands.progress(steps.database, number)) and not progress.has_ended:
        execution.work_on(steps.work, number)
    assert progress is not None
    return progress


def seqs(steps: Steps) -> list[int | None]:
    return [row["readmitted_seq"] for row in steps.rows("SELECT readmitted_seq FROM rejected_request ORDER BY id")]


def test_more_requests_than_a_step_takes_are_all_readmitted(steps: Steps) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(45)))
    assert end(steps, ask_to_readmit(steps, {"cause": "invalid_event"})).answer == "45 requests readmitted"
    assert None not in seqs(steps)
    steps.sequence()
    assert len(steps.states()) > 0
    (row,) = steps.rows("SELECT readmitted_at, readmitted_by, readmit_reason FROM rejected_request WHERE id = 7")
    assert (as_time(row["readmitted_at"]), row["readmitted_by"], row["readmit_reason"]) == (
        START,
        "kim",
        "the preset is fixed",
    )


def test_a_step_takes_no_request_behind_one_that_has_used_its_bytes(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(readmit, "BYTES_AT_A_TIME", len(a_body(1)) + 1)
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(3)))
    asked = Rejections(everything=True)
    assert [each.id for each in readmit.read_again(steps.database, {}, asked, 0)] == [1, 2]
    assert [each.id for each in readmit.read_again(steps.database, {}, asked, 2)] == [3]


def test_one_that_was_sent_again_meanwhile_is_a_duplicate(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)), a_rejected(a_body(1)), a_rejected(a_body(2)))
    end(steps, ask_to_readmit(steps, {"id": 1}))
    assert end(steps, ask_to_readmit(steps, {"everything": True})).affected == 2
    first, again, other = seqs(steps)
    assert first == again == 1
    assert other not in {None, 1}
    assert [row["seq"] for row in steps.rows("SELECT seq FROM duplicate_request")] == [1]


def test_one_that_the_database_rejects_stops_no_other(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(1, 4)))
    append = intake.append

    def failing(connection: Connection, events: Sequence[Event]) -> list[int | None]:
        if any(event.entity_id == "u2" for event in events):
            raise ValueError("u2 can't be stored")
        return append(connection, events)

    monkeypatch.setattr(intake, "append", failing)
    assert end(steps, ask_to_readmit(steps, {"source": "trivore"})).answer == (
        "2 requests readmitted; 1 could not be: see error"
    )
    assert [seq is None for seq in seqs(steps)] == [False, True, False]


def test_a_dry_run_says_what_would_be_readmitted_and_changes_nothing(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)), a_rejected(b"{}"), a_rejected(a_body(1), source="gone"), a_rejected())
    number = ask_to_readmit(steps, {"everything": True}, dry_run=True)
    assert str(end(steps, number).answer).startswith(
        "dry run: 1 request would be readmitted; 1 left out: still rejected"
    )
    (row,) = steps.rows("SELECT matched, sample FROM relay_command")
    assert (row["matched"], as_json(row["sample"])["requests"][0]["id"]) == (1, 1)
    assert "there is no such source in the configuration any more" in json.dumps(row["sample"])
    assert seqs(steps) == [None] * 4
