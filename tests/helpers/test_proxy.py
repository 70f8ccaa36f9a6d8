"""Tests that the proxy cuts commits within a pipeline, too, and knows what became of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, make_url, text
from sqlalchemy.exc import DBAPIError

from inbox.db import engine as engines
from inbox.db.dialect import failure_of
from relay.store.database import Database
from tests.helpers.proxy import Moment, Proxy, proxied

INSERT = text("INSERT INTO gate (kind, name) VALUES ('route', 'r')")


@pytest.fixture
def proxy(postgres_database_url: str, tmp_path: Path) -> Iterator[Proxy]:
    with proxied(Path(str(make_url(postgres_database_url).query["host"])), tmp_path / "cuts") as made:
        yield made


@pytest.fixture
def behind(postgres_database_url: str, proxy: Proxy) -> Iterator[Engine]:
    url = make_url(postgres_database_url).update_query_dict({"host": str(proxy.folder)})
    engine = engines.connect(url.render_as_string(hide_password=False), application="tests")
    yield engine
    engine.dispose()


def write(engine: Engine) -> None:
    with Database(engine).write() as transaction:
        transaction.take_order_lock_and_read({"r"})
        transaction.only_write()
        transaction.execute(INSERT)


@pytest.mark.parametrize(("moment", "committed"), [("before", False), ("after", True)])
def test_a_commit_in_a_pipeline_is_cut(behind: Engine, proxy: Proxy, moment: Moment, committed: bool) -> None:
    cut = proxy.cut("tests", moment)
    with pytest.raises(DBAPIError) as raised:
        write(behind)
    assert failure_of(raised.value) == "unreachable"
    assert cut.done.is_set()
    with behind.connect() as connection:
        assert bool(connection.execute(text("SELECT * FROM gate")).all()) is committed
    if not committed:
        write(behind)
