"""`inbox export` writes events with their facts, in order, each line checked by the last; a file is whole or not there."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.cli import export as command
from inbox.cli import terminal
from inbox.db import export
from tests.copying.conftest import Databases, url_of
from tests.helpers.processes import Ended, Site, site
from tests.helpers.reading import rows
from tests.helpers.storing import START, Intake, a_fact, an_event
from tests.helpers.webhooks import config_text


@pytest.fixture(params=["sqlite", "postgres"])
def source(request: pytest.FixtureRequest, databases: Databases, templates: dict[str, str]) -> Engine:
    return databases.open(databases.new(request.param, templates[request.param]))


@pytest.fixture
def place(source: Engine, tmp_path: Path) -> Iterator[Site]:
    routes = '\n[routes.strict]\nsource = "trivore"\ndestination = "audit"\n'
    with site(tmp_path, config_text(url_of(source)) + routes) as made:
        yield made


def lines(exported: Ended) -> list[dict[str, Any]]:
    """The records, after the last of them has been checked against the others."""
    assert exported.status == 0, exported.stderr
    *before, last = exported.stdout.splitlines(keepends=True)
    end = json.loads(last)
    assert end["type"] == "end"
    assert end["sha256"] == hashlib.sha256("".join(before).encode()).hexdigest()
    found = [json.loads(line) for line in before]
    kinds = [record["type"] for record in found]
    assert (end["events"], end["facts"]) == (kinds.count("event"), kinds.count("fact"))
    return found


def test_every_event_is_followed_by_its_facts(place: Site, source: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    for limit, size in (("_NUMBERS", 4), ("_EVENTS", 3), ("_FACTS", 1)):
        monkeypatch.setattr(export, limit, size)
    with source.begin() as connection:  # an event with several facts in a row
        for attempt in (1, 2, 3):
            connection.exec_driver_sql(a_fact("attempt_failed", 5, attempt=attempt))
    found = lines(place.invoke("inbox", "export"))

    events = [record for record in found if record["type"] == "event"]
    assert [event["seq"] for event in events] == [
        row["seq"] for row in rows(source, "SELECT seq FROM inbox ORDER BY seq")
    ]
    expected = []
    for event in events:
        expected.append(("event", event["seq"], None))
        of_it = rows(source, "SELECT id FROM delivery_log WHERE seq = :seq ORDER BY id", seq=event["seq"])
        expected += [("fact", event["seq"], row["id"]) for row in of_it]
    assert [(record["type"], record["seq"], record.get("id")) for record in found] == expected
    assert {kind for kind, *_ in expected} == {"event", "fact"}


def test_the_fields_are_the_columns_without_payloads_unless_asked_for(place: Site, source: Engine) -> None:
    columns = set(rows(source, "SELECT * FROM inbox")[0])
    first = lines(place.invoke("inbox", "export"))[0]
    assert first.keys() == columns | {"type"}
    assert first["received_at"].endswith("Z")
    assert bytes.fromhex(first["body_sha256"]) == rows(source, "SELECT * FROM inbox ORDER BY seq")[0]["body_sha256"]

    with_payload = lines(place.invoke("inbox", "export", "--with-payloads"))[0]
    assert hashlib.sha256(with_payload["body"].encode()).hexdigest() == first["body_sha256"]
    assert "content-type" in {name.lower() for name in with_payload["headers"]}


def test_bodies_that_are_no_text_are_in_base64_and_no_line_moves_a_cursor(place: Site, source: Engine) -> None:
    hostile = "\x1b[2J\u202e\r\u2028"
    intake = Intake(url_of(source))
    intake.append(msgspec.structs.replace(an_event(300), body=b"\xff\x00", event_type=hostile))
    intake.append(msgspec.structs.replace(an_event(301), body=hostile.encode()))
    shown = place.invoke("inbox", "export", "--with-payloads")
    first, second = [record for record in lines(shown) if record["type"] == "event"][-2:]
    assert base64.b64decode(first["body_base64"]) == b"\xff\x00"
    assert (first["event_type"], second["body"]) == (hostile, hostile)
    assert "\x1b" not in shown.stdout
    assert "\u202e" not in shown.stdout


def test_filters_choose_events_by_arrival_source_entity_and_route(place: Site, source: Engine) -> None:
    late = msgspec.structs.replace(an_event(300, "late"), received_at=START + timedelta(days=900))
    Intake(url_of(source)).append(late)

    def seqs(*options: str) -> list[int]:
        return [each["seq"] for each in lines(place.invoke("inbox", "export", *options)) if each["type"] == "event"]

    (last,) = seqs("--entity", "USER/late")
    everything = seqs()
    assert seqs("--since", "2028-06-01") == [last]
    assert seqs("--until", "2028-06-01") == [seq for seq in everything if seq != last]
    assert seqs("--source", "trivore") == everything
    taken = seqs("--route", "strict")
    assert 0 < len(taken) < len(everything)
    facts = [each for each in lines(place.invoke("inbox", "export", "--route", "everything")) if each["type"] == "fact"]
    assert {fact["route"] for fact in facts} == {"everything"}
    assert place.invoke("inbox", "export", "--route", "nonsense").status == 2


def test_a_file_is_whole_and_for_its_owner(place: Site, tmp_path: Path) -> None:
    there = tmp_path / "january.ndjson"
    done = place.invoke("inbox", "export", "--output", str(there))
    assert (done.status, done.stdout) == (0, "")
    assert "events" in done.stderr
    assert there.stat().st_mode & 0o777 == 0o600
    lines(Ended(0, there.read_text(encoding="utf-8"), ""))
    again = place.invoke("inbox", "export", "--output", str(there))
    assert (again.status, "exists already" in again.stderr) == (2, True)
    assert place.invoke("inbox", "export", "--output", str(tmp_path / "none" / "x")).status == 2


def test_an_export_that_fails_leaves_no_file(place: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = terminal.as_line
    left = [3]

    def full(record: object) -> str:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(28, "No space left on device")
        return written(record)

    monkeypatch.setattr(command, "as_line", full)
    before = set(tmp_path.iterdir())
    failed = place.invoke("inbox", "export", "--output", str(tmp_path / "x.ndjson"))
    assert (failed.status, "No space left" in failed.stderr) == (2, True)
    assert set(tmp_path.iterdir()) == before


def test_two_bodies_of_25_mib_are_never_read_together(engine: Engine, database_url: str) -> None:
    for n in (1, 2, 3):
        Intake(database_url).append(msgspec.structs.replace(an_event(n), body=b"x" * (25 * 1024 * 1024)))
    with engine.connect() as connection:
        events = export._EventReader(connection, export.ExportFilter()).events(0, 3)
    assert list(export._in_sizes(events)) == [[1], [2], [3]]


def test_an_empty_inbox_exports_an_end(tmp_path: Path, sqlite_database_url: str) -> None:
    with site(tmp_path, config_text(sqlite_database_url)) as empty:
        assert lines(empty.invoke("inbox", "export")) == []
