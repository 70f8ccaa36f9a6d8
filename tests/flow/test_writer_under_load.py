"""Duties of the writer besides events: a probe's answer while it is busy, and free memory while a database hangs."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Sequence
from datetime import datetime

import msgspec
import pytest
from sqlalchemy import Connection

from inbox.clock import SystemClock
from inbox.db import intake
from inbox.errors import Unavailable
from inbox.events.event import Event
from inbox.receiver.writer import GroupCommit
from tests.helpers.receiver import a_link
from tests.helpers.storing import an_event


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
