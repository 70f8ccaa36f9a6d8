"""The views a DBA reads: where every delivery stands, what was given up, and how much is left to do."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import insert

from inbox.clock import SystemClock
from inbox.db.reads import Row
from inbox.db.schema import relay_command, relay_node
from relay.delivery.outcome import Delivered, Skipped
from relay.store import nodes
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps
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


def test_an_attempt_whose_end_is_unknown_counts(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.claim()
    steps.advance(16)
    steps.reap("r2")
    row = delivery(steps, 1)
    assert (row["state"], row["attempts"], row["last_fact"]) == ("ready", 1, "abandoned")


def test_a_superseded_delivery_names_the_one_that_stands_for_it(steps: Steps) -> None:
    steps.arrive(*(an_event(n, routes=["latest"]) for n in (1, 3, 2)))
    assert [
        (row["seq"], row["state"], row["superseded_by"])
        for row in steps.rows("SELECT seq, state, superseded_by FROM delivery ORDER BY seq")
    ] == [(1, "superseded", 2), (2, "ready", None), (3, "superseded", 2)]


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


def test_each_route_of_an_event_has_its_own_facts(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict", "latest"]))
    steps.attempt(UNWELL, "latest")
    steps.attempt(DONE, "strict")
    assert (delivery(steps, 1)["state"], delivery(steps, 1)["last_error"]) == ("delivered", None)
    assert delivery(steps, 1, "latest")["last_fact"] == "attempt_failed"


def test_pruned_attempts_leave_the_end_in_sight(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(DONE)
    steps.do("DELETE FROM delivery_log WHERE kind = 'attempt_failed'")
    row = delivery(steps, 1)
    assert (row["state"], row["attempts"], row["last_error"]) == ("delivered", 2, None)


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


def test_what_is_open_or_ended_is_no_dead_letter(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, routes=[]))
    steps.attempt(DONE)
    assert steps.rows("SELECT * FROM dead_letter") == []


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


def test_a_route_with_dead_letters_alone_has_no_age(steps: Steps) -> None:
    steps.arrive(an_event(1))
    steps.attempt(HOPELESS)
    (row,) = steps.rows("SELECT * FROM backlog")
    assert (row["open"], row["dead"], row["oldest_received_at"], row["oldest_age_seconds"]) == (1, 1, None, None)


# --- stuck


def stuck(steps: Steps) -> list[tuple[int | None, str, str]]:
    return [
        (row["seq"], row["state"], row["why"])
        for row in steps.rows("SELECT seq, state, why FROM stuck WHERE finding <> 'no_relay' ORDER BY why")
    ]


def test_a_blocked_lane_is_stuck_until_a_person_says_how_it_goes_on(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    nodes.flush_figures(steps.database, CONFIG.routes)
    blocked = (1, "blocked", "it is dead and blocks its lane: relay replay, unblock or cancel")
    failing = (None, "failing", "every attempt since its last success failed: email: no value")
    assert stuck(steps) == [failing, blocked]


def test_a_command_that_no_relay_takes_up_is_stuck_after_a_minute(steps: Steps) -> None:
    with steps.database.engine.begin() as connection:
        for number, at in enumerate((SystemClock().now(), START), 1):
            connection.execute(
                insert(relay_command).values(
                    id=number, kind="replay", selection={"seq": 1}, reason="x", asked_by="dba", asked_at=at
                )
            )
    assert stuck(steps) == [(None, "asked", "command 2 (replay): asked a minute ago, and no relay has taken it up")]


def a_relay(steps: Steps, name: str, *, started_ago: int, silent: int, failing: str | None = None) -> None:
    now = SystemClock().now()
    with steps.database.engine.begin() as connection:
        connection.execute(
            insert(relay_node).values(
                id=name,
                host="h1",
                pid=7,
                version="1",
                started_at=now - timedelta(seconds=started_ago),
                heartbeat_at=now - timedelta(seconds=silent),
                failing=None if failing is None else {failing: "ValueError: x"},
            )
        )


def test_a_relay_whose_step_fails_is_stuck_while_it_runs(steps: Steps) -> None:
    a_relay(steps, "r1", started_ago=60, silent=1, failing="claim")
    a_relay(steps, "r2", started_ago=60, silent=30, failing="record")
    ((seq, state, why),) = stuck(steps)
    assert (seq, state) == (None, "failing")
    assert why == "relay h1 pid 7: step claim fails: ValueError: x"


def test_relays_that_die_soon_after_they_start_are_stuck(steps: Steps) -> None:
    for number in range(2):
        a_relay(steps, f"r{number}", started_ago=100, silent=60)
    a_relay(steps, "old", started_ago=3600, silent=60)
    assert stuck(steps) == []
    a_relay(steps, "r3", started_ago=100, silent=60)
    assert stuck(steps) == [(None, "gone", "host h1: 3 relays died soon after they had started")]
