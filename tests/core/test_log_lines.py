"""A log has one line for each event, as text or JSON, and no value can make another, hide, or control a terminal."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import sqlite3
import time
import unicodedata
from collections.abc import Iterator
from datetime import datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.exc import DBAPIError, OperationalError, ProgrammingError

from inbox.clock import SystemClock
from inbox.db import engine as engines
from inbox.db.dialect import trouble_text
from inbox.errors import ConfigError
from inbox.observe import traces
from inbox.observe.logs import Format, escape_lines, fields
from inbox.observe.traces import OFF, make_tracer, require_extra
from inbox.observe.visible import visible, visible_json, visible_text
from tests.helpers.planted import HOSTILE, MARK, harm_of

# --- A log has one line for each event, and no value can make another


def log_line(  # as a program configures its log
    formatter: logging.Formatter | None,
    *values: object,
    library: str | None = None,
    form: Format = "text",
    extra: dict[str, Any] | None = None,
    raising: bool = False,
) -> str:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter)
    escape_lines([handler], library, form=form)
    log = logging.Logger("relay")  # noqa: LOG001  # one that nothing else has
    log.addHandler(handler)
    bug = (RuntimeError, RuntimeError(HOSTILE), None) if raising else None
    log.warning(" ".join(["refused", *["%s"] * len(values)]), *values, extra=extra, exc_info=bug)
    return output.getvalue()


PLAIN = logging.Formatter("%(asctime)s %(levelname)s %(message)s")
log_json = partial(log_line, PLAIN, form="json")


@pytest.mark.parametrize(
    "formatter",
    [None, PLAIN, logging.Formatter("{message}", style="{")],
)
def test_a_record_with_any_text_is_one_line(formatter: logging.Formatter | None) -> None:
    line = log_line(formatter, HOSTILE, HOSTILE)
    assert (line.count("\n"), line.count(MARK)) == (1, 2)
    assert harm_of(line) == []


@pytest.fixture
def far_west(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """This process's time zone is not UTC."""
    with monkeypatch.context() as patched:
        patched.setenv("TZ", "America/Caracas")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("far_west")
def test_a_time_is_in_utc_unless_the_operator_has_chosen_another_form() -> None:
    before = SystemClock().now()
    line = log_line(logging.Formatter("%(asctime)s|%(message)s", "library's own"), library="library's own")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.partition("|")[0])
    assert abs(datetime.fromisoformat(line.partition("|")[0]) - before) < timedelta(minutes=1)
    assert log_line(logging.Formatter("%(asctime)s|%(message)s", "chosen"), library="its own").startswith("chosen|")


def test_a_traceback_stands_below_it_and_no_text_of_an_exception_begins_a_line() -> None:
    shown = log_line(None, raising=True)
    assert harm_of(shown) == []
    first, second, *others = shown.splitlines()
    assert first == "refused"
    assert second.startswith(f"RuntimeError: {MARK}")
    assert all(line.startswith("  ") for line in others)
    assert others


# --- Lines in JSON: one line each, with the documented keys, whatever stands in the values


def test_no_value_breaks_a_line_and_none_is_lost() -> None:
    nasty = HOSTILE + '"\x1b[31m\\ \ud800 a=b\u2028'
    line = log_json(nasty, extra=fields("dead", lane=nasty, seq=7, error=nasty), raising=True)
    assert (line.count("\n"), line[-1]) == (1, "\n")
    assert line.isprintable() or line.rstrip("\n").isprintable()
    assert harm_of(line) == []
    found = json.loads(line)
    assert found["lane"] == found["error"] == nasty
    assert found["message"] == f"refused {nasty}"
    assert MARK in found["traceback"]
    assert str(found["seq"]) == "7"


# --- Text that reaches a terminal: no part of it is invisible or controls anything


HIDDEN_CATEGORIES = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
NASTY = st.sampled_from(
    "\\nx1bu20e[]/\x00\x07\x1b\x7f\x85\x9b\u200b\u200f\u061c\u2028\u202e\u2066\ud800\U000e0041\xe9\n "
)
TEXT = st.one_of(st.text(NASTY), st.text(st.characters(exclude_categories=()), max_size=50))

_ESCAPE = re.compile(r"\\(\\|[nrt]|x[0-9a-f]{2}|u[0-9a-f]{4}|U[0-9a-f]{8})")
_NAMED = {"\\": "\\", "n": "\n", "r": "\r", "t": "\t"}


def read_back(shown: str) -> str:
    return _ESCAPE.sub(lambda found: _NAMED.get(found[1]) or chr(int(found[1][1:], 16)), shown)


def harmless(text: str) -> bool:
    return not any(unicodedata.category(character) in HIDDEN_CATEGORIES for character in text)


@given(TEXT)
def test_a_value_is_shown_on_one_line_without_hidden_characters_and_can_be_read_back(value: str) -> None:
    shown = visible(value)
    assert harmless(shown)
    assert read_back(shown) == value


@given(TEXT)
def test_a_text_of_ours_has_no_hidden_character_and_each_further_line_is_indented(text: str) -> None:
    first, *others = visible_text(text).split("\n")
    assert harmless(first + "".join(others))
    assert all(line.startswith("  ") for line in others)
    assert len(others) == text.count("\n")


@pytest.mark.parametrize("value", ["Äijälä", "日本語", "❤\ufe0f", "a b|c", "[x](y)", "José"])
def test_characters_that_can_be_seen_are_left_as_they_are(value: str) -> None:
    assert visible(value) == visible_text(value) == value
    assert visible_json(value) == value


@pytest.mark.parametrize("value", ["\u3164", "\u115f", "\ufe00", "\U000e0100", "\u034f", "\xa0", "\u3000"])
def test_printable_characters_that_show_nothing_are_escaped(value: str) -> None:
    assert visible(value) == value.encode("unicode_escape").decode()


# --- Errors of the database, as a person and a log are shown them: one readable line that says why


PASSWORD = "s3cretZq"  # planted


def error_of(url: str) -> DBAPIError:
    with pytest.raises(DBAPIError) as raised:
        engines.connect(url, application="tests").connect()
    return raised.value


def test_a_server_that_refuses_is_told_in_one_line_with_its_host_and_without_the_password() -> None:
    line = trouble_text(error_of(f"postgresql+psycopg://relay:{PASSWORD}@127.0.0.1:9/inbox"))
    assert line == 'connection failed: connection to server at "127.0.0.1", port 9 failed: Connection refused'


@pytest.mark.parametrize(
    "error",
    [
        ProgrammingError("INSERT", {}, psycopg.errors.UndefinedTable('relation "x" does not exist\nLINE 1: s3cretZq')),
        OperationalError("INSERT …", {}, sqlite3.OperationalError("no such table: x\ns3cretZq")),
        ValueError(PASSWORD),
    ],
)
def test_no_value_of_a_row_is_told(error: Exception) -> None:
    line = trouble_text(error)
    assert line
    assert PASSWORD not in line
    assert "\n" not in line


# --- Spans: which trace they belong to, and that nothing is imported, raised or awaited for them


@pytest.fixture(autouse=True)
def nothing_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("OTEL_")]:
        monkeypatch.delenv(name)


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_SDK_DISABLED": "true"},
        {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:9", "OTEL_TRACES_EXPORTER": "none"},
        {"OTEL_TRACES_EXPORTER": "zipkin"},
    ],
)
def test_nothing_is_traced_unless_it_is_asked_for(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert make_tracer(None, 1.0, "x") is OFF


def test_traces_without_the_extra_are_a_mistake(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(traces, "_is_installed", lambda: False)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    assert make_tracer(None, 1.0, "x") is OFF
    assert "inbox-relay[otel]" in caplog.text
    with pytest.raises(ConfigError, match=r"\[traces\] endpoint"):
        require_extra("http://127.0.0.1:9/v1/traces")
    require_extra(None)


@pytest.mark.parametrize(
    ("variable", "value"), [("OTEL_EXPORTER_OTLP_HEADERS", "Bearer s3cret"), ("OTEL_BSP_SCHEDULE_DELAY", "s3cret")]
)
def test_a_wrong_variable_stops_nothing_and_its_value_is_not_logged(
    variable: str, value: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv(variable, value)
    make_tracer("http://127.0.0.1:9/v1/traces", 1.0, "x").close()
    assert "traces" in caplog.text
    assert "s3cret" not in caplog.text
