"""What uvicorn's access log shows of a path, if somebody asks for that log: no token and no query."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Container

_WEBHOOK = re.compile(r"/webhooks/(?P<source>[^/?]*)(?P<more>/?)")


class Mask:
    """A filter for the log's records.

    It does not show a source that there is not, either: that may be a token whose sender has forgotten the source.
    """

    def __init__(self, sources: Callable[[], Container[str]]) -> None:
        self._sources = sources

    def __call__(self, record: logging.LogRecord) -> bool:
        """Change the record; it is always shown."""
        if isinstance(record.args, tuple):
            record.args = tuple(
                self._masked(value) if isinstance(value, str) and value.startswith("/") else value
                for value in record.args
            )
        return True

    def _masked(self, path: str) -> str:
        found = _WEBHOOK.match(path)
        if found is None:
            return path.partition("?")[0]
        if found["source"] not in self._sources():
            return "/webhooks/…"
        return f"/webhooks/{found['source']}{'/…' if found['more'] else ''}"
