"""A relay learns the shapes of payloads beside its work, and reports changes."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db import payload_shapes
from inbox.db.erasure import searching
from inbox.db.erasure.subject import ErasureSubject
from inbox.db.payload_shapes import ChangeFilter, FieldFilter
from inbox.db.schema import inbox
from inbox.events.event import Event
from inbox.loader.load import parse_config
from relay.daemon.learner import Learner
from relay.observe import Observer
from relay.shapes.learn import MISSING_EVENTS, USUAL_EVENTS, ObservedEvent, learn
from relay.shapes.observe import observe
from relay.shapes.sample import LONGEST_TYPE, MOST_TYPES, OTHER_TYPES
from relay.steps import Steps
from relay.store import shapes
from relay.store.alert_conditions import Watch
from relay.store.database import Database
from tests.helpers.daemon import running
from tests.helpers.downstream import serving
from tests.helpers.patience import stand_still
from tests.helpers.reading import count, rows
from tests.helpers.relaying import CONFIG, FakeClock
from tests.helpers.storing import START, Intake, an_event
from tests.helpers.waiting import until

ORDER = {"id": 7, "customer": {"email": "maria@example.com"}, "lines": [{"sku": "a", "n": 1}]}
MINUTE = 61.0


class Learning:
    """A learner whose clock is moved by hand, and the events that it finds."""

    def __init__(self, engine: Engine, node: str = "r1", clock: FakeClock | None = None, config: str = "") -> None:
        self.engine = engine
        self.clock = clock or FakeClock(START + timedelta(days=400))
        self.database = Database(engine, self.clock)
        self.database.sql.pause_after_write = 0.0
        self.stop = threading.Event()
        self.observer = Observer()
        self.database.on_failed_alone = self.observer.failed_alone
        sources = parse_config(config).sources if config else CONFIG.sources
        self.learner = Learner(
            self.database, node, sources, stop=self.stop, observer=self.observer, steps=Steps(self.observer)
        )
        self.intake = Intake(engine.url.render_as_string(hide_password=False))
        self.number = count(engine, "inbox")

    def arrive(self, *values: object, event_type: str = "UPDATE", source: str = "trivore", **more: Any) -> None:  # noqa: ANN401  # fields of an event
        """Store an event for each value, one an hour."""
        self.intake.append(*(self._event(value, event_type=event_type, source=source, **more) for value in values))

    def _event(self, value: object, **more: Any) -> Event:  # noqa: ANN401  # as above
        self.number += 1
        body = value if isinstance(value, bytes) else json.dumps(value).encode()
        made = an_event(self.number, routes=())
        return msgspec.structs.replace(
            made,
            body=body,
            body_sha256=hashlib.sha256(body).digest(),
            received_at=START + timedelta(hours=self.number),
            **more,
        )

    def round(self) -> None:
        """Run the two rounds after which all that has arrived is learned."""
        for _ in range(2):
            self.clock.advance(MINUTE)
            self.learner.run_due()

    def fields(self, **wanted: str | None) -> dict[str, dict[str, int]]:
        found = payload_shapes.fields(self.engine, FieldFilter(**wanted), 1000)
        return {row["path"]: row["types"] for row in found}

    def changes(self, **wanted: Any) -> list[tuple[str, str, int]]:  # noqa: ANN401  # of the filter
        found = payload_shapes.changes(self.engine, ChangeFilter(**wanted), 1000)
        return [(row["change"], row["path"], row["seq"]) for row in found]


@pytest.fixture
def learning(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> Learning:
    monkeypatch.setattr("relay.daemon.learner.REST", 0.0)
    monkeypatch.setattr("relay.daemon.learner.LEARNED_AT_ONCE", 7)
    return Learning(engine)


def learner_row(engine: Engine) -> dict[str, Any]:
    return rows(engine, "SELECT * FROM payload_learner")[0]


def test_it_learns_paths_and_types_once_and_no_value(learning: Learning) -> None:
    learning.arrive(*[ORDER] * 3, {"id": "x", "lines": []}, b"<html>")
    learning.arrive({"a": 1}, event_type="DELETE")
    learning.learner.run_due()
    assert learning.fields() == {}, "a lower number may still be committed"
    learning.round()
    learning.round()
    assert learning.fields(event_type="UPDATE") == {
        "$": {"object": 4, "text": 1}, "$.id": {"number": 3, "string": 1}, "$.customer": {"object": 3}, "$.lines": {"array": 4},
        "$.customer.email": {"string": 3}, "$.lines[]": {"object": 3}, "$.lines[].sku": {"string": 3}, "$.lines[].n": {"number": 3},
    }  # fmt: skip
    (customer,) = payload_shapes.fields(learning.engine, FieldFilter(path="Customer.E"), 9)
    assert (customer["first_seq"], customer["last_seq"], customer["events"], customer["of"]) == (1, 3, 3, 3)
    assert [(row["event_type"], row["events"], row["paths"]) for row in payload_shapes.shapes(learning.engine, None, 9)] == [
        ("DELETE", 1, 2), ("UPDATE", 5, 8)
    ]  # fmt: skip
    assert not count(learning.engine, "payload_field WHERE path LIKE '%maria%' OR type LIKE '%maria%'")
    row = learner_row(learning.engine)
    assert (row["position"], row["learned"], row["passed_over"], row["held_by"]) == (6, 6, 0, None)


def test_changes_are_found_alerted_once_and_over_when_acknowledged_returned_or_old(learning: Learning) -> None:
    engine, watch = learning.engine, Watch()

    def firing() -> list[tuple[str, bool]]:
        watch.look(learning.database, CONFIG)
        found = rows(engine, "SELECT subject, firing FROM alert WHERE kind = 'payloads_changed' ORDER BY id")
        return [(row["subject"], bool(row["firing"])) for row in found]

    learning.arrive(*[ORDER] * USUAL_EVENTS)
    learning.round()
    assert (learning.changes(), firing()) == ([], [])
    seq = USUAL_EVENTS + 1
    learning.arrive({**ORDER, "id": "7", "note": None}, *[{"id": 7, "lines": []}] * MISSING_EVENTS)
    learning.round()
    assert learning.changes() == [
        ("missing", "$.customer", seq + 1), ("added", "$.note", seq), ("type", "$.id", seq)
    ]  # fmt: skip
    assert firing() == firing() == [("trivore", True)]
    (alert,) = rows(engine, "SELECT detail FROM alert WHERE kind = 'payloads_changed'")
    assert "$.id of UPDATE is string, not number" in str(alert["detail"])
    learning.arrive(ORDER)
    learning.round()
    assert [change for change, *_ in learning.changes(only_open=True)] == ["added", "type"]
    assert payload_shapes.acknowledge(engine, ChangeFilter(change="added"), "kim") == 1
    assert payload_shapes.acknowledge(engine, ChangeFilter(change="added"), "kim") == 0
    assert firing() == [("trivore", True)]
    assert payload_shapes.acknowledge(engine, ChangeFilter(source="other"), "kim") == 0
    learning.clock.advance(payload_shapes.OPEN_DAYS * 86_400)
    assert firing() == [("trivore", True), ("trivore", False)]
    assert len(learning.changes()) == 3
    assert count(engine, "payload_change WHERE acknowledged_by = 'kim'") == 1


def test_hostile_payloads_harm_no_other_source_and_no_table(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relay.store.shapes.MOST_CHANGES_KEPT", 5)
    monkeypatch.setattr("relay.daemon.learner.MOST_LEARNED", 240)
    words = ["".join(chr(97 + int(digit)) for digit in str(number)) for number in range(3000)]
    learning.arrive(
        *[{word: {"x": 1} for word in words[at * 90 : at * 90 + 90]} for at in range(10)],
        dict.fromkeys(words, 1),
        b"[" * 50_000,
        b'{"big":"' + b"x" * 1_000_000 + b'"}',
        b'{"first":1,"big":"' + b"x" * 1_000_000 + b'"}',
    )
    for number in range(MOST_TYPES + 20):
        learning.arrive({"a": 1}, event_type=f"T{number}")
    learning.arrive({"a": 1}, event_type="y" * (LONGEST_TYPE + 1), content_type="x" * 10_000, entity_id="e" * 10_000)
    learning.arrive({"a": 1}, event_type="other", source="shop")
    learning.arrive({"id": 1}, source="unknown")
    learning.learner.replace_sources({**CONFIG.sources, "shop": CONFIG.sources["trivore"]})
    learning.round()
    assert learning.fields(source="trivore", event_type="UPDATE").keys() == {"$", "$.*", "$.*.x"}
    assert learning.fields(source="shop") == {"$": {"object": 1}, "$.a": {"number": 1}}
    assert learning.fields(source="unknown") == {}
    types = [row["event_type"] for row in payload_shapes.shapes(learning.engine, "trivore", 1000)]
    assert (len(types), OTHER_TYPES in types) == (MOST_TYPES + 1, True)
    assert learning.observer.counts["failed_alone"] == 0
    learning.arrive(*[{"k": 1}] * USUAL_EVENTS, *[{"k": 1, f"new{word}": 1} for word in words[:20]], event_type="T1")
    learning.round()
    assert len(learning.changes()) == 5


def test_a_large_backlog_is_sampled_at_even_distances(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.store.shapes.LOOKED_AT", 20)
    learning.arrive(*[{"n": 1}] * 10)
    learning.round()
    learning.arrive(*[{"n": 1}] * 95, {"n": 1, "last": 1})
    learning.round()
    assert learning.fields()["$"] == {"object": 10 + 20}, "each fifth"
    assert "$.last" in learning.fields()
    row = learner_row(learning.engine)
    assert (row["position"], row["learned"], row["passed_over"]) == (106, 30, 76)


def test_numbers_wait_until_no_lower_one_can_be_committed(learning: Learning) -> None:
    """Postgres gives an event its number before the commit."""
    learning.arrive({"a": 1})
    learning.round()
    with learning.engine.connect() as late, late.begin() as open_transaction:
        stand_still(late)
        if learning.database.sql.is_postgres:
            columns = ", ".join(column.name for column in inbox.columns if column.name not in {"seq", "dedup_key"})
            late.execute(text(f"INSERT INTO inbox (dedup_key, {columns}) SELECT 'late', {columns} FROM inbox"))
            late.execute(text("INSERT INTO inbox_payload SELECT 2, headers, '{\"late\": 1}' FROM inbox_payload"))
        else:
            open_transaction.rollback()
            learning.arrive({"late": 1})
        learning.arrive({"b": 1})
        learning.clock.advance(MINUTE)
        learning.learner.run_due()
        assert (learner_row(learning.engine)["position"], learner_row(learning.engine)["horizon"]) == (1, 3)
        if open_transaction.is_active:
            open_transaction.commit()
    learning.clock.advance(MINUTE - 2)
    learning.learner.run_due()
    assert "$.b" not in learning.fields(), "others may still be open"
    learning.clock.advance(2)
    learning.learner.run_due()
    assert {"$.a", "$.b", "$.late"} < learning.fields().keys()


def test_one_relay_at_a_time_learns_and_another_takes_over(learning: Learning) -> None:
    other = Learning(learning.engine, "r2", learning.clock)
    learning.arrive({"a": 1})
    learning.round()
    learning.arrive({"a": 1})
    learning.clock.advance(MINUTE)
    learning.learner.run_due()
    learning.clock.advance(MINUTE)
    turn = shapes.take(other.database, "r2")
    assert turn is not None
    learning.learner.run_due()
    assert learning.fields()["$"] == {"object": 1}, "r2 has the turn"
    learning.clock.advance(shapes.LEASE_SECONDS + 1)
    learning.learner.run_due()
    assert learning.fields()["$"] == {"object": 2}, "r2 has died"
    with pytest.raises(shapes.TurnLost):
        shapes.write(other.database, turn, "trivore", "UPDATE", learn({}, []))
    assert not other.learner._learn(turn, {("trivore", "NEW"): [ObservedEvent(1, START, observe(b"{}", ""))]})
    assert learning.fields(event_type="NEW") == {}


def test_a_round_that_breaks_off_is_repeated_and_counts_no_event_twice(
    learning: Learning, monkeypatch: pytest.MonkeyPatch
) -> None:
    learning.arrive({"a": 1}, {"a": 1}, event_type="A")
    learning.arrive({"a": 1}, event_type="B")
    learning.clock.advance(MINUTE)
    learning.learner.run_due()
    learning.clock.advance(MINUTE)
    with monkeypatch.context() as patch:
        patch.setattr(shapes, "finish", lambda *_, **__: 1 / 0)
        learning.learner.run_due()
    row = learner_row(learning.engine)
    assert (row["learned"], row["held_by"]) == (0, None)
    learning.learner._steps._failing.clear()
    learning.learner.run_due()
    assert learning.fields(event_type="A")["$"] == {"object": 2}
    assert learner_row(learning.engine)["learned"] == 3


def test_it_rests_after_each_few_events_of_a_shape(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    rests: list[float] = []
    monkeypatch.setattr(learning.stop, "wait", rests.append)
    learning.arrive(*[ORDER] * 16)
    learning.round()
    assert learning.fields()["$"] == {"object": 16}
    assert len(rests) == 1 + 3, "once after the bodies, and thrice after the shape has learned some"


def test_a_shape_that_can_t_be_stored_leaves_the_others(learning: Learning, monkeypatch: pytest.MonkeyPatch) -> None:
    learning.arrive({"a": 1}, event_type="A")
    learning.arrive({"a": 1}, event_type="B")
    write = shapes.write

    def failing(database: Database, turn: shapes.LearningTurn, source: str, event_type: str, learned: Any) -> None:  # noqa: ANN401
        if event_type == "A":
            raise ValueError("no")
        write(database, turn, source, event_type, learned)

    monkeypatch.setattr(shapes, "write", failing)
    learning.round()
    assert learning.fields(event_type="A") == {}
    assert learning.fields(event_type="B").keys() == {"$", "$.a"}
    assert learning.observer.counts["failed_alone"] == 1
    assert learner_row(learning.engine)["position"] == 2


def test_a_clock_that_steps_stops_nothing(learning: Learning) -> None:
    learning.arrive({"a": 1})
    learning.clock.advance(86_400 * 365)
    learning.round()
    learning.clock.advance(-86_400 * 365)
    learning.arrive({"b": 1})
    learning.round()
    learning.round()
    assert {"$.a", "$.b"} < learning.fields().keys()


def test_a_source_may_be_left_out(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("relay.daemon.learner.REST", 0.0)
    config = '[sources.trivore]\npreset = "trivore"\nauth = { kind = "none" }\nshapes = false\n'
    learning = Learning(engine, config=config)
    learning.arrive({"a": 1})
    learning.round()
    assert (learning.fields(), learner_row(engine)["position"]) == ({}, 1)


def test_a_path_that_names_an_erased_entity_is_overwritten(learning: Learning) -> None:
    learning.arrive({"members": {"maria.meier": {"x": 1}}, "maria.meier": 1})
    learning.round()
    assert "$.*" not in learning.fields()
    subject = ErasureSubject("trivore", "USER", "maria.meier")
    with learning.engine.begin() as connection:
        while (naming := searching.search(connection, subject, None)) is not None and naming.rows:
            naming.empty(connection)
    assert not count(learning.engine, "payload_field WHERE path LIKE '%maria%'")
    learning.arrive({"members": {}})
    learning.round()
    assert learning.fields()["$"] == {"object": 2}


@pytest.fixture
def downstream(tmp_path: Path) -> Iterator[Any]:
    with serving(tmp_path / "arrivals.jsonl") as made:
        yield made


def test_a_daemon_learns_while_it_delivers(engine: Engine, downstream: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: ANN401
    monkeypatch.setattr("relay.store.shapes._SECONDS", {**shapes._SECONDS, "every": 0.0})
    monkeypatch.setattr("relay.store.shapes.MISSING_SECONDS", 0.0)
    monkeypatch.setattr("relay.daemon.learner.LOOK_EVERY_SECONDS", 0.05)
    learning = Learning(engine)
    learning.arrive(*[ORDER] * 3)
    with running(engine, downstream, more='[retention]\npayloads = "forever"\nevents = "forever"\n'):
        until(lambda: learning.fields().get("$") == {"object": 3}, "it has learned all")
