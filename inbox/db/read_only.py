"""Connections that can change nothing, and whose statements end after some seconds: for commands that only look."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from inbox.db import engine as engines
from inbox.db.dialect import SQLITE, sqlite_functions

LONGEST_SECONDS = 5.0
"""Longest time of a statement on Postgres, and of a transaction on SQLite."""
_STEPS = 10_000
"""Steps of SQLite's virtual machine between two looks at the time: about a millisecond."""


def connect(url: str, *, application: str, seconds: float = LONGEST_SECONDS) -> Engine:
    """Make an engine whose transactions only read.

    A SQLite file is opened read-only: an engine of the programs would make a missing file, and set its journal mode.

    Raises:
        ConfigError: as `inbox.db.engine.parse_url`.
    """
    parsed = engines.parse_url(url)
    if parsed.get_backend_name() == SQLITE:
        return _open_sqlite(parsed, seconds)
    made = engines.connect(url, application=application)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        # The wait for a lock ends first: else it would be told as a query that is slow.
        waiting = min(seconds / 2, engines.LOCK_TIMEOUT_SECONDS)
        connection.exec_driver_sql(
            f"SET TRANSACTION READ ONLY; SET LOCAL statement_timeout = {round(seconds * 1000)};"
            f" SET LOCAL lock_timeout = {round(waiting * 1000)}"
        )

    return made


def _text_of(stored: bytes) -> str:
    """Decode a text. SQLite stores bytes that are no UTF-8, too, by the hand of a person: they take no list away."""
    return stored.decode(errors="replace")


def _open_sqlite(url: URL, seconds: float) -> Engine:
    name = url.database or ""
    if not name.startswith("file:"):
        name = Path(name).absolute().as_uri() + "?mode=ro"
    made = create_engine(
        URL.create("sqlite+pysqlite"),
        poolclass=NullPool,
        connect_args={"timeout": 1.0},
    )

    @event.listens_for(made, "do_connect")
    def _connecting(_dialect: object, _record: object, arguments: list[Any], given: dict[str, Any]) -> None:
        arguments[:] = [name]
        given["uri"] = True

    @event.listens_for(made, "connect")
    def _connected(connection: Any, _record: object) -> None:  # noqa: ANN401  # the driver's connection
        connection.isolation_level = None  # we begin transactions ourselves
        connection.text_factory = _text_of
        sqlite_functions(connection)

    @event.listens_for(made, "begin")
    def _begin(connection: Connection) -> None:
        end = time.monotonic() + seconds
        driver: Any = connection.connection.driver_connection
        driver.set_progress_handler(lambda: int(time.monotonic() > end), _STEPS)
        connection.exec_driver_sql("BEGIN")

    return made
