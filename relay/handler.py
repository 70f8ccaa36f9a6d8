"""The public interface of Python handlers: the event that your function gets, and the exceptions that it may raise.

::

    from relay.handler import Event, GiveUp, Retry, Skip

    def on_event(event: Event) -> None: ...

Returning is success. See ``docs/how-to/write-a-handler.md``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.event import Action

__all__ = ["Event", "GiveUp", "Retry", "Skip"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An event, as one attempt gets it."""

    seq: int
    """Its number in the inbox, in the order of arrival."""
    source: str
    """The name of its source in ``inbox.toml``."""
    entity_type: str | None = None
    """Type of its entity, such as ``USER``; None when it names none."""
    entity_id: str | None = None
    """Id of its entity; None when it names none."""
    event_type: str
    """The sender's name for the change."""
    action: Action
    """Its effect on the entity."""
    event_id: str | None = None
    """The sender's id of the event, where it has one."""
    occurred_at: datetime
    """The event's own time, in UTC."""
    received_at: datetime
    """Its arrival at the receiver, in UTC."""
    headers: Mapping[str, str] = {}
    """The stored headers, by their names in lower case."""
    body: Any = None
    """The webhook, parsed, when it is JSON or a form; a number that a float would change is a Decimal."""
    raw: bytes = b""
    """The webhook as received."""
    attempt: int = 1
    """1 for the first."""
    idempotency_key: str
    """The same for every attempt of a run. A replay by an operator, or a duplicate request, begins a run with another key.

    It derives from the sender's data, not from ``seq``, so that no other event ever has it.
    """


class _WithReason(Exception):
    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Skip(_WithReason):
    """Nothing is to be done for this event: the delivery ends ``skipped``, and the log has the reason."""


class Retry(_WithReason):
    """The attempt failed: the route's schedule makes the next one, no sooner than after ``after`` seconds."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.after = None if after is None else float(after)
        if self.after is not None and not self.after >= 0:  # so that nan is none
            raise ValueError("after must be a number of seconds, from 0 on")


class GiveUp(_WithReason):
    """The delivery can never succeed: it is dead at once, and waits for an operator."""
