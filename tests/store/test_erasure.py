"""An erasure takes every trace of an entity out of every table and file, and leaves order, deduplication and the log."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from collections.abc import Callable, Iterable
from contextlib import closing
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from sqlalchemy import Engine, Executable, LargeBinary, Text, text, update
from sqlalchemy.exc import DBAPIError

from inbox.db import erasure
from inbox.db.columns import JsonValue, TextList
from inbox.db.dialect import as_json
from inbox.db.erasure import EMPTIED, ERASED, KEPT, plan, redact_detail
from inbox.db.schema import delivery_log, inbox, metadata
from relay.delivery import facts
from relay.store.database import Database
from relay.store.operator import commands, execution
from relay.store.operator.commands import Command
from tests.core.test_lifecycle import EXAMPLES
from tests.helpers import relaying
from tests.helpers.agreement import decode
from tests.helpers.databases import ON_POSTGRES, ON_SQLITE
from tests.helpers.planted import BODY, ID, OTHER, PERSON, TRACES, contents, live, make_personal_event, traces_in
from tests.helpers.relaying import CONFIG, DONE, Steps
from tests.helpers.storing import START, an_event
from tests.store.conftest import differences, mend

# --- An erasure takes every trace of an entity out of every table, and leaves order, deduplication and the log as they were


TEXTS = (Text, LargeBinary, type(JsonValue), type(TextList))


DECISIONS = {
    "never of a person": """
        inbox.source inbox.dedup_key inbox.entity_type inbox.event_type inbox.action inbox.routes inbox.content_type
        inbox.body_sha256 duplicate_request.body_sha256 rejected_request.source rejected_request.cause
        rejected_request.body_sha256 rejected_request.readmitted_by open_delivery.route open_delivery.lane open_delivery.state
        open_delivery.relay_node lane.route route_lock.route delivery_log.route delivery_log.kind delivery_log.state
        delivery_log.relay_node relay_node.id relay_node.host relay_node.version relay_node.routes relay_node.config_hash
        gate.kind gate.paused_by gate.breaker relay_command.kind relay_command.asked_by relay_command.state alert.kind
        pruner.held_by pruning.kind payload_reveal.who throughput_minute.kind throughput_minute.name throughput_minute.outcome
        sweep_watermark.source sweep_watermark.entity_type sweep_watermark.relay_node route_failure.route route_failure.kind
        route_failure.name
    """,
    "in the rows of erased events and their lanes": """
        inbox.entity_id inbox.event_id inbox.traceparent inbox_payload.headers inbox_payload.body edited_body.body
        duplicate_request.body
        duplicate_request.error lane.lane lane.applied_hash delivery_log.detail gate.name relay_command.selection
        relay_command.sample
    """,
    "written by senders or people, until its retention": """
        rejected_request.reason rejected_request.field rejected_request.remote_address rejected_request.headers
        rejected_request.body rejected_request.readmit_reason relay_command.reason relay_command.answer relay_command.error
        alert.subject alert.detail alert.error payload_reveal.reason gate.pause_reason gate.breaker_cause gate.hold_reason
        relay_node.failing pruning.error sweep_watermark.error
    """,
}
"""Columns that can hold a text, by their treatment in an erasure.

`inbox.dedup_key` has a digest in place of the id: `inbox.events.event.dedup_key`. An erased event has no open delivery.
"""


OF_PERSON = {"source": "trivore", "entity_type": "USER", "entity_id": ID}


def erase(engine: Engine, heard: Callable[[], None] = lambda: None, number: int | None = None) -> Command:
    return relaying.erase(engine, CONFIG, PERSON, heard=heard, number=number)[1]


@pytest.fixture
def lived(steps: Steps) -> Steps:
    live(steps)
    return steps


def rows_of_others(engine: Engine) -> dict[str, list[str]]:
    """The rows of the other entity, and of tables that an erasure leaves alone."""
    found = contents(engine)
    return {table: [row for row in rows if OTHER in row] for table, rows in found.items()} | {
        table: found[table] for table in ("open_delivery", "order_lock", "payload_lock", "write_probe")
    }


def test_every_column_that_can_hold_a_text_is_decided() -> None:
    there = [
        f"{table.name}.{column.name}"
        for table in metadata.sorted_tables
        for column in table.c
        if isinstance(column.type, TEXTS)
    ]
    assert sorted(there) == sorted(" ".join(DECISIONS.values()).split())


KEPT_OF_EVENTS = "SELECT seq, occurred_at, dedup_key, body_sha256 FROM inbox ORDER BY seq"
KEPT_IN_VIEWS = (
    "SELECT seq, route, state, attempts, last_fact, superseded_by, occurred_at FROM delivery ORDER BY seq, route"
)


def test_nothing_of_the_person_stays_and_all_else_does(lived: Steps, engine: Engine, database: Database) -> None:
    assert {table for table, _ in traces_in(engine)} == {
        *("delivery_log", "duplicate_request", "gate", "inbox", "inbox_payload", "lane", "relay_command")
    }
    before = [rows_of_others(engine), lived.rows(KEPT_OF_EVENTS), lived.rows(KEPT_IN_VIEWS)]
    done = erase(engine)
    assert (done.state, done.affected) == ("done", 5)
    assert traces_in(engine) == []
    assert [rows_of_others(engine), lived.rows(KEPT_OF_EVENTS), lived.rows(KEPT_IN_VIEWS)] == before
    erased = lived.rows("SELECT seq FROM inbox WHERE entity_id = :id ORDER BY occurred_at, seq", id=PERSON.pseudonym)
    assert [row["seq"] for row in erased] == [1, 2, 3, 4, 7]
    lived.facts_agree()
    after = contents(engine)
    assert differences(database) == mend(database) == []
    assert contents(engine) == after


def test_the_lane_of_the_same_id_at_another_source_stays(lived: Steps, engine: Engine) -> None:
    lived.arrive(msgspec.structs.replace(an_event(30, ID, routes=["blocking"]), source="other"))
    lived.attempt(DONE, "blocking")
    erase(engine)
    assert [row["route"] for row in lived.rows("SELECT route FROM lane WHERE lane = :lane", lane=f"USER|{ID}")] == [
        "blocking"
    ]


def test_the_senders_repeat_is_a_duplicate_and_stores_nothing_of_the_person(lived: Steps, engine: Engine) -> None:
    erase(engine)
    other_body = msgspec.structs.replace(make_personal_event(3), body=BODY + b" ", body_sha256=b"\x09" * 32)
    for event in (make_personal_event(3), other_body):
        assert lived.receive(event) == [None]
        assert lived.intake.repeat(event) == [3]
    repeats = lived.rows("SELECT seq, body FROM duplicate_request WHERE seq = 3")
    assert repeats == [{"seq": 3, "body": None}, {"seq": 3, "body": None}]
    assert traces_in(engine) == []


@pytest.fixture
def one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasure, "EVENTS_OF_A_STEP", 1)


class Interrupted(Exception):
    pass


@pytest.mark.usefixtures("one_by_one")
def test_an_erasure_that_was_cut_off_goes_on_where_it_was(lived: Steps, engine: Engine, database: Database) -> None:
    def cut_off() -> None:
        raise Interrupted

    number = commands.ask(database, "erase", OF_PERSON, who="kim", why="request 2026-17")
    for left in (4, 3):
        with pytest.raises(Interrupted):
            erase(engine, cut_off, number)
        assert plan(engine, PERSON).counts["events"] == left
        of_erased = "SELECT d.body FROM duplicate_request d JOIN inbox i ON i.seq = d.seq WHERE i.erased_at IS NOT NULL"
        assert {row["body"] for row in lived.rows(of_erased)} == {None}
        assert differences(database) == []
    found: list[object] = []
    erase(engine, lambda: found.append(differences(database)), number)
    assert found == [[]] * len(found)
    assert len(found) >= 3
    assert traces_in(engine) == []
    assert len(lived.rows("SELECT 1 FROM delivery_log WHERE kind = 'erased'")) == 8


def test_a_duplicate_that_was_stored_while_its_event_was_erased_keeps_no_body(lived: Steps, engine: Engine) -> None:
    stored = iter(["UPDATE duplicate_request SET body = 'maria.meier@example.com'"])
    assert erase(engine, lambda: lived.do(*stored)).state == "done"
    assert traces_in(engine) == []


@pytest.mark.usefixtures("one_by_one")
def test_an_event_that_arrives_between_plan_and_act_stops_it_and_is_said(lived: Steps, engine: Engine) -> None:
    arrived = iter([make_personal_event(30)])
    done = erase(engine, lambda: lived.arrive(*arrived))
    assert (done.state, done.affected, "seq 9" in str(done.answer)) == ("refused", 5, True)
    lived.do("DELETE FROM gate WHERE kind = 'entity'")  # it is paused
    lived.record_all(lived.claim_due(100, "strict", "latest"))
    assert erase(engine).state == "done"
    assert traces_in(engine) == []


def test_an_emptied_fact_can_be_read_and_leads_to_the_same_state(engine: Engine) -> None:
    dialect, given = engine.dialect.name, ":detail" if engine.dialect.name == "sqlite" else "CAST(:detail AS jsonb)"
    once = f"(SELECT {redact_detail(dialect, 'd.detail')} AS detail FROM (SELECT {given} AS detail) d)"
    statement = text(f"SELECT e.detail, {redact_detail(dialect, 'e.detail')} FROM {once} e")
    with engine.connect() as connection:
        for fact in EXAMPLES.values():
            detail = msgspec.json.encode({**facts.get_detail(fact), "calls": [1]}).decode()
            left, twice = map(as_json, connection.execute(statement, {"detail": detail}).one())
            assert left == twice
            texts = {name: ERASED for name in EMPTIED if getattr(fact, name, None) is not None}
            assert decode(facts.get_kind(fact), json.dumps(left)) == msgspec.structs.replace(fact, **texts)


def test_every_field_of_a_fact_is_kept_or_emptied_or_goes() -> None:
    fields = {name for fact in get_args(facts.AnyFact) for name in fact.__struct_fields__}
    assert fields - set(KEPT) - set(EMPTIED) == {"calls", "applied_hash", "changed"}
    assert set(KEPT) | set(EMPTIED) <= fields


ERASING = {"entity_id": PERSON.pseudonym, "event_id": None, "traceparent": None, "erased_at": START}
"""An erasure's change of an event."""


NO_ERASURE: tuple[dict[str, Any], ...] = (
    *({"entity_id": wrong} for wrong in ("u2", None, "erased:" + "x" * 64, PERSON.pseudonym + "0")),
    {"event_id": "another"}, {"traceparent": "00-1"}, {"erased_at": None}, {"dedup_key": "another"}, {"source": "other"},
    {"entity_type": "GROUP"}, {"occurred_at": START}, {"received_at": START + timedelta(days=1)}, {"routes": ["other"]},
    {"body_bytes": 1}, {"body_sha256": b"1"},
)  # fmt: skip


@pytest.mark.usefixtures("lived")
def test_no_other_change_of_an_event_passes_for_an_erasure(engine: Engine) -> None:
    for changed in NO_ERASURE:
        assert_refused(engine, update(inbox).where(inbox.c.seq == 1).values({**ERASING, **changed}))
    assert_refused(engine, update(inbox).where(inbox.c.seq == 8).values(ERASING))  # its delivery is open
    with engine.begin() as connection:
        connection.execute(update(inbox).where(inbox.c.seq == 1).values(ERASING))
    assert_refused(engine, update(inbox).where(inbox.c.seq == 1).values({"erased_at": None}))
    assert_refused(engine, update(inbox).where(inbox.c.seq == 1).values({"entity_id": ID}))


def test_only_facts_of_an_erased_event_change_and_only_by_being_emptied(lived: Steps, engine: Engine) -> None:
    of_event = delivery_log.c.seq == 1
    emptying = (
        update(delivery_log)
        .where(of_event)
        .values(detail=text(redact_detail(engine.dialect.name, "delivery_log.detail")))
    )
    assert_refused(engine, emptying)
    with engine.begin() as connection:
        connection.execute(update(inbox).where(inbox.c.seq == 1).values(ERASING))
    others: list[dict[str, Any]] = [{"detail": {}}, {"detail": {"did": "updated"}}, {"kind": "dead"}, {"attempt": 7}]
    for changed in others:
        assert_refused(engine, update(delivery_log).where(of_event).values(changed))
    assert_refused(engine, emptying.values(attempt=7))
    with engine.begin() as connection:
        connection.execute(emptying)
    assert ID not in str([row["detail"] for row in lived.rows("SELECT detail FROM delivery_log WHERE seq = 1")])


def assert_refused(engine: Engine, statement: Executable) -> None:
    before = contents(engine)
    with pytest.raises(DBAPIError, match="append-only"), engine.begin() as connection:
        connection.execute(statement)
    assert contents(engine) == before


# --- A row of `relay_command` that asks for an erasure: relays do it, plan it, or refuse it with a remedy


def ask(steps: Steps, selection: dict[str, Any], reason: str = "request 2026-17", *, dry_run: bool = False) -> int:
    value = "CAST(:selection AS jsonb)" if steps.database.sql.is_postgres else ":selection"
    statement = f"""
INSERT INTO relay_command (kind, selection, reason, dry_run) VALUES ('erase', {value}, :reason, :dry_run) RETURNING id"""
    with steps.database.write() as transaction:
        given = {"selection": json.dumps(selection), "reason": reason, "dry_run": dry_run}
        return int(transaction.execute(text(statement), **given)[0].id)


def carry_out(steps: Steps, number: int) -> dict[str, Any]:
    """Do its steps, and return its row."""
    while not (rows := steps.rows("SELECT * FROM relay_command WHERE id = :id AND finished_at IS NOT NULL", id=number)):
        execution.work_on(steps.work, number)
    return rows[0]


def test_events_with_many_facts_are_erased_fewer_at_a_time(lived: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """Deliveries wait for the lock of a step."""
    most = max(row["n"] for row in lived.rows("SELECT count(*) AS n FROM delivery_log GROUP BY seq"))
    monkeypatch.setattr(erasure, "FACTS_OF_A_STEP", most - 1)
    number = ask(lived, OF_PERSON)
    assert 1 <= execution.work_on(lived.work, number) < 5
    assert carry_out(lived, number)["affected"] == 5
    assert traces_in(lived.database.engine) == []


def test_an_erasure_of_nothing_is_done_and_says_why(lived: Steps) -> None:
    stranger = carry_out(lived, ask(lived, {**OF_PERSON, "entity_id": "maria"}))
    assert (stranger["state"], "`inbox list --source trivore" in stranger["answer"]) == ("done", True)
    carry_out(lived, ask(lived, OF_PERSON))
    again = carry_out(lived, ask(lived, OF_PERSON))
    assert (again["state"], "it is erased already; 5 skipped" in again["answer"]) == ("done", True)
    assert traces_in(lived.database.engine) == []


def test_nonsense_and_a_reason_with_the_id_are_refused(lived: Steps, engine: Engine) -> None:
    for selection, reason in (({**OF_PERSON, "source": "trivor"}, "asked"), (OF_PERSON, f"{ID} asked")):
        assert carry_out(lived, ask(lived, selection, reason))["state"] == "refused"
    assert traces_in(engine) != []


# --- After an erasure the files of the database hold nothing of the person: no page of a table, an index or a TOAST table


LARGE = BODY + b"\n" + b"".join(b"maria.meier@example.com %d " % n + os.urandom(16).hex().encode() for n in range(2000))
"""A body that goes to a TOAST table, and isn't compressed away."""


@pytest.fixture
def lived_large(lived: Steps) -> None:
    """The person's rows, among them many that fill pages of their own, and a large body."""
    large = msgspec.structs.replace(
        make_personal_event(40), body=LARGE, body_sha256=hashlib.sha256(LARGE).digest(), enrolments=()
    )
    lived.receive(large, *(msgspec.structs.replace(make_personal_event(n), enrolments=()) for n in range(100, 400)))


def found_in(files: Iterable[Path]) -> dict[str, set[str]]:
    """The traces in each file."""
    found = {path.name: {trace for trace in TRACES if trace.encode() in path.read_bytes()} for path in files}
    return {name: traces for name, traces in found.items() if traces}


@ON_SQLITE
@pytest.mark.usefixtures("lived_large")
def test_on_sqlite_the_erasure_overwrites_what_it_deletes(engine: Engine) -> None:
    path = Path(str(engine.url.database))

    def left(*statements: str) -> dict[str, set[str]]:
        with closing(sqlite3.connect(path, isolation_level=None)) as connection:
            for statement in (*statements, "PRAGMA wal_checkpoint(TRUNCATE)"):
                connection.execute(statement)
        return found_in(sorted(path.parent.glob(f"{path.name}*")))

    assert left()["inbox.db"] == set(TRACES)
    assert erase(engine).state == "done"
    assert left() == left("VACUUM") == {}


@ON_POSTGRES
@pytest.mark.usefixtures("lived_large")
def test_on_postgres_the_files_are_clean_after_a_full_vacuum(engine: Engine) -> None:
    base = "current_setting('data_directory') || '/base/' || (SELECT oid FROM pg_database WHERE datname = current_database())"

    def left(*statements: str) -> dict[str, set[str]]:
        """Maintain the database, let the server write all that it holds, and look into its tables and indexes."""
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            for statement in (*statements, "CHECKPOINT"):
                connection.execute(text(statement))
            folder = connection.execute(text(f"SELECT {base}")).scalar_one()
        return found_in(path for path in sorted(Path(folder).iterdir()) if path.is_file())

    assert set().union(*left("ANALYZE").values()) == set(TRACES), "the planner's statistics have the most common ids"
    assert erase(engine).state == "done"
    assert left("VACUUM"), "a VACUUM alone leaves old bytes in pages"
    assert left("ANALYZE", "VACUUM FULL") == {}
