"""Lines for logs and standard error. Values in them can't break, colour or forge a line."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from copy import copy
from datetime import UTC, datetime
from types import TracebackType

from inbox.logs.structured import Format, StructuredFormatter
from inbox.logs.visible import visible_line, visible_text

Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class LineFormatter(logging.Formatter):
    """Formats a record as one line, with an indented traceback below it. Times are RFC 3339 in UTC, on both sides."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: N802  # logging's name
        """Format the time as `2026-01-31T12:00:00.123Z`, unless the handler's own format has another."""
        if datefmt is not None:
            return super().formatTime(record, datefmt)
        return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """Format the line and escape it."""
        return visible_line(super().formatMessage(record))

    def formatException(self, ei: Raised) -> str:  # noqa: N802  # likewise
        """Format the traceback and escape it: texts of exceptions may contain values."""
        return visible_text(super().formatException(ei))


def escape_lines(
    handlers: Iterable[logging.Handler], default_datefmt: str | None = None, form: Format = "text"
) -> None:
    """Let these handlers write escaped lines of this form. A handler with another kind of formatter keeps it.

    Such a formatter may write JSON of its own, which has its own escapes. `default_datefmt` is a library's own form of times:
    it gives way to ours, and a form that an operator has chosen stays.
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
            handler.setFormatter(plain if form == "text" else StructuredFormatter(form, plain))


def write_stderr(message: str) -> None:
    """Write a message to standard error, independent of the configuration of logging."""
    sys.stderr.write(f"{visible_text(message)}\n")
    sys.stderr.flush()
