"""Duties of the writer besides events: a probe's answer while it is busy, and free memory while a database hangs."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Sequence
from datetime import datetime
from pathlib import Path

import msgspec
import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.db import intake
from inbox.db.link import Link
from inbox.errors import RequestError, Unavailable
from inbox.events.event import Event
from inbox.receiver.webhook import OFFLOADED_BYTES
from inbox.receiver.writer import GroupCommit
from tests.helpers.databases import ON_BOTH, gone, locked
from tests.helpers.receiver import a_link, receiving
from tests.helpers.storing import an_event
from tests.helpers.tables import count
from tests.helpers.webhooks import config_text


class Scripted:
    """An intake that says how long a batch takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.goes_on = threading.Event()
        self.probes = 0
        monkeypatch.setattr(intake, "append", self.append)
        monkeypatch.setattr(intake, "probe", self.probe)

    def append(self, connection: Connection, events: Sequence[Event]) -> list[int | None]:  # noqa: ARG002
        self.goes_on.wait()
        return [1] * len(events)

    def probe(self, connection: Connection, now: datetime) -> None:  # noqa: ARG002
        self.probes += 1


async def test_a_receiver_that_is_never_idle_is_ready(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = Scripted(monkeypatch)
    store.goes_on.set()
    writer = GroupCommit(a_link(sqlite_database_url), SystemClock())
    busy = True

    async def flood() -> None:
        while busy:
            await writer.append([an_event(1)])

    senders = [asyncio.create_task(flood()) for _ in range(4)]
    await writer.probe()
    busy = False
    await asyncio.gather(*senders)
    await writer.close()
    assert store.probes == 1


async def test_bodies_whose_senders_have_been_answered_are_let_go_while_the_database_hangs(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.writer.ANSWER_WITHIN_SECONDS", 0.05)
    store = Scripted(monkeypatch)
    writer = GroupCommit(a_link(sqlite_database_url), SystemClock())
    first = asyncio.create_task(writer.append([an_event(0)]))
    await asyncio.sleep(0)
    marks = [f"body {number}".encode() * 1000 for number in range(20)]
    waiting = [writer.append([msgspec.structs.replace(an_event(n), body=mark)]) for n, mark in enumerate(marks, 1)]
    async with asyncio.timeout(10):
        answers = await asyncio.gather(first, *waiting, return_exceptions=True)
    assert all(isinstance(answer, Unavailable) for answer in answers)
    del waiting, answers
    gc.collect()
    assert sum(len(event.body) for pending in writer._pending for event in pending.events) == 0
    store.goes_on.set()
    await writer.close()


async def test_a_request_beyond_those_that_may_wait_is_refused_at_once(
    sqlite_database_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inbox.receiver.writer.MAX_WAITING", 2)
    store = Scripted(monkeypatch)
    writer = GroupCommit(a_link(sqlite_database_url), SystemClock())
    appended = [asyncio.create_task(writer.append([an_event(n)])) for n in range(3)]
    await asyncio.sleep(0)
    store.goes_on.set()
    *stored, refused = await asyncio.gather(*appended, return_exceptions=True)
    assert [type(each) for each in stored] == [list, list]
    assert str(refused) == "too many requests are waiting"
    await writer.close()


# --- The link of a receiver to its database: functions run off the event loop's way, errors come back, and nothing stays behind


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    made = a_link(database_url)
    await made.open()
    yield made
    await made.drop()


def is_left_alone() -> bool:
    """Wait for the link's threads to end."""
    threads = [thread for thread in threading.enumerate() if thread.name.startswith("intake")]
    for thread in threads:
        thread.join(10)
    return not any(thread.is_alive() for thread in threads)


def probe(connection: Connection) -> None:
    with connection.begin():
        connection.execute(text("UPDATE write_probe SET probed_at = probed_at WHERE EXISTS (SELECT 1 FROM inbox)"))


def half(connection: Connection) -> None:
    connection.begin()
    connection.execute(text("DELETE FROM alert"))
    raise KeyError("a bug in the middle of a transaction")


@ON_BOTH
async def test_an_error_of_the_database_comes_back_as_what_it_is_and_the_link_goes_on(link: Link) -> None:
    def wrong(connection: Connection) -> None:
        with connection.begin():
            connection.execute(text("SELECT * FROM nothing_of_this_name"))

    with pytest.raises(DBAPIError) as caught:
        await link.run(wrong)
    assert caught.value.orig is not None
    await link.run(probe)


@ON_BOTH
async def test_a_dropped_link_holds_no_lock_and_no_thread_and_opens_again(link: Link, engine: Engine) -> None:
    with pytest.raises(KeyError):
        await link.run(half)
    await link.drop()
    await link.drop()
    assert not link.is_open
    assert is_left_alone()
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM alert"))
    await link.open()
    await link.run(probe)
    assert count(engine, "write_probe") == 1


@ON_BOTH
async def test_a_link_that_cannot_be_opened_leaves_no_thread(database_url: str) -> None:
    link = a_link(database_url)
    with gone(database_url), contextlib.suppress(OperationalError):
        await link.open()
        await link.run(probe)
        raise AssertionError("it was opened")
    await link.drop()
    assert is_left_alone()


@ON_BOTH
async def test_the_event_loop_goes_on_while_the_database_is_locked(link: Link, database_url: str) -> None:
    with locked(database_url):
        waiting = asyncio.create_task(link.run(probe))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting


# --- Both programs leave what they have loaded when they begin to work out of later collections of garbage, and make little


RELAY = """
import contextlib, gc
from relay.daemon import process
process.run_relay = lambda *_, **__: print(gc.get_freeze_count(), len(gc.get_objects()))
process.start(process.RunOptions(grace_seconds=1, drain=True))
"""


async def test_a_receiver_that_has_started_leaves_what_is_loaded_out(config: Config) -> None:
    loaded: list[list[object]] = [[]]
    before = gc.get_freeze_count()
    async with receiving(config):
        assert gc.get_freeze_count() > before
        assert not any(each is loaded for each in gc.get_objects())


@pytest.mark.parametrize("size", [1, 2 * OFFLOADED_BYTES])
async def test_a_rejected_body_is_freed_without_a_collection(config: Config, size: int) -> None:
    async with receiving(config) as receiver:
        gc.collect()
        gc.disable()
        try:
            answer = await receiver.post(b"x" * size)
            assert answer.status_code == 400
            assert not [each for each in gc.get_objects() if isinstance(each, RequestError)]
        finally:
            gc.enable()


def test_a_relay_that_has_started_leaves_what_is_loaded_out(database_url: str, tmp_path: Path) -> None:
    path = tmp_path / "inbox.toml"
    path.write_text(config_text(database_url, "http://127.0.0.1:1/hook"), encoding="utf-8")
    environment = {**os.environ, "INBOX_CONFIG": str(path)}
    ended = subprocess.run([sys.executable, "-c", RELAY], check=True, capture_output=True, text=True, env=environment)
    left_out, walked = map(int, ended.stdout.split())
    assert left_out > 20 * walked
