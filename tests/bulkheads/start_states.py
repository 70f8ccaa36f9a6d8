"""A hundred items for each step that works on many at once, one of them to be planted with a failure."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
from sqlalchemy import Connection, Engine, Table, insert, text

from inbox.clock import SystemClock
from inbox.db.schema import alert, delivery_log, duplicate_request
from relay.daemon.loop import Relay
from relay.operations.asks import Selection
from relay.steps import Step
from relay.store.database import Database
from relay.store.operator import commands
from tests.helpers.daemon import running
from tests.helpers.relaying import fill
from tests.helpers.scripted import answer
from tests.helpers.scripted import serving as scripted
from tests.helpers.tables import count
from tests.helpers.traffic import Downstream
from tests.helpers.webhooks import ROUTE, moment

ITEMS = 100
ONE = 58
"""The seq, or the id, of the bad item."""


class StartState(msgspec.Struct):
    """Stored state before the relay runs, and the checks on it afterwards."""

    bad: dict[str, Any]
    """The item, as `Plant` takes it."""
    running: Callable[[], contextlib.AbstractContextManager[Relay]]
    done: Callable[[], int]
    """Counts the items that have gone on."""
    seen: Callable[[], object]
    """Returns whether an operator sees the bad item."""
    calls: int
    """Deliveries that are called."""


def _filled(database_url: str) -> None:
    assert fill(database_url, [(f"u{n}", moment(n)) for n in range(ITEMS)]) == list(range(1, ITEMS + 1))


def _deliveries(engine: Engine, downstream: Downstream, cause: str, calls: int = ITEMS - 1) -> StartState:
    """The ninety-nine are delivered, and the one is dead."""
    why = "dead_letter WHERE seq = :seq AND cause = :cause AND error <> ''"
    return StartState(
        bad={"item": {"seq": ONE}},
        running=lambda: running(engine, downstream),
        done=lambda: count(engine, "delivery_log WHERE kind = 'delivered'"),
        seen=lambda: count(engine, why, seq=ONE, cause=cause),
        calls=calls,
    )


def _add(connection: Connection, table: Table, **values: object) -> None:
    """Add a row for each event."""
    connection.execute(insert(table), [{"seq": seq, **values} for seq in range(1, ITEMS + 1)])


def _facts(connection: Connection, kind: str, state: str, attempt: int, **detail: object) -> None:
    """Add a fact of each event."""
    now = SystemClock().now()
    _add(connection, delivery_log, at=now, route=ROUTE, kind=kind, state=state, attempt=attempt, detail=detail)


def sequence(database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred that have arrived. A claim begins with them too: then the one can be ordered, and not loaded."""
    _filled(database_url)
    return _deliveries(engine, downstream, "unprocessable")


def record(database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """The same: each is called, and the outcome of the one can't be recorded."""
    _filled(database_url)
    return _deliveries(engine, downstream, "unrecordable", calls=ITEMS)


def reap(database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred that a relay had in flight when it died."""
    _filled(database_url)
    leased = "lease_until = '2020-01-01 00:00:00.000000Z', lease_token = 1, relay_node = 'gone'"
    with engine.begin() as connection:
        connection.execute(text(f"UPDATE open_delivery SET state = 'in_flight', attempt = 1, {leased}"))
    return _deliveries(engine, downstream, "unprocessable")


def judge_duplicates(database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred events that came again after they had been delivered."""
    _filled(database_url)
    now = SystemClock().now()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM open_delivery"))
        _facts(connection, "delivered", "ended", 1, did="updated")
        _add(connection, duplicate_request, received_at=now, last_received_at=now, body_sha256=b"")
    start = _deliveries(engine, downstream, "", calls=0)
    start.done = lambda: count(engine, "duplicate_request WHERE handled_at IS NOT NULL")
    start.seen = lambda: count(
        engine, f"duplicate_request WHERE seq = {ONE} AND error IS NOT NULL AND handled_at IS NULL"
    )
    return start


def command(database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred dead letters that an operator wants replayed."""
    _filled(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE open_delivery SET state = 'dead'"))
        _facts(connection, "dead", "dead", 0, cause="mapping", error="no value", counted=False)
    commands.ask(Database(engine), "replay", Selection(route=ROUTE), who="kim", why="mended")
    start = _deliveries(engine, downstream, "mapping")
    start.seen = lambda: count(
        engine, f"relay_command WHERE failed = 1 AND error LIKE '%seq={ONE}%' AND state = 'done'"
    )
    return start


def _alerts(engine: Engine, **values: object) -> None:
    values |= {"at": SystemClock().now(), "kind": "delivery_dead", "firing": True, "detail": {"cause": "mapping"}}
    with engine.begin() as connection:
        connection.execute(insert(alert), [{**values, "subject": f"r{number}"} for number in range(1, ITEMS + 1)])


def _alerted(engine: Engine, downstream: Downstream, column: str) -> StartState:
    return StartState(
        bad={"item": {"id": ONE}},
        running=lambda: running(engine, downstream),
        done=lambda: count(engine, f"alert WHERE {column} IS NOT NULL AND error IS NULL AND id <= {ITEMS}"),
        seen=lambda: count(engine, f"alert WHERE error IS NOT NULL AND is_unsendable AND id = {ONE}"),
        calls=0,
    )


def log_alerts(_database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred alerts that no relay has logged yet."""
    _alerts(engine)
    return _alerted(engine, downstream, "told_at")


def send_alerts(_database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred alerts that are to be posted."""
    _alerts(engine, told_at=SystemClock().now())

    @contextlib.contextmanager
    def posting() -> Iterator[Relay]:
        with (
            scripted(answer(200)) as chat,
            running(engine, downstream, more=POSTED.replace("http://127.0.0.1:9/", chat.url)) as relay,
        ):
            yield relay

    start = _alerted(engine, downstream, "sent_at")
    start.running = posting
    return start


def look_at_conditions(_database_url: str, engine: Engine, downstream: Downstream) -> StartState:
    """A hundred routes whose last dead letter is gone."""
    _alerts(engine, told_at=SystemClock().now())
    start = _alerted(engine, downstream, "")
    start.bad = {"item": {"subject": f"r{ONE}"}}
    start.done = lambda: count(engine, "alert WHERE kind = 'delivery_dead' AND NOT firing")
    start.seen = lambda: True  # the log and the metric: the alert stands as it was
    return start


START_STATES: dict[Step, Callable[[str, Engine, Downstream], StartState]] = {
    "sequence": sequence,
    "claim": sequence,
    "record": record,
    "reap": reap,
    "judge_duplicates": judge_duplicates,
    "commands": command,
    "log_alerts": log_alerts,
    "send_alerts": send_alerts,
    "look_at_conditions": look_at_conditions,
}


def _asks(engine: Engine, _relay: Relay) -> None:
    commands.ask(Database(engine), "replay", Selection(seq=10_000), who="kim", why="mended")


def _holds_a_lease(_engine: Engine, relay: Relay) -> None:
    relay._leases.granted([(1, ROUTE, 1)], relay._leases.began_asking())


def _has_counted(_engine: Engine, relay: Relay) -> None:
    relay._database.tally.add("route", ROUTE, "delivered")


PROVOKE: dict[Step, Callable[[Engine, Relay], None]] = {
    "flush_throughput": _has_counted,
    "commands": _asks,
    "renew": _holds_a_lease,
}
"""Actions that make a step do something that it would not do by itself."""

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
POSTED = '[alerts]\nurl = "http://127.0.0.1:9/"\nallow_private = true\nallow_http = true\n'
WITH: dict[Step, str] = {"sweep": SWEPT, "send_alerts": POSTED}
"""Configuration that a step needs."""
