"""A receiver's one connection, used by synchronous functions without blocking the event loop.

On Postgres a function runs in the event loop, which does other work while a statement waits (SQLAlchemy's `run_sync`). On
SQLite it runs in the one thread that the connection belongs to: a batch is one hop there and back, whatever it executes.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Concatenate, ParamSpec, TypeVar

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

from inbox.db import engine as engines
from inbox.db.dialect import SQLITE

_P = ParamSpec("_P")
_T = TypeVar("_T")


class Link(ABC):
    """One connection, which is opened, used and dropped by one task at a time."""

    dialect: str

    @property
    @abstractmethod
    def is_open(self) -> bool:
        """True between `open` and `drop`."""

    @abstractmethod
    async def open(self) -> None:
        """Open the connection.

        Raises:
            SQLAlchemyError, OSError: the database can't be reached.
        """

    @abstractmethod
    async def run(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """Call a function with the open connection, and return or raise what it does."""

    @abstractmethod
    async def drop(self) -> None:
        """Close the connection, whatever state it is in. It is not used again, and nothing is raised."""


class LoopLink(Link):
    """A connection of SQLAlchemy's asyncio."""

    def __init__(self, engine: AsyncEngine) -> None:
        self._engine = engine
        self._connection: AsyncConnection | None = None
        self.dialect = engine.dialect.name

    @property
    def is_open(self) -> bool:
        """See Link."""
        return self._connection is not None

    async def open(self) -> None:
        """See Link."""
        self._connection = await self._engine.connect()

    async def run(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """See Link."""
        if self._connection is None:
            raise RuntimeError("the link is not open")
        return await self._connection.run_sync(function, *arguments, **named)

    async def drop(self) -> None:
        """See Link."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with suppress(SQLAlchemyError, OSError):  # it was broken: that is why it is dropped
                await connection.invalidate()
                await connection.close()


class ThreadLink(Link):
    """A connection in a thread of its own, which ends with the connection."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._thread: ThreadPoolExecutor | None = None
        self._connection: Connection | None = None
        self.dialect = engine.dialect.name

    @property
    def is_open(self) -> bool:
        """See Link."""
        return self._connection is not None

    async def open(self) -> None:
        """See Link."""
        self._thread = ThreadPoolExecutor(1, "intake")
        try:
            self._connection = await self._call(self._engine.connect)
        except BaseException:
            self._thread.shutdown(wait=False)
            raise

    async def run(
        self, function: Callable[Concatenate[Connection, _P], _T], *arguments: _P.args, **named: _P.kwargs
    ) -> _T:
        """See Link."""
        if self._connection is None:
            raise RuntimeError("the link is not open")
        return await self._call(function, self._connection, *arguments, **named)

    async def drop(self) -> None:
        """See Link."""
        connection, self._connection = self._connection, None
        if connection is not None and self._thread is not None:
            await self._call(_close, connection)
            self._thread.shutdown(wait=False)

    async def _call(self, function: Callable[_P, _T], *arguments: _P.args, **named: _P.kwargs) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, partial(function, *arguments, **named))


def _close(connection: Connection) -> None:
    with suppress(SQLAlchemyError, OSError):  # it was broken: that is why it is dropped
        connection.invalidate()
        connection.close()


def link_to(url: str, *, application: str) -> Link:
    """Make the link of a receiver to its database. Nothing is opened yet.

    Raises:
        ConfigError: as `inbox.db.engine.parse_url`.
    """
    if engines.parse_url(url).get_backend_name() == SQLITE:
        return ThreadLink(engines.connect_thread(url))
    return LoopLink(engines.connect_async(url, application=application))
