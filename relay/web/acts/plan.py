"""The plan of an act: what it would change now, and with which consequences. An act is carried out as its plan was shown.

A plan is agreed to as a whole. Of deliveries it may have shrunk since: less of the same was agreed to, too. In a living
system it shrinks all the time. It can't have grown unnoticed, since its routes and its numbers are compared one by one: a
dead letter that somebody has cancelled meanwhile is one more cancelled delivery, which nobody agreed to replay.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from datetime import datetime
from typing import TypeVar

import msgspec

from relay.operations.asks import Rejections, Selection
from relay.store.operator.plan import Group
from relay.web.reading import AnyMembers

Frozen = TypeVar("Frozen", Selection, Rejections)


class PlanFigure(msgspec.Struct, frozen=True):
    """A number of things that an act is about."""

    name: str
    count: int
    note: str = ""


class ActPlan(msgspec.Struct, frozen=True, kw_only=True):
    """The changes that an act would make now. Making a plan changes nothing, and locks nothing."""

    kind: str
    selection: AnyMembers
    """The subject of the command: the JSON of `relay_command.selection`."""
    count: int | None = None
    """Number of deliveries or rows; None where an act has no such number."""
    is_whole: bool = True
    """False: there are more than `count`, and no more were examined."""
    groups: tuple[Group, ...] = ()
    """The deliveries by route, state and cause; the largest first."""
    deliveries: tuple[AnyMembers, ...] = ()
    """The first deliveries, in the order of arrival."""
    left_out: dict[str, int] = {}
    """Sentences about selected deliveries or rows that stay as they are, and how many each is about."""
    figures: tuple[PlanFigure, ...] = ()
    """Numbers of rows by kind, where an act is about no delivery."""
    consequences: tuple[str, ...] = ()
    """Consequences, in sentences."""
    obstacle: str | None = None
    """Reason why it can't be done now."""
    needs_everything: bool = False
    """True: no condition narrows it, so `everything` has to be confirmed."""
    as_of: str | None = None
    """Value of `as_of` for the act that was shown."""
    plan: str = ""
    """Send it back as `plan`: the act is refused when its plan has changed."""


def frozen(asked: Frozen, as_of: datetime, *, everything: bool) -> Frozen:
    """Return a selection that leaves alone what comes after its plan, so that it grows no more.

    Without it, an act on a failing route would take along deaths that nobody has seen, or ask again for ever.
    """
    until = as_of if asked.until is None else min(asked.until, as_of)
    return msgspec.structs.replace(asked, until=until, everything=everything)


def sealed(
    plan: ActPlan, traits: object, *, is_exact: bool = False, numbers: Mapping[str, int] | None = None
) -> ActPlan:
    """Return the plan with its field `plan`, which says what must hold when it is confirmed.

    `traits` must be the same. The count, or else each of the `numbers`, may have shrunk; with `is_exact` it may not.
    """
    compared = [traits, plan.count, plan.is_whole] if is_exact else traits
    count = {} if is_exact or plan.count is None else {"count": plan.count}
    shown = written(
        plan.kind, plan.selection, compared, count if numbers is None else numbers, is_whole=is_exact or plan.is_whole
    )
    return msgspec.structs.replace(plan, plan=shown)


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
