"""Reads of the page: they change nothing, end in time, and come back when the database does."""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
from collections.abc import Iterator

import msgspec
import pytest
from sqlalchemy import Engine, text
from sqlalchemy.exc import DBAPIError

from inbox.config.model import Config
from inbox.config.values import DatabaseUrl
from inbox.db import listing
from inbox.errors import DatabaseAway
from relay.web import reading as reading_module
from relay.web.reading import Readers, Reading
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, ON_SQLITE
from tests.helpers.page import OPERATOR, VIEWER, Page, serving
from tests.helpers.relaying import FakeClock
from tests.helpers.waiting import stand_still


@pytest.fixture
def readers(page_config: Config, clock: FakeClock) -> Iterator[Readers]:
    with contextlib.closing(Readers(page_config, clock)) as made:
        yield made


@ON_BOTH
@pytest.mark.parametrize("actor", [OPERATOR, VIEWER])
@pytest.mark.parametrize("statement", ["DELETE FROM inbox", "CREATE TABLE mine (id int)"])
def test_a_read_can_change_nothing(readers: Readers, actor: object, statement: str) -> None:
    def write(reading: Reading) -> None:
        with reading.database.engine.begin() as connection:
            connection.execute(text(statement))

    with pytest.raises((DBAPIError, DatabaseAway), match=r"read-?only"):
        asyncio.run(readers.read(actor, write))  # type: ignore[arg-type]


ENDLESS = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT max(i) FROM n"
LIMIT = 0.2


@pytest.fixture
def slow_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    """The statement of `/rejected` never ends by itself."""

    def endless(engine: Engine, *_: object) -> None:
        with engine.connect() as connection:
            connection.execute(text(ENDLESS))

    monkeypatch.setattr(reading_module, "LONGEST_SECONDS", LIMIT)
    monkeypatch.setattr(listing, "read_rows", endless)


@ON_BOTH
@pytest.mark.usefixtures("slow_screen")
def test_a_slow_statement_is_ended_and_the_page_keeps_its_filters(page: Page) -> None:
    answer = page.get("/rejected?source=trivore&error=%3Cb%3E&since=2d")
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "10")
    assert "narrow the filter" in answer.text
    for kept in ('value="trivore"', 'value="&lt;b&gt;"', 'value="2d"'):
        assert kept in answer.text


@ON_BOTH
def test_a_database_that_is_gone_is_told_and_comes_back_by_itself(page: Page, database_url: str) -> None:
    assert page.get("/rejected").status_code == 200
    with databases.gone(database_url):
        away = page.get("/rejected?source=trivore")
        assert (away.status_code, away.headers["Retry-After"]) == (503, "5")
        assert 'value="trivore"' in away.text
        assert page.get("/rejected.json").json()["cause"] == "database_away"
    assert page.get("/rejected").status_code == 200


@ON_POSTGRES
def test_a_table_that_another_session_has_for_itself_is_told_as_locked(
    page: Page, engine: Engine, database_url: str
) -> None:
    with engine.begin() as connection:
        stand_still(connection)
        connection.execute(text("LOCK TABLE rejected_request IN ACCESS EXCLUSIVE MODE"))  # as VACUUM FULL does
        locked = page.get("/rejected")
    assert (locked.status_code, "lock timeout" in locked.text, "narrow the filter" in locked.text) == (503, True, False)
    databases.disconnect(database_url)
    assert page.get("/rejected").status_code == 200, "connections that broke cost no answer"


@ON_SQLITE
def test_a_file_that_another_program_has_for_itself_is_told(page: Page, database_url: str) -> None:
    with contextlib.closing(sqlite3.connect(database_url.removeprefix("sqlite:///"), isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode=EXCLUSIVE")
        other.execute("BEGIN IMMEDIATE")
        other.execute("ROLLBACK")
        assert page.get("/rejected").status_code == 503
    assert page.get("/rejected").status_code == 200


def test_reads_of_a_viewer_use_the_connection_that_is_configured_for_them(
    page_config: Config, clock: FakeClock
) -> None:
    web = msgspec.structs.replace(page_config.web, viewer_url=DatabaseUrl("sqlite:////nowhere/inbox.db"))
    with serving(msgspec.structs.replace(page_config, web=web), clock) as page:
        assert page.get("/rejected", actor=OPERATOR).status_code == 200
        assert page.get("/rejected", actor=VIEWER).status_code == 503
