"""`inbox show --at`, as a person and a program call them."""

from __future__ import annotations

import json

import pytest
from sqlalchemy import Engine, text

from tests.helpers.processes import Site
from tests.helpers.relaying import give_up
from tests.helpers.webhooks import moment


@pytest.fixture
def given_up(sqlite_engine: Engine, sqlite_database_url: str) -> tuple[str, str]:
    """An event that was given up; gives the time between its arrival and that, and the time of the latter."""
    give_up(sqlite_engine, sqlite_database_url, [("u1", moment(0))])
    with sqlite_engine.connect() as connection:
        arrived = connection.execute(text("SELECT received_at FROM inbox")).scalar_one()
        died = connection.execute(text("SELECT at FROM delivery_log WHERE kind = 'dead'")).scalar_one()
    return str(arrived).replace(" ", "T"), str(died).replace(" ", "T")


def test_an_earlier_time_is_shown(sqlite_place: Site, given_up: tuple[str, str]) -> None:
    arrived, died = given_up
    for at, state, facts in ((arrived, "open", 0), (died, "dead", 1)):
        ended = sqlite_place.invoke("inbox", "show", "1", "--at", at, "--json")
        event = json.loads(ended.stdout)
        assert (ended.status, ended.stderr) == (0, "")
        assert [(row["state"], row["attempts"]) for row in event["deliveries"]] == [(state, facts)]
        assert (len(event["facts"]), event["removed"], "gates" in event) == (facts, [], False)
    told = sqlite_place.invoke("inbox", "show", "1", "--at", arrived).stdout
    assert told.startswith("as it was at ")
    assert "route everything: open" in told
    assert "no attempt had ended" in told
    assert "email: no value" in sqlite_place.invoke("inbox", "show", "1", "--at", died).stdout


def test_a_time_before_its_arrival_a_time_to_come_and_other_options_are_told_apart(
    sqlite_place: Site, given_up: tuple[str, str]
) -> None:
    ended = sqlite_place.invoke("inbox", "show", "1", "--at", "2020-01-01")
    assert (ended.status, ended.stdout) == (1, "")
    assert ended.stderr.startswith("event 1 arrived later, at ")
    assert sqlite_place.invoke("inbox", "show", "1", "--at", "2999-01-01").status == 2
    assert given_up
