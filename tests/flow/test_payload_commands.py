"""`inbox payloads` on what a relay has learned."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from sqlalchemy import Engine, insert

from inbox.clock import SystemClock
from inbox.db.schema import payload_change, payload_field
from tests.helpers.processes import Ended, invoke
from tests.helpers.storing import START

HOSTILE = "\x1b[31m\u202e"
SHAPE = {"source": "trivore", "event_type": "UPDATE"}


class Commands:
    """Commands on one database."""

    def __init__(self, config: Path) -> None:
        self._config = config

    def __call__(self, *words: str) -> Ended:
        return invoke("inbox", "payloads", *words, INBOX_CONFIG=str(self._config), COLUMNS="200")

    def lines(self, *words: str) -> list[str]:
        return [" ".join(line.split()) for line in self(*words).stdout.splitlines()]


@pytest.fixture
def commands(database_url: str, engine: Engine, tmp_path: Path) -> Commands:
    config = tmp_path / "inbox.toml"
    sources = '[sources.trivore]\npreset = "trivore"\nauth = { kind = "none" }\n'
    config.write_text(f'[database]\nurl = "{database_url}"\n{sources}', encoding="utf-8")
    seen = {**SHAPE, "first_seq": 1, "first_at": START, "last_seq": 9, "last_at": START, "absent": 0}
    fields = [
        {**seen, "path": path, "type": kind, "events": events, "absent": absent}
        for path, kind, events, absent in [
            ("$", "any", 1000, 0), ("$", "object", 1000, 0), ("$.id", "any", 999, 1), ("$.id", "number", 998, 0),
            ("$.id", "string", 1, 0), (f"$.{HOSTILE}", "any", 1, 999), (f"$.{HOSTILE}", "null", 1, 0),
        ]
    ]  # fmt: skip
    usual = {**SHAPE, "found_at": SystemClock().now(), "seq": 7, "at": START, "usual": None}
    changes = [
        {**usual, "change": "type", "path": "$.id", "type": "string", "usual": "number"},
        {**usual, "change": "missing", "path": "$.gone", "type": None},
        {**usual, "change": "added", "path": "$.old", "type": "null", "found_at": START},
    ]
    with engine.begin() as connection:
        connection.execute(insert(payload_field), fields)
        connection.execute(insert(payload_change), changes)
    return Commands(config)


def test_fields_changes_and_acknowledgement(commands: Commands) -> None:
    assert commands("--path", "nowhere") == (0, "", "no learned fields match\n")
    lines = commands.lines()
    assert lines[:2] == [
        "source event_type path presence last_at shown_types",
        "trivore UPDATE $ 100 % 2026-01-01T00:00:00.000Z object",
    ]
    assert "trivore UPDATE $.id <100 % 2026-01-01T00:00:00.000Z number <100 %, string >0 %" in lines
    assert HOSTILE not in commands().stdout
    (field,) = json.loads(commands("--path", ".ID", "--json").stdout)
    assert (field["types"], field["of"]) == ({"number": 998, "string": 1}, 1000)
    assert len(commands.lines("--limit", "1")) == 2
    assert [line.split()[3:6] for line in commands.lines("--changes")] == [
        ["path", "change", "seq"], ["$.gone", "missing", "7"], ["$.id", "type", "7"]
    ]  # fmt: skip
    done = commands("--changes", "--id", "1", "--acknowledge")
    assert (done.status, done.stdout) == (0, "acknowledged 1 change\n")
    assert commands("--changes", "--id", "1", "--acknowledge").status == 1
    assert [line.split()[0] for line in commands.lines("--changes")] == ["id", "2"]
    states = {each["id"]: each["is_open"] for each in json.loads(commands("--changes", "--all", "--json").stdout)}
    assert states == {1: False, 2: True, 3: False}
    assert "aged out" in commands("--changes", "--all").stdout
    assert commands("--changes", "--event-type", "other").stderr == "no changes of payloads\n"


def test_options_that_contradict_are_refused(commands: Commands) -> None:
    assert "--acknowledge needs --changes" in commands("--acknowledge").stderr
    assert "--path and --changes exclude each other" in commands("--changes", "--path", "x").stderr
    assert "did you mean 'trivore'" in commands("--source", "trivor").stderr
