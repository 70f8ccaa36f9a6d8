"""Words for people: counted things, times relative to now, durations and states. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from inbox.events.states import RETRYING, is_retrying

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
_KILO = 1000
_FEW = 10
"""Below so many seconds a duration has a decimal."""
_OLDEST_IN_DAYS = 60
"""Older times are shown as a date."""


def plural(word: str) -> str:
    """Return the plural of an English noun, such as `deliveries` of `delivery`."""
    if word.endswith("y") and word[-2:-1] not in "aeiou":
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith(("s", "x", "ch", "sh")) else f"{word}s"


def counted(number: int, word: str) -> str:
    """Return a number with its noun: `1 event`, `2 events`, `12,000 deliveries`."""
    return f"{number:,} {word if number == 1 else plural(word)}"


def relative(moment: datetime, now: datetime) -> str:
    """Return a time as seen from now: `3 min ago`, `in 2 h`, or a date when it is far away."""
    seconds = (now - moment).total_seconds()
    if abs(seconds) < 1:
        return "now"
    if abs(seconds) > _OLDEST_IN_DAYS * _DAY:
        return f"{moment:%Y-%m-%d}"
    amount = _rough(abs(seconds))
    return f"{amount} ago" if seconds > 0 else f"in {amount}"


def clock_time(moment: datetime, now: datetime) -> str:
    """Return the time of day, in UTC; on another day the date too."""
    is_today = moment.date() == now.date()
    return f"{moment:%H:%M:%S}Z" if is_today else f"{moment:%m-%d %H:%M:%S}Z"


def lasting(seconds: float) -> str:
    """Return a duration: `45 ms`, `1.2 s`, `12 s`, `3 min`, `2 h`, `5 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _FEW else _rough(seconds)


def byte_count(size: int) -> str:
    """Return a size: `0 bytes`, `1 byte`, `1.2 kB`, `3.4 MB`, `5.6 GB`."""
    if size < _KILO:
        return counted(size, "byte")
    if size < _KILO**2:
        return f"{size / _KILO:.1f} kB"
    return f"{size / _KILO**2:.1f} MB" if size < _KILO**3 else f"{size / _KILO**3:,.1f} GB"


def shown_state(delivery: Mapping[str, Any], now: datetime) -> str:
    """Return the state of a row of the view `delivery`; one that waits for its next attempt is not simply ready.

    A row without `due_at` is an ended delivery of a backfill.
    """
    waits = is_retrying(delivery["state"], delivery["attempts"], delivery.get("due_at"), now)
    return RETRYING if waits else str(delivery["state"])


def _rough(seconds: float) -> str:
    """Return a duration in the largest unit that it has at least one of; hours and days from two on."""
    if seconds < _MINUTE:
        return f"{int(seconds)} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds // _DAY:.0f} d"


def stays_open(number: int) -> str:
    """Say that a stored command is carried out although this process fails, and how to stop it."""
    return (
        f"command {number} stays open, and a relay carries it out: don't ask again. To stop it:"
        f" UPDATE relay_command SET state = 'cancelled' WHERE id = {number}"
    )
