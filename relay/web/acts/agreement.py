"""Agreement of the plan that was shown with the plan of the moment at which it is confirmed. Pure.

A plan is agreed to as a whole. Of deliveries it may have shrunk since: less of the same was agreed to, too. In a living
system it shrinks all the time. It can't have grown unnoticed, since its routes and its numbers are compared one by one: a
dead letter that somebody has cancelled meanwhile is one more cancelled delivery, which nobody agreed to replay.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping

import msgspec


def written(
    kind: str, selection: Mapping[str, object], traits: object, numbers: Mapping[str, int], *, is_whole: bool
) -> str:
    """Write what was shown, for a field of the form.

    Args:
        kind: the act.
        selection: the subject of the command.
        traits: the rest of what was shown, which must be the same.
        numbers: numbers by name, each of which may shrink; a name is a word. Empty where all is among the traits.
        is_whole: False when there are more than these.
    """
    shown = msgspec.json.encode([kind, selection, traits], order="sorted")
    limits = ",".join(f"{name}={number}" for name, number in sorted(numbers.items()))
    return f"{hashlib.sha256(shown).hexdigest()[:32]}.{limits}{'' if is_whole else '+'}"


def agrees(shown: str, now: str) -> bool:
    """Tell whether who was shown a plan has agreed to the one of now."""
    if shown == now:
        return True
    digest, _, limits = shown.partition(".")
    digest_now, _, limits_now = now.partition(".")
    if digest != digest_now:
        return False
    if limits.endswith("+"):
        return True
    if limits_now.endswith("+"):
        return False
    most = _numbers(limits)
    return all(number <= most.get(name, 0) for name, number in _numbers(limits_now).items())


def _numbers(written: str) -> dict[str, int]:
    """Read the numbers; what is none, as in a form that somebody has changed, is left out."""
    parts = (each.partition("=") for each in written.split(","))
    return {name: int(number) for name, _, number in parts if _NUMBER.fullmatch(number)}


_NUMBER = re.compile(r"[0-9]{1,18}")
