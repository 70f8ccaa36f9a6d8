"""Words for people: counted things, times relative to now, and durations. Pure."""

from __future__ import annotations

from datetime import datetime

_MINUTE, _HOUR, _DAY = 60, 3600, 86_400
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


def lasting(seconds: float) -> str:
    """Return a duration: `45 ms`, `1.2 s`, `12 s`, `3 min`, `2 h`, `5 d`."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < _FEW else _rough(seconds)


def _rough(seconds: float) -> str:
    """Return a duration in the largest unit that it has at least one of; hours and days from two on."""
    if seconds < _MINUTE:
        return f"{int(seconds)} s"
    if seconds < 2 * _HOUR:
        return f"{seconds // _MINUTE:.0f} min"
    return f"{seconds // _HOUR:.0f} h" if seconds < 2 * _DAY else f"{seconds // _DAY:.0f} d"
