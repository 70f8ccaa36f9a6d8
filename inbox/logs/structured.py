"""Log lines in JSON and in logfmt. No value can break a line, and none is lost: it is escaped as JSON has it."""

from __future__ import annotations

import json
import logging
import re
from typing import Any, Literal

from inbox.logs.fields import KEYS, keys_of
from inbox.logs.visible import visible_json

Format = Literal["text", "json", "logfmt"]

_BARE = re.compile(r"[A-Za-z0-9_.:/+-]+")
_LONGEST_VALUE = 10_000
"""Characters. A collector of logs cuts or drops longer lines."""


class StructuredFormatter(logging.Formatter):
    """Formats a record as one line of JSON or logfmt. `text` is the formatter of the format `text`, for the message."""

    def __init__(self, form: Literal["json", "logfmt"], text: logging.Formatter) -> None:
        super().__init__()
        self.text = text
        self._write = _json if form == "json" else _logfmt

    def format(self, record: logging.LogRecord) -> str:
        """Format it."""
        values: dict[str, Any] = {
            "time": self.text.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "process": record.process,
            "message": record.getMessage(),
            **keys_of(record),
        }
        if record.exc_info:
            values["traceback"] = self.formatException(record.exc_info)
        return self._write({key: _plain(values[key]) for key in KEYS if values.get(key) is not None})


def _plain(value: object) -> str | int | float | bool:
    if isinstance(value, int | float):
        return value
    text = str(value)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _quoted(value: object) -> str:
    return visible_json(json.dumps(value, ensure_ascii=False))


def _json(values: dict[str, Any]) -> str:
    return _quoted(values)


def _logfmt(values: dict[str, Any]) -> str:
    return " ".join(f"{key}={_logfmt_value(value)}" for key, value in values.items())


def _logfmt_value(value: object) -> str:
    if isinstance(value, str) and not _BARE.fullmatch(value):
        return _quoted(value)
    return value if isinstance(value, str) else json.dumps(value)
