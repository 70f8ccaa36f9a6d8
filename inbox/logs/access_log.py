"""Masks uvicorn's access log, which is off by default: it shows existing paths, and no token, query or other path."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container

_WEBHOOK = re.compile(r"/webhooks/(?P<source>[^/]+)(?P<token>/[^/]+)?")
_SHOWN = frozenset({"/health/live", "/health/ready"})


class AccessLogMask:
    """A filter for log records.

    An unknown path may be a mistyped one with a token in it, so nothing of it is shown. An unknown source may itself be a
    token whose sender left the source out.
    """

    def __init__(self, sources: Callable[[], Container[str]]) -> None:
        self._sources = sources

    def __call__(self, record: logging.LogRecord) -> bool:
        """Mask the record's arguments; the record is always shown."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                self._masked(value) if isinstance(value, str) and "/" in value else value for value in record.args
            )
        return True

    def _masked(self, target: str) -> str:
        path = target.partition("?")[0]
        if path in _SHOWN:
            return path
        found = _WEBHOOK.fullmatch(path)
        if found is None:
            return "/…"
        if found["source"] not in self._sources():
            return "/webhooks/…"
        return f"/webhooks/{found['source']}{'/…' if found['token'] else ''}"
