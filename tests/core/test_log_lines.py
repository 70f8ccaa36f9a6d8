"""A log has one line for each event, and no value can make another."""

from __future__ import annotations

import io
import logging
import re
import time
from collections.abc import Iterator
from datetime import datetime, timedelta

import pytest

from inbox.clock import SystemClock
from inbox.observe.logs import escape_lines, write_stderr
from tests.helpers.hostile import HOSTILE, MARK, harm_of


def logged(formatter: logging.Formatter | None, *, raising: bool = False, library: str | None = None) -> str:
    output = io.StringIO()
    handler = logging.StreamHandler(output)
    handler.setFormatter(formatter)
    escape_lines([handler], library)
    bug = (RuntimeError, RuntimeError(HOSTILE), None) if raising else None
    text, values = ("a bug", ()) if raising else ("refused a request of %s: %s", (HOSTILE, HOSTILE))
    handler.handle(logging.LogRecord("inbox", logging.WARNING, "", 1, text, values, bug))
    return output.getvalue()


@pytest.mark.parametrize(
    "formatter",
    [None, logging.Formatter("%(asctime)s %(levelname)s %(message)s"), logging.Formatter("{message}", style="{")],
)
def test_a_record_is_one_line_whatever_stands_in_it(formatter: logging.Formatter | None) -> None:
    line = logged(formatter)
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
    line = logged(logging.Formatter("%(asctime)s|%(message)s", "library's own"), library="library's own")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.partition("|")[0])
    assert abs(datetime.fromisoformat(line.partition("|")[0]) - before) < timedelta(minutes=1)
    assert logged(logging.Formatter("%(asctime)s|%(message)s", "chosen"), library="its own").startswith("chosen|")


def test_a_traceback_stands_below_it_and_no_text_of_an_exception_begins_a_line() -> None:
    shown = logged(None, raising=True)
    assert harm_of(shown) == []
    first, second, *others = shown.splitlines()
    assert first == "a bug"
    assert second.startswith(f"RuntimeError: {MARK}")
    assert all(line.startswith("  ") for line in others)
    assert others


def test_what_is_told_beside_the_log_is_escaped_as_well(capsys: pytest.CaptureFixture[str]) -> None:
    write_stderr(f"inbox: {HOSTILE}")
    shown = capsys.readouterr().err
    assert harm_of(shown) == []
    assert len(shown.splitlines()) == 2
    assert shown.splitlines()[1].startswith("  ")
