"""Forms of acts: the fields of each operation, as a URL, a form or a JSON body gives them. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, get_type_hints

import msgspec
from msgspec import Meta

from inbox.db.dialect import is_storable
from inbox.errors import BadFilter
from inbox.events.commands import CANCELLED_BY_STATE, MOST_REASON, REPLAYED_BY_STATE, SAYS_WHY_PATTERN, says_why
from relay.operations.asks import BOUNDS, Name
from relay.operations.table import OPERATIONS, Operation
from relay.web.query import GivenTime

Reason = Annotated[
    str,
    Meta(max_length=MOST_REASON, extra_json_schema={"pattern": SAYS_WHY_PATTERN, "description": "Reason for it."}),
]
"""A reason that `checked_reason` takes."""
ACTS: Mapping[str, Operation] = {kind: each for kind, each in OPERATIONS.items() if not each.is_of_a_command}
"""Operations that have a plan on the page; the others are buttons of a command."""
_STATES = {"cancel": CANCELLED_BY_STATE, "replay": REPLAYED_BY_STATE}
_AS_OF = "Time of the plan that was shown: what died, failed, arrived or was rejected later is left alone."
_AGAIN = "The entity's id once more, so that nobody erases by mistake."
_TIMES = ("since", "until")


def form_of(operation: Operation) -> type[msgspec.Struct]:
    """Make the form of an operation: what it asks for with times as people give them, and what a person adds to the plan."""
    hints = get_type_hints(operation.asks, include_extras=True)
    fields: list[Any] = []
    for each in msgspec.structs.fields(operation.asks):
        if each.name in operation.without or each.name in BOUNDS:
            continue
        hint = hints[each.name]
        if each.name in _TIMES:
            hint = Annotated[GivenTime | None, *getattr(hint, "__metadata__", (Meta(),))]
        elif each.name == "state":
            among = Annotated[Name, Meta(extra_json_schema={"enum": list(_STATES[operation.kind])})]
            hint = Annotated[among | None, *hint.__metadata__]
        fields.append((each.name, hint) if each.required else (each.name, hint, each.default))
    if operation.needs_condition:
        fields.append(("as_of", Annotated[GivenTime | None, Meta(description=_AS_OF)], None))
    if operation.kind == "erase":
        fields.append(("again", Annotated[Name | None, Meta(description=_AGAIN)], None))
    return msgspec.defstruct(f"{operation.kind.title()}Form", fields, kw_only=True, frozen=True)


def order_of(operation: Operation) -> type[msgspec.Struct]:
    """Make the struct of the API's body: the fields of the form, `reason`, `plan` and `dry_run`."""
    hints = get_type_hints(FORMS[operation.kind], include_extras=True)
    fields: list[Any] = [
        (each.name, hints[each.name]) if each.required else (each.name, hints[each.name], each.default)
        for each in msgspec.structs.fields(FORMS[operation.kind])
    ]
    more: list[Any] = [("reason", Reason), ("plan", str | None, None), ("dry_run", bool, False)]
    return msgspec.defstruct(f"{operation.kind.title()}Order", fields + more, kw_only=True, frozen=True)


FORMS: Mapping[str, type[msgspec.Struct]] = {kind: form_of(each) for kind, each in ACTS.items()}
"""Parameters of `/acts/KIND`, and fields of its form."""
ORDERS: Mapping[str, type[msgspec.Struct]] = {kind: order_of(each) for kind, each in ACTS.items()}
"""The body of `POST /api/v1/acts/KIND`."""


class Given(msgspec.Struct, frozen=True):
    """The form of an act, read."""

    asked: Any
    """The operation's `asks`, without a flag `everything`."""
    as_of: datetime | None
    """Time of the plan that was shown."""
    everything: bool
    """True when everything was confirmed to be meant."""
    again: str | None


def read(operation: Operation, form: msgspec.Struct) -> Given:
    """Read a form."""
    given: dict[str, Any] = {
        name: value.moment if isinstance(value, GivenTime) else value
        for name, value in msgspec.structs.asdict(form).items()
    }
    as_of, everything, again = given.pop("as_of", None), given.pop("everything", False), given.pop("again", None)
    return Given(operation.asks(**given), as_of, everything, again)


class ActAnswer(msgspec.Struct, frozen=True):
    """The command that was asked for. A relay carries it out; its address tells how far it has come."""

    id: int
    kind: str
    href: str
    """Path of the command in the API."""


class Submission(msgspec.Struct, frozen=True):
    """Fields beside those of the selection, as they were sent."""

    reason: str = ""
    plan: str | None = None
    """`ActPlan.plan` of the plan that was shown."""
    key: str | None = None
    """Sent twice, the same form is one command."""
    dry_run: bool = False


def checked_reason(reason: str) -> str:
    """Return a reason without space around it.

    Raises:
        BadFilter: it says nothing, or is too long.
    """
    stripped = reason.strip()
    if not says_why(stripped):
        raise BadFilter("say why, in letters or digits: the reason is kept", field="reason")
    if len(stripped) > MOST_REASON:
        raise BadFilter(f"a reason has at most {MOST_REASON:,} characters", field="reason")
    return stripped


def require_storable(fields: Mapping[str, object]) -> None:
    """Check that the database can store every text.

    Raises:
        BadFilter: one has NUL or a half of a surrogate pair.
    """
    for name, value in fields.items():
        if isinstance(value, str) and not is_storable(value):
            raise BadFilter(f"{name} has a character that no database stores", field=name)
