"""Commands of an operator, by SQL or the command line, carried out in batches by any relay."""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import datetime
from functools import partial
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, text
from sqlalchemy.exc import IntegrityError

from inbox.config.model import Config
from inbox.db import intake
from inbox.db.dialect import as_json
from inbox.db.intake import Rejected
from inbox.db.reads import Row
from inbox.errors import UnusableCommand
from inbox.events.event import Enrolment, Event
from inbox.events.states import says_why
from inbox.events.timestamps import as_time
from relay.delivery.gates import Gate, GateKey
from relay.delivery.lifecycle import OpenDelivery
from relay.operations.asks import OneCommand, Rejections, Selection
from relay.store import gates, reopen
from relay.store.deliveries import Key
from relay.store.operator import changes, commands, execution, plan, readmit, tasks
from relay.store.operator.plan import Bound
from relay.store.transaction import Transaction
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.locks import lock_by_hand
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Monotonic, Steps
from tests.helpers.storing import START, an_event, drop_checks
from tests.helpers.webhooks import body

pytestmark = pytest.mark.usefixtures("impatient")


def insert_command(steps: Steps, kind: str, selection: object) -> int:
    value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
    statement = f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at)
VALUES ('{kind}', {value}, 'the CRM is back', 'dba', CURRENT_TIMESTAMP) RETURNING id"""
    with steps.database.write() as transaction:
        (row,) = transaction.execute(text(statement), selection=json.dumps(selection))
    return int(row.id)


def ask(steps: Steps, kind: Any, selection: Any, *, dry_run: bool = False) -> int:  # noqa: ANN401  # as `commands.ask` takes them
    return commands.ask(steps.database, kind, selection, who="kim", why="mended", dry_run=dry_run)


def work(steps: Steps) -> int:
    return execution.OpenCommands().work(steps.work)


def work_on(steps: Steps) -> int:
    """Work until a round changes nothing; return the number of changed deliveries."""
    working = execution.OpenCommands()
    return sum(iter(lambda: working.work(steps.work), 0))


def command(steps: Steps, number: int) -> Row:
    (row,) = steps.rows("SELECT * FROM relay_command WHERE id = :id", id=number)
    return row


def the(steps: Steps, number: int) -> tuple[str, int, str | None]:
    (row,) = steps.rows("SELECT state, affected, answer FROM relay_command WHERE id = :id", id=number)
    return row["state"], row["affected"], row["answer"]


def came_to(steps: Steps, number: int) -> tuple[str, int]:
    return the(steps, number)[:2]


def test_a_row_that_a_dba_writes_is_done_and_answered(steps: Steps) -> None:
    steps.dead(3)
    number = insert_command(steps, "replay", {"cause": "mapping"})
    assert commands.read_next_open(steps.database, after=0, most=1)
    assert [work(steps), work(steps)] == [3, 0]
    assert the(steps, number) == ("done", 3, "3 deliveries replayed")
    assert not commands.read_next_open(steps.database, after=0, most=1)
    facts = steps.rows("SELECT detail FROM delivery_log WHERE kind = 'replayed'")
    assert [row["detail"] for row in facts] == [{"who": "dba", "why": "the CRM is back", "command": number}] * 3
    assert command(steps, number)["finished_at"] is not None


def test_a_replay_answers_how_many_it_skipped_and_why(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    steps.attempt_each(HOPELESS, DONE, HOPELESS)
    numbers = [ask(steps, "replay", Selection(seqs=some)) for some in ((1, 3), (1,))]
    work_on(steps)
    some, none = (command(steps, number) for number in numbers)
    skipped = "1 skipped: older than the last one sent in their lane; `force` replays them too"
    assert (some["state"], some["affected"], some["answer"]) == ("done", 1, f"1 delivery replayed; {skipped}")
    assert none["answer"].startswith(f"nothing to replay; {skipped}; event 1 is dead on strict")


def test_a_request_that_is_still_rejected_is_skipped_and_not_a_failure(steps: Steps) -> None:
    steps.intake.reject(a_rejected(a_body(1)), a_rejected(b"{}"))
    row = readmit_all(steps, {"source": "trivore"})
    assert (row["affected"], row["failed"], row["answer"]) == (1, 0, "1 request readmitted; 1 skipped: still rejected")
    for number, says in (
        (2, "rejects each"),
        (1, "it was readmitted before, as event 1"),
        (9, "no rejected request 9"),
    ):
        assert says in readmit_all(steps, {"id": number})["answer"]


def test_a_gate_is_turned_by_commands_in_their_order_and_says_who_closed_it(steps: Steps) -> None:
    """A plan has no obstacle while another command may still turn the gate."""
    gate, kinds = {"destination": "audit"}, ("resume", "pause", "pause")
    planned = [
        partial(plan.plan, steps.database, CONFIG, kind, Gate(destination="audit"), Bound()) for kind in kinds[:2]
    ]
    assert planned[0]().obstacle == "nothing holds it back"
    numbers = [ask(steps, kind, gate) for kind in kinds]
    assert [each().obstacle for each in planned] == [None, None]
    work_on(steps)
    assert [the(steps, number)[1:] for number in numbers][:2] == [(0, "nothing holds it back"), (1, "paused")]
    assert (command(steps, numbers[2])["answer"] or "").startswith("it is paused already; destination audit was paused")
    assert planned[1]().obstacle == "it is paused already"


def test_the_last_command_on_a_gate_wins_also_if_an_older_one_is_worked_on_later(steps: Steps) -> None:
    """As the command line works on its own one, while no relay runs."""
    pause, resume = (ask(steps, kind, {"destination": "audit"}) for kind in ("pause", "resume"))
    for _ in range(2):
        execution.work_on(steps.work, resume)
    assert [the(steps, number) for number in (pause, resume)] == [("done", 1, "paused"), ("done", 1, "resumed")]
    assert work_on(steps) == 0
    assert not gates.read_closed_gates(steps.database)


def test_a_command_that_has_ended_is_neither_stopped_nor_continued(steps: Steps) -> None:
    number = ask(steps, "replay", Selection(everything=True))
    work_on(steps)
    acts: tuple[commands.CommandAct, ...] = ("stop", "continue")
    for act in acts:
        planned = plan.plan(steps.database, CONFIG, act, OneCommand(number), Bound())
        with pytest.raises(UnusableCommand, match=planned.obstacle):
            commands.turn(steps.database, act, number, who="kim", why="by mistake")


REFUSED_BY_A_RELAY: list[tuple[str, dict[str, object]]] = [
    ("replay", {"since": "9999-12-31T23:59:59Z"}),
    ("replay", {"backfill": True, "route": "strikt"}),
    ("replay", {"backfill": True, "route": "strict", "cause": "mapping"}),
    ("replay", {"open_on": "old", "route": "strict"}),
    ("replay", {"backfill": True, "open_on": "latest", "route": "strict"}),
    ("replay", {"state": "delivered", "route": "strict"}),
    ("cancel", {"state": "ready", "status": 503}),
    ("pause", {"destination": "crm"}),
    ("replay", {"route": "strikt"}),
]


def test_a_reason_has_a_letter_or_a_digit_of_any_script(steps: Steps) -> None:
    asking = "INSERT INTO relay_command (kind, reason) VALUES ('prune', '{}')"
    for reason in ("ä", "…a", "3", "理由", "-x-", "\N{PILE OF POO}"):
        assert says_why(reason)
        steps.do(asking.format(reason))
    for reason in ("", "   ", " \t\r\n ", "…", " -- ", "''…''", "\\ [%] $$ ;"):
        with pytest.raises(IntegrityError, match="reason"):
            steps.do(asking.format(reason))


def test_a_person_can_neither_end_a_command_by_sql_nor_continue_a_cancelled_one(steps: Steps) -> None:
    """As an operator may, who has the right to set the state alone."""
    steps.dead(1)
    number = insert_command(steps, "replay", {"everything": True})
    for state in ("done", "failed", "refused"):
        with pytest.raises(IntegrityError, match="only a relay ends a command"):
            steps.do(f"UPDATE relay_command SET state = '{state}'")
    steps.do("UPDATE relay_command SET state = 'cancelled'")
    with pytest.raises(IntegrityError, match="relay continue --command"):
        steps.do("UPDATE relay_command SET state = 'running'")
    turn(steps, "continue", number)
    assert work(steps) == 1


OF_U1 = {"source": "trivore", "entity_type": "USER", "entity_id": "u1"}
AGREED = (
    *("kind = 'cancel'", "asked_at = '2020-01-01 00:00:00Z'", "dry_run = true", "reason = 'another one'"),
    *("selection = '{\"everything\": true}'", "selection = '{}'", "asked_by = 'ann'"),
)


@pytest.mark.parametrize("state", ["asked", "cancelled", "done"])
def test_a_command_stays_as_agreed_also_when_it_ends_or_goes_on(steps: Steps, state: str) -> None:
    """A stopped one went on with another selection, if that was written meanwhile or at once."""
    insert_command(steps, "replay", {"route": "strict"})
    steps.do(f"UPDATE relay_command SET state = '{state}', finished_at = asked_at")
    more = {"asked": "state = 'done', ", "cancelled": "state = 'running', finished_at = NULL, ", "done": ""}
    for change in (further + change for further in ("", more[state]) for change in AGREED):
        with pytest.raises(IntegrityError, match="a command stays as it was asked"):
            steps.do(f"UPDATE relay_command SET {change}")


def test_an_ended_command_stays_as_it_is_but_erasure_may_take_names_out(steps: Steps) -> None:
    insert_command(steps, "replay", {"route": "strict", **OF_U1})
    steps.do("UPDATE relay_command SET state = 'done', answer = 'done', finished_at = asked_at")
    for state in ("asked", "running", "failed", "cancelled"):
        with pytest.raises(IntegrityError, match="a command that has ended stays as it is"):
            steps.do(f"UPDATE relay_command SET state = '{state}'")
    erased = {"route": "strict", **OF_U1, "entity_id": "erased:1f"}
    steps.do(f"UPDATE relay_command SET selection = '{json.dumps(erased)}', answer = NULL")
    assert as_json(command(steps, 1)["selection"]) == erased
    with pytest.raises(IntegrityError, match="a command stays as it was asked"):
        steps.do("UPDATE relay_command SET reason = 'erased'")


def test_a_person_cancels_an_open_command_by_sql(steps: Steps) -> None:
    steps.dead(1)
    number = insert_command(steps, "replay", {"everything": True})
    with pytest.raises(IntegrityError, match="cancel it first"):
        steps.do("DELETE FROM relay_command")
    steps.do("UPDATE relay_command SET state = 'cancelled'")
    assert work(steps) == 0
    assert the(steps, number) == ("cancelled", 0, "cancelled by hand")
    assert steps.rows("SELECT 1 FROM relay_command WHERE finished_at IS NOT NULL")
    steps.do("DELETE FROM relay_command")


def test_names_that_only_the_configuration_knows_are_refused_by_a_relay(steps: Steps) -> None:
    steps.dead(1)
    numbers = [insert_command(steps, kind, selection) for kind, selection in REFUSED_BY_A_RELAY]
    assert work_on(steps) == 0
    assert {came_to(steps, number) for number in numbers} == {("refused", 0)}
    assert [state for _, _, state in steps.states()] == ["dead"]


def test_one_that_cannot_be_understood_ends_alone_and_the_next_is_done(steps: Steps) -> None:
    """In a database that has other constraints."""
    drop_checks(steps.database.engine, "relay_command", "selection_is_readable", "kind")
    steps.dead(1)
    selections: tuple[object, ...] = ([], "a text", 7, None, {"route": "\ufffd"}, {"route": "x", "cause": "mapping"})
    bad = [insert_command(steps, "pause", selection) for selection in selections]
    worse = [insert_command(steps, "replay", selection) for selection in selections]
    good = insert_command(steps, "replay", {"cause": "mapping"})
    working = execution.OpenCommands()
    while commands.read_next_open(steps.database, after=0, most=1):
        working.work(steps.work)
    assert {the(steps, number)[0] for number in bad} <= {"failed", "refused"}
    assert {the(steps, number)[0] for number in worse} <= {"failed", "refused", "done"}
    assert came_to(steps, good) == ("done", 1)


def test_commands_that_wait_keep_no_other_waiting(steps: Steps) -> None:
    steps.dead(1)
    for _ in range(2 * execution.MOST_AT_ONCE):
        insert_command(steps, "cancel", {"route": "strict", "seq": 10_000})
    steps.do("UPDATE relay_command SET state = 'running'")
    last = insert_command(steps, "replay", {"cause": "mapping"})
    open_commands = execution.OpenCommands()
    for _ in range(4):
        open_commands.work(steps.work)
    assert came_to(steps, last) == ("done", 1)


def spoil(monkeypatch: pytest.MonkeyPatch, spoilt: int) -> None:
    """Let every change of this event's deliveries fail."""

    def find(
        transaction: Transaction, config: Config, keys: Sequence[Key], *, locked: bool = True
    ) -> list[OpenDelivery]:
        if any(seq == spoilt for seq, _ in keys):
            raise ValueError("odd")
        return reopen.find_open_or_ended(transaction, config, keys, locked=locked)

    monkeypatch.setattr(changes, "find_open_or_ended", find)


def test_a_gate_that_was_removed_from_the_configuration_can_be_resumed(steps: Steps) -> None:
    steps.pause(("destination", "old"))
    asked = [insert_command(steps, kind, {"destination": "old"}) for kind in ("pause", "resume", "resume")]
    work(steps)
    assert gates.read_closed_gates(steps.database) == []
    assert [the(steps, number)[0] for number in asked] == ["refused", "done", "refused"]


@pytest.fixture
def smaller(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lower the size of a batch, and the limit of open replays, to a tenth."""
    monkeypatch.setattr(tasks, "BATCH", 20)
    monkeypatch.setattr(changes, "MOST_OPEN", 100)


@pytest.mark.usefixtures("smaller")
def test_a_replay_of_a_mountain_keeps_a_part_of_it_open(steps: Steps) -> None:
    steps.dead(130)
    number = ask(steps, "replay", Selection(route="strict"))
    work_on(steps)
    states = [state for _, _, state in steps.states()]
    assert (states.count("ready"), states.count("dead")) == (100, 30)
    assert the(steps, number)[2] == "waits: 100 deliveries are due on route strict"
    steps.record_all(steps.claim_due(40))
    work_on(steps)
    assert the(steps, number) == ("done", 130, "130 deliveries replayed")
    steps.facts_agree()


@pytest.mark.usefixtures("smaller")
def test_a_replay_looks_at_no_delivery_twice_though_it_dies_again(steps: Steps) -> None:
    steps.dead(25)
    number = ask(steps, "replay", Selection(everything=True))
    assert work(steps) == 20
    steps.record_all(steps.claim_due(20), HOPELESS)
    assert [work(steps), work(steps)] == [5, 0]
    assert the(steps, number) == ("done", 25, "25 deliveries replayed")


def turn(steps: Steps, act: commands.CommandAct, number: int) -> None:
    commands.turn(steps.database, act, number, who="lee", why="wrong route")


@pytest.mark.usefixtures("smaller")
def test_one_that_is_stopped_stays_where_it_is_until_it_goes_on(steps: Steps) -> None:
    steps.dead(25)
    number = ask(steps, "cancel", Selection(route="strict"))
    work(steps)
    turn(steps, "stop", number)
    assert work(steps) == 0
    assert came_to(steps, number) == ("cancelled", 20)
    with pytest.raises(UnusableCommand, match="has ended and can't be stopped"):
        turn(steps, "stop", number)
    assert plan.plan(steps.database, steps.work.config, "stop", OneCommand(command=number), Bound(listed=1)).obstacle
    turn(steps, "continue", number)
    with pytest.raises(UnusableCommand, match="is running: only a stopped one can be continued"):
        turn(steps, "continue", number)
    assert [work(steps), work(steps)] == [5, 0]
    assert the(steps, number) == ("done", 25, "25 deliveries cancelled")


def test_one_that_dies_amid_a_batch_in_parts_replays_none_twice(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 9)))
    steps.attempt_each(*[DONE] * 8)
    spoil(monkeypatch, 4)
    number = ask(steps, "replay", Selection(route="strict", backfill=True))
    left = iter(range(5, -1, -1))  # the batch, it as a part, a half, 1 and 2, 3 and 4; now 3

    def dying(*arguments: Any, **named: Any) -> changes.Changed:  # noqa: ANN401  # passed through
        if next(left) == 0:
            raise KeyboardInterrupt
        return changes.change(*arguments, **named)

    with monkeypatch.context() as patch:
        patch.setattr(tasks, "change", dying)
        with pytest.raises(KeyboardInterrupt):
            execution.work_on(steps.work, number)
    while claimed := steps.claim_due(8, "strict"):
        steps.record_all(claimed, DONE)
    work_on(steps)
    assert sorted(seq for seq, kind in steps.kinds() if kind == "replayed") == [1, 2, 3, 5, 6, 7, 8]
    row = command(steps, number)
    assert [row[name] for name in ("affected", "failed", "progress_seq", "state")] == [7, 1, 8, "done"]


# --- A command that has to wait delays no other; dry runs change nothing


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
    steps.pause(*([gate] if gate else []))
    number = ask(steps, "replay", Selection(everything=True))
    work_on(steps)
    assert came_to(steps, number) == (("done", 6) if gate else ("running", 3))


@pytest.mark.usefixtures("few")
def test_replayed_deliveries_that_wait_for_a_later_attempt_keep_no_replay_waiting(steps: Steps) -> None:
    steps.dead(6)
    number = ask(steps, "replay", Selection(everything=True))
    work_on(steps)
    assert command(steps, number)["affected"] == 3
    steps.record_all(steps.claim_due(), UNWELL)
    work_on(steps)
    assert came_to(steps, number) == ("done", 6)


@pytest.mark.parametrize("kind", ["erase", "prune", "readmit", "sweep", "stop", "continue"])
def test_two_relays_do_each_step_of_a_command_once(steps: Steps, monkeypatch: pytest.MonkeyPatch, kind: Any) -> None:  # noqa: ANN401  # of a command
    acted = []

    def step_of(it: tasks.Working) -> tasks.Act:
        def act(_: Transaction, _now: datetime) -> commands.Command:
            acted.append(1)
            return it.command.after(progress=len(acted))

        return act

    def look(it: tasks.Working) -> tasks.Act:
        if not acted:  # the other relay looks, too, and is faster
            monkeypatch.setitem(tasks.TASKS, kind, step_of)
            execution.work_on(it.work, it.command.id)
        return step_of(it)

    monkeypatch.setitem(tasks.TASKS, kind, look)
    asked = {"erase": OF_U1, "readmit": {"everything": True}, "sweep": {"source": "trivore"}, "prune": {}}
    number = ask(steps, kind, asked.get(kind, {"command": 1}))
    execution.work_on(steps.work, number)
    assert (len(acted), command(steps, number)["progress_seq"]) == (1, 1)


@pytest.mark.parametrize(("act", "outcome"), [("cancel", None), ("retry", UNWELL), ("replay", HOPELESS)])
def test_an_event_that_arrives_after_a_command_was_asked_is_left_alone(steps: Steps, act: str, outcome: Any) -> None:  # noqa: ANN401  # of an attempt
    def arrive(number: int) -> None:
        steps.arrive(an_event(number, f"u{number}"))
        if outcome is not None:
            steps.record_all(steps.claim_due(), outcome)

    arrive(1)
    number = ask(steps, act, {"route": "strict"})
    arrive(2)
    before = steps.rows("SELECT * FROM open_delivery WHERE seq = 2")
    work_on(steps)
    assert came_to(steps, number) == ("done", 1)
    assert steps.rows("SELECT * FROM open_delivery WHERE seq = 2") == before


@ON_POSTGRES
def test_a_locked_route_stops_no_command_about_another(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict"]), an_event(2, "u2", routes=["latest"]))
    numbers = [ask(steps, "pause", Gate(route="latest")), ask(steps, "cancel", {"route": "latest"})]
    with lock_by_hand(steps.database.engine, "SELECT 1 FROM route_lock WHERE route = 'strict' FOR UPDATE"):
        work_on(steps)
        work_on(steps)
        assert [command(steps, number)["state"] for number in numbers] == ["done", "done"]


def test_a_command_that_meets_a_fault_keeps_none_behind_it_waiting_and_is_tried_again(steps: Steps) -> None:
    steps.arrive(an_event(1))
    numbers = [ask(steps, "pause", Gate(route="strict")), ask(steps, "cancel", Selection(seq=1))]
    clock = Monotonic()
    working = execution.OpenCommands(clock)

    def come_to(rounds: int = 1) -> list[str]:
        for _ in range(rounds):
            working.work(steps.work)
        return [command(steps, number)["state"] for number in numbers]

    steps.do("ALTER TABLE gate RENAME TO away")
    assert come_to(3) == ["asked", "done"]
    assert command(steps, numbers[0])["answer"].startswith("waits: ")
    steps.do("ALTER TABLE away RENAME TO gate")
    assert come_to() == ["asked", "done"]
    clock.seconds += execution.FAULTY_SECONDS
    assert come_to() == ["done", "done"]


@ON_POSTGRES
def test_a_batch_that_waits_for_a_locked_row_is_split_so_that_all_before_it_is_done(steps: Steps) -> None:
    steps.dead(6)
    number = ask(steps, "replay", Selection(route="strict"))
    with lock_by_hand(steps.database.engine, "SELECT 1 FROM open_delivery WHERE seq = 4 FOR UPDATE"):
        work(steps)
        assert [state for _, _, state in steps.states()] == ["ready"] * 3 + ["dead"] * 3
        assert command(steps, number)["answer"].startswith("waits: ")
    work_on(steps)
    assert came_to(steps, number) == ("done", 6)


# --- Readmission by a command: step by step, by any relay, and one bad request stops no other


def a_rejected(content: bytes | None = None, source: str = "trivore") -> Rejected:
    headers = {"content-type": "application/json"}
    return Rejected(START, source, 422, "invalid_event", "no version", None, None, b"\0" * 32, headers, content)


def a_body(number: int) -> bytes:
    return body(f"u{number}", f"2026-01-01T00:00:{number:02d}Z")


def readmit_all(steps: Steps, selection: dict[str, object], *, dry_run: bool = False) -> Row:
    """Readmit these requests; return the row of the finished command."""
    number = ask(steps, "readmit", selection, dry_run=dry_run)
    while command(steps, number)["finished_at"] is None:
        execution.work_on(steps.work, number)
    return command(steps, number)


def seqs(steps: Steps) -> list[int | None]:
    return [row["readmitted_seq"] for row in steps.rows("SELECT readmitted_seq FROM rejected_request ORDER BY id")]


def test_more_requests_than_a_step_takes_are_all_readmitted(steps: Steps) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(45)))
    assert readmit_all(steps, {"cause": "invalid_event"})["affected"] == 45
    assert None not in seqs(steps)
    steps.sequence()
    assert len(steps.states()) > 0
    (row,) = steps.rows("SELECT readmitted_at, readmitted_by, readmit_reason FROM rejected_request WHERE id = 7")
    assert (as_time(row["readmitted_at"]), row["readmitted_by"], row["readmit_reason"]) == (START, "kim", "mended")


def test_a_step_ends_with_the_request_that_has_used_its_bytes(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readmit, "BYTES_AT_A_TIME", len(a_body(1)) + 1)
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(3)))
    asked = Rejections(everything=True)
    assert [each.id for each in readmit.read_again(steps.database, {}, asked, 0)] == [1, 2]
    assert [each.id for each in readmit.read_again(steps.database, {}, asked, 2)] == [3]


def test_one_that_the_database_rejects_stops_no_other(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.intake.reject(*(a_rejected(a_body(n)) for n in range(1, 4)))
    append = intake.append

    def failing(connection: Connection, events: Sequence[Event]) -> list[int | None]:
        if any(event.entity_id == "u2" for event in events):
            raise ValueError("u2 can't be stored")
        return append(connection, events)

    monkeypatch.setattr(intake, "append", failing)
    row = readmit_all(steps, {"source": "trivore"})
    assert (row["affected"], row["failed"]) == (2, 1)
    assert [seq is None for seq in seqs(steps)] == [False, True, False]
