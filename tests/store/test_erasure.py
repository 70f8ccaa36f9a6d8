"""An erasure takes every trace of an entity out of every table, and leaves order, deduplication and the log as they were."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, Literal, get_args

import msgspec
import pytest
from sqlalchemy import Engine, Executable, LargeBinary, Text, text, update
from sqlalchemy.exc import DBAPIError

from inbox.db import erasure
from inbox.db.columns import JsonValue, TextList
from inbox.db.dialect import as_json
from inbox.db.erasure import (
    EMPTIED,
    ERASED,
    KEPT,
    ErasureSubject,
    emptied,
    plan,
)
from inbox.db.schema import delivery_log, inbox, metadata
from relay.delivery import facts
from relay.store.database import Database
from relay.store.operator import commands
from relay.store.operator.commands import Command
from tests.core.test_lifecycle import EXAMPLES
from tests.helpers import commanding
from tests.helpers.person import BODY, ID, OTHER, PERSON, contents, live, of_person, traces_in
from tests.helpers.relaying import CONFIG, HOPELESS, Steps, work_of
from tests.helpers.storing import START
from tests.store.verifying import differences, mend

TEXTS = (Text, LargeBinary, type(JsonValue), type(TextList))


Decision = Literal["kept", "pseudonym", "emptied", "deleted", "retained"]
"""kept: it never says anything of a person. pseudonym, emptied, deleted: in the rows of the erased events, their lanes and
commands. retained: senders or people wrote it, and it stays until its retention."""

DECISIONS: Mapping[str, Mapping[str, Decision]] = {
    "inbox": {
        "source": "kept",
        "dedup_key": "kept",  # has a digest in place of the id: `inbox.events.event.dedup_key`
        "entity_type": "kept",
        "entity_id": "pseudonym",
        "event_type": "kept",
        "action": "kept",
        "event_id": "emptied",
        "routes": "kept",
        "content_type": "kept",
        "body_sha256": "kept",  # proves which body it was, to somebody who has it
        "traceparent": "emptied",
    },
    "inbox_payload": {"headers": "deleted", "body": "deleted"},
    "duplicate_request": {"body_sha256": "kept", "body": "emptied", "error": "emptied"},
    "rejected_request": {
        "source": "kept",
        "cause": "kept",
        "reason": "retained",
        "field": "retained",
        "remote_address": "retained",
        "headers": "retained",
        "body_sha256": "kept",
        "body": "retained",
        "readmitted_by": "kept",  # an operator
        "readmit_reason": "retained",
    },
    "open_delivery": {
        "route": "kept",
        "lane": "kept",
        "state": "kept",
        "relay_node": "kept",
    },  # an erased event has none
    "lane": {
        "route": "kept",
        "lane": "pseudonym",
        "applied_hash": "emptied",
    },
    "route_lock": {"route": "kept"},
    "delivery_log": {"route": "kept", "kind": "kept", "state": "kept", "relay_node": "kept", "detail": "emptied"},
    "relay_node": {
        "id": "kept",
        "host": "kept",
        "version": "kept",
        "failing": "retained",
        "routes": "kept",
        "config_hash": "kept",
    },
    "gate": {
        "kind": "kept",
        "name": "deleted",  # the row of the entity; every other one is of the configuration
        "paused_by": "kept",  # an operator
        "pause_reason": "retained",
        "breaker": "kept",
        "breaker_cause": "retained",
        "hold_reason": "retained",
    },
    "relay_command": {
        "kind": "kept",
        "selection": "pseudonym",
        "reason": "retained",
        "asked_by": "kept",  # an operator
        "state": "kept",
        "sample": "emptied",
        "answer": "retained",
        "error": "retained",
    },
    "alert": {"kind": "kept", "subject": "retained", "detail": "retained", "error": "retained"},
    "pruner": {"held_by": "kept"},  # a relay, or an operator
    "pruning": {"kind": "kept", "error": "retained"},
    "payload_reveal": {"who": "kept", "reason": "retained"},  # an operator or viewer
    "throughput_minute": {"kind": "kept", "name": "kept", "outcome": "kept"},
    "sweep_watermark": {"source": "kept", "entity_type": "kept", "error": "retained", "relay_node": "kept"},
}


def erase(engine: Engine, heard: Callable[[], None] = lambda: None, subject: ErasureSubject = PERSON) -> Command:
    return commanding.erase(engine, CONFIG, subject, heard=heard)[1]


@pytest.fixture
def lived(steps: Steps) -> Steps:
    live(steps)
    return steps


def of_others(engine: Engine) -> dict[str, list[str]]:
    """The rows of the other entity, and of tables that an erasure leaves alone."""
    found = contents(engine)
    return {table: [row for row in rows if OTHER in row] for table, rows in found.items()} | {
        table: found[table] for table in ("open_delivery", "order_lock", "payload_lock", "write_probe")
    }


def test_every_column_that_can_hold_a_text_is_decided() -> None:
    there = {
        table.name: {column.name for column in table.c if isinstance(column.type, TEXTS)}
        for table in metadata.sorted_tables
    }
    decided = {table: set(columns) for table, columns in DECISIONS.items()}
    assert decided == {table: columns for table, columns in there.items() if columns}


@pytest.mark.usefixtures("lived")
def test_the_person_is_in_these_tables_before_and_in_none_afterwards(engine: Engine) -> None:
    before = {table for table, _ in traces_in(engine)}
    assert before == {
        "delivery_log", "duplicate_request", "gate", "inbox", "inbox_payload", "lane", "relay_command",
    }  # fmt: skip
    done = erase(engine)
    assert (done.state, done.affected) == ("done", 5)
    assert traces_in(engine) == []


def test_the_other_stays_as_it_was(lived: Steps, engine: Engine) -> None:
    before = of_others(engine)
    erase(engine)
    assert of_others(engine) == before
    assert lived.states() == [(8, "strict", "ready")]


def test_verify_finds_nothing_and_rebuild_changes_nothing(lived: Steps, database: Database, engine: Engine) -> None:
    assert differences(database) == []
    erase(engine)
    assert differences(database) == []
    lived.facts_agree()
    before = contents(engine)
    assert mend(database) == []
    assert contents(engine) == before


def test_states_and_attempts_stay_in_the_views(lived: Steps, engine: Engine) -> None:
    shown = (
        "SELECT seq, route, state, attempts, last_fact, superseded_by, occurred_at FROM delivery ORDER BY seq, route"
    )
    before = lived.rows(shown)
    erase(engine)
    assert lived.rows(shown) == before


def test_a_fact_of_each_delivery_says_who_and_why_and_nothing_of_the_person(lived: Steps, engine: Engine) -> None:
    erase(engine)
    said = lived.rows("SELECT seq, route, detail FROM delivery_log WHERE kind = 'erased' ORDER BY seq, route")
    assert {(row["seq"], row["route"]) for row in said} == {
        (seq, route) for seq in range(1, 5) for route in ("strict", "latest")
    }
    assert {json.dumps(row["detail"]) for row in said} == {json.dumps({"who": "kim", "why": "request 2026-17"})}


def test_a_row_of_relay_command_is_the_record_of_it(lived: Steps, engine: Engine) -> None:
    number, _ = commanding.erase(engine, CONFIG, PERSON)
    (row,) = lived.rows("SELECT * FROM relay_command WHERE id = :id", id=number)
    assert (row["kind"], row["state"], row["answer"], row["affected"]) == ("erase", "done", "5 events erased", 5)
    assert (row["asked_by"], row["reason"], as_json(row["selection"])["entity_id"]) == (
        "kim",
        "request 2026-17",
        PERSON.pseudonym,
    )


def test_one_pseudonym_keeps_the_events_of_the_entity_together_and_in_order(lived: Steps, engine: Engine) -> None:
    before = lived.rows("SELECT seq, occurred_at, dedup_key, body_sha256 FROM inbox ORDER BY seq")
    erase(engine)
    assert lived.rows("SELECT seq, occurred_at, dedup_key, body_sha256 FROM inbox ORDER BY seq") == before
    erased = lived.rows("SELECT seq FROM inbox WHERE entity_id = :id ORDER BY occurred_at, seq", id=PERSON.pseudonym)
    assert [row["seq"] for row in erased] == [1, 2, 3, 4, 7]


def test_the_senders_repeat_is_a_duplicate_and_stores_nothing_of_the_person(lived: Steps, engine: Engine) -> None:
    erase(engine)
    other_body = msgspec.structs.replace(of_person(3), body=BODY + b" ", body_sha256=b"\x09" * 32)
    for event in (of_person(3), other_body):
        assert lived.receive(event) == [None]
        assert lived.intake.repeat(event) == [3]
    repeats = lived.rows("SELECT seq, body FROM duplicate_request WHERE seq = 3")
    assert repeats == [{"seq": 3, "body": None}, {"seq": 3, "body": None}]
    assert traces_in(engine) == []


def test_a_repeat_makes_no_delivery_again(lived: Steps, database: Database, engine: Engine) -> None:
    from relay.store.duplicates import judge_duplicates  # noqa: PLC0415

    erase(engine)
    lived.intake.repeat(of_person(4))
    judged = judge_duplicates(work_of(database, lived.policies))
    assert (judged.handled > 0, judged.rearmed) == (True, 0)


def test_later_events_of_the_entity_are_new_data_and_can_be_erased_again(
    lived: Steps, engine: Engine, database: Database
) -> None:
    erase(engine)
    lived.arrive(of_person(20))
    assert [seq for seq, _, _ in lived.states()] == [8, 9, 9]
    assert erase(engine).state == "refused"
    for route in ("strict", "latest"):
        lived.record_all(lived.claim_due(100, route))
    assert erase(engine).affected == 1
    assert traces_in(engine) == []
    assert differences(database) == []


def test_nothing_is_erased_while_something_of_it_is_open(steps: Steps, engine: Engine) -> None:
    steps.arrive(of_person(1, "blocking"))
    before = contents(engine)
    for state in ("ready", "in_flight", "blocked"):
        assert f"which is {state}" in str(plan(engine, PERSON).obstacle)
        done = erase(engine)
        assert (done.state, done.affected, f"which is {state}" in str(done.answer)) == ("refused", 0, True)
        if state == "ready":
            claimed = steps.claim_due(1)
        elif state == "in_flight":
            steps.record_all(claimed, HOPELESS)
    kept = {table: rows for table, rows in contents(engine).items() if table in {"inbox", "inbox_payload"}}
    assert kept == {table: before[table] for table in kept}
    (refusal,) = steps.rows("SELECT DISTINCT state, answer FROM relay_command WHERE answer LIKE '%blocked%'")
    assert refusal["state"] == "refused"


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 1)


class Interrupted(Exception):
    pass


@pytest.mark.usefixtures("one_by_one")
def test_an_erasure_that_was_cut_off_goes_on_where_it_was(lived: Steps, engine: Engine, database: Database) -> None:
    steps_done = 0

    def cut_off() -> None:
        raise Interrupted

    def checked() -> None:
        nonlocal steps_done
        steps_done += 1
        assert differences(database) == []

    asked = {"source": PERSON.source, "entity_type": PERSON.entity_type, "entity_id": PERSON.entity_id}
    number = commands.ask(database, "erase", asked, who="kim", why="request 2026-17")
    for left in (4, 3):
        with pytest.raises(Interrupted):
            commanding.erase(engine, CONFIG, PERSON, heard=cut_off, number=number)
        assert plan(engine, PERSON).counts["events"] == left
        of_erased = "SELECT d.body FROM duplicate_request d JOIN inbox i ON i.seq = d.seq WHERE i.erased_at IS NOT NULL"
        assert {row["body"] for row in lived.rows(of_erased)} == {None}
        assert differences(database) == []
    commanding.erase(engine, CONFIG, PERSON, heard=checked, number=number)
    assert steps_done >= 3
    assert traces_in(engine) == []
    assert len(lived.rows("SELECT 1 FROM delivery_log WHERE kind = 'erased'")) == 8


def test_a_duplicate_that_was_stored_while_its_event_was_erased_keeps_no_body(lived: Steps, engine: Engine) -> None:
    stored = iter(["UPDATE duplicate_request SET body = 'maria.meier@example.com'"])
    assert erase(engine, lambda: lived.do(*stored)).state == "done"
    assert traces_in(engine) == []


def test_an_entity_that_is_called_like_a_pseudonym_is_another_one(lived: Steps, engine: Engine) -> None:
    erase(engine)
    before = lived.rows("SELECT * FROM inbox ORDER BY seq")
    namesake = ErasureSubject(PERSON.source, PERSON.entity_type, PERSON.pseudonym)
    assert plan(engine, namesake).counts["events"] == 0
    assert erase(engine, subject=namesake).affected == 0
    assert lived.rows("SELECT * FROM inbox ORDER BY seq") == before


@pytest.mark.usefixtures("one_by_one")
def test_an_event_that_arrives_between_plan_and_act_stops_it_and_is_said(lived: Steps, engine: Engine) -> None:
    arrived = iter([of_person(30)])

    def arrives() -> None:
        for event in arrived:
            lived.arrive(event)

    done = erase(engine, arrives)
    assert (done.state, done.affected, "seq 9" in str(done.answer)) == ("refused", 5, True)
    lived.do("DELETE FROM gate WHERE kind = 'entity'")  # it is paused
    for route in ("strict", "latest"):
        lived.record_all(lived.claim_due(100, route))
    assert erase(engine).state == "done"
    assert traces_in(engine) == []


def test_a_plan_counts_what_goes(lived: Steps, engine: Engine) -> None:
    planned = plan(engine, PERSON)
    facts = len(lived.rows("SELECT 1 FROM delivery_log WHERE seq IN (1, 2, 3, 4)"))
    assert planned.counts == {
        "events": 5, "payloads": 5, "facts": facts, "duplicate requests": 2, "lanes": 2, "pauses": 1,
    }  # fmt: skip
    assert (planned.obstacle, planned.erased_before) == (None, 0)
    erase(engine)
    again = plan(engine, PERSON)
    assert (set(again.counts.values()), again.erased_before) == ({0}, 5)
    assert plan(engine, ErasureSubject("trivore", "USER", "idnumber4711")).counts["events"] == 0


@pytest.mark.parametrize("fact", EXAMPLES.values(), ids=[step.value for step in EXAMPLES])
def test_an_emptied_fact_can_be_read_and_leads_to_the_same_state(engine: Engine, fact: facts.AnyFact) -> None:
    detail = json.dumps(as_json(msgspec.json.encode({**facts.detail_of(fact), "calls": [1]}).decode()))
    given = ":detail" if engine.dialect.name == "sqlite" else "CAST(:detail AS jsonb)"
    with engine.connect() as connection:
        once = f"(SELECT {emptied(engine.dialect.name, 'd.detail')} AS detail FROM (SELECT {given} AS detail) d)"
        left, twice = connection.execute(
            text(f"SELECT e.detail, {emptied(engine.dialect.name, 'e.detail')} FROM {once} e"), {"detail": detail}
        ).one()
    assert as_json(left) == as_json(twice)
    known = facts.decode(facts.kind_of(fact), json.dumps(as_json(left)))
    texts = {name: ERASED for name in EMPTIED if getattr(fact, name, None) is not None}
    assert known == msgspec.structs.replace(fact, **texts)


def test_every_field_of_a_fact_is_kept_or_emptied_or_goes() -> None:
    fields = {name for fact in get_args(facts.AnyFact) for name in fact.__struct_fields__}
    assert fields - set(KEPT) - set(EMPTIED) == {"calls", "applied_hash"}
    assert set(KEPT) | set(EMPTIED) <= fields


ERASING = {"entity_id": PERSON.pseudonym, "event_id": None, "traceparent": None, "erased_at": START}
"""An erasure's change of an event."""


@pytest.mark.parametrize(
    "changed",
    [
        {"entity_id": "u2"},
        {"entity_id": None},
        {"entity_id": "erased:" + "x" * 64},
        {"entity_id": PERSON.pseudonym + "0"},
        {"event_id": "another"},
        {"traceparent": "00-1"},
        {"erased_at": None},
        {"dedup_key": "another"},
        {"entity_type": "GROUP"},
        {"occurred_at": START},
        {"received_at": START + timedelta(days=1)},
        {"routes": ["other"]},
        {"source": "other"},
        {"body_bytes": 1},
        {"body_sha256": b"1"},
    ],
    ids=str,
)
@pytest.mark.usefixtures("lived")
def test_no_other_change_of_an_event_passes_for_an_erasure(engine: Engine, changed: dict[str, Any]) -> None:
    refused(engine, update(inbox).where(inbox.c.seq == 1).values({**ERASING, **changed}))
    refused(engine, update(inbox).where(inbox.c.seq == 8).values(ERASING))  # its delivery is open
    with engine.begin() as connection:
        connection.execute(update(inbox).where(inbox.c.seq == 1).values(ERASING))
    refused(engine, update(inbox).where(inbox.c.seq == 1).values({"erased_at": None}))
    refused(engine, update(inbox).where(inbox.c.seq == 1).values({"entity_id": ID}))


def test_only_facts_of_an_erased_event_change_and_only_by_being_emptied(lived: Steps, engine: Engine) -> None:
    of_event = delivery_log.c.seq == 1
    emptying = (
        update(delivery_log).where(of_event).values(detail=text(emptied(engine.dialect.name, "delivery_log.detail")))
    )
    refused(engine, emptying)
    with engine.begin() as connection:
        connection.execute(update(inbox).where(inbox.c.seq == 1).values(ERASING))
    others: list[dict[str, Any]] = [{"detail": {}}, {"detail": {"did": "updated"}}, {"kind": "dead"}, {"attempt": 7}]
    for changed in others:
        refused(engine, update(delivery_log).where(of_event).values(changed))
    refused(engine, emptying.values(attempt=7))
    with engine.begin() as connection:
        connection.execute(emptying)
    assert ID not in str([row["detail"] for row in lived.rows("SELECT detail FROM delivery_log WHERE seq = 1")])


def refused(engine: Engine, statement: Executable) -> None:
    before = contents(engine)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(statement)
    assert contents(engine) == before
