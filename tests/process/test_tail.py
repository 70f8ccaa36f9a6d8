"""`inbox tail` and `relay tail`: arrivals and outcomes, live, also over a restart of the database."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine

from inbox.db.intake import Rejected
from relay.cli import listings
from tests.helpers.databases import down
from tests.helpers.processes import INBOX, Ended, Site
from tests.helpers.relaying import fill, give_up
from tests.helpers.storing import START, Intake
from tests.helpers.waiting import until
from tests.helpers.webhooks import moment

REJECTED = Rejected(START, "trivore", 422, "invalid_event", "no id \x1b[31m", None, None, b"1" * 32, None, None)


def objects(written: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in written.splitlines() if line.startswith("{")]


@pytest.fixture
def tail(place: Site, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ended]:
    """A function that follows rows, among which something happens, until there are no more."""

    def tails(happens: Callable[[], object], side: str, *options: str) -> Ended:
        events = iter([happens])

        def wait() -> None:
            following = next(events, None)
            if following is None:
                raise KeyboardInterrupt
            following()

        monkeypatch.setattr(listings, "wait_for_more", wait)
        return place.invoke(side, "tail", *options)

    return tails


def test_arrivals_and_rejected_requests_are_followed_until_ctrl_c(
    tail: Callable[..., Ended], database_url: str
) -> None:
    fill(database_url, [("before", moment(0))])

    def happens() -> None:
        fill(database_url, [("u1", moment(1)), ("u2", moment(2))])
        Intake(database_url).reject(REJECTED, msgspec.structs.replace(REJECTED, cause="unknown_source"))

    every = tail(happens, "inbox", "--ndjson")
    assert every.status == 0
    assert sorted((each["kind"], each.get("entity_id")) for each in objects(every.stdout)) == [
        ("arrived", "u1"),
        ("arrived", "u2"),
        *[("rejected", None)] * 2,
    ]
    of_two = tail(lambda: fill(database_url, [("u2", moment(3)), ("u3", moment(3))]), "inbox", "--entity", "USER/u2")
    heading, line = of_two.stdout.splitlines()
    assert heading.split() == ["received_at", "kind", "number", "source", "entity", "what"]
    assert line.split()[1:] == ["arrived", "4", "trivore", "USER/u2", "UPDATE", "→", "everything"]
    rejected = tail(happens, "inbox", "--ndjson", "--kind", "rejected", "--cause", "invalid_event")
    assert [each["cause"] for each in objects(rejected.stdout)] == ["invalid_event"]


def test_outcomes_are_followed_and_may_begin_earlier(
    tail: Callable[..., Ended], database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [("u1", moment(0))], reason="email: no value")
    followed = tail(
        lambda: give_up(engine, database_url, [("u2", moment(1))], reason="email: no value"), "relay", "--since", "1h"
    )
    lines = [line.split() for line in followed.stdout.splitlines()[1:]]
    assert [line[1:5] for line in lines] == [["dead", str(seq), "everything", f"USER/u{seq}"] for seq in (1, 2)]
    others = tail(lambda: None, "relay", "--ndjson", "--cause", "exhausted", "--since", "1h")
    assert objects(others.stdout) == []


def test_with_end_each_row_that_is_there_is_exported_once_in_order(
    place: Site, database_url: str, engine: Engine
) -> None:
    give_up(engine, database_url, [(f"u{n}", moment(n)) for n in (1, 2, 3)], reason="email: no value")
    for options, wanted in (((), [1, 2, 3]), (("--entity", "USER/u2"), [2]), (("--since", "2999-01-01"), [])):
        for side in ("inbox", "relay"):
            ended = place.invoke(side, "tail", "--end", "--ndjson", *options)
            assert (ended.status, ended.stderr) == (0, "")
            assert [each["seq"] for each in objects(ended.stdout)] == wanted
    newest_first = place.invoke("inbox", "list", "--ndjson").stdout
    assert [each["seq"] for each in objects(newest_first)] == [3, 2, 1]


def test_an_export_waits_for_a_database_that_goes_away_and_tells_of_it_once(
    sqlite_place: Site, sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(sqlite_database_url, [("u1", moment(1))])
    look, troubles = listings._look, iter(["it is gone"] * 2)

    def look_again(*given: Any) -> Any:  # noqa: ANN401  # as the other
        trouble = next(troubles, "")
        return ([], trouble) if trouble else look(*given)

    monkeypatch.setattr(listings, "_look", look_again)
    monkeypatch.setattr(listings, "wait_for_more", lambda: None)
    ended = sqlite_place.invoke("inbox", "tail", "--end", "--ndjson")
    assert (ended.status, len(ended.stdout.splitlines())) == (0, 1)
    assert ended.stderr.count("the database does not answer (it is gone)") == 1


def test_a_mistyped_filter_ends_with_2(sqlite_place: Site) -> None:
    for wrong in ("inbox tail --kind arived", "inbox tail --source trivor", "relay tail --cause dead"):
        assert sqlite_place.invoke(*wrong.split()).status == 2


def test_a_tail_survives_an_outage_of_the_database_and_skips_nothing(
    postgres_place: Site, postgres_database_url: str
) -> None:
    program = postgres_place.start("tail", *INBOX, "tail", "--ndjson")
    program.writes("following; Ctrl-C ends it")
    fill(postgres_database_url, [("u1", moment(1))])
    program.writes('"seq": 1')
    with down(postgres_database_url):
        program.writes("the database does not answer")
    fill(postgres_database_url, [("u2", moment(2)), ("u3", moment(3))])
    program.writes("the database answers again")
    until(lambda: len(objects(program.output)) == 3, "the tail goes on")
    program.send(signal.SIGINT)
    assert (program.ends(), "Traceback" in program.output) == (0, False)
    assert [each["seq"] for each in objects(program.output)] == [1, 2, 3]
    assert program.output.count("does not answer") == 1
