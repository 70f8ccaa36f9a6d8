"""Rows that listings, searches, tails and `inbox show` read, on both databases."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Connection, Engine, text

from inbox.db import following, listing, reads
from inbox.db.following import REJECTIONS, Feed, Follower, begin
from inbox.db.listing import EventFilter, RowPage
from inbox.db.reads import has
from inbox.events.states import LISTED_STATES
from inbox.events.timestamps import time_text
from relay.delivery.outcome import Call, ErrorClass, Failed
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.storing import START, a_rejected, an_event
from tests.helpers.waiting import stand_still

# --- Rows that `inbox list`, `inbox show`, `inbox rejected` and `relay dead` read, on both databases


LONG = 1000


def narrows(read: Callable[..., list[int]], by: Mapping[tuple[int, ...], Sequence[dict[str, Any]]]) -> None:
    """Assert for each of these conditions the seqs or ids that it leaves."""
    for left, each in by.items():
        for conditions in each:
            assert tuple(read(**conditions)) == left, conditions


SECOND, LATER = START + timedelta(seconds=1), START + timedelta(days=9)


def unwell(status: int, error_class: ErrorClass, error: str) -> Failed:
    call = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, status)
    return Failed((call,), error_class, error)


def test_an_event_is_found_by_its_number_its_senders_id_and_its_payload(engine: Engine, steps: Steps) -> None:
    bodies = (
        '{"name": "Zoë"}',
        '{"name": "Zo\\u00eb"}',
        '{"url": "https:\\/\\/shop.example\\/1"}',
        "\\x",
        '{"as": "Zoe"}',
    )
    routes = [["strict"]] * 4 + [[]]
    made = [an_event(n, f"u{n}", routes=routes[n - 1], body=body.encode()) for n, body in enumerate(bodies, start=1)]
    steps.receive(*(msgspec.structs.replace(each, event_id=f"Guid-{each.entity_id}") for each in made))
    steps.do("DELETE FROM inbox_payload WHERE seq = 5")
    narrows(
        lambda **given: [row["seq"] for row in search(engine, EventFilter(**given)).rows],
        {
            (3,): [{"seq": 3}, {"sender_id": "Guid-u3"}, {"body": "https://shop.example/1"}],
            (2, 1): [{"body": "Zoë"}, {"body": "Zoë", "until": SECOND, "state": "received"}],
            (4,): [{"body": "\\x"}],
            (): [
                {"seq": 3, "sender_id": "Guid-u1"},
                {"sender_id": "guid-u3"},
                {"body": "Zoe"},
                {"seq": 3, "state": "dead"},
            ],
        },
    )
    assert search(engine, EventFilter(body="Zoe")).without_payload == 1
    assert has(engine, "sender_id", "Guid-u3")
    assert reads.find_sender_ids(engine, "guid", 2) == ["Guid-u1", "Guid-u2"]


def test_a_search_in_payloads_stops_after_some_says_where_and_is_continued(
    engine: Engine, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "MOST_SEARCHED", 2)
    monkeypatch.setattr(listing, "_SEARCHED", 1)
    steps.receive(*(an_event(n) for n in range(1, 6)))
    found = search(engine, EventFilter(body='"n": 2'))
    assert (found.rows, found.before, found.looked_through, found.back_to) == ([], 4, 2, START)
    found = search(engine, EventFilter(body='"n": 2', before=4))
    assert (keys(found.rows), found.before) == ([(2, "strict")], 2)


def test_rejected_requests_are_narrowed_by_everything_that_they_show(engine: Engine, steps: Steps) -> None:
    steps.intake.reject(
        a_rejected(reason="the body is not JSON"),
        a_rejected(reason="100% wrong", status=401, cause="unauthenticated"),
        a_rejected(reason="no such source", source="tirvore", received_at=START + timedelta(hours=1)),
    )
    narrows(
        lambda **given: [row["id"] for row in listing.read_rows(engine, "rejected", given, LONG)],
        {
            (3, 2, 1): [{}],
            (2, 1): [{"source": "trivore"}],
            (2,): [{"status": 401}, {"cause": "unauthenticated"}, {"error": "100%"}],
            (1,): [{"error": "NOT json"}, {"until": SECOND, "before": 2}],
            (): [{"error": "1_0"}],
            (3,): [{"since": SECOND}],
        },
    )


def test_dead_letters_are_narrowed_by_everything_that_they_show(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b", routes=["latest"]))
    steps.attempt(HOPELESS)
    steps.attempt(unwell(422, "mapping", "100% wrong"), "latest")
    none: tuple[dict[str, Any], ...] = ({"routes": ()}, {"source": "nobody"}, {"cause": "exhausted"}, {"until": START})
    narrows(
        lambda **given: sorted(row["seq"] for row in listing.read_rows(engine, "dead", given, LONG)),
        {
            (1, 2): [{}, {"since": START, "until": SECOND, "cause": "mapping"}],
            (1,): [{"routes": {"strict"}}, {"entity_type": "USER", "entity_id": "a"}, {"error": "EMAIL:"}],
            (2,): [{"status": 422}, {"error": "100%"}],
            (): [*none, {"event_type": "x"}, {"since": SECOND}],
        },
    )


# --- A search with a time limit finds the same rows as the listing, over any number of pages


CONDITIONS: tuple[dict[str, Any], ...] = (
    {},
    *({"state": state} for state in LISTED_STATES),
    *({"state": state, "routes": {"strict"}} for state in ("dead", "ready", "delivered", "waiting")),
    *({"state": state, "entity_type": "USER", "entity_id": "u2"} for state in ("dead", "ready", "delivered")),
    {"state": "open"},
    {"state": "open", "routes": {"strict"}, "status": 503},
    {"state": "ready", "retrying_at": START},
    {"state": "ready", "retrying_at": START + timedelta(days=9)},
    {"source": "trivore", "entity_type": "USER", "entity_id": "u1"},
    {"entity_type": "USER", "entity_id": "u1"},
    {"entity_type": "USER"},
    {"entity_id": "u1"},
    {"entity_type": "GROUP"},
    {"source": "nobody"},
    {"event_type": "UPDATE"},
    {"routes": {"latest"}},
    {"routes": {"latest", "blocking"}},
    {"routes": set()},
    {"error": "EMAIL"},
    {"status": 503},
    {"since": START},
    {"since": START + timedelta(seconds=1)},
    {"until": START},
    {"until": START + timedelta(seconds=1), "since": START},
    {"before": 8},
    {"before": 8, "state": "dead"},
    {"seq": 5},
    {"seq": 5, "state": "ready"},
    {"seq": 5, "before": 5},
)


def keys(rows: list[dict[str, Any]]) -> list[tuple[int, str | None]]:
    return [(row["seq"], row["route"]) for row in rows]


def search(engine: Engine, wanted: EventFilter, limit: int = LONG, seconds: float = 60.0) -> RowPage:
    return listing.list_deliveries(engine, wanted, limit, most=500, seconds=seconds)


def all_that_match(engine: Engine, wanted: EventFilter) -> list[tuple[int, str | None]]:
    """Return the matching rows by the view alone, with the conditions on events in Python."""
    with engine.connect() as connection:
        numbers = list(connection.execute(text("SELECT seq FROM inbox ORDER BY seq DESC")).scalars())
        connection.rollback()
        rows = [row for of_event in listing.read_deliveries(connection, numbers) for row in of_event]
    names = ("source", "entity_type", "entity_id", "event_type", "seq")
    return [
        (row["seq"], row["route"])
        for row in rows
        if wanted.admits(row)
        and all(getattr(wanted, name) in {None, row[name]} for name in names)
        and (wanted.since is None or row["received_at"] >= wanted.since)
        and (wanted.until is None or row["received_at"] < wanted.until)
        and (wanted.before is None or row["seq"] < wanted.before)
    ]


@pytest.fixture(params=[1, 3])
def small_windows(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_WINDOW", "_PAGE"):
        monkeypatch.setattr(listing, name, request.param)


@pytest.mark.usefixtures("small_windows")
def test_it_finds_all_that_match(engine: Engine, lived_in: Steps) -> None:
    lived_in.receive(an_event(20, routes=[]), an_event(21, routes=["strict", "latest"]))
    for conditions in CONDITIONS:
        wanted = EventFilter(**conditions)
        found = search(engine, wanted)
        assert keys(found.rows) == all_that_match(engine, wanted), conditions
        assert (found.before, found.is_complete, found.matching) == (None, True, len(found.rows)), conditions


def pages_of(
    engine: Engine, limit: int = LONG, seconds: float = 60.0, **given: object
) -> list[list[tuple[int, str | None]]]:  # conditions
    """Search on from where each page ended."""
    pages, before, is_over = [], None, False
    while not is_over:
        found = search(engine, EventFilter(**given, before=before), limit, seconds)  # type: ignore[arg-type]  # each is of its kind
        assert before is None or found.before is None or found.before < before
        pages.append(keys(found.rows))
        before, is_over = found.before, found.before is None
    return pages


@pytest.mark.usefixtures("small_windows")
@pytest.mark.parametrize("given", [{}, {"state": "ready"}, {"status": 503}, {"entity_type": "USER", "entity_id": "u1"}])
def test_without_any_time_it_still_goes_on_to_the_end(engine: Engine, lived_in: Steps, given: dict[str, Any]) -> None:
    lived_in.receive(an_event(21, routes=["strict", "latest"]))
    pages = pages_of(engine, seconds=-1.0, **given)
    assert [key for page in pages for key in page] == all_that_match(engine, EventFilter(**given))
    assert len(pages) > 1


@pytest.mark.parametrize("limit", [1, 3])
def test_its_pages_hold_every_row_once_and_its_count_is_of_all(engine: Engine, steps: Steps, limit: int) -> None:
    steps.receive(*(an_event(n, routes=["strict", "latest"] if n % 2 else ["strict"]) for n in range(1, 8)))
    assert search(engine, EventFilter(), limit).matching == 11
    pages = pages_of(engine, limit)
    assert [seq for page in pages for seq, _ in page] == [7, 7, 6, 5, 5, 4, 3, 3, 2, 1, 1]
    assert all(len(page) <= max(limit, 2) for page in pages)


# --- Names that a filter may give though the configuration lacks them: the database has rows of them


def test_a_route_is_known_while_it_has_something_open_and_after_that(engine: Engine, steps: Steps) -> None:
    assert not has(engine, "route", "strict")
    steps.arrive(an_event(1))
    assert has(engine, "route", "strict")
    steps.attempt(DONE)
    assert (has(engine, "route", "strict"), has(engine, "route", "latest")) == (True, False)


# --- An event at an earlier moment; removals by retention and erasure are named


def test_removals_by_retention_and_erasure_are_said_only_where_they_matter(steps: Steps) -> None:
    steps.arrive(an_event(1))
    until = START + timedelta(days=1)
    steps.do("INSERT INTO pruning (kind, pruned_until, rows) VALUES ('attempts', '2026-01-02 00:00:00.000000Z', 0)")
    event = reads.event(steps.database.engine, 1)
    assert event is not None
    assert reads.describe_removed(steps.database.engine, event, START) == []
    steps.do("UPDATE pruning SET rows = 1 WHERE kind = 'attempts'")
    erased = {**event, "erased_at": until}
    assert len(reads.describe_removed(steps.database.engine, erased, START)) == 2
    assert len(reads.describe_removed(steps.database.engine, {**erased, "received_at": until}, until)) == 0


# --- Tails read each new row once, and skip none, in whatever order the rows are committed


REJECT = text(
    "INSERT INTO rejected_request (id, received_at, source, status, cause, reason, body_sha256)"
    " VALUES (:id, :at, 'trivore', 401, 'unauthenticated', 'no', :hash)"
)


def reject(connection: Connection, *numbers: int, seconds: int = 0) -> None:
    for number in numbers:
        at = time_text(START + timedelta(seconds=seconds))
        connection.execute(REJECT, {"id": number, "at": at, "hash": b"1"})


def commit_rejections(engine: Engine, *numbers: int, seconds: int = 0) -> None:
    with engine.begin() as connection:
        reject(connection, *numbers, seconds=seconds)


def following_from(engine: Engine, feed: Feed = REJECTIONS, *, seconds: int | None = None) -> Follower:
    since = None if seconds is None else START + timedelta(seconds=seconds)
    with engine.connect() as connection:
        return begin(connection, feed, since)


def new(engine: Engine, follower: Follower) -> list[int]:
    with engine.connect() as connection:
        return [row[follower.feed.number] for row in follower.read(connection)]


def test_new_rows_are_read_once_from_the_end_on(engine: Engine) -> None:
    commit_rejections(engine, 1, 2)
    follower = following_from(engine)
    assert new(engine, follower) == []
    commit_rejections(engine, 3, 4)
    assert [new(engine, follower), new(engine, follower)] == [[3, 4], []]


def test_a_row_that_is_committed_behind_higher_ones_is_not_skipped(engine: Engine) -> None:
    follower = following_from(engine)
    assert new(engine, follower) == []
    commit_rejections(engine, 2, 5)
    assert new(engine, follower) == [2, 5]
    commit_rejections(engine, 3)
    commit_rejections(engine, 6, 1)
    assert [new(engine, follower), new(engine, follower)] == [[1, 3, 6], []]


@ON_POSTGRES
def test_a_row_whose_transaction_was_open_when_the_tail_began_is_not_skipped(engine: Engine) -> None:
    with engine.connect() as late, late.begin():
        stand_still(late)
        reject(late, 7)
        commit_rejections(engine, 8)
        follower = following_from(engine)
        commit_rejections(engine, 9)
        assert new(engine, follower) == [9]
    assert [new(engine, follower), new(engine, follower)] == [[7], []]


def test_a_tail_begins_with_the_rows_since_a_time(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "PAGE", 3)
    monkeypatch.setattr(following, "NEAR", 2)
    monkeypatch.setattr(following, "OUT_OF_ORDER", 2)
    commit_rejections(engine, *range(1, 11))
    commit_rejections(engine, 11, 13, seconds=10)
    commit_rejections(engine, 12, seconds=0)  # readmitted: it keeps its old time
    commit_rejections(engine, 14, 15, 16, seconds=20)
    follower = following_from(engine, seconds=10)
    pages = []
    while follower.is_behind:
        pages.append(new(engine, follower))
    assert [number for page in pages for number in page] == [11, 13, 14, 15, 16]
    assert max(map(len, pages)) <= 3, "a page is bounded, whatever waits"
    commit_rejections(engine, 17, seconds=30)
    assert new(engine, follower) == [17]
    assert new(engine, following_from(engine, seconds=99)) == []


def test_a_number_taken_too_long_ago_is_not_looked_for(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "OUT_OF_ORDER", 3)
    follower = following_from(engine)
    assert new(engine, follower) == []
    commit_rejections(engine, 10)
    assert new(engine, follower) == [10]
    commit_rejections(engine, 7, 8)
    assert new(engine, follower) == [8]
