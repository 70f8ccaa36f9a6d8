"""A relay's figures in `throughput_minute`: what its transactions did, in the minute of the database's clock."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from threading import Thread

import pytest
from sqlalchemy import Engine, text

from inbox.db.throughput import DESTINATION, ROUTE, Figure, add_up, figures_param
from relay.delivery.outcome import Skipped
from relay.store import nodes
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.patience import Stopwatch, be_patient, stand_still
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, Steps
from tests.helpers.storing import START, an_event


@pytest.fixture
def flush(steps: Steps) -> Callable[[], None]:
    return lambda: nodes.flush_figures(steps.database, CONFIG.routes)


def counted(steps: Steps) -> list[tuple[str, str, str, int]]:
    rows = steps.rows('SELECT kind, name, outcome, "count" FROM throughput_minute ORDER BY kind, name, outcome, minute')
    return [(row["kind"], row["name"], row["outcome"], row["count"]) for row in rows]


def test_every_fact_counts_for_its_route_and_for_the_destination_of_that(
    steps: Steps, flush: Callable[[], None]
) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 5)), an_event(5, routes=["latest"]))
    for outcome in (DONE, DONE, UNWELL, HOPELESS):
        steps.attempt(outcome)
    steps.attempt(Skipped((), "gone"), "latest")
    flush()
    assert counted(steps) == [
        (DESTINATION, "audit", "attempt_failed", 1),
        (DESTINATION, "audit", "dead", 1),
        (DESTINATION, "audit", "delivered", 2),
        (DESTINATION, "audit", "skipped", 1),
        (ROUTE, "latest", "skipped", 1),
        (ROUTE, "strict", "attempt_failed", 1),
        (ROUTE, "strict", "dead", 1),
        (ROUTE, "strict", "delivered", 2),
    ]


def test_a_transaction_that_is_not_committed_counts_nothing(steps: Steps, flush: Callable[[], None]) -> None:
    steps.arrive(an_event(1))
    delivery = steps.claim()
    steps.do("UPDATE open_delivery SET lease_token = lease_token + 1")
    steps.record([(delivery, DONE)])
    flush()
    assert counted(steps) == []


def test_figures_of_one_minute_add_up_and_another_has_a_row_of_its_own(steps: Steps, flush: Callable[[], None]) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    for seconds in (15, 50, 75):
        steps.clock.moment = START + timedelta(seconds=seconds)
        steps.attempt(DONE)
        flush()
    rows = steps.rows("SELECT minute, \"count\" FROM throughput_minute WHERE kind = 'route' ORDER BY minute")
    assert [(row["minute"], row["count"]) for row in rows] == [(START, 2), (START + timedelta(minutes=1), 1)]


@ON_POSTGRES
def test_a_row_that_a_person_has_locked_costs_a_moment_and_no_count(engine: Engine, steps: Steps) -> None:
    steps.database.tally.add(ROUTE, "strict", "delivered")
    with engine.begin() as person:
        stand_still(person)
        person.execute(text("LOCK TABLE throughput_minute IN EXCLUSIVE MODE"))
        with Stopwatch() as watch, pytest.raises(Exception, match="lock timeout"):
            nodes.flush_figures(steps.database, {})
    assert watch.seconds < 1.5
    nodes.flush_figures(steps.database, {})
    assert counted(steps) == [(ROUTE, "strict", "delivered", 1)]


@ON_POSTGRES
def test_many_writers_add_to_the_same_rows_and_none_loses_a_count(engine: Engine, steps: Steps) -> None:
    names = [f"r{n}" for n in range(20)]
    be_patient(engine)

    def write(order: list[str]) -> None:
        for _ in range(20):
            figures = figures_param(Figure(ROUTE, name, "delivered", 1, 0) for name in order)
            with engine.begin() as connection:
                connection.execute(add_up(steps.database.sql), {"figures": figures, "now": START})

    threads = [Thread(target=write, args=(order,)) for order in (names, names[::-1]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(steps) == sorted((ROUTE, name, "delivered", 80) for name in names)
