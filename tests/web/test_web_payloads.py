"""The screen of payloads: changes, what was learned, and the command that acknowledges."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import Engine, insert

from inbox.clock import SystemClock
from inbox.db.schema import payload_change, payload_field
from relay.web.screens.payloads import PayloadsQuery, acknowledge_command
from tests.helpers.page import OPERATOR, VIEWER, Page
from tests.helpers.storing import START

HOSTILE = '"><b>x</b>\u202e'


def learned(path: str, kind: str, events: int, **more: object) -> dict[str, Any]:
    seen = {"first_seq": 1, "first_at": START, "last_seq": events, "last_at": START}
    usual = {"source": "trivore", "event_type": "UPDATE", "absent": 0, "missed": 0, "is_map": False}
    return {**usual, **seen, "path": path, "type": kind, "events": events, **more}


def changed(change: str, path: str, **more: object) -> dict[str, Any]:
    usual = {"source": "trivore", "event_type": "UPDATE", "type": "string", "usual": "number", "acknowledged_at": None}
    return {
        **usual,
        "found_at": SystemClock().now(),
        "seq": 7,
        "at": START,
        "change": change,
        "path": path,
        "acknowledged_by": None,
        **more,
    }


@pytest.fixture
def filled(engine: Engine) -> Engine:
    with engine.begin() as connection:
        connection.execute(
            insert(payload_field),
            [
                learned("$", "any", 9),
                learned("$", "object", 9),
                learned("$.id", "any", 8, absent=1, missed=1),
                learned("$.id", "number", 7),
                learned("$.id", "string", 1),
                learned("$.map", "any", 9, is_map=True),
                learned("$.map", "object", 9),
                learned("$", "any", 3, event_type=HOSTILE),
                learned("erased", "any", 3),
            ],
        )
        connection.execute(
            insert(payload_change),
            [
                changed("type", "$.id"),
                changed("missing", "$.gone", type=None, usual="in 9 of 9 events"),
                changed("added", HOSTILE, event_type=HOSTILE),
                changed("added", "$.old", acknowledged_at=START, acknowledged_by="kim"),
            ],
        )
    return engine


@pytest.mark.usefixtures("filled")
def test_open_changes_and_what_was_learned_are_shown_to_everybody(page: Page) -> None:
    for actor in (OPERATOR, VIEWER):
        found = page.json("/payloads.json", actor=actor)
        assert [(row["change"], row["path"], row["is_open"]) for row in found["rows"]] == [
            ("added", HOSTILE, True), ("missing", "$.gone", True), ("type", "$.id", True)
        ]  # fmt: skip
        assert [(shape["event_type"], shape["events"], shape["paths"]) for shape in found["shapes"]] == [
            (HOSTILE, 3, 1), ("UPDATE", 9, 4)
        ]  # fmt: skip
        assert found["fields"] == []
    html = page.get("/payloads", VIEWER).text
    assert "inbox payloads --changes --acknowledge" in html
    assert "<b>x" not in html


@pytest.mark.usefixtures("filled")
def test_filters_and_fields(page: Page) -> None:
    found = page.json("/payloads.json?source=trivore&event_type=UPDATE&all=true&limit=2")
    assert ([row["path"] for row in found["rows"]], found["before"]) == (["$.old", "$.gone"], 2)
    (field,) = [field for field in found["fields"] if field["path"] == "$.id"]
    assert (field["types"], field["events"], field["of"], field["missed"]) == ({"number": 7, "string": 1}, 8, 9, 1)
    later = page.json("/payloads.json?source=trivore&event_type=UPDATE&all=true&limit=2&before=2")
    assert ([row["path"] for row in later["rows"]], later["before"], later["shapes"]) == (["$.id"], None, [])
    assert page.json("/payloads.json?change=missing")["rows"][0]["usual"] == "in 9 of 9 events"
    assert page.json("/payloads.json?source=nobody")["rows"] == []
    html = page.get("/payloads?source=trivore&event_type=UPDATE&all=true").text
    assert "keys are data" in html
    assert "acknowledged by kim" in html
    assert "--source trivore --event-type UPDATE" in html


def test_the_command_is_quoted() -> None:
    query = PayloadsQuery(source="a b", event_type="$(x)")
    assert acknowledge_command(query) == "inbox payloads --changes --acknowledge --source 'a b' --event-type '$(x)'"


def test_nothing_is_learned_yet(page: Page) -> None:
    assert "No change of payloads matches." in page.get("/payloads").text
