"""Listings: how a table fits its terminal, what a pipe gets, and the words for counts and times."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from relay.cli.listings import ListCommand, list_rows
from relay.cli.output import fitted, put_json, show, table
from relay.words import counted, lasting, relative, shown_state

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
LISTING = ListCommand("deliveries", "events", "seq state entity received_at lane last_error", "relay_node")
COLUMNS = LISTING.names()
ROW = {
    "seq": 7,
    "state": "dead",
    "entity_type": "USER",
    "entity_id": "IDNUMBER1234",
    "last_error": "the call was answered 503: " + "out of order " * 10,
    "received_at": NOW - timedelta(minutes=3),
    "lane": "USER|IDNUMBER1234",
}


def arranged(width: int, rows: list[dict[str, object]] | None = None) -> tuple[list[str], int]:
    lines, omitted = fitted(rows or [ROW], COLUMNS, width, NOW)
    return [line.plain for line in lines], omitted


def test_a_long_text_wraps_and_nothing_is_cut() -> None:
    lines, omitted = arranged(80)
    assert lines[:2] == [
        "seq  state  entity             received   lane               error",
        "  7  dead   USER/IDNUMBER1234  3 min ago  USER|IDNUMBER1234  the call was",
    ]
    assert omitted == 0
    assert " ".join(" ".join(lines[1:]).split()).endswith(str(ROW["last_error"]).strip().partition("503: ")[2])


def test_the_less_important_columns_are_left_out_where_room_is_short() -> None:
    lines, omitted = arranged(50)
    assert (lines[0].split(), omitted) == (["seq", "state", "entity", "error"], 2)
    assert arranged(12)[0][0] == "seq  state"


def test_columns_without_values_are_not_shown() -> None:
    ((heading, _), omitted) = arranged(80, [{"seq": 1, "state": "delivered"}])
    assert (heading, omitted) == ("seq  state", 0)


def test_chosen_columns_come_in_the_order_of_their_names_and_may_be_named_by_their_headings() -> None:
    assert LISTING.names("received, error,seq") == ["received_at", "last_error", "seq"]
    assert LISTING.names("relay_node,lane") == ["relay_node", "lane"]
    assert LISTING.names(wide=True) == [*COLUMNS[:-1], "relay_node", "last_error"]


def test_outside_a_terminal_every_value_is_whole_and_times_are_absolute() -> None:
    heading, line = (line.plain for line in table([ROW], COLUMNS))
    assert heading.split() == COLUMNS
    assert "2026-11-26T11:57:00.000Z" in line
    assert str(ROW["last_error"]).strip() in line


@given(
    st.lists(
        st.fixed_dictionaries({"seq": st.integers(), "last_error": st.text(), "entity_type": st.text()}), min_size=1
    ),
    st.integers(1, 200),
)
def test_no_line_is_wider_than_the_terminal(rows: list[dict[str, object]], width: int) -> None:
    least = max(3, *(len(str(row["seq"])) for row in rows))  # the first column is always shown
    for line in arranged(width, rows)[0]:
        assert cell_len(line) <= max(width, least)
        assert line.isprintable()


def test_states_that_need_somebody_are_red_and_those_that_are_well_green() -> None:
    rows: list[dict[str, object]] = [{"seq": 1, "state": state} for state in ("dead", "retrying", "delivered", "ready")]
    lines, _ = fitted(rows, COLUMNS, 80, NOW)
    assert [{str(span.style) for span in line.spans} for line in lines[1:]] == [{"red"}, {"yellow"}, {"green"}, set()]


def test_no_colour_leaves_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show([ROW], COLUMNS)
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show([ROW], COLUMNS)
    assert "\x1b[3" not in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    show([ROW], COLUMNS)
    assert "\x1b" not in capsys.readouterr().out


def test_below_a_table_on_a_terminal_stands_how_to_see_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show([ROW], COLUMNS, more="1 shown", hidden=0)
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    show([ROW], COLUMNS, more="1 shown", hidden=1)
    assert capsys.readouterr().err == "1 shown; 1 more column: --wide\n"
    show([ROW], COLUMNS)
    assert capsys.readouterr().err == ""


def test_json_has_every_field_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    row = {**ROW, "last_error": "two\nlines \x1b\u2028"}
    for indent in (2, None):
        put_json(row, indent=indent)
        written = capsys.readouterr().out
        assert json.loads(written) == {**row, "received_at": "2026-11-26T11:57:00.000000Z"}
    assert written.count("\n") == 1


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"columns": "sequence"}, "there is no column 'sequence'; "),
        ({"columns": "lanes,seq"}, "there is no column 'lanes'; did you mean 'lane'?"),
        ({"columns": ""}, "there is no column ''; valid here: entity, error, lane, last_error, "),
        ({"as_json": True, "as_ndjson": True}, "--json and --ndjson exclude each other"),
        ({"as_json": True, "wide": True}, "JSON always has every field"),
        ({"as_ndjson": True, "columns": "seq"}, "JSON always has every field"),
    ],
)  # fmt: skip
def test_wrong_options_of_a_listing_exit_with_2(
    wrong: dict[str, Any], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    given: dict[str, Any] = {"limit": None, "columns": None, "wide": False, "as_json": False, "as_ndjson": False}
    with pytest.raises(typer.Exit) as ended:
        list_rows(LISTING, lambda row, _now: row, **{**given, **wrong})
    assert ended.value.exit_code == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("number", "word", "shown"),
    [
        (1, "event", "1 event"),
        (0, "event", "0 events"),
        (12000, "delivery", "12,000 deliveries"),
        (2, "day", "2 days"),
        (2, "batch", "2 batches"),
    ],
)
def test_plurals_are_right(number: int, word: str, shown: str) -> None:
    assert counted(number, word) == shown


@pytest.mark.parametrize(
    ("ago", "shown"),
    [
        (0.4, "now"),
        (-0.4, "now"),
        (12, "12 s ago"),
        (59.9, "59 s ago"),
        (180, "3 min ago"),
        (-7200, "in 2 h"),
        (47.5 * 3600, "47 h ago"),
        (5 * 86400, "5 d ago"),
        (61 * 86400, "2026-09-26"),
        (-70 * 86400, "2027-02-04"),
    ],
)
def test_times_are_relative_until_they_are_far_away(ago: float, shown: str) -> None:
    assert relative(NOW - timedelta(seconds=ago), NOW) == shown


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.0454, "45 ms"), (1.25, "1.2 s"), (12.4, "12 s"), (200, "3 min"), (7300, "2 h")]
)
def test_durations_have_a_fitting_unit(seconds: float, shown: str) -> None:
    assert lasting(seconds) == shown


@pytest.mark.parametrize(
    ("row", "shown"),
    [
        ({"state": "ready", "attempts": 1, "due_at": NOW + timedelta(seconds=1)}, "retrying"),
        ({"state": "ready", "attempts": 0, "due_at": NOW + timedelta(seconds=1)}, "ready"),
        ({"state": "delivered", "attempts": 1}, "delivered"),  # of a backfill: its plan has no `due_at`
    ],
)
def test_a_delivery_that_waits_for_its_next_attempt_is_shown_as_retrying(row: dict[str, object], shown: str) -> None:
    assert shown_state(row, NOW) == shown
