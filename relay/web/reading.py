"""Screens and their reads: in threads, read-only, with a time limit, and with the database role of the actor."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from functools import cache
from typing import Annotated, Any, TypeVar, get_type_hints

import msgspec
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from inbox.clock import Clock
from inbox.config.model import Config
from inbox.db import engine as engines
from inbox.db.dialect import classify_failure, trouble_text
from inbox.db.reads import Row
from inbox.db.schema import metadata
from inbox.db.views import VIEWS
from inbox.errors import DatabaseAway, QueryTooSlow
from relay.accounts import Actor
from relay.delivery.policy import Policies, policies
from relay.operations.asks import Moment
from relay.store.database import Database
from relay.web.query import Before, Limit

AnyMembers = Annotated[dict[str, Any], msgspec.Meta(extra_json_schema={"additionalProperties": True})]
"""An object with any members, such as the selection of a command."""


def describe_rows(name: str, *without: str, **added: dict[str, Any]) -> msgspec.Meta:
    """Describe a row of a table or view with the comments of its columns, for the annotation of a `Row`.

    Args:
        name: The table or view.
        without: Columns that the response omits.
        added: Schemas of members that the response adds.
    """
    if (table := metadata.tables.get(name)) is not None:
        columns = {str(column.name): column.comment for column in table.columns}
    else:
        columns = dict(next(each for each in VIEWS if each.name == name).columns)
    properties = {column: {"description": text or ""} for column, text in columns.items() if column not in without}
    properties |= added
    return msgspec.Meta(
        extra_json_schema={"properties": properties, "required": list(properties), "additionalProperties": False}
    )


class Reading(msgspec.Struct, frozen=True):
    """The context of a screen's read."""

    database: Database
    """Read-only, with `relay.web.reading.LONGEST_SECONDS` for each statement."""
    config: Config
    policies: Policies
    actor: Actor
    now: datetime
    """The host's clock, in UTC."""
    kept: Callable[[object, float, Callable[[], Any]], Any]
    """Returns the cached value of a key, or makes it and caches it for some seconds. Each database role has its own cache."""


class Screen(msgspec.Struct, frozen=True):
    """One screen, its JSON twin (`PATH.json`) and its place in the API (`/api/v1/PATH`)."""

    name: str
    """Name of the template `templates/NAME.html`, which gets `page`, `query`, `given`, `screen`, `config`, `actor`, `values`."""
    path: str
    """In Falcon's syntax; names in braces are fields of the query."""
    title: str
    read: Callable[[Reading, Any], Any]
    """Makes the page from a query, with the types in its signature. Raises PageError if there is nothing to show."""
    key: str | None = None
    """Keyboard shortcut; None if the screen is not in the menu."""
    is_live: bool = True
    """True if the page refreshes itself: its read is cheap, and it has no form to fill in."""
    values: Mapping[str, object] = {}
    """Further names for the template: constants, and pure functions of the page's values."""

    @property
    def query(self) -> type[msgspec.Struct]:
        """Type of the screen's parameters in the URL; those outside the path have defaults."""
        return list(_read_types(self.read).values())[1]

    @property
    def page(self) -> type[msgspec.Struct]:
        """Type of the screen's page."""
        return _read_types(self.read)["return"]


@cache
def _read_types(read: Callable[[Reading, Any], Any]) -> dict[str, type[msgspec.Struct]]:
    return get_type_hints(read, include_extras=True)


class ListQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Parameters of every list."""

    since: Annotated[Moment, msgspec.Meta(description="Only rows at or after this time.")] | None = None
    until: Annotated[Moment, msgspec.Meta(description="Only rows before this time.")] | None = None
    before: Before | None = None
    limit: Limit = 50


class ListPage(msgspec.Struct, frozen=True):
    """A page of a list, newest first."""

    rows: tuple[Row, ...]
    before: int | None = None
    """Parameter `before` for the next page; None: this is the last page."""


MOST_COUNTED = 500
"""Largest count; more are shown as `500+`."""


LONGEST_SECONDS = 2.0
"""Time limit of a statement on Postgres, and of a transaction on SQLite."""
Made = TypeVar("Made")


AT_ONCE = 12
"""Maximum number of concurrent reads. Each statement has a time limit, so a slow screen delays others by seconds at most."""
REFRESH_SECONDS = 0.5
"""Minimum interval between refreshes, over all open pages. Their reads never take more than half of the time."""


class NotYourTurn(Exception):  # not an error
    """Raised when another page is refreshed first."""


class Readers:
    """The page's access to the database: `read` for screens, `write` for acts. Tasks can share it."""

    def __init__(self, config: Config, clock: Clock, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.config, self._monotonic = config, monotonic
        self._policies = policies(config)
        self._clock = clock
        url = config.database.url
        self._operators = Database(engines.connect_read_only(url, application="relay-web", seconds=LONGEST_SECONDS))
        self._viewers = self._operators
        if (viewer_url := config.web.viewer_url) is not None:
            made = engines.connect_read_only(viewer_url, application="relay-web-viewer", seconds=LONGEST_SECONDS)
            self._viewers = Database(made)
        self._writer = Database(engines.connect(url, application="relay-web", pings=True))
        self._kept: dict[object, tuple[float, Any]] = {}
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="web-read")
        self._next_refresh = 0.0

    async def read(self, actor: Actor, make: Callable[[Reading], Made]) -> Made:
        """Run `make` in a thread with a read-only context.

        Raises:
            QueryTooSlow: a statement exceeded its time limit.
            DatabaseAway: the database does not respond, or is locked.
        """
        database = self._operators if actor.may_act else self._viewers
        reading = Reading(database, self.config, self._policies, actor, self._clock.now(), self._keep)
        return await self._run_in_thread(lambda: make(reading))

    async def refresh(self, actor: Actor, make: Callable[[Reading], Made]) -> Made:
        """Read for a page that refreshes itself, as `read` does.

        Raises:
            NotYourTurn: the page has to try again later.
            QueryTooSlow: as `read`.
            DatabaseAway: as `read`.
        """
        began = self._monotonic()
        if began < self._next_refresh:
            raise NotYourTurn
        self._next_refresh = math.inf
        try:
            return await self.read(actor, make)
        finally:
            ended = self._monotonic()
            self._next_refresh = ended + max(REFRESH_SECONDS, ended - began)

    def _keep(self, key: object, seconds: float, make: Callable[[], Any]) -> Any:  # noqa: ANN401  # whatever is made
        """Return a key's cached value if it is younger than `seconds`, else make it. Keys are constants, never from a request."""
        now, (made_at, value) = self._monotonic(), self._kept.get(key, (-math.inf, None))
        if now - made_at >= seconds:
            value = make()
            self._kept[key] = (now, value)
        return value

    async def write(self, make: Callable[[Database], Made]) -> Made:
        """Run `make` in a thread with a writable connection.

        Raises:
            QueryTooSlow: as `read`.
            DatabaseAway: as `read`.
        """
        return await self._run_in_thread(lambda: make(self._writer))

    async def _run_in_thread(self, make: Callable[[], Made]) -> Made:
        return await asyncio.get_running_loop().run_in_executor(self._threads, _convert_errors, make)

    def close(self) -> None:
        """Close all connections."""
        self._threads.shutdown(cancel_futures=True)
        for database in {id(each): each for each in (self._operators, self._viewers, self._writer)}.values():
            database.engine.dispose()


_INTERRUPTED = "interrupted"
"""SQLite's error for a statement that a progress handler has ended."""
_TIMED_OUT = "57014"
"""Postgres' query_canceled: https://www.postgresql.org/docs/current/errcodes-appendix.html."""


def _convert_errors(make: Callable[[], Made]) -> Made:
    """Run `make`, and convert the errors of a slow or unreachable database to problems of the page."""
    try:
        return make()
    except SQLAlchemyError as error:
        cause: Any = error.orig if isinstance(error, DBAPIError) else None
        if getattr(cause, "sqlstate", None) == _TIMED_OUT or _INTERRUPTED in str(cause):
            raise QueryTooSlow(
                f"a query took more than {LONGEST_SECONDS:g} s and was ended; narrow the filter, for example to a route or a time"
            ) from error
        if classify_failure(error) != "fault":
            raise DatabaseAway(trouble_text(error)) from error
        raise
