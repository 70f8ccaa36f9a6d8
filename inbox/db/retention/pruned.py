"""Values of retention that its steps, its rounds and its callers pass on. Pure."""

from __future__ import annotations

from datetime import datetime

import msgspec


class Expiry(msgspec.Struct, frozen=True):
    """The rows of a kind that have expired."""

    before: datetime | None
    """Rows older than this; None: no age."""
    most: int | None = None
    """The most rows that are kept, whatever their age; None: any number."""


class Pruned(msgspec.Struct, frozen=True):
    """The result of one short step, which was one transaction."""

    rows: int = 0
    """Rows deleted: of events the events alone, of payloads the payloads."""
    bytes: int = 0
    """Bytes in these rows, about."""
    position: int = 0
    """The place where the next step begins."""
    is_done: bool = True
    """True when nothing is left to do until more expires."""
    passed_over: int = 0
    """Expired rows that were locked, and are left to a later lap."""


class Estimate(msgspec.Struct, frozen=True):
    """About how many rows have expired."""

    rows: int = 0
    is_estimate: bool = False
    """False when they were counted one by one."""
    bytes: int = 0
    oldest: datetime | None = None
