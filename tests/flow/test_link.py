"""The link of a receiver to its database: functions run off the event loop's way, errors come back, and nothing stays behind."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from tests.helpers.databases import ON_BOTH, gone, locked
from tests.helpers.tables import count

from inbox.db.link import Link
from tests.helpers.receiver import a_link


@pytest.fixture
async def link(database_url: str) -> AsyncIterator[Link]:
    made = a_link(database_url)
    await made.open()
    yield made
    await made.drop()


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("intake")]


def probe(connection: Connection) -> None:
    with connection.begin():
        connection.execute(text("UPDATE write_probe SET probed_at = probed_at WHERE EXISTS (SELECT 1 FROM inbox)"))


def half(connection: Connection) -> None:
    connection.begin()
    connection.execute(text("DELETE FROM alert"))
    raise KeyError("a bug in the middle of a transaction")


async def use(link: Link) -> None:
    await link.open()
    await link.run(probe)


@ON_BOTH
async def test_a_function_gets_its_arguments_and_its_result_comes_back(link: Link) -> None:
    def add(connection: Connection, one: int, *, other: int) -> int:
        return connection.execute(text(f"SELECT {one} + {other}")).scalar_one()  # type: ignore[no-any-return]

    assert await link.run(add, 1, other=2) == 3


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
    for thread in threads():
        thread.join(10)
    assert threads() == []
    with engine.begin() as connection:
        connection.execute(text("DELETE FROM alert"))
    await link.open()
    await link.run(probe)
    assert count(engine, "write_probe") == 1


@ON_BOTH
async def test_a_link_that_cannot_be_opened_leaves_no_thread(database_url: str) -> None:
    link = a_link(database_url)
    with gone(database_url), pytest.raises(OperationalError):
        await use(link)
    await link.drop()
    for thread in threads():
        thread.join(10)
    assert threads() == []


@ON_BOTH
async def test_the_event_loop_goes_on_while_the_database_is_locked(link: Link, database_url: str) -> None:
    with locked(database_url):
        waiting = asyncio.create_task(link.run(probe))
        for _ in range(20):
            await asyncio.sleep(0)
        assert not waiting.done()
    await waiting
