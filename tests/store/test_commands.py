"""Commands: what an operator asks for by SQL or the command line, batch by batch, by whichever process gets to it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import DataError, IntegrityError, OperationalError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db.dialect import as_json
from inbox.errors import NoSuchCommand, UnusableCommand
from inbox.events.commands import says_why
from inbox.events.timestamps import as_time
from relay.delivery.gates import Gate
from relay.delivery.lifecycle import OpenDelivery
from relay.operations.asks import Selection
from relay.store import gates, reopen
from relay.store.deliveries import Key
from relay.store.operator import changes, commands, execution, tasks
from relay.store.operator.plan import Bound, preview
from relay.store.operator.selection import Choice
from relay.store.transaction import Transaction
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.order_locks import locking
from tests.helpers.patience import stand_still
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps
from tests.helpers.storing import an_event, drop_checks


def fill_with_dead(steps: Steps, number: int) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, number + 1)))
    steps.record_all(steps.claim_due(number), HOPELESS)


def by_sql(steps: Steps, kind: str, selection: object) -> int:
    return insert(steps, kind, json.dumps(selection))


def insert(steps: Steps, kind: str, selection: str) -> int:
    value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
    statement = f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at)
VALUES ('{kind}', {value}, 'the CRM is back', 'dba', CURRENT_TIMESTAMP) RETURNING id"""
    with steps.database.write() as transaction:
        (row,) = transaction.execute(text(statement), selection=selection)
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
    ("replay", {"since": "0001-01-01T00:00:00+14:00"}, "since the year 1?"),
    ("replay", {"since": "9999-12-31T23:59:59Z"}, "since the year 9999?"),
    ("replay", {"backfill": True, "route": "strikt"}, "a backfill of which route?"),
    ("replay", {"backfill": True, "route": "strict", "cause": "mapping"}, "leave those out"),
    ("replay", {"state": "delivered", "route": "strict"}, "ended deliveries are replayed of named events"),
    ("cancel", {"state": "ready", "status": 503}, "a delivery that is ready has no failure"),
    ("cancel", {"rout": "strict"}, "a cancel has no key 'rout' in its selection; did you mean 'route'?"),
    ("unblock", {}, "an unblock without a condition is about everything that it could change"),
    ("sweep", {}, "source is missing"),
    ("replay", {"seq": "5"}, "seq: expected a whole number, got text"),
    ("pause", {"source": "trivore", "entity_id": "u1"}, "an entity is named by its source, its type and its id"),
    ("pause", {"destination": "crm"}, "there is no destination 'crm'"),
    ("replay", {"route": "strikt"}, "there is no route 'strikt'; did you mean 'strict'?"),
    ("cancel", {"source": "trivor"}, "there is no source 'trivor'; did you mean 'trivore'?"),
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


def test_a_command_without_a_reason_is_refused(steps: Steps) -> None:
    for reason in ("", "   ", " \t\r\n ", "…", " -- ", "''…''", "\\ [%] $$ ;"):
        with pytest.raises(IntegrityError, match="reason"):
            steps.do(f"INSERT INTO relay_command (kind, reason) VALUES ('prune', '{reason}')")


@pytest.mark.parametrize("reason", ["ä", "…a", "3", "理由", "-x-", "\N{PILE OF POO}"])
def test_a_letter_or_a_digit_of_any_script_is_a_reason(steps: Steps, reason: str) -> None:
    assert says_why(reason)
    steps.do(f"INSERT INTO relay_command (kind, reason) VALUES ('prune', '{reason}')")


def test_a_reason_that_would_fill_the_log_is_refused(steps: Steps) -> None:
    ask = "INSERT INTO relay_command (kind, reason) VALUES ('prune', '{}')"
    with pytest.raises(IntegrityError, match="reason_length"):
        steps.do(ask.format("x" * 2001))
    steps.do(ask.format("x" * 2000))


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


def test_a_command_that_matches_nothing_says_so(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    number = by_sql(steps, "cancel", {"route": "latest"})
    work_all(steps)
    assert the(steps, number) == ("done", 0, "nothing to cancel")


def test_a_command_about_an_event_that_does_not_exist_says_so_dry_or_not(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    for selection in ({"seq": 999}, {"seqs": [999]}):
        number = by_sql(steps, "replay", selection)
        work_all(steps)
        assert the(steps, number) == ("done", 0, "nothing to replay; there is no event 999")
    number = commands.ask(steps.database, "replay", {"seq": 999}, who="kim", why="mended", dry_run=True)
    work_all(steps)
    assert the(steps, number) == ("done", 0, "dry run: nothing to replay; there is no event 999")


def test_a_removed_route_can_still_be_named(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    steps.do("UPDATE open_delivery SET route = 'removed'")
    number = by_sql(steps, "cancel", {"route": "removed"})
    work_all(steps)
    assert the(steps, number)[0] == "done"


def test_a_pause_and_a_sweep_have_no_dry_run(steps: Steps) -> None:
    for kind, selection in (("pause", {"route": "strict"}), ("sweep", {"source": "trivore"})):
        number = commands.ask(steps.database, kind, selection, who="kim", why="mended", dry_run=True)
        work_all(steps)
        assert the(steps, number) == ("refused", 0, f"a {kind} has no dry run")


CHANGES = {
    "kind = 'cancel'": "a command stays as it was asked",
    "selection = '{\"everything\": true}'": "a command stays as it was asked",
    "reason = 'another one'": "a command stays as it was asked",
    "asked_by = 'somebody else'": "a command stays as it was asked",
    "asked_at = '2020-01-01 00:00:00Z'": "a command stays as it was asked",
    "dry_run = true": "a command stays as it was asked",
}
LATER_CHANGES = (
    'selection = \'{"route": "latest"}\'',
    "selection = '{\"everything\": true}'",
    "selection = '{}'",
    "reason = 'another one'",
    "asked_by = 'somebody else'",
)


def test_a_command_that_was_asked_keeps_its_meaning(steps: Steps) -> None:
    by_sql(steps, "replay", {"route": "strict"})
    for change, sentence in CHANGES.items():
        with pytest.raises(IntegrityError, match=sentence):
            steps.do(f"UPDATE relay_command SET {change}")


@pytest.mark.parametrize("state", ["asked", "cancelled", "done"])
def test_what_was_agreed_stays_when_a_command_ends_or_goes_on(steps: Steps, state: str) -> None:
    """A stopped one went on with another selection, if that was written meanwhile or at once."""
    by_sql(steps, "cancel", {"route": "strict"})
    steps.do(f"UPDATE relay_command SET state = '{state}', finished_at = asked_at")
    more = {
        "asked": ("", "state = 'done', "),
        "cancelled": ("", "state = 'running', finished_at = NULL, "),
        "done": ("",),
    }
    for change in (further + change for further in more[state] for change in LATER_CHANGES):
        with pytest.raises(IntegrityError, match=r"a command stays as it was asked|only erasure may change"):
            steps.do(f"UPDATE relay_command SET {change}")


def test_an_ended_command_stays_as_it_is_but_erasure_may_take_names_out(steps: Steps) -> None:
    by_sql(steps, "replay", {"route": "strict", "source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    steps.do("UPDATE relay_command SET state = 'done', answer = 'done', finished_at = asked_at")
    for state in ("asked", "running", "failed", "cancelled"):
        with pytest.raises(IntegrityError, match="a command that has ended stays as it is"):
            steps.do(f"UPDATE relay_command SET state = '{state}'")
    erased = '{"route": "strict", "source": "trivore", "entity_type": "USER", "entity_id": "erased:1f"}'
    steps.do(f"UPDATE relay_command SET selection = '{erased}', reason = 'erased', answer = NULL")
    (row,) = steps.rows("SELECT selection, reason FROM relay_command")
    assert (as_json(row["selection"])["entity_id"], row["reason"]) == ("erased:1f", "erased")
    by_sql(steps, "replay", {"deliveries": ["1/strict", "2/latest"]})
    steps.do("UPDATE relay_command SET state = 'done', finished_at = asked_at WHERE state = 'asked'")
    lists = 'UPDATE relay_command SET selection = \'{"deliveries": ["1/strict", "%s"]}\' WHERE id = 2'
    with pytest.raises(IntegrityError, match="only erasure may change"):
        steps.do(lists % "3/latest")
    steps.do(lists % "erased")


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


def test_a_command_that_has_ended_elsewhere_is_taken_as_it_is(steps: Steps) -> None:
    """As a copy of the table does."""
    steps.do("INSERT INTO relay_command (kind, reason, state) VALUES ('replay', 'of a year ago', 'done')")
    assert not commands.next_open(steps.database, after=0, most=1)


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


def test_a_selection_with_a_nul_is_refused_by_postgres_and_ends_alone_on_sqlite(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    for selection in ({"route": "\x00"}, {"source": "trivore\x00"}):
        if steps.database.sql.is_postgres:
            with pytest.raises(DataError):
                by_sql(steps, "pause", selection)
        else:
            bad = by_sql(steps, "pause", selection)
            assert work(steps) == 0
            assert the(steps, bad)[0] == "refused"


def test_a_kind_of_a_newer_version_is_left_to_it(steps: Steps) -> None:
    without_constraint(steps)
    number = by_sql(steps, "of_tomorrow", {})
    assert not commands.next_open(steps.database, after=0, most=1)
    assert work(steps) == 0
    assert the(steps, number)[0] == "asked"


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


@ON_POSTGRES
@pytest.mark.parametrize("kind", ["pause", "resume"])
def test_a_pause_and_a_resume_wait_for_no_route_that_somebody_keeps_locked(steps: Steps, kind: str) -> None:
    steps.arrive(an_event(1))
    gate = {"route": "strict"}
    if kind == "resume":
        by_sql(steps, "pause", gate)
        work(steps)
    number = by_sql(steps, kind, gate)
    with locking(steps, ["strict"]):
        work(steps)
        assert the(steps, number)[0] == "done"


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


def test_sql_stops_a_command_by_a_command(steps: Steps) -> None:
    fill_with_dead(steps, 1)
    number = by_sql(steps, "cancel", {"everything": True})
    stop, unknown = (by_sql(steps, "stop", {"command": which}) for which in (number, 99))
    execution.work_on(steps.work, stop)
    assert the(steps, number)[0] == "cancelled"
    assert the(steps, stop) == ("done", 0, f"command {number} is stopped")
    execution.work_on(steps.work, unknown)
    assert the(steps, unknown) == ("refused", 0, "there is no command 99")


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
    turn(steps, "continue", number)
    with pytest.raises(UnusableCommand, match="is running: only one that was stopped goes on"):
        turn(steps, "continue", number)
    assert [work(steps), work(steps)] == [5, 0]
    assert the(steps, number) == ("done", 25, "25 deliveries cancelled")


def test_all_of_an_event_is_in_one_batch(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "BATCH", 2)
    routes = ["strict", "blocking", "latest"]
    steps.arrive(*(an_event(n, f"u{n}", routes=routes) for n in (1, 2)))
    number = commands.ask(steps.database, "cancel", Selection(source="trivore"), who="kim", why="no")
    assert [work(steps) for _ in range(3)] == [3, 3, 0]
    assert the(steps, number)[1] == 6


def test_what_a_plan_shows_is_a_sample_a_count_and_what_is_left_out(steps: Steps) -> None:
    steps.arrive(*(an_event(n) for n in range(1, 9)))
    for _ in range(7):
        steps.attempt(HOPELESS)
    steps.attempt(DONE)
    planned = preview(steps.database, Choice("replay", Selection(everything=True), CONFIG), Bound(listed=5))
    assert (planned.count, len(planned.deliveries), planned.left_out) == (0, 0, {"overtaken": 7})
    forced = preview(steps.database, Choice("replay", Selection(force=True), CONFIG), Bound(listed=5))
    assert (forced.count, len(forced.deliveries), forced.left_out) == (7, 5, {})


def test_a_pause_by_the_command_line_is_a_command_too(steps: Steps) -> None:
    number = commands.ask(steps.database, "pause", Gate(route="strict"), who="kim", why="maintenance")
    execution.work_on(steps.work, number)
    (row,) = steps.rows("SELECT kind, reason, asked_by, state FROM relay_command")
    assert row == {"kind": "pause", "reason": "maintenance", "asked_by": "kim", "state": "done"}


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


def test_a_row_that_is_locked_while_a_batch_is_taken_apart_is_done_later(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On SQLite nobody can lock a row."""
    if not steps.database.sql.is_postgres:
        return
    fill_with_dead(steps, 6)
    number = commands.ask(steps.database, "replay", Selection(everything=True), who="kim", why="mended")
    with steps.database.engine.connect() as person, monkeypatch.context() as patch:
        stand_still(person)
        locking = Locking(person, seq=3, bad=5)
        patch.setattr(tasks, "change", locking)
        with pytest.raises(OperationalError, match="lock timeout"):
            execution.work_on(steps.work, number)
        assert [state for _, _, state in steps.states()] == ["ready"] * 2 + ["dead"] * 4
        person.rollback()
    while work(steps):
        pass
    assert [state for _, _, state in steps.states()] == ["ready"] * 6
    assert the(steps, number) == ("done", 6, "6 deliveries replayed")


class Locking:
    """In place of what changes deliveries: a batch fails once for a bad delivery, and then a person locks another one."""

    def __init__(self, person: Connection, seq: int, bad: int) -> None:
        self._change = changes.change
        self._person, self._seq, self._bad = person, seq, bad
        self._has_failed = False

    def __call__(self, transaction: Transaction, *more: Any, **named: Any) -> int:  # noqa: ANN401  # passed through
        if not self._has_failed:
            self._has_failed = True
            self._person.execute(text(f"SELECT 1 FROM open_delivery WHERE seq = {self._seq} FOR UPDATE"))
            raise ValueError(f"of {self._bad}")
        transaction.connection.execute(text("SET LOCAL lock_timeout = '50ms'"))
        return self._change(transaction, *more, **named)


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
