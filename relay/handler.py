"""The public interface of Python handlers: the event that your function receives, and the exceptions that it can raise.

::

    from relay.handler import Event, GiveUp, Retry, Skip

    def on_event(event: Event) -> None: ...

Returning means success. See ``docs/how-to/write-a-handler.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.event import Action

__all__ = ["Event", "GiveUp", "Retry", "Skip"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event, as passed to one attempt."""

    seq: int
    """Number in the inbox, in order of arrival."""
    source: str
    """Name of the source in ``inbox.toml``."""
    entity_type: str | None = None
    """Type of the entity, such as ``USER``; None without an entity."""
    entity_id: str | None = None
    """Id of the entity; None without an entity."""
    event_type: str
    """The sender's name for the change."""
    action: Action
    """Effect on the entity."""
    event_id: str | None = None
    """The sender's id of the event, if it has one."""
    occurred_at: datetime
    """Time of the event, in UTC."""
    received_at: datetime
    """Time of arrival at the receiver, in UTC."""
    headers: Mapping[str, str] = {}
    """Stored headers, with names in lower case."""
    body: Any = None
    """Parsed body if it is JSON or a form; a number that a float would change is a Decimal."""
    raw: bytes = b""
    """Body as received."""
    attempt: int = 1
    """Number of the attempt, from 1."""
    idempotency_key: str
    """A key that all attempts of a run share. A replay by an operator, or a duplicate request, begins a run with another key.

    It derives from the sender's data, not from ``seq``, so no other event ever has the same key.
    """


class _WithReason(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Skip(_WithReason):
    """Skip this event: the delivery ends ``skipped``, and the log has the reason."""


class Retry(_WithReason):
    """Fail this attempt: the next one follows the route's schedule, but not before ``after`` seconds have passed."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = None if after is None else float(after)
        if self.after is not None and not self.after >= 0:  # also refuses NaN
            raise ValueError("after must be a number of seconds of at least 0")


class GiveUp(_WithReason):
    """Give up this delivery, which can never succeed: it is dead at once, and waits for an operator."""
