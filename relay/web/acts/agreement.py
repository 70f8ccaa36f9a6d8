"""Agreement of the plan that was shown with the plan of the moment at which it is confirmed. Pure.

A plan is agreed to as a whole. Of deliveries it may have shrunk since: less of the same was agreed to, too. In a living
system it shrinks all the time. It can't have grown unnoticed, since its count and its routes are compared.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec


def written(kind: str, selection: Mapping[str, object], traits: object, count: int | None, *, is_whole: bool) -> str:
    """Write what was shown, for a field of the form.

    Args:
        kind: the act.
        selection: the subject of the command.
        traits: the rest of what was shown, which must be the same.
        count: number of deliveries; None where they are not counted, or all is among the traits.
        is_whole: False when there are more than `count`.
    """
    shown = msgspec.json.encode([kind, selection, traits], order="sorted")
    number = "" if count is None else str(count)
    return f"{hashlib.sha256(shown).hexdigest()[:32]}.{number}{'' if is_whole else '+'}"


def agrees(shown: str, now: str) -> bool:
    """Tell whether who was shown a plan has agreed to the one of now."""
    if shown == now:
        return True
    digest, _, number = shown.partition(".")
    digest_now, _, number_now = now.partition(".")
    if digest != digest_now:
        return False
    if number.endswith("+"):
        return True
    return number.isdecimal() and number_now.isdecimal() and int(number_now) <= int(number)
