"""`/rejected`: requests that the receiver refused, and why."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.db import listings
from inbox.db.reads import Row
from inbox.db.roles import PAYLOAD_COLUMNS
from relay.web.query import Limit, Number, Text, When
from relay.web.rows import rows_of
from relay.web.screen import ListPage, Reading, Screen


class RejectedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on rejected requests."""

    source: Text | None = None
    cause: Text | None = None
    status: Number | None = None
    since: When | None = None
    until: When | None = None
    error: Text | None = None
    """A part of the reason, in any case."""
    before: Number | None = None
    limit: Limit = 50


class RejectedPage(ListPage, frozen=True):
    """Rows of `rejected_request` without headers and bodies, the newest first."""

    rows: tuple[Annotated[Row, rows_of("rejected_request", *PAYLOAD_COLUMNS)], ...]


def read(reading: Reading, query: RejectedQuery) -> RejectedPage:
    """Read a page of rejected requests."""
    wanted = listings.RejectionFilter(
        source=query.source,
        cause=query.cause,
        status=query.status,
        since=query.since.moment if query.since else None,
        until=query.until.moment if query.until else None,
        error=query.error,
        before=query.before,
    )
    rows = listings.rejected_requests(reading.database.engine, wanted, query.limit + 1)
    shown = [{name: value for name, value in row.items() if name not in PAYLOAD_COLUMNS} for row in rows[: query.limit]]
    return RejectedPage(rows=tuple(shown), before=shown[-1]["id"] if len(rows) > query.limit else None)


SCREEN = Screen(
    name="rejected",
    path="/rejected",
    title="Rejected requests",
    query=RejectedQuery,
    page=RejectedPage,
    read=read,
    template="rejected.html",
    is_list=True,
)
