"""The views a DBA reads: where every delivery stands, what was given up, and how much is left to do."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest

from inbox.clock import SystemClock
from inbox.db.reads import Row
from relay.delivery.outcome import Delivered, Skipped
from tests.helpers.relaying import DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, a_fact, a_row, an_event


def delivery(steps: Steps, seq: int, route: str = "strict") -> Row:
    (row,) = steps.rows("SELECT * FROM delivery WHERE seq = :seq AND route = :route", seq=seq, route=route)
    return row


# --- delivery


def test_there_is_one_row_for_each_event_and_route(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict", "latest"]), an_event(2, "u2", routes=["blocking"]))

    rows = steps.rows("SELECT seq, route, state, attempts, lane FROM delivery ORDER BY seq, route")
    assert [tuple(row.values()) for row in rows] == [
        (1, "latest", "ready", 0, "USER|u1"),
        (1, "strict", "ready", 0, "USER|u1"),
        (2, "blocking", "ready", 0, "USER|u2"),
    ]


def test_a_row_tells_the_event_as_the_inbox_has_it(steps: Steps) -> None:
    steps.arrive(an_event(7))
    (event,) = steps.rows("SELECT * FROM inbox JOIN inbox_payload USING (seq)")
    row = delivery(steps, 1)
    shared = (
        "source",
        "entity_type",
        "entity_id",
        "event_type",
        "action",
        "occurred_at",
        "received_at",
    )
    assert {name: row[name] for name in shared} == {name: event[name] for name in shared}


def test_an_event_without_a_route_is_unrouted(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=[]))
    (row,) = steps.rows("SELECT * FROM delivery")
    assert (row["seq"], row["route"], row["state"], row["attempts"]) == (1, None, "unrouted", 0)
    assert row["last_fact"] is None


def test_open_states_are_those_of_the_work_table(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"))
    steps.claim()
    steps.receive(an_event(4, "u4"))

    assert [row["state"] for row in steps.rows("SELECT state FROM delivery ORDER BY seq")] == [
        "in_flight",
        "waiting",
        "ready",
        "received",
    ]
    assert delivery(steps, 1)["relay_node"] == "r1"
    assert delivery(steps, 3)["due_at"] == START


@pytest.mark.parametrize(
    ("outcome", "state"), [(DONE, "delivered"), (Skipped((), "gone and the route skips"), "skipped")]
)
def test_an_ended_delivery_is_what_its_last_fact_says(steps: Steps, outcome: Delivered | Skipped, state: str) -> None:
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(outcome)

    row = delivery(steps, 1)
    assert (row["state"], row["last_fact"], row["attempts"]) == (state, state, 2)
    assert row["last_fact_at"] == START + timedelta(seconds=6)
    assert (row["due_at"], row["lane"], row["relay_node"]) == (None, None, None)


def test_the_last_error_goes_with_a_success(steps: Steps) -> None:
    steps.arrive(an_event(1))
    assert delivery(steps, 1)["last_error"] is None
    steps.attempt(UNWELL)
    assert delivery(steps, 1)["last_error"] == "forward answered 503"
    assert (delivery(steps, 1)["state"], delivery(steps, 1)["attempts"]) == ("ready", 1)
    steps.advance(6)
    steps.attempt(DONE)
    assert delivery(steps, 1)["last_error"] is None


def test_a_route_that_an_event_takes_only_by_replay_shows_once(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=[]))
    for seq, route in ((1, "late"), (1, "late"), (2, "late"), (2, "late"), (1, "strict")):
        steps.do(a_fact("replayed", seq, route, 0, who="kim", why="new route"))
    steps.do(a_row(2, "late", "USER|u2", "waiting"))

    rows = steps.rows("SELECT seq, route, state FROM delivery ORDER BY seq, route")
    assert [tuple(row.values()) for row in rows] == [
        (1, "late", "replayed"),
        (1, "strict", "ready"),
        (2, "late", "waiting"),
    ]


# --- dead_letter


@pytest.mark.parametrize(("route", "state"), [("strict", "dead"), ("blocking", "blocked")])
def test_a_dead_letter_tells_cause_error_and_when_it_died(steps: Steps, route: str, state: str) -> None:
    steps.arrive(an_event(1, routes=[route]), an_event(2, routes=[route]))
    steps.advance(60)
    steps.attempt(HOPELESS, route)

    (row,) = steps.rows("SELECT * FROM dead_letter")
    assert (row["seq"], row["route"], row["lane"], row["state"]) == (1, route, "USER|u1", state)
    assert (row["cause"], row["error"], row["attempts"]) == ("mapping", "email: no value", 1)
    assert row["died_at"] == START + timedelta(seconds=60)
    shown = delivery(steps, 1, route)
    assert (shown["state"], shown["last_fact"], shown["last_error"]) == (state, "dead", "email: no value")


# --- backlog


def test_the_backlog_counts_each_route_by_state(steps: Steps) -> None:
    assert steps.rows("SELECT * FROM backlog") == []
    steps.arrive(an_event(1), an_event(2), an_event(3, "u3"), an_event(4, "u4"))
    steps.claim()
    steps.attempt(HOPELESS)
    steps.arrive(an_event(5, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    steps.receive(an_event(6), an_event(7, routes=[]))

    counts = "route, open, received, waiting, ready, in_flight, blocked, dead"
    rows = steps.rows(f"SELECT {counts} FROM backlog ORDER BY route")
    assert [tuple(row.values()) for row in rows] == [("blocking", 1, 0, 0, 0, 0, 1, 0), ("strict", 5, 1, 1, 1, 1, 0, 1)]


def test_the_oldest_age_is_that_of_what_is_not_dead(steps: Steps) -> None:
    now = SystemClock().now()
    first, second = (
        msgspec.structs.replace(an_event(n, f"u{n}"), received_at=now - timedelta(seconds=ago))
        for n, ago in ((1, 9000), (2, 600))
    )
    steps.arrive(first, second)
    assert steps.rows("SELECT oldest_received_at FROM backlog")[0]["oldest_received_at"] == first.received_at

    steps.attempt(HOPELESS)
    (row,) = steps.rows("SELECT oldest_received_at, oldest_age_seconds FROM backlog")
    assert row["oldest_received_at"] == second.received_at
    assert 600 <= row["oldest_age_seconds"] < 660


# --- stuck


def stuck(steps: Steps) -> list[tuple[int | None, str, str]]:
    return [
        (row["seq"], row["state"], row["why"])
        for row in steps.rows("SELECT seq, state, why FROM stuck WHERE finding <> 'no_relay' ORDER BY why")
    ]
