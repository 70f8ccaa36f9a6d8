"""The plan of an act: the changes that it would make now, and their consequences. A confirmed act follows its plan.

A shown plan is frozen. Its act skips deliveries that arrived, failed or died later, and a replay skips all that changed. So
until its confirmation a plan can only shrink, as it often does in a live system. A plan that has grown nevertheless, or
whose routes have changed, is shown again.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

import msgspec
from sqlalchemy import text

from inbox.errors import BadFilter, NoSuchCommand, NothingThere, UnusableCommand
from inbox.events.timestamps import rfc3339
from relay.operations.asks import KindsOfRows, Moment, OneCommand, OneEntity, OneGate, OneSource, Rejections, Selection
from relay.operations.table import Operation
from relay.store.operator.plan import Plan, plan, quick
from relay.web.reading import AnyMembers, Reading

MOST_COUNTED = 10_000
"""Maximum number of deliveries that a plan examines."""
LONGEST_SECONDS = 1.0
"""Time limit for making a plan. Past the limit, the plan counts only the rows examined so far."""


class ActPlan(Plan, frozen=True, kw_only=True):
    """The changes that an act would make now. Making a plan changes and locks nothing."""

    kind: str
    selection: AnyMembers
    """The subject of the command: the JSON of `relay_command.selection`."""
    deliveries: tuple[AnyMembers, ...] = ()
    """The first deliveries, in order of arrival."""
    requests: tuple[AnyMembers, ...] = ()
    """The first rejected requests, as the configuration reads them now."""
    needs_everything: bool = False
    """True: no condition limits the selection, so `everything` has to be confirmed."""
    as_of: str | None = None
    """Time of the plan: rows that match only later are skipped."""
    plan: str = ""
    """Token of the plan. Send it back as `plan` to do exactly this, or nothing if the plan has changed."""


class Agreed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The essence of a shown plan, encoded in the field `plan` of its act."""

    digest: str
    """Digest of the selection and of everything that must not change."""
    most: int | None = None
    """Maximum number of deliveries or rows; None for any number."""
    as_of: Moment | None = None
    until_fact: int | None = None
    """Id of the newest fact, for a replay."""

    @classmethod
    def parse(cls, written: str | None) -> Agreed | None:
        """Decode the field; None if it is malformed, as in an edited form."""
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(written or ""), type=cls)
        except (ValueError, msgspec.DecodeError):
            return None

    def allows(self, now: Agreed | None) -> bool:
        """Return whether the current plan equals the agreed one, or is a part of it."""
        if now is None or now.digest != self.digest:
            return False
        return self.most is None or (now.most is not None and now.most <= self.most)


_NEWEST_FACT = text("SELECT coalesce(max(id), 0) AS id FROM delivery_log")


def make_plan(reading: Reading, operation: Operation, asked: Any, agreed: Agreed | None) -> ActPlan:  # noqa: ANN401  # `asks`
    """Make the plan of an operation; with `agreed`, make it as of the time of the agreed plan.

    Raises:
        BadFilter: the selection is invalid.
        NothingThere: there is no such command.
    """
    chosen, as_of = _frozen(reading, operation, asked, agreed)
    bound = quick(MOST_COUNTED, LONGEST_SECONDS)
    try:
        made = plan(reading.database, reading.config, operation.kind, chosen, bound)
    except NoSuchCommand as error:
        raise NothingThere(str(error)) from None
    except UnusableCommand as error:
        raise BadFilter(str(error), field=error.field) from None
    shown = msgspec.to_builtins(chosen)
    traits = _TRAITS[operation.asks](made)
    digest = hashlib.sha256(msgspec.json.encode([operation.kind, shown, traits], order="sorted")).hexdigest()[:32]
    until_fact = getattr(chosen, "until_fact", None)
    grows = operation.asks is KindsOfRows  # rows that expire meanwhile are pruned too
    now = Agreed(digest, made.count if made.is_whole and not grows else None, as_of, until_fact)
    return ActPlan(
        **msgspec.structs.asdict(made),
        kind=operation.kind,
        selection=shown,
        needs_everything=operation.needs_condition and asked.is_empty,
        as_of=None if as_of is None else rfc3339(as_of),
        plan=base64.urlsafe_b64encode(msgspec.json.encode(now)).decode(),
    )


def _frozen(reading: Reading, operation: Operation, asked: Any, agreed: Agreed | None) -> tuple[Any, datetime | None]:  # noqa: ANN401  # `asks`
    """Return the selection without rows that would join it after the plan, and the time of the plan.

    Otherwise an act on a failing route would include dead letters that the operator has not seen, or could never be confirmed.
    """
    if not operation.needs_condition:
        return asked, None
    with reading.database.read() as transaction:
        now, newest = transaction.now(), int(transaction.execute(_NEWEST_FACT)[0].id)
    as_of = now if agreed is None or agreed.as_of is None else min(agreed.as_of, now)
    until = as_of if asked.until is None else min(asked.until, as_of)
    chosen = msgspec.structs.replace(asked, until=until, everything=asked.is_empty)
    if operation.kind == "replay":
        shown = None if agreed is None else agreed.until_fact
        chosen = msgspec.structs.replace(chosen, until_fact=newest if shown is None else min(newest, shown))
    return chosen, as_of


_TRAITS: Mapping[type[msgspec.Struct], Callable[[Plan], object]] = {
    Selection: lambda plan: sorted({group.route for group in plan.groups}) if plan.is_whole else [],
    OneGate: lambda plan: plan.obstacle,
    OneSource: lambda plan: plan.warnings,
    KindsOfRows: lambda plan: [(each.name, each.note.removeprefix("or more; ")) for each in plan.figures],
    OneEntity: lambda plan: plan.figures,
    Rejections: lambda _: None,
    OneCommand: lambda _: None,
}
"""The parts of a plan that must not change before it is confirmed. For an erasure, these are the counts of all rows."""
