"""Lines for logs and standard error that no value in them can break, colour or forge."""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterable
from copy import copy
from types import TracebackType

from inbox.logs.visible import visible_line, visible_text

Raised = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


class Lines(logging.Formatter):
    """Formats a record as one line, and a traceback below it with its lines indented."""

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        """The line, with all that it is made of."""
        return visible_line(super().formatMessage(record))

    def formatException(self, ei: Raised) -> str:  # noqa: N802  # likewise
        """The traceback; the exceptions' texts may hold values."""
        return visible_text(super().formatException(ei))


def escape(handlers: Iterable[logging.Handler]) -> None:
    """Let these handlers write such lines, in the form that they have. One with a formatter of another kind keeps it.

    Such a formatter may write JSON, which has escapes of its own.
    """
    for handler in handlers:
        plain = handler.formatter or logging.Formatter()
        if type(plain) is logging.Formatter:
            lines = copy(plain)
            lines.__class__ = Lines
            handler.setFormatter(lines)


def tell(message: str) -> None:
    """Say on standard error what must be seen however logging is configured."""
    sys.stderr.write(f"{visible_text(message)}\n")
    sys.stderr.flush()
