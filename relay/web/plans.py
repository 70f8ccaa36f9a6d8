"""The plan of an act: the changes that it would make now, and their consequences. An act is carried out as its plan was shown.

A plan that was shown is frozen: its act leaves alone what has arrived, failed or died since, and a replay whatever has changed.
So it can only have shrunk when it is confirmed, which in a living system it does all the time. One that has grown all the
same, or is about other routes, is shown again.
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
from relay.store.operator.plan import Plan, describe_left_out, plan, quick
from relay.web.reading import AnyMembers, Reading

MOST_COUNTED = 10_000
"""Deliveries that a plan examines."""
LONGEST_SECONDS = 1.0
"""Time after which a plan ends with what it has examined."""


class ActPlan(Plan, frozen=True, kw_only=True):
    """The changes that an act would make now. Making a plan changes nothing, and locks nothing."""

    kind: str
    selection: AnyMembers
    """The subject of the command: the JSON of `relay_command.selection`."""
    deliveries: tuple[AnyMembers, ...] = ()
    """The first deliveries, in the order of arrival."""
    requests: tuple[AnyMembers, ...] = ()
    """The first rejected requests, as they are read now."""
    consequences: tuple[str, ...] = ()
    """Consequences, in sentences."""
    needs_everything: bool = False
    """True: no condition narrows it, so `everything` has to be confirmed."""
    as_of: str | None = None
    """Time of the plan: what joins the selection later is left alone."""
    plan: str = ""
    """Send it back as `plan`: exactly this is done, and nothing when it has changed."""


class Agreed(msgspec.Struct, frozen=True, omit_defaults=True):
    """The essence of a plan that was shown, as the field `plan` of its act has it."""

    digest: str
    """Of the selection, and of everything that must be the same."""
    most: int | None = None
    """Deliveries or rows at most; None: any number."""
    as_of: Moment | None = None
    until_fact: int | None = None
    """Of a replay: the newest fact."""

    @classmethod
    def parse(cls, written: str | None) -> Agreed | None:
        """Read the field; None where it is none, as in a form that was changed."""
        try:
            return msgspec.json.decode(base64.urlsafe_b64decode(written or ""), type=cls)
        except (ValueError, msgspec.DecodeError):
            return None

    def allows(self, now: Agreed | None) -> bool:
        """Tell whether the plan of now is this one, or less of the same."""
        if now is None or now.digest != self.digest:
            return False
        return self.most is None or (now.most is not None and now.most <= self.most)


_NEWEST_FACT = text("SELECT coalesce(max(id), 0) AS id FROM delivery_log")


def make_plan(reading: Reading, operation: Operation, asked: Any, agreed: Agreed | None) -> ActPlan:  # noqa: ANN401  # `asks`
    """Make the plan of an operation; one that was `agreed` to is made as of then.

    Raises:
        BadFilter: the selection makes no sense.
        NothingThere: there is no such command.
    """
    chosen, as_of = _frozen(reading, operation, asked, agreed)
    bound = quick(MOST_COUNTED, LONGEST_SECONDS)
    try:
        made = plan(reading.database, reading.config, operation.kind, chosen, bound)
    except NoSuchCommand as error:
        raise NothingThere(str(error)) from None
    except UnusableCommand as error:
        raise BadFilter(str(error)) from None
    shown = msgspec.to_builtins(chosen)
    traits = _TRAITS[operation.asks](made)
    digest = hashlib.sha256(msgspec.json.encode([operation.kind, shown, traits], order="sorted")).hexdigest()[:32]
    until_fact = getattr(chosen, "until_fact", None)
    grows = operation.asks is KindsOfRows  # what expires meanwhile goes, too
    now = Agreed(digest, made.count if made.is_whole and not grows else None, as_of, until_fact)
    fields = msgspec.structs.asdict(made)
    fields["left_out"] = {describe_left_out(why): number for why, number in made.left_out.items()}
    return ActPlan(
        **fields,
        kind=operation.kind,
        selection=shown,
        consequences=operation.consequences,
        needs_everything=operation.needs_condition and asked.is_empty,
        as_of=None if as_of is None else rfc3339(as_of),
        plan=base64.urlsafe_b64encode(msgspec.json.encode(now)).decode(),
    )


def _frozen(reading: Reading, operation: Operation, asked: Any, agreed: Agreed | None) -> tuple[Any, datetime | None]:  # noqa: ANN401  # `asks`
    """Return a selection that leaves alone what comes after its plan, and the time of the plan.

    Without it, an act on a failing route would take along deaths that nobody has seen, or ask again for ever.
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
"""The part of a plan that must be the same when it is confirmed. An erasure is confirmed as it was shown, to the last row."""
