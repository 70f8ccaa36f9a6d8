"""Rows that `inbox list` and `inbox show` read, on both databases."""

from __future__ import annotations

from datetime import timedelta

from sqlalchemy import Engine

from inbox.db import reads
from tests.helpers.relaying import DONE, Steps
from tests.helpers.storing import START, an_event


def test_the_newest_events_are_listed_first_a_line_for_each_route(engine: Engine, steps: Steps) -> None:
    steps.receive(an_event(1), an_event(2, routes=["strict", "latest"]), an_event(3, routes=[]))

    listed = [(row["seq"], row["route"], row["state"]) for row in reads.events(engine)]

    assert [
        (3, None, "unrouted"),
        (2, "latest", "received"),
        (2, "strict", "received"),
        (1, "strict", "received"),
    ] == listed


def test_a_listing_goes_on_below_the_seq_where_the_last_page_ended(engine: Engine, steps: Steps) -> None:
    steps.receive(*(an_event(n) for n in range(1, 8)))

    pages, before = [], None
    while page := reads.events(engine, before=before, limit=3):
        pages.append([row["seq"] for row in page])
        before = page[-1]["seq"]

    assert [[7, 6, 5], [4, 3, 2], [1]] == pages


def test_a_listing_can_be_narrowed_to_an_entity_a_state_a_source_and_a_time(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b"), an_event(3, "a"))
    steps.attempt(DONE)

    def seqs(**narrowed: object) -> list[int]:
        return [row["seq"] for row in reads.events(engine, **narrowed)]  # type: ignore[arg-type]  # each is of its kind

    assert [3, 1] == seqs(entity_type="USER", entity_id="a")
    assert [1] == seqs(state="delivered")
    assert [3, 2] == seqs(state="ready")
    assert [] == seqs(source="nobody")
    assert [3, 2, 1] == seqs(since=START)
    assert [] == seqs(since=START + timedelta(seconds=1))


def test_one_event_is_shown_with_its_deliveries_facts_and_repeats(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(DONE)

    row = reads.event(engine, 1)

    assert row is not None
    assert b'{"n": 1}' == row["body"]
    assert ["strict"] == row["routes"]
    assert [("strict", "delivered")] == [(d["route"], d["state"]) for d in row["deliveries"]]
    assert [("delivered", {"did": "forwarded"})] == [(f["kind"], f["detail"]) for f in row["facts"]]
    assert [] == row["duplicates"]
    assert reads.event(engine, 2) is None
