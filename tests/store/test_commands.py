"""Commands: what an operator asks for by SQL or the command line, batch by batch, by whichever process gets to it."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import text

from relay.gates import Gate
from relay.outcome import Delivered, Failed
from relay.store import commands, gates
from relay.store.claim import claim
from relay.store.commands import MOST_OPEN
from relay.store.record import record
from relay.store.selection import Choice, Selection
from tests.store.conftest import POLICIES, Steps, an_event
from tests.store.test_replay import CONFIG

DONE = Delivered((), "forwarded")
HOPELESS = Failed((), "mapping", "email: no value")


def fill_with_dead(steps: Steps, number: int) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, min(number, 500) + 1)))
    for start in range(501, number + 1, 500):
        steps.arrive(*(an_event(n, f"u{n}") for n in range(start, min(start + 500, number + 1))))
    while claimed := claim(steps.database, "r1", [(["strict"], 500)]):
        record(steps.database, POLICIES, "r1", [(delivery, HOPELESS) for delivery in claimed])


def by_sql(steps: Steps, kind: str, selection: object) -> int:
    with steps.database.write() as transaction:
        value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
        statement = f"""
INSERT INTO relay_command (kind, selection, reason, asked_by, asked_at)
VALUES ('{kind}', {value}, 'the CRM is back', 'dba', CURRENT_TIMESTAMP) RETURNING id"""
        (row,) = transaction.execute(text(statement), selection=json.dumps(selection))
        return int(row.id)


def the(steps: Steps, number: int) -> tuple[str, int, str | None]:
    progress = commands.progress(steps.database, number)
    assert progress is not None
    return progress.state, progress.affected, progress.answer


def work(steps: Steps) -> int:
    return commands.work_on_open(steps.database, CONFIG)


def test_what_a_dba_writes_into_the_table_is_done_and_answered(steps: Steps) -> None:
    fill_with_dead(steps, 3)
    number = by_sql(steps, "replay", {"cause": "mapping"})
    assert commands.any_open(steps.database)
    assert [work(steps), work(steps)] == [3, 0]
    assert the(steps, number) == ("done", 3, "done")
    assert not commands.any_open(steps.database)
    facts = steps.rows("SELECT detail FROM delivery_log WHERE kind = 'replayed'")
    assert [row["detail"] for row in facts] == [{"who": "dba", "why": "the CRM is back"}] * 3
    (row,) = steps.rows("SELECT finished_at FROM relay_command")
    assert row["finished_at"] is not None


@pytest.mark.parametrize(
    ("kind", "selection", "answer"),
    [
        ("replay", {"rout": "strict"}, "not understood"),
        ("replay", {"seq": "seven"}, "not understood"),
        ("replay", [1], "not understood"),
        ("sweep", {}, "not understood"),
        ("cancel", {}, "name what is to be cancelled"),
        ("cancel", {"force": True}, "name what is to be cancelled"),
        ("unblock", {"everything": True}, "only a replay"),
        ("replay", {"everything": True}, "everything of which route?"),
        ("replay", {"everything": True, "route": "strict", "cause": "mapping"}, "leave those out"),
        ("pause", {"destination": "crm"}, "no destination 'crm' is configured"),
        ("pause", {}, "name one of"),
        ("resume", {"rout": "strict"}, "not understood"),
    ],
)
def test_what_is_not_understood_fails_with_the_reason_and_changes_nothing(
    steps: Steps, kind: str, selection: object, answer: str
) -> None:
    fill_with_dead(steps, 1)
    number = by_sql(steps, kind, selection)
    assert work(steps) == 0
    state, affected, told = the(steps, number)
    assert (state, affected) == ("failed", 0)
    assert answer in str(told)
    assert [state for _, _, state in steps.states()] == ["dead"]


def test_pause_and_resume_by_sql(steps: Steps) -> None:
    paused = by_sql(steps, "pause", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    work(steps)
    assert the(steps, paused) == ("done", 0, "paused")
    assert gates.read_gates(steps.database).paused_entities == (("trivore", "USER", "u1"),)
    by_sql(steps, "resume", {"source": "trivore", "entity_type": "USER", "entity_id": "u1"})
    again = by_sql(steps, "resume", {"route": "strict"})
    work(steps)
    assert gates.read_gates(steps.database).paused == frozenset()
    assert the(steps, again)[2] == "nothing was held back"


def test_a_replay_of_a_mountain_keeps_a_thousand_of_it_open(steps: Steps) -> None:
    fill_with_dead(steps, 1300)
    number = commands.ask(steps.database, "replay", Selection(route="strict"), who="kim", why="mended")
    while work(steps):
        pass
    states = [state for _, _, state in steps.states()]
    assert (states.count("ready"), states.count("dead")) == (MOST_OPEN, 300)
    assert the(steps, number)[2] == "waits: 1000 replayed deliveries are open"
    done = claim(steps.database, "r1", [(["strict"], 400)])
    record(steps.database, POLICIES, "r1", [(delivery, DONE) for delivery in done])
    while work(steps):
        pass
    assert the(steps, number) == ("done", 1300, "done")
    steps.facts_agree()


def test_a_replay_looks_at_no_delivery_twice_though_it_dies_again(steps: Steps) -> None:
    fill_with_dead(steps, 250)
    number = commands.ask(steps.database, "replay", Selection(), who="kim", why="mended")
    assert commands.work_on(steps.database, CONFIG, number) == 200
    for delivery in claim(steps.database, "r1", [(["strict"], 200)]):
        record(steps.database, POLICIES, "r1", [(delivery, HOPELESS)])
    assert commands.work_on(steps.database, CONFIG, number) == 50
    assert commands.work_on(steps.database, CONFIG, number) == 0
    assert the(steps, number) == ("done", 250, "done")


def test_one_that_is_stopped_stays_where_it_is_until_it_goes_on(steps: Steps) -> None:
    fill_with_dead(steps, 250)
    number = commands.ask(steps.database, "cancel", Selection(route="strict"), who="kim", why="switched off")
    work(steps)
    commands.stop(steps.database, number)
    assert work(steps) == 0
    assert the(steps, number)[:2] == ("cancelled", 200)
    assert commands.go_on(steps.database, number)
    assert not commands.go_on(steps.database, number)
    assert work(steps) == 50
    work(steps)
    assert the(steps, number) == ("done", 250, "done")


def test_all_of_an_event_is_in_one_batch(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "BATCH", 2)
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
    planned = commands.plan(steps.database, Choice("replay", Selection(), CONFIG), 5)
    assert (planned.count, len(planned.sample), planned.overtaken) == (7, 5, 7)
    forced = commands.plan(steps.database, Choice("replay", Selection(force=True), CONFIG), None)
    assert (forced.count, len(forced.sample), forced.overtaken) == (7, 7, 0)


def test_a_pause_by_the_command_line_is_a_command_too(steps: Steps) -> None:
    number = commands.ask(steps.database, "pause", Gate(route="strict"), who="kim", why="maintenance")
    commands.work_on(steps.database, CONFIG, number)
    (row,) = steps.rows("SELECT kind, reason, asked_by, state FROM relay_command")
    assert row == {
        "kind": "pause",
        "reason": "maintenance",
        "asked_by": "kim",
        "state": "done",
    }
