"""The plan of an act: what it would change now, and with which consequences. An act is carried out as its plan was shown."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from relay.store.operator.plan import Group
from relay.web.acts.agreement import written
from relay.web.rows import AnyMembers


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
