"""What a function of yours is given and may raise, as a destination of the kind `python` calls it. Public.

::

    from relay.handler import Event, GiveUp, Retry, Skip

    def on_event(event: Event) -> None: ...

Returning is success. `docs/handlers.md` tells the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

import msgspec

from inbox.events.event import Action

__all__ = ["Event", "GiveUp", "Retry", "Skip"]


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """One event for one attempt."""

    seq: int
    """Its number in the inbox, in the order of arrival."""
    source: str
    entity_type: str | None = None
    entity_id: str | None = None
    """Of what it is about; None when it names no entity."""
    event_type: str
    """The sender's own word."""
    action: Action
    event_id: str | None = None
    """The sender's own id of the event, where it has one."""
    occurred_at: datetime
    received_at: datetime
    headers: Mapping[str, str] = {}
    """Those that are kept, by their names in lower case."""
    body: Any = None
    """The webhook, parsed, when it is JSON or a form; a number that a float would change is a Decimal."""
    raw: bytes = b""
    """The webhook as it came."""
    attempt: int = 1
    """1 for the first."""
    idempotency_key: str
    """The same for every attempt, and another one when it is delivered again: replayed by a person, or because of a repeat.

    It names the event by what the sender said of it, not by `seq`, so that no other event ever has it.
    """


class Skip(Exception):
    """There is nothing to do for this event: it ends `skipped`, and the log says why."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why


class Retry(Exception):
    """It did not work now: the next attempt is made by the route's schedule, and not before `after` seconds."""

    def __init__(self, why: str, after: float | None = None) -> None:
        super().__init__(why)
        self.why = why
        self.after = None if after is None else float(after)
        if self.after is not None and not self.after >= 0:  # so that nan is none
            raise ValueError("after must be a number of seconds, from 0 on")


class GiveUp(Exception):
    """It will never work: the delivery is dead at once, and waits for a person."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why
