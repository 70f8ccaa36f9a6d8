"""A row of `relay_command` that asks for an erasure: relays do it, plan it, or refuse it with a remedy."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db import erasure
from inbox.db.dialect import as_json
from relay.store.operator import execution, plan
from tests.helpers.person import ID, PERSON, contents, live, of_person, traces_in
from tests.helpers.relaying import Steps

OF_PERSON = {"source": "trivore", "entity_type": "USER", "entity_id": ID}


def ask(steps: Steps, selection: dict[str, Any], reason: str = "request 2026-17", *, dry_run: bool = False) -> int:
    value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
    statement = f"""
INSERT INTO relay_command (kind, selection, reason, dry_run) VALUES ('erase', {value}, :reason, :dry_run) RETURNING id"""
    with steps.database.write() as transaction:
        given = {"selection": json.dumps(selection), "reason": reason, "dry_run": dry_run}
        return int(transaction.execute(text(statement), **given)[0].id)


def answered(steps: Steps, number: int) -> dict[str, Any]:
    """Do its steps, and return its row."""
    for _ in range(50):
        execution.work_on(steps.work, number)
        (row,) = steps.rows("SELECT * FROM relay_command WHERE id = :id", id=number)
        if row["state"] not in {"asked", "running"}:
            return row
    raise AssertionError(row)


def test_relays_do_it_step_by_step(steps: Steps, engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 2)
    live(steps)
    number = ask(steps, OF_PERSON)
    assert [execution.work_on(steps.work, number) for _ in range(3)] == [2, 2, 1]
    row = answered(steps, number)
    assert (row["state"], row["answer"], row["affected"]) == ("done", "5 events erased", 5)
    assert as_json(row["selection"]) == {**OF_PERSON, "entity_id": PERSON.pseudonym}
    assert traces_in(engine) == []
    said = steps.rows("SELECT DISTINCT detail FROM delivery_log WHERE kind = 'erased'")
    assert [fact["detail"] for fact in said] == [{"who": row["asked_by"], "why": "request 2026-17"}]


def test_events_with_many_facts_are_erased_fewer_at_a_time(
    steps: Steps, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Deliveries wait for the lock of a step."""
    live(steps)
    most = max(row["n"] for row in steps.rows("SELECT count(*) AS n FROM delivery_log GROUP BY seq"))
    monkeypatch.setattr(erasure, "FACTS_OF_A_STEP", most - 1)
    number = ask(steps, OF_PERSON)
    assert 1 <= execution.work_on(steps.work, number) < 5
    assert answered(steps, number)["affected"] == 5
    assert traces_in(engine) == []


def test_a_dry_run_counts_and_changes_nothing(steps: Steps, engine: Engine) -> None:
    live(steps)
    before = {table: rows for table, rows in contents(engine).items() if table != "relay_command"}
    row = answered(steps, ask(steps, OF_PERSON, dry_run=True))
    assert (row["state"], row["matched"], row["answer"]) == ("done", 5, "dry run: 5 events would be erased")
    sample = as_json(row["sample"])
    counts = {figure["name"]: figure["count"] for figure in sample["figures"]}
    assert counts["payloads"] == 5
    assert ID not in json.dumps(sample)
    assert {table: rows for table, rows in contents(engine).items() if table != "relay_command"} == before


@pytest.mark.parametrize(
    ("selection", "reason", "answer"),
    [
        ({**OF_PERSON, "source": "trivor"}, "asked", "there is no source 'trivor'; did you mean 'trivore'?"),
        (
            {**OF_PERSON, "entity_id": "IDNUMBER471"},
            "asked",
            "nothing to erase: type and id are compared letter by letter",
        ),
        (OF_PERSON, f"{ID} asked", "the reason names the entity"),
    ],
)
def test_nonsense_is_refused_with_what_would_be_right(
    steps: Steps, selection: dict[str, Any], reason: str, answer: str
) -> None:
    live(steps)
    row = answered(steps, ask(steps, selection, reason))
    assert row["state"] == "refused"
    assert row["answer"].startswith(answer)


def test_open_deliveries_refuse_it_and_nothing_is_changed(steps: Steps, engine: Engine) -> None:
    steps.arrive(of_person(1))
    before = {table: rows for table, rows in contents(engine).items() if table != "relay_command"}
    row = answered(steps, ask(steps, OF_PERSON))
    assert row["state"] == "refused"
    assert row["answer"].startswith(
        "its deliveries have to end first, such as seq 1 on route latest, which is ready: cancel"
    )
    assert {table: rows for table, rows in contents(engine).items() if table != "relay_command"} == before


def test_a_later_erasure_takes_refused_ones_along(steps: Steps, engine: Engine) -> None:
    steps.arrive(of_person(1))
    answered(steps, ask(steps, OF_PERSON))
    for route in ("strict", "latest"):
        steps.record_all(steps.claim_due(100, route))
    assert answered(steps, ask(steps, OF_PERSON))["state"] == "done"
    assert traces_in(engine) == []
    assert PERSON.pseudonym in str(contents(engine)["inbox"])


def test_a_relay_counts_a_part_of_many_events_and_finds_an_open_delivery_of_any(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A relay plans and delivers in the same thread."""
    monkeypatch.setattr(erasure, "COUNTED_EVENTS", 2)
    steps.receive(of_person(1), *(msgspec.structs.replace(of_person(n), enrolments=()) for n in (2, 3, 4)))
    row = answered(steps, ask(steps, OF_PERSON))
    assert row["answer"].startswith("its deliveries have to end first, such as seq 1 on route latest")
    steps.do("DELETE FROM open_delivery")
    row = answered(steps, ask(steps, OF_PERSON, dry_run=True))
    assert (row["matched"], row["answer"]) == (2, f"dry run: at least 2 events would be erased. {plan._OF_NEWEST}")
    assert answered(steps, ask(steps, OF_PERSON))["affected"] == 4
