"""Listings: how a table fits its terminal, what a pipe gets, and the words for counts and times."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len

from relay.cli.tables import Column, Format, Layout, Rolling, format_of, layout, show
from relay.words import counted, lasting, relative, shown_state

NOW = datetime(2026, 11, 26, 12, 0, tzinfo=UTC)
COLUMNS = (
    Column("seq", "number"),
    Column("state", "state"),
    Column("entity", "entity"),
    Column("last_error", last=True),
    Column("received_at", "time", "received"),
    Column("lane", on_request=True),
)
ROW = {
    "seq": 7,
    "state": "dead",
    "entity_type": "USER",
    "entity_id": "IDNUMBER1234",
    "last_error": "the call was answered 503: " + "out of order " * 10,
    "received_at": NOW - timedelta(minutes=3),
    "lane": "USER|IDNUMBER1234",
}


def arranged(width: int | None, *, names: tuple[str, ...] = (), rows: list[dict[str, object]] | None = None) -> Layout:
    return layout(rows or [ROW], COLUMNS, Format(names=names), width=width, now=NOW)


def text_of(made: Layout) -> list[str]:
    return [line.plain for line in made.lines]


def test_a_long_text_wraps_and_nothing_is_cut() -> None:
    made = arranged(80)
    assert text_of(made)[:2] == [
        "seq  state  entity             received   last error",
        "  7  dead   USER/IDNUMBER1234  3 min ago  the call was answered 503: out of",
    ]
    assert made.omitted == ("lane",)
    assert " ".join(" ".join(text_of(made)[1:]).split()).endswith(str(ROW["last_error"]).strip().partition("503: ")[2])


def test_the_less_important_columns_are_left_out_where_room_is_short() -> None:
    assert text_of(arranged(50))[0] == "seq  state  entity             last error"
    assert arranged(50).omitted == ("received_at", "lane")
    assert text_of(arranged(12))[0] == "seq  state"


def test_columns_without_values_are_not_shown() -> None:
    (heading, _) = text_of(arranged(80, rows=[{"seq": 1, "state": "delivered"}]))
    assert heading == "seq  state"


def test_chosen_columns_come_in_the_order_of_their_names_even_where_room_is_short() -> None:
    assert text_of(arranged(80, names=("lane", "seq"))) == ["lane               seq", "USER|IDNUMBER1234    7"]
    assert all(cell_len(line) <= 12 for line in text_of(arranged(12, names=("lane", "last_error"))))


def test_wide_shows_the_columns_on_request_too() -> None:
    (heading, _) = text_of(layout([ROW], COLUMNS, Format(wide=True), width=None))
    assert heading.split() == ["seq", "state", "entity", "received_at", "lane", "last_error"]


def test_outside_a_terminal_every_value_is_whole_and_times_are_absolute() -> None:
    heading, line = text_of(arranged(None))
    assert heading.split() == ["seq", "state", "entity", "received_at", "last_error"]
    assert "2026-11-26T11:57:00.000Z" in line
    assert str(ROW["last_error"]).strip() in line


@given(
    st.lists(
        st.fixed_dictionaries({"seq": st.integers(), "last_error": st.text(), "entity_type": st.text()}), min_size=1
    ),
    st.integers(1, 200),
)
def test_no_line_is_wider_than_the_terminal(rows: list[dict[str, object]], width: int) -> None:
    least = max(len(str(row["seq"])) for row in rows)  # the first column is always shown
    for line in text_of(arranged(width, rows=rows)):
        assert cell_len(line) <= max(width, least)
        assert line.isprintable()


def test_states_that_need_somebody_are_red_and_those_that_are_well_green() -> None:
    rows: list[dict[str, object]] = [{"seq": 1, "state": state} for state in ("dead", "retrying", "delivered", "ready")]
    styles = [{str(span.style) for span in line.spans} for line in arranged(80, rows=rows).lines]
    assert styles == [{"bold"}, {"red"}, {"yellow"}, {"green"}, set()]


def test_no_colour_leaves_where_it_is_not_wanted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    show([ROW], COLUMNS, empty="")
    assert "\x1b[31m" in capsys.readouterr().out
    monkeypatch.setenv("NO_COLOR", "1")
    show([ROW], COLUMNS, empty="")
    assert "\x1b[3" not in capsys.readouterr().out
    monkeypatch.delenv("FORCE_COLOR")
    show([ROW], COLUMNS, empty="")
    assert "\x1b" not in capsys.readouterr().out


def test_below_a_table_on_a_terminal_stands_how_to_see_the_rest(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    show([ROW], COLUMNS, empty="", more="1 shown")
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "90")
    show([ROW], COLUMNS, empty="", more="1 shown")
    assert capsys.readouterr().err == "1 shown; 1 more column: --wide\n"
    show([ROW], COLUMNS, Format(has_wide=False), empty="")
    assert capsys.readouterr().err == ""


def test_json_has_every_field_as_an_array_or_one_object_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [ROW, {**ROW, "last_error": "two\nlines \x1b\u2028"}]
    expected = [{**row, "received_at": "2026-11-26T11:57:00.000000Z"} for row in rows]
    show(rows, COLUMNS, Format("json"), empty="")
    assert json.loads(capsys.readouterr().out) == expected
    show(rows, COLUMNS, Format("ndjson"), empty="")
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == expected
    show([], COLUMNS, Format("ndjson"), empty="none")
    assert capsys.readouterr() == ("", "")


def test_rows_that_come_one_by_one_stand_below_each_other_outside_a_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    table = Rolling([Column("kind"), Column("seq", "number"), Column("what", last=True)])
    for kind, seq in (("dead", 7), ("attempt_failed", 1234)):
        table.add({"kind": kind, "seq": seq, "what": "it"}, shown={})
    lines = capsys.readouterr().out.splitlines()
    assert len({line.index(word) for line, word in zip(lines, ("what", "it", "it"), strict=True)}) == 1, lines


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"names": "sequence"}, "there is no column 'sequence'; "),
        ({"names": "lanes,seq"}, "there is no column 'lanes'; did you mean 'lane'?"),
        ({"names": ""}, "there is no column ''; valid here: entity, lane, last_error, received_at, seq, state"),
        ({"as_json": True, "as_ndjson": True}, "--json and --ndjson exclude each other"),
        ({"as_json": True, "wide": True}, "JSON always has every field"),
        ({"as_ndjson": True, "names": "seq"}, "JSON always has every field"),
    ],
)
def test_wrong_options_of_a_listing_exit_with_2(
    wrong: dict[str, object], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(typer.Exit) as ended:
        format_of(COLUMNS, **wrong)  # type: ignore[arg-type]  # options by their names
    assert ended.value.exit_code == 2
    assert said in capsys.readouterr().err


def test_a_column_is_also_named_by_its_heading() -> None:
    assert format_of(COLUMNS, names="received, last error,seq").names == ("received_at", "last_error", "seq")


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
