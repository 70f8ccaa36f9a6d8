"""Outages of the database as the receiver's log tells them: a line when one begins, and one when it ends."""

from __future__ import annotations

import logging
from collections.abc import Callable

from inbox.db.trouble import trouble_text
from inbox.errors import UnfitDatabase
from inbox.logs.fields import fields

_log = logging.getLogger(__name__)


class Outage:
    """The state of a writer's database, by its last statement. Each request of an outage is counted, and none is logged."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._since: float | None = None
        self._requests = 0

    def began(self, error: Exception, requests: int = 0) -> None:
        """Note a failure that was no event's own fault, and how many requests got 503 for it."""
        if isinstance(error, UnfitDatabase):  # `IntakeAlert` logs it, with the remedy
            return
        self.lasts(trouble_text(error), requests)

    def lasts(self, why: str, requests: int) -> None:
        """Note that nothing is stored, for this reason."""
        self._requests += requests
        if self._since is None:
            self._since = self._monotonic()
            _log.warning(
                "the database takes nothing, senders get 503 and send again: %s",
                why,
                extra=fields("database_trouble", error=why),
            )

    def ended(self) -> None:
        """Note that something was stored."""
        if self._since is None:
            return
        seconds = self._monotonic() - self._since
        _log.warning(
            "the database takes events again after %.1f s; requests with 503: %d",
            seconds,
            self._requests,
            extra=fields("database_recovered", seconds=seconds, rows=self._requests),
        )
        self._since, self._requests = None, 0
