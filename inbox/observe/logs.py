"""Log lines of both programs: keys, formats, and exceptions without their messages, which may hold secrets."""

from __future__ import annotations

import json
import logging
import re
import sys
import traceback
from collections.abc import Callable, Container, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from copy import copy
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

import msgspec

from inbox.observe.visible import visible_json, visible_line, visible_text


class TraceIds(msgspec.Struct, frozen=True):
    """Ids of a span, in lower-case hexadecimal: 32 and 16 digits."""

    trace_id: str
    span_id: str


_current: ContextVar[TraceIds | None] = ContextVar("trace_ids", default=None)


def current_ids() -> TraceIds | None:
    """Return the ids of the current span of this thread or task; None without one."""
    return _current.get()


@contextmanager
def working_on(ids: TraceIds | None) -> Iterator[None]:
    """Add these ids to log lines of this thread or task."""
    token = _current.set(ids)
    try:
        yield
    finally:
        _current.reset(token)


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
    "did": "Effect of a success, as in `delivery_log`.",
    "late": "True when a later event of the lane was delivered before.",
    "cause": "Why a delivery is dead, as in `delivery_log`, or why a request was rejected, as in `rejected_request`.",
    "status": "Status of the answer to a request.",
    "error": "Text of the failure, without secrets.",
    "step": "Step of the relay, as in `relay_node.failing`.",
    "item": "Item that failed alone.",
    "kind": "Kind of an alert, of deleted rows, or of a paused gate.",
    "subject": "Subject of an alert or a sweep.",
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
"""Every key, in the order of a line. Lines omit keys without a value."""


_ATTRIBUTE = "inbox_fields"


def fields(event: str, ids: TraceIds | None = None, **values: Any) -> dict[str, Any]:  # noqa: ANN401  # plain values
    """Build the `extra` of a log call: the line's name, its `KEYS`, and its span if that isn't the current one."""
    return {_ATTRIBUTE: (ids, {"event": event, **values})}


def list_keys(record: logging.LogRecord) -> dict[str, Any]:
    """Return the keys that a record adds, including its trace."""
    given: tuple[TraceIds | None, dict[str, Any]] = getattr(record, _ATTRIBUTE, (None, {}))
    ids, values = given[0] or current_ids(), given[1]
    return values if ids is None else {**values, "trace_id": ids.trace_id, "span_id": ids.span_id}


Format = Literal["text", "json"]

_LONGEST_VALUE = 10_000
"""Characters of a value. Log collectors cut or drop longer lines."""


class StructuredFormatter(logging.Formatter):
    """Format a record as one line of JSON. `text` formats the message."""

    def __init__(self, text: logging.Formatter) -> None:
        super().__init__()
        self.text = text

    def format(self, record: logging.LogRecord) -> str:
        """Format the record."""
        values: dict[str, Any] = {
            "time": self.text.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **list_keys(record),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        kept = {key: _plain(values[key]) for key in KEYS if values.get(key) is not None}
        return visible_json(json.dumps(kept, ensure_ascii=False))


def _plain(value: object) -> str | int | float | bool:
    if isinstance(value, int | float):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """Format a record as one line, with an indented traceback below it. Times are RFC 3339 in UTC."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        """Format the time as `2026-01-31T12:00:00.123Z`, unless the handler's format differs."""
        if datefmt is not None:
            return super().formatTime(record, datefmt)
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the line and escape it."""
        return visible_line(super().formatMessage(record))

    def formatException(self, ei: Raised) -> str:  # noqa: N802  # likewise
        """Format the traceback and escape it, as exception messages may contain values."""
        return visible_text(super().formatException(ei))


def escape_lines(
    handlers: Iterable[logging.Handler], default_datefmt: str | None = None, form: Format = "text"
) -> None:
    """Make these handlers write escaped lines in this format. Handlers with other kinds of formatters keep them.

    Such a formatter may write its own JSON, with its own escapes. `default_datefmt` is a library's default time format,
    which ours replaces; a format chosen by an operator stays.
    """
    for handler in handlers:
        plain = handler.formatter or logging.Formatter()
        if isinstance(plain, StructuredFormatter):
            plain = plain.text
        if type(plain) is logging.Formatter:
            lines = copy(plain)
            lines.__class__ = LineFormatter
            if lines.datefmt == default_datefmt:
                lines.datefmt = None
            plain = lines
        if isinstance(plain, LineFormatter):
            handler.setFormatter(plain if form == "text" else StructuredFormatter(plain))


def write_stderr(message: str) -> None:
    """Write a message to standard error, whatever the logging configuration."""
    sys.stderr.write(f"{visible_text(message)}\n")
    sys.stderr.flush()


_MOST_FRAMES = 8
_MOST_CAUSES = 5


def format_place(error: BaseException, *, skip: int = 0) -> str:
    """Format the error's frames in one line as `FILE:LINE`, outermost first, without the first `skip`."""
    frames = traceback.extract_tb(error.__traceback__)[skip:]
    return " > ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:_MOST_FRAMES])


def without_message(error: BaseException, causes: int = _MOST_CAUSES) -> Exception:
    """Copy an exception with its frames, type and causes, but without its message."""
    kind = type(error)
    named = {"__module__": kind.__module__, "__qualname__": kind.__qualname__}
    bare: Exception = type(kind.__name__, (Exception,), named)().with_traceback(error.__traceback__)
    cause = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    if cause is not None and causes > 0:
        bare.__cause__ = without_message(cause, causes - 1)
    return bare


_WEBHOOK = re.compile(r"/webhooks/(?P<source>[^/]+)(?P<token>/[^/]+)?")
_SHOWN = frozenset({"/health/live", "/health/ready"})


class AccessLogMask:
    """A filter that masks request targets in access logs.

    Unknown paths are hidden, as a mistyped one may contain a token. Unknown sources are hidden too, as the sender may
    have put a token in their place.
    """

    def __init__(self, sources: Callable[[], Container[str]]) -> None:
        self._sources = sources

    def __call__(self, record: logging.LogRecord) -> bool:
        """Mask the record's arguments; no record is dropped."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                self._mask(value) if isinstance(value, str) and "/" in value else value for value in record.args
            )
        return True

    def _mask(self, target: str) -> str:
        path = target.partition("?")[0]
        if path in _SHOWN:
            return path
        found = _WEBHOOK.fullmatch(path)
        if found is None:
            return "/…"
        if found["source"] not in self._sources():
            return "/webhooks/…"
        return f"/webhooks/{found['source']}{'/…' if found['token'] else ''}"
