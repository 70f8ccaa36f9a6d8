"""`/rejected`: requests that the receiver refused, and why; operators readmit them after a fix."""

from __future__ import annotations

from typing import Annotated

import msgspec

from inbox.db import listing
from inbox.db.reads import Row
from relay.web.query import GivenTime, Limit, Number, Text, filter_of
from relay.web.reading import ListPage, Reading, Screen, rows_of

COLUMNS = (
    "id",
    "received_at",
    "source",
    "status",
    "cause",
    "reason",
    "field",
    "remote_address",
    "readmitted_at",
    "readmitted_seq",
    "readmitted_by",
    "readmit_reason",
)
"""Columns without the headers and body, which no list shows."""
LEFT_OUT = ("headers", "body", "body_sha256")
IS_KEPT = "body IS NOT NULL AS is_kept"
"""Only a whole request can be readmitted. The database role of viewers may not even look whether there is a body."""
_IS_KEPT_SCHEMA = {
    "type": ["boolean", "null"],
    "description": "true: it was kept whole, so that it can be readmitted; null: viewers are not told",
}


class RejectedQuery(msgspec.Struct, frozen=True, kw_only=True):
    """Conditions on rejected requests."""

    source: Text | None = None
    cause: Text | None = None
    status: Number | None = None
    since: GivenTime | None = None
    until: GivenTime | None = None
    error: Text | None = None
    """A part of the reason, in any case."""
    before: Number | None = None
    limit: Limit = 50


class RejectedPage(ListPage, frozen=True):
    """Rows of `rejected_request`, the newest first, without headers and bodies."""

    rows: tuple[Annotated[Row, rows_of("rejected_request", *LEFT_OUT, is_kept=_IS_KEPT_SCHEMA)], ...]


def read(reading: Reading, query: RejectedQuery) -> RejectedPage:
    """Read a page of rejected requests."""
    columns = (*COLUMNS, IS_KEPT) if reading.actor.may_act else COLUMNS
    rows = listing.read_rows(reading.database.engine, "rejected", filter_of(query), query.limit + 1, columns)
    shown = tuple(
        {**row, "is_kept": bool(row["is_kept"]) if "is_kept" in row else None}  # SQLite has numbers
        for row in rows[: query.limit]
    )
    before = shown[-1]["id"] if len(rows) > query.limit else None
    return RejectedPage(rows=shown, before=before)


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
