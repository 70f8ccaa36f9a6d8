"""A search of deliveries that ends in time: it finds what the listing without a limit finds, wherever it was cut."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.db import following, listing
from inbox.db.listing import EventFilter, RowPage
from inbox.events.states import LISTED_STATES
from tests.helpers.relaying import Steps
from tests.helpers.storing import START, an_event

LONG = 1000
CONDITIONS: tuple[dict[str, Any], ...] = (
    {},
    *({"state": state} for state in LISTED_STATES),
    *({"state": state, "routes": {"strict"}} for state in ("dead", "ready", "delivered", "waiting")),
    *({"state": state, "entity_type": "USER", "entity_id": "u2"} for state in ("dead", "ready", "delivered")),
    {"state": "ready", "retrying_at": START},
    {"state": "ready", "retrying_at": START + timedelta(days=9)},
    {"source": "trivore", "entity_type": "USER", "entity_id": "u1"},
    {"entity_type": "USER", "entity_id": "u1"},
    {"entity_type": "USER"},
    {"entity_id": "u1"},
    {"entity_type": "GROUP"},
    {"source": "nobody"},
    {"event_type": "UPDATE"},
    {"event_type": "no such"},
    {"routes": {"latest"}},
    {"routes": {"latest", "blocking"}},
    {"routes": set()},
    {"error": "EMAIL"},
    {"error": "%"},
    {"status": 503},
    {"status": 200},
    {"since": START},
    {"since": START + timedelta(seconds=1)},
    {"until": START},
    {"until": START + timedelta(seconds=1), "since": START},
    {"before": 8},
    {"before": 8, "state": "dead"},
    {"before": 0},
)


def keys(rows: list[dict[str, Any]]) -> list[tuple[int, str | None]]:
    return [(row["seq"], row["route"]) for row in rows]


def searched(engine: Engine, wanted: EventFilter, limit: int = LONG, seconds: float = 60.0) -> RowPage:
    return listing.list_deliveries(engine, wanted, limit, most=500, seconds=seconds)


def all_that_match(engine: Engine, wanted: EventFilter) -> list[tuple[int, str | None]]:
    """By the view alone, and the conditions on events in plain words."""
    with engine.connect() as connection:
        numbers = list(connection.execute(text("SELECT seq FROM inbox ORDER BY seq DESC")).scalars())
        connection.rollback()
        rows = [row for of_event in listing.deliveries_of(connection, numbers) for row in of_event]
    given = {name: getattr(wanted, name) for name in ("source", "entity_type", "entity_id", "event_type")}
    return keys(
        [
            row
            for row in rows
            if wanted.admits(row)
            and all(value is None or row[name] == value for name, value in given.items())
            and (wanted.since is None or row["received_at"] >= wanted.since)
            and (wanted.until is None or row["received_at"] < wanted.until)
            and (wanted.before is None or row["seq"] < wanted.before)
        ]
    )


@pytest.mark.parametrize("window", [1, 3, 1000])
def test_it_finds_all_that_match(engine: Engine, lived_in: Steps, window: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_WINDOW", window)
    monkeypatch.setattr(listing, "_PAGE", window)
    lived_in.receive(an_event(20, routes=[]), an_event(21, routes=["strict", "latest"]))
    for conditions in CONDITIONS:
        wanted = EventFilter(**conditions)
        found = searched(engine, wanted)
        assert keys(found.rows) == all_that_match(engine, wanted), conditions
        assert (found.before, found.is_complete, found.matching) == (None, True, len(found.rows)), conditions


@pytest.mark.parametrize(
    "conditions", [{}, {"state": "ready"}, {"status": 503}, {"entity_type": "USER", "entity_id": "u1"}]
)
def test_without_any_time_it_still_goes_on_to_the_end(
    engine: Engine, lived_in: Steps, conditions: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "_WINDOW", 2)
    monkeypatch.setattr(listing, "_PAGE", 2)
    lived_in.receive(an_event(21, routes=["strict", "latest"]))
    rows, before, looks = [], None, 0
    while True:
        found = searched(engine, EventFilter(**conditions, before=before), seconds=-1.0)
        rows += found.rows
        looks += 1
        if found.before is None:
            break
        assert before is None or found.before < before
        before = found.before
    assert keys(rows) == all_that_match(engine, EventFilter(**conditions))
    assert looks > 1


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_its_pages_hold_every_row_once_and_its_count_is_of_all(engine: Engine, steps: Steps, limit: int) -> None:
    steps.receive(*(an_event(n, routes=["strict", "latest"] if n % 2 else ["strict"]) for n in range(1, 8)))
    pages, before = [], None
    assert searched(engine, EventFilter(), limit).matching == 11
    while True:
        found = searched(engine, EventFilter(before=before), limit)
        pages.append([row["seq"] for row in found.rows])
        if found.before is None:
            break
        before = found.before
    assert [seq for page in pages for seq in page] == [7, 7, 6, 5, 5, 4, 3, 3, 2, 1, 1]
    assert all(len(page) <= max(limit, 2) for page in pages)


def test_a_count_ends_beyond_the_most(engine: Engine, steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listing, "_PAGE", 1)
    steps.receive(*(an_event(n) for n in range(1, 9)))
    found = listing.list_deliveries(engine, EventFilter(), 2, most=3)
    assert (keys(found.rows), found.matching, found.before) == ([(8, "strict"), (7, "strict")], 4, 7)


def test_times_are_found_among_many_events_without_a_look_at_all(
    engine: Engine, steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing, "OUT_OF_ORDER", 0)
    monkeypatch.setattr(following, "NEAR", 1)
    monkeypatch.setattr(listing, "_WINDOW", 4)
    steps.receive(*(_received(n, hours=10 * n) for n in range(1, 101)))
    wanted = EventFilter(since=START + timedelta(hours=400), until=START + timedelta(hours=430))
    found = searched(engine, wanted)
    assert [seq for seq, _ in keys(found.rows)] == [42, 41, 40]
    assert found.looked_through < 20


def _received(number: int, *, hours: int) -> Any:  # noqa: ANN401  # an event
    return msgspec.structs.replace(an_event(number), received_at=START + timedelta(hours=hours))
