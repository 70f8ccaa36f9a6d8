"""The keys of a log line in JSON or logfmt: one set for both programs and the page, with the words of the tables."""

from __future__ import annotations

import logging
from typing import Any, TypedDict, Unpack

from inbox.logs.trace_ids import TraceIds, current_ids

KEYS = {
    "time": "RFC 3339 in UTC, with milliseconds.",
    "level": "`DEBUG`, `INFO`, `WARNING`, `ERROR` or `CRITICAL`.",
    "logger": "Part of the program.",
    "process": "Process id.",
    "event": "Name of the line, of few names; missing in lines of gunicorn and other libraries.",
    "message": "The line of the format `text`, without time and level.",
    "source": "Source.",
    "route": "Route.",
    "seq": "Number of the event in `inbox`.",
    "lane": "Lane of the delivery.",
    "attempt": "Number of the attempt, as in `delivery_log`.",
    "due_at": "When the next attempt is due.",
    "did": "What a success did, as in `delivery_log`.",
    "late": "True when a later event of the lane was delivered before.",
    "cause": "Why a delivery is dead, as in `delivery_log`, or why a request was rejected, as in `rejected_request`.",
    "status": "Status of the answer to a request.",
    "error": "Text of the failure, without secrets.",
    "step": "Step of the relay, as in `relay_node.failing`.",
    "item": "Item that failed alone.",
    "kind": "Kind of an alert, of rows that were deleted, or of what is paused.",
    "subject": "What an alert or a sweep is about.",
    "firing": "True when an alert begins, false when it has recovered.",
    "compared": "Entities that a sweep compared.",
    "missed": "Changes that no webhook reported.",
    "added": "Events that a sweep added.",
    "rows": "Rows, or deliveries, that were changed.",
    "seconds": "Seconds that the line names.",
    "node": "Id of the relay, as in `relay_node`.",
    "routes": "Routes of the configuration, with commas.",
    "child": "Process id of a child.",
    "trace_id": "Trace that the line belongs to, where that is sampled: 32 hexadecimal digits.",
    "span_id": "Span of it: 16 hexadecimal digits.",
    "traceback": "Traceback of an error, without the texts of exceptions that may hold values.",
}
"""Every key, in the order of a line. A line has those that it has a value for."""


class LogKeys(TypedDict, total=False):
    """Keys that a line adds to those which every line has."""

    source: str | None
    route: str
    seq: int
    lane: str
    attempt: int
    due_at: str
    did: str
    late: bool
    cause: str
    status: int
    error: str
    step: str
    item: str
    kind: str
    subject: str
    firing: bool
    compared: int
    missed: int
    added: int
    rows: int
    seconds: float
    node: str
    routes: str
    child: int


_ATTRIBUTE = "inbox_fields"


def fields(event: str, ids: TraceIds | None = None, **values: Unpack[LogKeys]) -> dict[str, Any]:
    """Make the `extra` of a log call: the line's name, its keys, and the span it belongs to unless that is the current one."""
    return {_ATTRIBUTE: (ids, {"event": event, **values})}


def keys_of(record: logging.LogRecord) -> dict[str, Any]:
    """Return the keys that a record adds, with its trace."""
    given: tuple[TraceIds | None, dict[str, Any]] = getattr(record, _ATTRIBUTE, (None, {}))
    ids, values = given[0] or current_ids(), given[1]
    return values if ids is None else {**values, "trace_id": ids.trace_id, "span_id": ids.span_id}
