"""The views of sources and destinations, and the sizes of the database: what happens there now, by figures and statistics."""

from __future__ import annotations

from datetime import timedelta

import pytest
from sqlalchemy import Table, insert

from inbox.clock import SystemClock
from inbox.db.reads import Row
from inbox.db.schema import alert, gate, metadata, throughput_minute
from relay.store.reads import read_disk
from tests.helpers.relaying import Steps
from tests.helpers.storing import an_event

NOW = SystemClock().now().replace(second=0, microsecond=0)


@pytest.fixture
def counted(steps: Steps) -> Steps:
    """Figures of a source, a route and its destination: some of this hour, of this day, and older ones."""
    figures = (
        ("source", "trivore", "stored", 5, 10, 1000),
        ("source", "trivore", "swept", 5, 1, 50),
        ("source", "trivore", "stored", 120, 7, 700),
        ("source", "trivore", "duplicate", 2, 3, 0),
        ("source", "trivore", "rejected", 3000, 4, 0),
        ("source", "(unknown)", "rejected", 1, 9, 0),
        *(
            (kind, name, *figure)
            for kind, name in (("route", "crm"), ("destination", "crm-api"))
            for figure in (
                ("delivered", 5, 8, 0),
                ("unchanged", 6, 1, 0),
                ("attempt_failed", 7, 2, 0),
                ("dead", 600, 1, 0),
            )
        ),
        ("route", "audit", "abandoned", 5, 2, 0),
    )
    with steps.database.engine.begin() as connection:
        for kind, name, outcome, ago, count, size in figures:
            at = NOW - timedelta(minutes=ago)
            connection.execute(
                insert(throughput_minute).values(
                    kind=kind, name=name, outcome=outcome, minute=at, count=count, bytes=size
                )
            )
    return steps


def minute(ago: int) -> object:
    return NOW - timedelta(minutes=ago)


def by_name(rows: list[Row], *names: str) -> dict[tuple[object, ...], Row]:
    return {tuple(row[name] for name in names): row for row in rows}


def add(steps: Steps, table: Table, **values: object) -> None:
    with steps.database.engine.begin() as connection:
        connection.execute(insert(table).values(**values))


# --- source_health


def test_a_source_has_sums_of_the_last_hour_and_of_the_last_day(counted: Steps) -> None:
    found = by_name(counted.rows("SELECT * FROM source_health"), "source")
    row = found["trivore",]
    names = ("events", "duplicates", "rejected")
    assert [row[f"{name}_hour"] for name in names] == [11, 3, 0]
    assert [row[f"{name}_day"] for name in names] == [18, 3, 0]
    assert row["last_arrival_at"] == minute(2)
    assert (bool(row["is_silent"]), row["paused_at"]) == (False, None)
    assert (found["(unknown)",]["rejected_hour"], found["(unknown)",]["last_arrival_at"]) == (9, None)


def test_a_source_without_figures_is_known_by_its_events(steps: Steps) -> None:
    steps.arrive(an_event(1))
    (row,) = steps.rows("SELECT source, events_day, last_arrival_at FROM source_health")
    assert tuple(row.values()) == ("trivore", 0, None)


def test_a_source_is_silent_while_its_alert_fires_and_paused_while_its_gate_is(counted: Steps) -> None:
    add(counted, gate, kind="source", name="trivore", paused_at=NOW)
    for firing in (True, False):
        add(counted, alert, at=NOW, kind="source_silent", subject="trivore", firing=firing, detail={})
        (row,) = counted.rows("SELECT is_silent, paused_at FROM source_health WHERE source = 'trivore'")
        assert (bool(row["is_silent"]), row["paused_at"]) == (firing, NOW)


# --- destination_health


def test_a_route_and_its_destination_have_sums_and_the_last_success_and_failure(counted: Steps) -> None:
    rows = counted.rows("SELECT * FROM destination_health")
    found = by_name(rows, "kind", "name")
    for subject in (("route", "crm"), ("destination", "crm-api")):
        row = found[subject]
        assert (row["health"], row["breaker"]) == ("ok", "closed")
        assert [row[f"{name}_hour"] for name in ("delivered", "failed", "dead")] == [9, 2, 0]
        assert [row[f"{name}_day"] for name in ("delivered", "failed", "dead")] == [9, 2, 1]
        assert (row["last_success_at"], row["last_failure_at"]) == (minute(5), minute(7))
    assert (found["route", "audit"]["health"], found["route", "audit"]["last_success_at"]) == ("failing", None)
    assert set(found) == {("route", "crm"), ("destination", "crm-api"), ("route", "audit")}


def test_a_failure_in_the_minute_after_a_success_may_be_older_than_it(steps: Steps) -> None:
    figures = {"kind": "route", "name": "crm", "count": 1}
    add(steps, throughput_minute, outcome="delivered", minute=minute(9), **figures)
    for ago, health in ((8, "ok"), (7, "failing")):
        add(steps, throughput_minute, outcome="attempt_failed", minute=minute(ago), **figures)
        assert [row["health"] for row in steps.rows("SELECT health FROM destination_health")] == [health]


@pytest.mark.parametrize(
    ("values", "health"),
    [
        ({"paused_at": NOW, "breaker": "open"}, "paused"),
        ({"breaker": "open", "breaker_cause": "503"}, "open"),
        ({"held_until": NOW + timedelta(hours=1), "hold_reason": "Retry-After"}, "held"),
        ({"held_until": NOW - timedelta(hours=1), "hold_reason": "Retry-After"}, "ok"),
        ({}, "ok"),
    ],
)
def test_a_gate_says_why_an_api_without_figures_gets_no_calls(
    steps: Steps, values: dict[str, object], health: str
) -> None:
    add(steps, gate, kind="api", name="identity", **values)
    add(steps, gate, kind="entity", name="trivore|USER|u1", paused_at=NOW)
    (row,) = steps.rows("SELECT * FROM destination_health")
    assert (row["kind"], row["name"], row["health"], row["delivered_day"]) == ("api", "identity", health, 0)
    assert (row["hold_reason"] is not None) == (health == "held")


# --- sizes


def test_the_database_has_its_size_and_its_largest_tables(counted: Steps) -> None:
    counted.arrive(*(an_event(n, f"u{n}") for n in range(1, 101)))
    with counted.database.read() as transaction:
        disk = read_disk(transaction, None)
    assert disk.size is not None
    assert disk.size > 100_000
    names = [table.name for table in disk.largest]
    assert set(names) <= set(metadata.tables)
    assert len(names) == (5 if counted.database.sql.is_postgres else 0)
    assert disk.largest == tuple(sorted(disk.largest, key=lambda table: -table.bytes))
