"""A relay's figures: rows of `throughput_minute`, and metrics of its work and of open deliveries."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

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


def flush(steps: Steps) -> None:
    nodes.flush_figures(steps.database, CONFIG.routes)


def counted(steps: Steps) -> list[tuple[str, str, str, int]]:
    rows = steps.rows('SELECT kind, name, outcome, "count" FROM throughput_minute ORDER BY kind, name, outcome, minute')
    return [(row["kind"], row["name"], row["outcome"], row["count"]) for row in rows]


def test_every_fact_counts_for_its_route_and_its_destination(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 5)), an_event(5, routes=["latest"]))
    steps.attempt_each(DONE, DONE, UNWELL, HOPELESS)
    steps.attempt(Skipped((), "gone"), "latest")
    flush(steps)
    of_strict = [("attempt_failed", 1), ("dead", 1), ("delivered", 2)]
    assert counted(steps) == [
        *((DESTINATION, "audit", *each) for each in (*of_strict, ("skipped", 1))),
        (ROUTE, "latest", "skipped", 1),
        *((ROUTE, "strict", *each) for each in of_strict),
    ]


def test_a_transaction_that_is_not_committed_counts_nothing(steps: Steps) -> None:
    steps.arrive(an_event(1))
    delivery = steps.claim()
    steps.do("UPDATE open_delivery SET lease_token = lease_token + 1")
    steps.record([(delivery, DONE)])
    flush(steps)
    assert counted(steps) == []


def test_figures_of_one_minute_add_up_and_another_has_a_row_of_its_own(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 4)))
    for seconds in (15, 50, 75):
        steps.clock.moment = START + timedelta(seconds=seconds)
        steps.attempt(DONE)
        flush(steps)
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
def test_many_writers_add_to_the_same_rows_and_lose_no_count(engine: Engine, steps: Steps) -> None:
    names = [f"r{n}" for n in range(20)]
    be_patient(engine)

    def write(order: list[str]) -> None:
        for _ in range(20):
            figures = rows_param(
                {"kind": ROUTE, "name": name, "outcome": "delivered", "count": 1, "bytes": 0} for name in order
            )
            with engine.begin() as connection:
                connection.execute(add_up(steps.database.sql), {"figures": figures, "now": START})

    with ThreadPoolExecutor(4) as writers:
        list(writers.map(write, (names, names[::-1]) * 2))
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


@pytest.fixture
def told() -> Told:
    return Told()


@pytest.fixture
def reading(database: Database, database_url: str, told: Told) -> Gauges:
    routes = {"idle": Route(name="idle", source="trivore", destination="audit")}
    return Gauges(database, Observer(told), msgspec.structs.replace(a_config(database_url), routes=routes))


def of(told: Told, metric: Metric) -> dict[tuple[str, ...], float]:
    return {key[1:]: value for key, value in told.values.items() if key[0] == metric.name}


def test_attempts_are_told_by_outcome_and_deliveries_by_their_age(steps: Steps, clock: FakeClock) -> None:
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
    assert (of(told, metrics.DELIVERY_SECONDS), of(told, metrics.DISCARDED)) == ({("strict",): 30}, {(): 1})


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
    logged = Counter((row["route"], row["kind"]) for row in steps.rows("SELECT route, kind FROM delivery_log"))
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


def test_the_gauges_of_what_is_open_go_back_to_zero(steps: Steps, reading: Gauges, told: Told) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    reading.backlog()
    open_now, oldest = of(told, metrics.OPEN), of(told, metrics.OLDEST)
    assert (open_now["strict", "ready"], open_now["strict", "waiting"], open_now["idle", "ready"]) == (2, 1, 0)
    assert oldest["strict",] >= (SystemClock().now() - START).total_seconds() - 60
    assert oldest["idle",] == 0
    steps.attempt_each(DONE, DONE, DONE)
    reading.backlog()
    assert set(of(told, metrics.OPEN).values()) == {0}
    assert of(told, metrics.OLDEST)["strict",] == 0


def test_the_databases_clock_and_size_are_told(reading: Gauges, told: Told, monkeypatch: pytest.MonkeyPatch) -> None:
    own = SystemClock().now
    monkeypatch.setattr(Transaction, "now", lambda _: own() - timedelta(minutes=5))
    reading.clock()
    assert told.values[metrics.CLOCK_SKEW.name,] == pytest.approx(-300, abs=60)
    reading.disk()
    assert told.values[metrics.DATABASE_BYTES.name,] > 10_000
    assert told.values[metrics.DISK_FREE.name,] > 0, "the tests' database is on this host"


def test_a_reading_that_fails_keeps_no_other_from_being_made(
    reading: Gauges, told: Told, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Gauges) -> None:
        with database.read() as transaction:
            transaction.execute(text("SELECT no_such_column FROM inbox"))

    def broken(_: Gauges) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gauges, "backlog", broken)
    monkeypatch.setattr(Gauges, "alerts", refused)
    assert reading.publish() == gauges.READ_EVERY_SECONDS
    assert {metrics.CLOCK_SKEW.name, metrics.DATABASE_BYTES.name} <= {name for name, *_ in told.values}
