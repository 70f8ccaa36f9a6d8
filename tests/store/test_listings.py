"""Rows that `inbox list`, `inbox show`, `inbox rejected` and `relay dead` read, on both databases."""

from __future__ import annotations

from datetime import timedelta

import msgspec
from sqlalchemy import Engine, text

from inbox.db import listing, reads
from inbox.db.intake import Rejected
from inbox.db.listing import EventFilter
from relay.delivery.outcome import Call, Failed
from relay.store import gates
from tests.helpers.relaying import DONE, HOPELESS, Steps
from tests.helpers.sent_statements import counted_statements
from tests.helpers.storing import START, Intake, an_event

LONG = 1000


def listed(engine: Engine, **conditions: object) -> list[tuple[int, str | None, str]]:
    found = listing.list_deliveries(engine, EventFilter(**conditions), LONG)  # type: ignore[arg-type]  # each is of its kind
    return [(row["seq"], row["route"], row["state"]) for row in found.rows]


def seqs(engine: Engine, **conditions: object) -> list[int]:
    return [seq for seq, _, _ in listed(engine, **conditions)]


def test_the_newest_events_are_listed_first_a_line_for_each_route(engine: Engine, steps: Steps) -> None:
    steps.receive(an_event(1), an_event(2, routes=["strict", "latest"]), an_event(3, routes=[]))
    assert listed(engine, state="unrouted") == [(3, None, "unrouted")]
    assert listed(engine) == [
        (3, None, "unrouted"),
        (2, "latest", "received"),
        (2, "strict", "received"),
        (1, "strict", "received"),
    ]


def test_a_listing_can_be_narrowed_by_everything_that_it_shows(engine: Engine, steps: Steps) -> None:
    other = msgspec.structs.replace(an_event(4, "a"), source="other", event_type="DELETE", entity_type="GROUP")
    steps.arrive(an_event(1, "a"), an_event(2, "b"), an_event(3, "a"), other)
    unavailable = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 503)
    steps.attempt(DONE)
    steps.attempt(Failed((unavailable,), "server_error", "Forward answered 503: 100% out_of order!"))

    assert seqs(engine, entity_type="USER", entity_id="a") == [3, 1]
    assert seqs(engine, entity_type="GROUP") == [4]
    assert seqs(engine, entity_id="a") == [4, 3, 1]
    assert seqs(engine, source="other") == [4]
    assert seqs(engine, event_type="DELETE") == [4]
    assert seqs(engine, source="nobody") == []
    assert seqs(engine, error="nothing") == seqs(engine, state="unrouted") == seqs(engine, state="cancelled") == []
    assert seqs(engine, state="delivered") == [1]
    assert seqs(engine, state="ready") == [3, 2]
    assert seqs(engine, state="ready", entity_id="a") == [3]
    assert seqs(engine, routes={"strict"}) == [4, 3, 2, 1]
    assert seqs(engine, routes={"latest"}) == seqs(engine, routes={"latest"}, state="ready") == []
    assert seqs(engine, retrying_at=START, state="ready") == [2]
    assert seqs(engine, retrying_at=START + timedelta(days=9), state="ready") == []
    assert seqs(engine, status=503) == seqs(engine, error="forward ANSWERED") == [2]
    assert seqs(engine, since=START) == [4, 3, 2, 1]
    assert seqs(engine, since=START + timedelta(seconds=1)) == seqs(engine, until=START) == []
    assert seqs(engine, until=START + timedelta(seconds=1), before=3) == [2, 1]


def test_events_that_lie_apart_are_read_by_one_statement(engine: Engine, steps: Steps) -> None:
    steps.receive(*(an_event(n, routes=["strict", "latest"]) for n in range(1, 41)))
    wanted = [40, 21, 20, 1]
    with engine.connect() as connection, counted_statements() as seen:
        found = listing.deliveries_of(connection, wanted)
    assert [[(row["seq"], row["route"]) for row in rows] for rows in found] == [
        [(seq, "latest"), (seq, "strict")] for seq in wanted
    ]
    assert len([statement for statement in seen if "FROM delivery" in statement]) == 1
    with engine.connect() as connection:
        assert listing.deliveries_of(connection, []) == []


def test_an_event_is_shown_with_what_its_deliveries_wait_for(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    with steps.database.write() as transaction:
        gates.pause(transaction, ("route", "strict"), who="ann", why="a test")
        gates.pause(transaction, ("entity", "trivore|USER|u1"), who="ann", why="a test")
        gates.pause(transaction, ("entity", "trivore|USER|u2"), who="ann", why="a test")
    row = reads.event(engine, 2)
    assert row is not None
    lane = row["lanes"][0]
    assert (lane["route"], lane["head_seq"], lane["head_state"], lane["waiting"]) == ("strict", 1, "ready", 1)
    assert [(gate["kind"], gate["name"]) for gate in row["gates"]] == [
        ("entity", "trivore|USER|u1"),
        ("route", "strict"),
    ]


def a_rejection(reason: str, **changes: object) -> Rejected:
    made = Rejected(START, "trivore", 422, "invalid_event", reason, None, None, b"1" * 32, None, None)
    return msgspec.structs.replace(made, **changes)


def test_rejected_requests_are_narrowed_by_everything_that_they_show(engine: Engine, database_url: str) -> None:
    Intake(database_url).reject(
        a_rejection("the body is not JSON"),
        a_rejection("100% wrong", status=401, cause="unauthenticated"),
        a_rejection("no such source", source="tirvore", received_at=START + timedelta(hours=1)),
    )

    def ids(**conditions: object) -> list[int]:
        return [row["id"] for row in listing.read_rows(engine, "rejected", conditions, LONG)]

    assert ids() == [3, 2, 1]
    assert ids(source="trivore") == [2, 1]
    assert ids(status=401) == ids(cause="unauthenticated") == [2]
    assert ids(error="NOT json") == [1]
    assert ids(error="100%") == [2]
    assert ids(error="1_0") == []
    assert ids(since=START + timedelta(seconds=1)) == [3]
    assert ids(until=START + timedelta(seconds=1), before=2) == [1]


def test_dead_letters_are_narrowed_by_everything_that_they_show(steps: Steps) -> None:
    steps.arrive(an_event(1, "a"), an_event(2, "b", routes=["latest"]))
    gone = Call("forward", "POST", "https://audit.example.com/", "answered", 12.0, 422)
    steps.attempt(HOPELESS)
    steps.attempt(Failed((gone,), "mapping", "100% wrong"), "latest")

    def dead(**conditions: object) -> list[int]:
        return [row["seq"] for row in listing.read_rows(steps.database.engine, "dead", conditions, LONG)]

    assert sorted(dead()) == [1, 2]
    assert dead(routes={"strict"}) == dead(entity_type="USER", entity_id="a") == dead(error="EMAIL:") == [1]
    assert dead(routes=()) == dead(source="nobody") == dead(cause="exhausted") == dead(event_type="x") == []
    assert dead(status=422) == dead(error="100%") == [2]
    assert dead(until=START) == dead(since=START + timedelta(seconds=1)) == []
    assert sorted(dead(since=START, until=START + timedelta(seconds=1), cause="mapping")) == [1, 2]


def test_the_view_survives_a_fact_that_no_relay_wrote(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1))
    with engine.begin() as connection:
        for detail in ('{"calls": [{"status": "x"}], "error": "e"}', '{"calls": 7, "error": "f"}'):
            connection.execute(
                text(
                    "INSERT INTO delivery_log (at, seq, route, kind, state, attempt, detail)"
                    " VALUES (:at, 1, 'strict', 'attempt_failed', 'ready', 1, :detail)"
                ),
                {"at": "2026-01-01 00:00:00.000000Z", "detail": detail},
            )
            assert seqs(engine) == [1]
    assert seqs(engine, error="f") == [1]


def test_one_event_is_shown_with_its_deliveries_facts_and_repeats(engine: Engine, steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(DONE)

    row = reads.event(engine, 1, is_whole=True)

    assert row is not None
    assert b'{"n": 1}' == row["body"]
    assert ["strict"] == row["routes"]
    assert [("strict", "delivered")] == [(d["route"], d["state"]) for d in row["deliveries"]]
    assert [("delivered", {"did": "forwarded"})] == [(f["kind"], f["detail"]) for f in row["facts"]]
    assert [] == row["duplicates"]
    assert reads.event(engine, 2) is None
