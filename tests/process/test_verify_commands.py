"""`relay verify` and `relay rebuild` as an operator runs them."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, text

from relay.cli import compare
from tests.helpers.filling import fill
from tests.helpers.processes import Site
from tests.helpers.reading import count
from tests.helpers.webhooks import config_text, moment

EVENTS = 40


@pytest.fixture
def filled(place: Site, database_url: str) -> Site:
    """A site whose inbox has events."""
    fill(database_url, [(f"u{n % 10}", moment(n)) for n in range(EVENTS)])
    return place


def lose(engine: Engine, seqs: str) -> None:
    with engine.begin() as connection:
        connection.execute(text(f"DELETE FROM open_delivery WHERE seq IN ({seqs})"))


def test_where_all_agrees_it_says_what_it_has_seen(filled: Site) -> None:
    seen = f"{EVENTS} events, {EVENTS} deliveries, 0 facts\n"
    assert filled.invoke("relay", "verify")[:2] == (0, f"agreed: {seen}")
    assert filled.invoke("relay", "rebuild")[:2] == (0, f"nothing to repair: {seen}")


def test_an_empty_inbox_agrees(place: Site) -> None:
    assert place.invoke("relay", "verify").stdout == "agreed: 0 events, 0 deliveries, 0 facts\n"
    assert place.invoke("relay", "verify", "--json").stdout == "[]\n"


def test_each_difference_is_told_and_the_exit_status_1_until_it_is_mended(filled: Site, engine: Engine) -> None:
    lose(engine, "3, 7")

    found = filled.invoke("relay", "verify")
    assert found.status == 1
    assert [line.split() for line in found.stdout.splitlines()] == [
        ["finding", "seq", "route", "lane", "facts_say", "stored"],
        ["missing", "3", "everything", "open", "no", "row"],
        ["missing", "7", "everything", "open", "no", "row"],
    ]
    assert "2 differences in 40 events" in found.stderr
    assert "`relay rebuild` repairs them" in found.stderr
    for_programs = filled.invoke("relay", "verify", "--json")
    assert for_programs.status == 1
    assert [(each["finding"], each["seq"], each["route"]) for each in json.loads(for_programs.stdout)] == [
        ("missing", 3, "everything"),
        ("missing", 7, "everything"),
    ]

    repaired = filled.invoke("relay", "rebuild")
    assert repaired.status == 0
    assert repaired.stdout.splitlines()[-1].startswith("repaired 2 differences in 40 events, ")
    assert filled.invoke("relay", "verify").status == 0
    assert count(engine, "open_delivery") == EVENTS
    lose(engine, "3, 7")
    assert [len(json.loads(filled.invoke("relay", "rebuild", "--json").stdout)) for _ in range(2)] == [2, 0]


def test_of_very_many_differences_the_first_are_told(
    filled: Site, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "_MOST_DIFFERENCES", 3)
    lose(engine, "3, 7, 8, 9, 10")
    found = filled.invoke("relay", "verify")
    assert [line.split()[1] for line in found.stdout.splitlines()] == ["seq", "3", "7", "8"]
    assert "5 differences in 40 events" in found.stderr


def test_a_database_that_is_not_there_is_told_in_one_line(sqlite_place: Site) -> None:
    sqlite_place.configure(config_text("postgresql+psycopg://127.0.0.1:9/none"))
    told = sqlite_place.invoke("relay", "verify")
    assert told.status == 2
    assert told.stderr.startswith("error: the database")
