"""A relay's figures: rows of `throughput_minute`, and metrics of its work and of open deliveries."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from threading import Thread

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Route
from inbox.db.dialect import rows_param
from inbox.db.throughput import DESTINATION, ROUTE, add_up
from inbox.observe import metrics
from inbox.observe.logs import TraceIds
from inbox.observe.metrics import Meters, Metric
from relay.daemon import gauges
from relay.daemon.gauges import Gauges
from relay.delivery import facts
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.delivery.outcome import Skipped, Unchanged
from relay.observe import Observer
from relay.store import nodes
from relay.store.database import Database
from relay.store.record import Recorded
from relay.store.transaction import Transaction
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, FakeClock, Steps
from tests.helpers.storing import START, an_event
from tests.helpers.waiting import Stopwatch, be_patient, stand_still
from tests.helpers.webhooks import a_config

# --- A relay's figures in `throughput_minute`: what its transactions did, in the minute of the database's clock


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
            figures = rows_param(
                {"kind": ROUTE, "name": name, "outcome": "delivered", "count": 1, "bytes": 0} for name in order
            )
            with engine.begin() as connection:
                connection.execute(add_up(steps.database.sql), {"figures": figures, "now": START})

    threads = [Thread(target=write, args=(order,)) for order in (names, names[::-1]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted(steps) == sorted((ROUTE, name, "delivered", 80) for name in names)


# --- Metrics that a relay reports: of its work, and of open deliveries


CRM = ("destination", "crm")


class Told(Meters):
    """Keeps what it is told: counts and observations added up, gauges as they stand."""

    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], float] = {}

    def count(self, metric: Metric, *labels: str, by: float = 1) -> None:
        assert len(labels) == len(metric.labels)
        key = (metric.name, *labels)
        self.values[key] = self.values.get(key, 0) + by

    def observe(self, metric: Metric, value: float, *labels: str, trace: TraceIds | None = None) -> None:
        del trace
        self.count(metric, *labels, by=value)

    def put(self, metric: Metric, value: float, *labels: str) -> None:
        assert len(labels) == len(metric.labels)
        self.values[metric.name, *labels] = value


def of(told: Told, metric: Metric) -> dict[tuple[str, ...], float]:
    return {key[1:]: value for key, value in told.values.items() if key[0] == metric.name}


def test_attempts_are_told_by_what_they_came_to_and_deliveries_by_how_long_they_took_from_arrival(
    steps: Steps, clock: FakeClock
) -> None:
    told = Told()
    observer = Observer(told, clock)
    steps.arrive(an_event(1))
    delivery = steps.claim()
    steps.advance(30)
    of_this: dict[facts.AnyFact, str] = {
        facts.AttemptFailed(error_class="server_error", error="503", due_at=START): "server_error",
        facts.Dead(cause="exhausted", error="503"): "exhausted",
        facts.DeliveredFact(did="forwarded"): "delivered",
    }
    observer.recorded(Recorded(delivery, fact) for fact in of_this)
    observer.recorded([Recorded(msgspec.structs.replace(delivery, run=1), Unchanged()), Recorded(delivery, None)])

    assert of(told, metrics.ATTEMPTS) == {("strict", outcome): 1 for outcome in (*of_this.values(), "unchanged")}
    assert of(told, metrics.DELIVERY_SECONDS) == {("strict",): 30}
    assert of(told, metrics.DISCARDED) == {(): 1}


def test_every_fact_that_is_committed_is_told_whoever_wrote_it_and_none_that_is_rolled_back(steps: Steps) -> None:
    told = Told()
    observer = Observer(told)
    steps.heard.on_facts = observer.appended
    steps.arrive(an_event(1, routes=["latest"]), an_event(2, routes=["latest"]), an_event(3))
    steps.attempt(UNWELL)
    steps.claim("latest")
    steps.advance(60)
    observer.reaped(steps.reap("r2"))
    steps.attempt(DONE, "latest")

    logged: dict[tuple[str, ...], float] = {}
    for row in steps.rows("SELECT route, kind FROM delivery_log"):
        logged[row["route"], row["kind"]] = logged.get((row["route"], row["kind"]), 0) + 1
    assert of(told, metrics.FACTS) == logged
    assert ("latest", "superseded") in logged
    assert of(told, metrics.LEASES_EXPIRED) == {(): 1}


def test_a_breaker_is_told_when_it_changes_and_when_its_row_is_gone() -> None:
    told = Told()
    observer, before = Observer(told), Gates()
    for state, value in ((BreakerState.OPEN, 2), (BreakerState.HALF_OPEN, 1), (BreakerState.RETIRED, 3)):
        now = Gates(breakers={CRM: Breaker(state), ("entity", "trivore|USER|u1"): Breaker(state)})
        observer.gates_changed(before, now)
        assert of(told, metrics.BREAKER) == {CRM: value}
        before = now
    observer.gates_changed(before, Gates())
    assert of(told, metrics.BREAKER) == {CRM: 0}


def test_the_gauges_of_what_is_open_are_those_of_the_view_and_go_back_to_zero(
    steps: Steps, database: Database, database_url: str
) -> None:
    told = Told()
    config = msgspec.structs.replace(
        a_config(database_url), routes={"idle": Route(name="idle", source="trivore", destination="audit")}
    )
    backlog = Gauges(database, Observer(told), config)
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    backlog.backlog()
    open_now = of(told, metrics.OPEN)
    assert (open_now["strict", "ready"], open_now["strict", "waiting"], open_now["idle", "ready"]) == (2, 1, 0)
    oldest = of(told, metrics.OLDEST)
    assert oldest["strict",] >= (datetime.now(UTC) - START).total_seconds() - 60  # noqa: TID251  # the view's clock is the database's
    assert oldest["idle",] == 0

    for _ in range(3):
        steps.attempt(DONE)
    backlog.backlog()
    assert set(of(told, metrics.OPEN).values()) == {0}
    assert of(told, metrics.OLDEST)["strict",] == 0


def test_clock_and_size_of_the_database_are_told(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    told, own = Told(), SystemClock().now
    health = Gauges(database, Observer(told), a_config(database_url))
    monkeypatch.setattr(Transaction, "now", lambda _: own() - timedelta(minutes=5))
    health.clock()
    assert told.values[metrics.CLOCK_SKEW.name,] == pytest.approx(-300, abs=60)
    health.disk()
    assert told.values[metrics.DATABASE_BYTES.name,] > 10_000
    assert told.values[metrics.DISK_FREE.name,] > 0, "the tests' database is on this host"


def test_a_reading_that_fails_keeps_no_other_from_being_made(
    database: Database, database_url: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = Told()

    def refused(_: Gauges) -> None:
        with database.read() as transaction:
            transaction.execute(text("SELECT no_such_column FROM inbox"))

    def broken(_: Gauges) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gauges, "backlog", broken)
    monkeypatch.setattr(Gauges, "alerts", refused)
    assert Gauges(database, Observer(told), a_config(database_url)).publish() == gauges.READ_EVERY_SECONDS
    assert "database trouble while reading gauges: refused, trying again" in caplog.text
    assert "bug in the thread gauges: broken, which goes on" in caplog.messages
    assert {metrics.CLOCK_SKEW.name, metrics.DATABASE_BYTES.name} <= {name for name, *_ in told.values}
