"""Alerts: one row per change for the worse or back, told and posted once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import msgspec
import pytest
from sqlalchemy import Engine, text

from inbox.clock import SystemClock
from inbox.config.model import Alerts, Route
from inbox.config.values import Duration
from inbox.db.dialect import rows_param
from inbox.db.throughput import DESTINATION, ROUTE, add_up
from inbox.observe import metrics
from inbox.observe.logs import TraceIds
from inbox.observe.metrics import Meters, Metric
from relay.daemon import gauges
from relay.daemon.gauges import Gauges
from relay.delivery import facts
from relay.delivery.alerts import Alert
from relay.delivery.gates import Breaker, BreakerState, Gates
from relay.delivery.outcome import Skipped, Unchanged
from relay.observe import Observer
from relay.operations.asks import Selection
from relay.store import alert_conditions, alerts, nodes
from relay.store.alert_conditions import Watch
from relay.store.claim import claim_suspect
from relay.store.database import Database
from relay.store.nodes import describe, heartbeat
from relay.store.record import Recorded
from relay.store.transaction import Transaction
from tests.helpers.databases import ON_POSTGRES
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, UNWELL, FakeClock, Steps, carry_out, work_of
from tests.helpers.storing import START, an_event
from tests.helpers.waiting import Stopwatch, be_patient, stand_still
from tests.helpers.webhooks import a_config

WATCHED = msgspec.structs.replace(
    CONFIG,
    alerts=Alerts(backlog_after=Duration(600)),
    sources={"trivore": msgspec.structs.replace(CONFIG.sources["trivore"], silent_after=Duration(3600))},
)


def alerts_of(steps: Steps) -> list[tuple[str, str, bool]]:
    rows = steps.rows("SELECT kind, subject, firing FROM alert ORDER BY id")
    return [(row["kind"], row["subject"], bool(row["firing"])) for row in rows]


A, B = (Alert("endpoint_retired", f"destination {name}", firing=True) for name in "ab")


def note(steps: Steps, *noted: Alert) -> None:
    with steps.database.write() as transaction:
        alerts.store_alerts(transaction, noted, transaction.take_order_lock())


def test_a_thousand_deaths_on_a_route_are_one_alert_until_none_is_dead(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 6)))
    for _ in range(4):
        steps.attempt(HOPELESS)
    watch = Watch()
    watch.check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps) == [("delivery_dead", "strict", True)]
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    watch.check(work_of(steps.database, config=CONFIG))
    watch.check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps) == [("delivery_dead", "strict", True), ("delivery_dead", "strict", False)]
    steps.attempt(HOPELESS)
    assert alerts_of(steps)[-1] == ("delivery_dead", "strict", True)


def test_a_blocked_delivery_keeps_its_alert(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps) == [("delivery_dead", "blocking", True)]


def act_before_storing(monkeypatch: pytest.MonkeyPatch, name: str, happens: Callable[[], object]) -> None:
    """Call `happens` after all conditions are read, and before the alerts found are stored."""
    stores = getattr(alert_conditions, name)

    def meanwhile(database: Database, found: Sequence[Alert]) -> None:
        happens()
        stores(database, found)

    monkeypatch.setattr(alert_conditions, name, meanwhile)


def test_a_death_while_the_last_one_is_closed_stays_alerted(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    steps.arrive(an_event(1), an_event(2, "u2"))
    steps.attempt(HOPELESS)
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    with monkeypatch.context() as patched:
        act_before_storing(patched, "_store", lambda: steps.attempt(HOPELESS))
        Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps) == [("delivery_dead", "strict", True)]
    carry_out(steps.database, CONFIG, "cancel", Selection(cause="mapping"), why="seen")
    Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps)[1:] == [("delivery_dead", "strict", False)]


def test_a_step_that_fails_during_its_recovery_is_alerted(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    describe(work_of(steps.database, node="r1"), "host", 1, "1.0")
    alerts.alert_failing_step(steps.work, "rescue", "no")
    with monkeypatch.context() as patched:
        act_before_storing(patched, "_store", lambda: heartbeat(steps.database, "r1", {"rescue": "no"}))
        Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps) == [("step_failed", "rescue", True)]
    heartbeat(steps.database, "r1")
    Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps)[1:] == [("step_failed", "rescue", False)]


def test_a_death_by_crashes_is_an_alert_too(steps: Steps) -> None:
    steps.arrive(an_event(1))
    for claimed in (steps.claim, steps.claim, lambda: claim_suspect(steps.work, ["strict"])):
        claimed()
        steps.advance(20)
        steps.rescue("r2")
    assert alerts_of(steps) == [("delivery_dead", "strict", True)]


def test_a_route_is_behind_when_an_event_has_waited_for_too_long(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    watch = Watch()
    steps.advance(600)
    watch.check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps) == []
    steps.advance(5)
    watch.check(work_of(steps.database, config=WATCHED))
    steps.advance(5)
    Watch().check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps) == [("backlog_old", "strict", True)]
    (row,) = steps.rows("SELECT detail FROM alert")
    assert row["detail"] == {"seq": 1, "age_seconds": 605}
    steps.attempt(DONE)
    steps.attempt(DONE)
    watch.check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps)[1:] == [("backlog_old", "strict", False)]


def test_a_source_is_silent_when_nothing_arrives_and_heard_when_something_does(steps: Steps, clock: FakeClock) -> None:
    steps.receive(an_event(1))
    watch = Watch()
    watch.check(work_of(steps.database, config=WATCHED))
    steps.advance(3700)
    Watch().check(work_of(steps.database, config=WATCHED))
    assert ("source_silent", "trivore", True) in alerts_of(steps), "a relay that starts knows for how long"
    watch.check(work_of(steps.database, config=WATCHED))
    steps.receive(msgspec.structs.replace(an_event(2), received_at=clock.moment))
    watch.check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps)[-1] == ("source_silent", "trivore", False)


def test_a_source_that_was_never_heard_is_silent_from_the_first_look_on(steps: Steps) -> None:
    watch = Watch()
    watch.check(work_of(steps.database, config=WATCHED))
    steps.advance(3500)
    watch.check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps) == []
    steps.advance(200)
    watch.check(work_of(steps.database, config=WATCHED))
    assert alerts_of(steps) == [("source_silent", "trivore", True)]


def test_a_step_recovers_when_it_works_again_while_others_of_its_relay_still_fail(steps: Steps) -> None:
    describe(work_of(steps.database, node="r1"), "host", 1, "0")
    names = ("claim", "rescue", "renew")
    note(steps, *(Alert("step_failed", name, firing=True) for name in names))
    heartbeat(steps.database, "r1", dict.fromkeys(names, "it fails"))
    Watch().check(work_of(steps.database, config=CONFIG))
    assert [firing for _, _, firing in alerts_of(steps)] == [True] * 3
    heartbeat(steps.database, "r1", dict.fromkeys(("claim", "renew"), "it fails"))
    Watch().check(work_of(steps.database, config=CONFIG))
    assert alerts_of(steps)[3:] == [("step_failed", "rescue", False)]


def test_each_alert_is_told_by_one_relay_in_their_order(steps: Steps) -> None:
    note(steps, A, B)
    assert [posted.alert.subject for posted in alerts.take_unlogged(steps.work)] == ["destination a", "destination b"]
    assert alerts.take_unlogged(steps.work) == []


def test_an_alert_is_posted_by_one_relay_and_again_after_a_minute_unless_its_failure_is_final(steps: Steps) -> None:
    note(steps, A, B, msgspec.structs.replace(A, subject="destination c"))
    first, second, third = (alerts.take_unsent(steps.work)[0] for _ in range(3))
    assert [posted.alert.subject for posted in (first, second, third)] == [f"destination {name}" for name in "abc"]
    assert alerts.take_unsent(steps.work) == []
    alerts.record_post(steps.database, first.id)
    alerts.record_post(steps.database, second.id, "alert answered 503")
    alerts.record_post(steps.database, third.id, "it can't be posted", is_final=True)
    assert [row["error"] for row in steps.rows("SELECT error FROM alert ORDER BY id LIMIT 2")] == [
        None,
        "alert answered 503",
    ]
    steps.advance(60)
    assert [posted.id for posted in alerts.take_unsent(steps.work)] == [second.id]
    alerts.record_post(steps.database, second.id)
    steps.advance(3600)
    assert alerts.take_unsent(steps.work) == []
    assert steps.rows("SELECT error FROM alert WHERE sent_at IS NOT NULL") == [{"error": None}] * 2


def test_the_end_of_a_condition_is_posted_after_its_begin_also_where_that_had_to_be_tried_twice(steps: Steps) -> None:
    note(steps, A)
    (begin,) = alerts.take_unsent(steps.work)
    alerts.record_post(steps.database, begin.id, "no answer")
    note(steps, msgspec.structs.replace(A, firing=False), B)
    assert [posted.alert.subject for posted in alerts.take_unsent(steps.work)] == ["destination b"]
    assert alerts.take_unsent(steps.work) == []
    steps.advance(60)
    for firing in (True, False):
        (taken,) = [each for each in alerts.take_unsent(steps.work) if each.alert.subject == A.subject]
        assert taken.alert.firing is firing
        alerts.record_post(steps.database, taken.id)


def test_kinds_of_a_newer_version_are_left_to_it(steps: Steps) -> None:
    steps.do(
        "INSERT INTO alert (at, kind, subject, firing, detail)"
        " VALUES ('2026-01-01 00:00:00.000000Z', 'of_tomorrow', 'x', true, '{}')"
    )
    note(steps, A)
    assert [posted.alert.kind for posted in alerts.take_unlogged(steps.work)] == ["endpoint_retired"]
    assert [posted.alert.kind for posted in alerts.take_unsent(steps.work)] == ["endpoint_retired"]


# --- A relay's figures: rows of `throughput_minute`, and metrics of its work and of open deliveries


def flush(steps: Steps) -> None:
    nodes.flush_figures(steps.database, CONFIG.routes)


def figures_of(steps: Steps) -> list[tuple[str, str, str, int]]:
    rows = steps.rows('SELECT kind, name, outcome, "count" FROM throughput_minute ORDER BY kind, name, outcome, minute')
    return [(row["kind"], row["name"], row["outcome"], row["count"]) for row in rows]


def test_every_fact_counts_for_its_route_and_its_destination(steps: Steps) -> None:
    steps.arrive(*(an_event(n, f"u{n}") for n in range(1, 5)), an_event(5, routes=["latest"]))
    steps.attempt_each(DONE, DONE, UNWELL, HOPELESS)
    steps.attempt(Skipped((), "gone"), "latest")
    flush(steps)
    of_strict = [("attempt_failed", 1), ("dead", 1), ("delivered", 2)]
    assert figures_of(steps) == [
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
    assert figures_of(steps) == []


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
    assert figures_of(steps) == [(ROUTE, "strict", "delivered", 1)]


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
    assert figures_of(steps) == sorted((ROUTE, name, "delivered", 80) for name in names)


CRM = ("destination", "crm")


class Told(Meters):
    """Meters that add up counts and observations, and keep the last value of each gauge."""

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


def values_of(told: Told, metric: Metric) -> dict[tuple[str, ...], float]:
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
    observer.on_recorded(Recorded(delivery, fact) for fact in of_this)
    observer.on_recorded([Recorded(msgspec.structs.replace(delivery, run=1), Unchanged()), Recorded(delivery, None)])
    assert values_of(told, metrics.ATTEMPTS) == {("strict", outcome): 1 for outcome in (*of_this.values(), "unchanged")}
    assert (values_of(told, metrics.DELIVERY_SECONDS), values_of(told, metrics.DISCARDED)) == (
        {("strict",): 30},
        {(): 1},
    )


def test_a_breaker_is_told_when_it_changes_and_when_its_row_is_gone() -> None:
    told = Told()
    observer, before = Observer(told), Gates()
    for state, value in ((BreakerState.OPEN, 2), (BreakerState.HALF_OPEN, 1), (BreakerState.RETIRED, 3)):
        now = Gates(breakers={CRM: Breaker(state), ("entity", "trivore|USER|u1"): Breaker(state)})
        observer.on_gates_changed(before, now)
        assert values_of(told, metrics.BREAKER) == {CRM: value}
        before = now
    observer.on_gates_changed(before, Gates())
    assert values_of(told, metrics.BREAKER) == {CRM: 0}


def test_the_gauges_of_what_is_open_go_back_to_zero(steps: Steps, reading: Gauges, told: Told) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    reading.backlog()
    open_now, oldest = values_of(told, metrics.OPEN), values_of(told, metrics.OLDEST)
    assert (open_now["strict", "ready"], open_now["strict", "waiting"], open_now["idle", "ready"]) == (2, 1, 0)
    assert oldest["strict",] >= (SystemClock().now() - START).total_seconds() - 60
    assert oldest["idle",] == 0
    steps.attempt_each(DONE, DONE, DONE)
    reading.backlog()
    assert set(values_of(told, metrics.OPEN).values()) == {0}
    assert values_of(told, metrics.OLDEST)["strict",] == 0


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
    def refuse(_: Gauges) -> None:
        with database.read() as transaction:
            transaction.execute(text("SELECT no_such_column FROM inbox"))

    def broken(_: Gauges) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Gauges, "backlog", broken)
    monkeypatch.setattr(Gauges, "alerts", refuse)
    assert reading.publish() == gauges.READ_EVERY_SECONDS
    assert {metrics.CLOCK_SKEW.name, metrics.DATABASE_BYTES.name} <= {name for name, *_ in told.values}
