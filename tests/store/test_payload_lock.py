"""The lock between retention and whoever opens deliveries of stored events: nobody waits for it with the order lock."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import OperationalError

from inbox.db.dialect import takes_too_long
from inbox.db.leaves import LOCK_PAYLOADS
from inbox.db.migrate import Role
from relay.operations.asks import Selection
from relay.store import rebuild
from relay.store.duplicates import judge_duplicates
from relay.store.operator import commands, execution
from relay.store.reopen import keep_payloads
from tests.helpers.kinds import ON_POSTGRES
from tests.helpers.patience import stand_still
from tests.helpers.pruning import prune
from tests.helpers.reading import count
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps
from tests.helpers.roles import granted
from tests.helpers.storing import an_event
from tests.helpers.waiting import until


@contextlib.contextmanager
def retention_at_work(engine: Engine) -> Iterator[None]:
    """A batch of retention that does not end as long as the block runs."""
    with engine.connect() as pruning, pruning.begin():
        stand_still(pruning)
        pruning.execute(text(LOCK_PAYLOADS))
        yield


def replaying(steps: Steps) -> None:
    number = commands.ask(steps.database, "replay", Selection(everything=True), who="kim", why="a test")
    execution.work_on(steps.work, number)


def judging(steps: Steps) -> None:
    judge_duplicates(steps.work)


def rebuilding(steps: Steps) -> None:
    list(rebuild.rebuild(steps.database, CONFIG, who="kim"))


@ON_POSTGRES
@pytest.mark.parametrize("open_again", [replaying, judging, rebuilding])
def test_who_waits_for_retention_does_not_have_the_order_lock(
    steps: Steps, engine: Engine, open_again: Callable[[Steps], None]
) -> None:
    steps.arrive(an_event(1), an_event(2, "u2", routes=["latest"]), an_event(3, "u3"))
    steps.attempt(HOPELESS)
    steps.attempt(DONE, "latest")
    steps.intake.repeat(an_event(2, "u2", routes=["latest"]))
    steps.do("DELETE FROM open_delivery WHERE seq = 3")
    with retention_at_work(engine), ThreadPoolExecutor(1) as others:
        waiting = others.submit(open_again, steps)
        until(lambda: count(engine, "pg_locks WHERE NOT granted") > 0 or waiting.done(), "it waits")
        with engine.connect() as another, another.begin():
            another.execute(text("SELECT id FROM order_lock WHERE id = 1 FOR UPDATE NOWAIT"))
        with pytest.raises(OperationalError) as raised:
            waiting.result()
    assert "payload_lock" in str(raised.value.statement)
    assert not takes_too_long(raised.value), "smaller parts would wait as long, one after the other"
    open_again(steps)


@ON_POSTGRES
def test_a_delivery_is_never_opened_without_the_lock(steps: Steps) -> None:
    with steps.database.write() as transaction:
        transaction.take_order_lock()
        with pytest.raises(RuntimeError, match="keeps_payloads"):
            keep_payloads(transaction, [1])


# --- a login of the database without any right to change it


STOPPING = (
    "SELECT 1 FROM {table} FOR UPDATE",
    "SELECT 1 FROM {table} FOR NO KEY UPDATE",
    "SELECT 1 FROM {table} FOR SHARE",
    "SELECT 1 FROM {table} FOR KEY SHARE",
    "LOCK TABLE {table} IN ROW SHARE MODE",
    "LOCK TABLE {table} IN EXCLUSIVE MODE",
    "LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE",
)


@pytest.mark.parametrize("role", ["reader", "reader_without_payloads", "operator", "receiver"])
def test_no_other_role_can_lock_what_relays_take_in_turn(module_database_url: str, role: Role) -> None:
    with granted(module_database_url, f"k{os.getpid()}") as roles:
        for table in ("payload_lock", "order_lock", "route_lock"):
            for statement in STOPPING:
                assert not roles.allows(role, f"SET TRANSACTION READ WRITE; {statement.format(table=table)}"), statement


@ON_POSTGRES
def test_whatever_a_mere_login_holds_replays_and_retention_go_on(
    lived_in: Steps, engine: Engine, postgres_database_url: str
) -> None:
    with lived_in.database.write() as transaction:
        stand_still(transaction.connection)
        transaction.take_order_lock(keeps_payloads=True)
        assert count(engine, "pg_locks WHERE locktype = 'advisory'") == 0, "any login can hold those for good"
    with granted(postgres_database_url, f"m{os.getpid()}") as roles, roles.connected("reader") as login:
        login.execute(b"BEGIN")
        for name in ("payload_lock", "order_lock", "open_delivery", "delivery_log", "inbox", "pruner", "pruning"):
            login.execute(f"SELECT * FROM {name} LIMIT 1".encode())
        replaying(lived_in)
        judging(lived_in)
        assert sum(getattr(each, "rows", 0) for each in prune(engine, "payloads")["payloads"]) > 0
