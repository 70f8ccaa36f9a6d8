"""The views that a DBA reads: deliveries, events, dead letters, and the health of sources and destinations."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import Table, insert

from inbox.clock import SystemClock
from inbox.db.reads import Row
from inbox.db.schema import throughput_minute
from tests.helpers.relaying import DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, a_fact, a_row, an_event


def delivery(steps: Steps, seq: int, route: str = "strict") -> Row:
    (row,) = steps.rows("SELECT * FROM delivery WHERE seq = :seq AND route = :route", seq=seq, route=route)
    return row


# --- delivery


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
    (row,) = steps.rows("SELECT seq, route, lane, state, cause, error, attempts, died_at FROM dead_letter")
    died_at = START + timedelta(seconds=60)
    assert tuple(row.values()) == (1, route, "USER|u1", state, "mapping", "email: no value", 1, died_at)
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


# --- event


BODIES = [
    (b'{"name": "M\xc3\xa4kel\xc3\xa4"}', '{"name": "Mäkelä"}'),
    (b"", ""),
    ("\N{PILE OF POO}".encode(), "\N{PILE OF POO}"),
    (b"caf\xe9", "\\x636166e9"),
    (b"a\x00b", "\\x610062"),
    (b"\xed\xa0\x80", "\\xeda080"),
    (b"\x80", "\\x80"),
]


def test_an_event_has_its_body_as_text_and_in_hex_where_it_is_none(steps: Steps) -> None:
    events = [an_event(n, f"u{n}") for n in range(1, len(BODIES) + 1)]
    steps.receive(*(msgspec.structs.replace(event, body=body) for event, (body, _) in zip(events, BODIES, strict=True)))
    rows = steps.rows("SELECT seq, headers, body, is_pruned, is_erased FROM event ORDER BY seq")
    assert [row["body"] for row in rows] == [shown for _, shown in BODIES]
    assert all(row["headers"] == {"content-type": "application/json"} for row in rows)
    assert not any(row["is_pruned"] or row["is_erased"] for row in rows)


def test_an_event_whose_payload_is_gone_is_pruned_and_keeps_its_size(steps: Steps) -> None:
    steps.receive(an_event(1, routes=[]))
    steps.do("DELETE FROM inbox_payload")
    (row,) = steps.rows("SELECT * FROM event")
    assert (row["headers"], row["body"], bool(row["is_pruned"]), row["body_bytes"]) == (None, None, True, 8)


# --- entity_timeline


def timeline(steps: Steps, entity: str = "u1") -> list[tuple[object, ...]]:
    rows = steps.rows(
        "SELECT at, what, seq, route, summary FROM entity_timeline"
        " WHERE source = 'trivore' AND entity_type = 'USER' AND entity_id = :entity ORDER BY at, seq, fact_id, what",
        entity=entity,
    )
    return [((row["at"] - START).total_seconds(), *list(row.values())[1:]) for row in rows]


def test_the_timeline_of_an_entity_has_arrivals_attempts_outcomes_and_duplicates_in_order(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["strict", "latest"]), an_event(2, "u2", routes=["blocking"]))
    steps.receive(an_event(3, routes=[]))
    steps.advance(1)
    steps.attempt(UNWELL)
    steps.advance(6)
    steps.attempt(DONE)
    steps.attempt(HOPELESS, "latest")
    steps.intake.repeat(an_event(3))
    steps.do("UPDATE duplicate_request SET times = 3, error = 'it is odd', received_at = '2026-01-01 00:00:09.000000Z'")
    assert timeline(steps) == [
        (0.0, "arrived", 1, None, "UPDATE, for strict, latest"),
        (0.0, "arrived", 3, None, "UPDATE, for no route"),
        (1.0, "attempt_failed", 1, "strict", "forward answered 503"),
        (7.0, "delivered", 1, "strict", "forwarded"),
        (7.0, "dead", 1, "latest", "email: no value"),
        (9.0, "duplicate", 3, None, "3 requests: not judged: it is odd"),
    ]


# --- The views of sources, destinations and the database, by figures and statistics


NOW = SystemClock().now().replace(second=0, microsecond=0)


OF_A_ROUTE = (("delivered", 5, 8, 0), ("unchanged", 6, 1, 0), ("attempt_failed", 7, 2, 0), ("dead", 600, 1, 0))
FIGURES = (
    ("source", "trivore", "stored", 5, 10, 1000),
    ("source", "trivore", "swept", 5, 1, 50),
    ("source", "trivore", "stored", 120, 7, 700),
    ("source", "trivore", "duplicate", 2, 3, 0),
    ("source", "trivore", "rejected", 3000, 4, 0),
    ("source", "(unknown)", "rejected", 1, 9, 0),
    *(("route", "crm", *figure) for figure in OF_A_ROUTE),
    *(("destination", "crm-api", *figure) for figure in OF_A_ROUTE),
    ("route", "audit", "abandoned", 5, 2, 0),
)
"""Of a source, a route and its destination: some of this hour, of this day, and older ones."""


@pytest.fixture
def counted(steps: Steps) -> Steps:
    for kind, name, outcome, ago, count, size in FIGURES:
        given = {"kind": kind, "name": name, "outcome": outcome, "minute": minute(ago), "count": count, "bytes": size}
        add(steps, throughput_minute, **given)
    return steps


def minute(ago: int) -> object:
    return NOW - timedelta(minutes=ago)


def index_by(rows: list[Row], *names: str) -> dict[tuple[object, ...], Row]:
    return {tuple(row[name] for name in names): row for row in rows}


def add(steps: Steps, table: Table, **values: object) -> None:
    with steps.database.engine.begin() as connection:
        connection.execute(insert(table).values(**values))


# --- source_health


def test_a_source_has_sums_of_the_last_hour_and_of_the_last_day(counted: Steps) -> None:
    found = index_by(counted.rows("SELECT * FROM source_health"), "source")
    row = found["trivore",]
    names = ("events", "duplicates", "rejected")
    assert [row[f"{name}_hour"] for name in names] == [11, 3, 0]
    assert [row[f"{name}_day"] for name in names] == [18, 3, 0]
    assert row["last_arrival_at"] == minute(2)
    assert (bool(row["is_silent"]), row["paused_at"]) == (False, None)
    assert (found["(unknown)",]["rejected_hour"], found["(unknown)",]["last_arrival_at"]) == (9, None)


# --- destination_health


def test_a_route_and_its_destination_have_sums_and_the_last_success_and_failure(counted: Steps) -> None:
    rows = counted.rows("SELECT * FROM destination_health")
    found = index_by(rows, "kind", "name")
    for subject in (("route", "crm"), ("destination", "crm-api")):
        row = found[subject]
        assert (row["health"], row["breaker"]) == ("ok", "closed")
        assert [row[f"{name}_hour"] for name in ("delivered", "failed", "dead")] == [9, 2, 0]
        assert [row[f"{name}_day"] for name in ("delivered", "failed", "dead")] == [9, 2, 1]
        assert (row["last_success_at"], row["last_failure_at"]) == (minute(5), minute(7))
    assert (found["route", "audit"]["health"], found["route", "audit"]["last_success_at"]) == ("ok", None)
    assert set(found) == {("route", "crm"), ("destination", "crm-api"), ("route", "audit")}
