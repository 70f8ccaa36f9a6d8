"""A step of a relay that fails all the time, or for one item among a hundred, stops nothing else.

The tests walk `relay.steps.Step` by themselves: a step that is new and has no start state fails them.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest
from sqlalchemy import Connection, Engine, Table, TextClause, insert, text
from sqlalchemy.exc import DataError

from inbox.clock import SystemClock
from inbox.db.schema import alert, delivery_log, duplicate_request
from inbox.errors import IllegalTransition
from relay.daemon.loop import Relay
from relay.operations.asks import Selection
from relay.steps import CRITICAL, Step, Steps
from relay.store import sequence
from relay.store.operator import commands
from relay.store.statement import AnyStatement, prepare
from relay.store.transaction import Transaction
from tests.helpers.daemon import Rig, hurry, users
from tests.helpers.scripted import answer
from tests.helpers.scripted import serving as scripted
from tests.helpers.tables import count
from tests.helpers.traffic import serving
from tests.helpers.waiting import until
from tests.helpers.webhooks import ROUTE

ITEMS = 100
ONE = 58
"""The seq, or the id, of the bad item."""


class StartState(msgspec.Struct):
    """Stored state before the relay runs, and the checks on it afterwards."""

    bad: dict[str, object]
    """The item, as `Plant` takes it."""
    running: Callable[[], contextlib.AbstractContextManager[Relay]]
    done: Callable[[], int]
    """Counts the items that have gone on."""
    seen: Callable[[], object]
    """Returns whether an operator sees the bad item."""
    calls: int = 0
    """Deliveries that are called."""


def _deliveries(rig: Rig, cause: str, calls: int = ITEMS - 1) -> StartState:
    """A hundred that have arrived: the ninety-nine are delivered, and the one is dead."""
    assert rig.arrive(*users(ITEMS)) == list(range(1, ITEMS + 1))
    return StartState(
        bad={"seq": ONE},
        running=rig.relay,
        done=lambda: count(rig.engine, "delivery_log WHERE kind = 'delivered'"),
        seen=lambda: count(rig.engine, f"dead_letter WHERE seq = {ONE} AND cause = '{cause}' AND error <> ''"),
        calls=calls,
    )


def _add(connection: Connection, table: Table, **values: object) -> None:
    """Add a row for each event."""
    connection.execute(insert(table), [{"seq": seq, **values} for seq in range(1, ITEMS + 1)])


def _facts(connection: Connection, kind: str, state: str, attempt: int, **detail: object) -> None:
    """Add a fact of each event."""
    now = SystemClock().now()
    _add(connection, delivery_log, at=now, route=ROUTE, kind=kind, state=state, attempt=attempt, detail=detail)


def order(rig: Rig) -> StartState:
    """A claim begins with them too: then the one can be ordered, and not loaded."""
    return _deliveries(rig, "unprocessable")


def record(rig: Rig) -> StartState:
    """Each is called, and the outcome of the one can't be recorded."""
    return _deliveries(rig, "unrecordable", calls=ITEMS)


def rescue(rig: Rig) -> StartState:
    """A hundred that a relay had in flight when it died."""
    start = _deliveries(rig, "unprocessable")
    leased = "lease_until = '2020-01-01 00:00:00.000000Z', lease_token = 1, relay_node = 'gone'"
    with rig.engine.begin() as connection:
        connection.execute(text(f"UPDATE open_delivery SET state = 'in_flight', attempt = 1, {leased}"))
    return start


def judge_duplicates(rig: Rig) -> StartState:
    """A hundred events that came again after they had been delivered."""
    start, now = _deliveries(rig, "", calls=0), SystemClock().now()
    with rig.engine.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery"))
        _facts(connection, "delivered", "ended", 1, did="updated")
        _add(connection, duplicate_request, received_at=now, last_received_at=now, body_sha256=b"")
    failed = f"seq = {ONE} AND error IS NOT NULL AND handled_at IS NULL"
    start.done = lambda: count(rig.engine, "duplicate_request WHERE handled_at IS NOT NULL")
    start.seen = lambda: count(rig.engine, f"duplicate_request WHERE {failed}")
    return start


def command(rig: Rig) -> StartState:
    """A hundred dead letters that an operator wants replayed."""
    start = _deliveries(rig, "mapping")
    with rig.engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'dead'"))
        _facts(connection, "dead", "dead", 0, cause="mapping", error="no value", counted=False)
    commands.ask(rig.database, "replay", Selection(route=ROUTE), who="kim", why="mended")
    failed = f"failed = 1 AND error LIKE '%seq={ONE}%' AND state = 'done'"
    start.seen = lambda: count(rig.engine, f"relay_command WHERE {failed}")
    return start


def _alerts(rig: Rig, column: str, **values: object) -> StartState:
    """A hundred alerts."""
    values |= {"at": SystemClock().now(), "kind": "delivery_dead", "firing": True, "detail": {"cause": "mapping"}}
    with rig.engine.begin() as connection:
        connection.execute(insert(alert), [{**values, "subject": f"r{number}"} for number in range(1, ITEMS + 1)])
    return StartState(
        bad={"id": ONE},
        running=rig.relay,
        done=lambda: count(rig.engine, f"alert WHERE {column} IS NOT NULL AND error IS NULL AND id <= {ITEMS}"),
        seen=lambda: count(rig.engine, f"alert WHERE error IS NOT NULL AND is_unsendable AND id = {ONE}"),
    )


def log_alerts(rig: Rig) -> StartState:
    """A hundred alerts that no relay has logged yet."""
    return _alerts(rig, "told_at")


def send_alerts(rig: Rig) -> StartState:
    """A hundred alerts that are to be posted."""
    start = _alerts(rig, "sent_at", told_at=SystemClock().now())

    @contextlib.contextmanager
    def posting() -> Iterator[Relay]:
        with scripted(answer(200)) as chat, rig.relay(more=POSTED.replace(NOWHERE, chat.url)) as relay:
            yield relay

    start.running = posting
    return start


def look_at_conditions(rig: Rig) -> StartState:
    """A hundred routes whose last dead letter is gone."""
    start = _alerts(rig, "", told_at=SystemClock().now())
    start.bad = {"subject": f"r{ONE}"}
    start.done = lambda: count(rig.engine, "alert WHERE kind = 'delivery_dead' AND NOT firing")
    start.seen = lambda: True  # the log and the metric: the alert stands as it was
    return start


START_STATES: dict[Step, Callable[[Rig], StartState]] = {
    "sequence": order,
    "claim": order,
    "record": record,
    "rescue": rescue,
    "judge_duplicates": judge_duplicates,
    "commands": command,
    "log_alerts": log_alerts,
    "send_alerts": send_alerts,
    "look_at_conditions": look_at_conditions,
}

PROVOKE: dict[Step, Callable[[Rig, Relay], Any]] = {
    "flush_throughput": lambda _, relay: relay._database.tally.add("route", ROUTE, "delivered"),
    "commands": lambda rig, _: commands.ask(rig.database, "replay", Selection(seq=10_000), who="kim", why="mended"),
    "renew": lambda _, relay: relay._leases.trust([(1, ROUTE, 1)], relay._leases.now()),
}
"""Actions that make a step do something that it would not do by itself."""

NOWHERE = "http://127.0.0.1:9/"
SWEPT = """
[apis.identity]
base_url = "http://127.0.0.1:9/"
allow_private = true
allow_http = true
[[sources.trivore.sweeps]]
api = "identity"
path = "/user"
entity_type = "USER"
event_type = "UPDATE"
params = { since = "{since}", start = "{start}", count = "{count}" }
every = "1s"
"""
POSTED = f'[alerts]\nurl = "{NOWHERE}"\nallow_private = true\nallow_http = true\n'
WITH: dict[Step, str] = {"sweep": SWEPT, "send_alerts": POSTED}
"""Configuration that a step needs."""


# --- Failures planted into a step of a relay that runs: for one item, or for all that the step does


FAILURES: dict[str, Callable[[], Exception]] = {
    "DataError": lambda: DataError("SELECT", {}, ValueError("invalid input syntax for type json")),
    "OverflowError": lambda: OverflowError("Python int too large to convert to SQLite INTEGER"),
    "ValueError": lambda: ValueError("year 10000 is out of range"),
    "unknown kind": lambda: IllegalTransition("of_tomorrow can't happen to a delivery that is received"),
}
"""A refused value, one that can't be bound, one that can't be read, and a row of a kind that is not known."""


_NOT_WORKED_ON = frozenset({"looked_to", "known", "ahead", "due"})
"""Parameters with items that a statement leaves out."""


class Plant:
    """Raises in one step, wherever a statement has to do with the item: it is bound to it, or among its rows."""

    def __init__(self, step: Step, failure: str, *, item: dict[str, object] | None = None) -> None:
        self.step = step
        self.raised = 0
        self._item = item
        self._failure = FAILURES[failure]

    def check(self, statement: TextClause, parameters: dict[str, object], rows: list[Any]) -> None:
        """Raise, if this is the item's statement, or there is no item."""
        if self._item is None or self._is_bound(parameters) or self._is_among(statement, rows):
            self.raised += 1
            raise self._failure()

    def _is_bound(self, parameters: dict[str, object]) -> bool:
        lists = (
            value
            for name, value in parameters.items()
            if name not in _NOT_WORKED_ON and isinstance(value, str) and value.startswith("[{")
        )
        return any(self._is_item(row) for value in lists for row in json.loads(value))

    def _is_item(self, row: Mapping[str, object]) -> bool:
        return self._item is not None and self._item.items() <= row.items()

    def _is_among(self, statement: TextClause, rows: list[Any]) -> bool:
        reads_keys_alone = not any(
            word in str(statement).replace("body_bytes", "") for word in ("occurred_at", "body")
        ) or all({*row._mapping} == {"seq", "route"} for row in rows)
        return not reads_keys_alone and any(self._is_item(row._mapping) for row in rows)


@contextlib.contextmanager
def plant_failure(monkeypatch: pytest.MonkeyPatch, plant: Plant) -> Iterator[Plant]:
    """Plant the failure while the block runs. The quarantine of an item has to work."""
    here = threading.local()  # `step` is the one that this thread is in, except during a quarantine
    run, execute, make_dead = Steps.run, Transaction.execute, sequence.quarantine

    def running(steps: Steps, step: Step, work: Callable[[], Any], otherwise: Any, **more: Any) -> Any:  # noqa: ANN401
        def work_in_step() -> Any:  # noqa: ANN401
            here.step = step
            try:
                return work()
            finally:
                here.step = None

        return run(steps, step, work_in_step, otherwise, **more)

    def executing(transaction: Transaction, statement: AnyStatement, **parameters: Any) -> list[Any]:  # noqa: ANN401  # passed through
        rows = execute(transaction, statement, **parameters)
        if getattr(here, "step", None) == plant.step:
            plant.check(*prepare(statement, transaction.sql, parameters, None), rows)
        return rows

    def setting_aside(*arguments: Any, **more: Any) -> Any:  # noqa: ANN401
        step, here.step = getattr(here, "step", None), None
        try:
            return make_dead(*arguments, **more)
        finally:
            here.step = step

    with monkeypatch.context() as patch:
        patch.setattr(Steps, "run", running)
        patch.setattr(Transaction, "execute", executing)
        for module in ("record", "leases", "sequence", "claim"):
            patch.setattr(f"relay.store.{module}.quarantine", setting_aside)
        yield plant


# --- one item among a hundred, and all the time


STEPS: tuple[Step, ...] = get_args(Step)

ONE_AT_A_TIME: dict[Step, str] = {
    "give_back": "tests/store/test_setting_aside.py plants a lane that can't be settled",
    "renew": "a statement over keys alone, which no item's values reach",
    "heartbeat": "one row, the relay's own",
    "claim_suspect": "one delivery at a time, loaded as a claim's",
    "look_at_gates": "tests/store/test_gates_shared.py plants an unreadable gate",
    "flush_throughput": "sums of its own; tests/core/test_metering.py has those that the database rejects",
    "prune": "tests/store/test_retention.py plants a row that can't be deleted",
    "sweep": "tests/flow/test_daemon_sweeps.py plants an entity that can't be taken in",
}
"""Steps that have no batch of items here, and why."""


OF_PYTHON = [name for name in FAILURES if name != "DataError"]
PLANTED = [
    *((kind, step, "DataError") for kind in ("sqlite", "postgres") for step in START_STATES),
    *(("sqlite", step, OF_PYTHON[number % len(OF_PYTHON)]) for number, step in enumerate(START_STATES)),
]
"""For each step an error of the database and one of Python's: all steps tell them apart by the same code."""


@pytest.fixture(autouse=True)
def _quick_relays(monkeypatch: pytest.MonkeyPatch) -> None:
    hurry(monkeypatch)
    monkeypatch.setattr("relay.daemon.loop.FLUSH_EVERY_SECONDS", 0.1)
    monkeypatch.setattr("relay.sweep.scheduler.LOOK_EVERY_SECONDS", 0.05)


@pytest.fixture
def rig(engine: Engine, tmp_path: Path) -> Iterator[Rig]:
    with serving(tmp_path / "arrivals.jsonl") as downstream:
        yield Rig(engine, downstream)


def test_every_step_is_planted_with_a_bad_item_or_says_why_not() -> None:
    assert set(START_STATES) | set(ONE_AT_A_TIME) == set(STEPS)
    assert not set(START_STATES) & set(ONE_AT_A_TIME)


@pytest.mark.parametrize(("database_url", "step", "failure"), PLANTED, indirect=["database_url"])
def test_a_bad_item_fails_alone_visibly(rig: Rig, monkeypatch: pytest.MonkeyPatch, step: Step, failure: str) -> None:
    start = START_STATES[step](rig)
    plant = Plant(step, failure, item=start.bad)
    with plant_failure(monkeypatch, plant), start.running():
        until(lambda: start.done() == ITEMS - 1, f"{ITEMS - 1} go on")
        until(start.seen, "the one can be seen")
        until(lambda: rig.observer.counts["failed_alone"], "it is told after the commit")
    assert plant.raised <= 2 * ITEMS.bit_length() + 2, "the batch was taken apart by halves"
    assert start.done() == ITEMS - 1, "nothing is lost, and the one has not gone with the others"
    assert len(rig.calls) == len(set(rig.calls)) == start.calls, "nothing is called twice"


LETS_GO: Step = "give_back"
"""It goes on without the leases that it can't give back: they expire."""


@pytest.mark.parametrize("step", [step for step in STEPS if step not in CRITICAL | {"sequence", LETS_GO}])
def test_a_step_that_fails_all_the_time_stops_no_delivery_and_can_be_seen(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, step: Step
) -> None:
    caplog.set_level(logging.ERROR)
    plant = Plant(step, "ValueError")
    with plant_failure(monkeypatch, plant), rig.relay(more=WITH.get(step, "")) as relay:
        if step in PROVOKE:
            PROVOKE[step](rig, relay)
        until(lambda: plant.raised >= 2, "it fails, and is tried again")
        rig.arrive(*users(20))
        until(lambda: rig.kinds.count("delivered") == 20, "all are delivered")
        until(lambda: count(rig.engine, "alert WHERE kind = 'step_failed' AND firing"), "it is alerted")
        if step != "heartbeat":
            until(lambda: count(rig.engine, "stuck WHERE state = 'failing'"), "it is seen")
    assert any(record.exc_info and f"step={step}" in record.getMessage() for record in caplog.records)
