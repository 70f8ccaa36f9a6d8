"""Every act of the page and its API: one line each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from inbox.events.commands import NO_DRY_RUN
from relay.web.acts import deliveries, others
from relay.web.acts.forms import (
    CancelForm,
    DeliveriesForm,
    EraseForm,
    GateForm,
    PruneForm,
    ReadmitForm,
    Reason,
    ReplayForm,
    SweepForm,
)
from relay.web.acts.plan import ActPlan
from relay.web.reading import Reading


class ActKind(msgspec.Struct, frozen=True):
    """A kind of act: a kind of command with the form of its selection and its plan."""

    kind: str
    title: str
    form: type[msgspec.Struct]
    """Fields of the URL, of the page's form and of the API's body."""
    plan: Callable[[Reading, str, Any], ActPlan]
    """Makes the plan of a form. Raises BadFilter."""
    is_dangerous: bool = False
    """True when nothing brings back what it ends."""

    @property
    def has_dry_run(self) -> bool:
        """Tell whether a relay can make a dry run of it."""
        return self.kind not in NO_DRY_RUN


ACTS: Mapping[str, ActKind] = {
    each.kind: each
    for each in (
        ActKind("replay", "Replay deliveries", ReplayForm, deliveries.plan),
        ActKind("retry", "Retry waiting deliveries now", DeliveriesForm, deliveries.plan),
        ActKind("cancel", "Cancel deliveries", CancelForm, deliveries.plan, is_dangerous=True),
        ActKind("unblock", "Unblock lanes", DeliveriesForm, deliveries.plan),
        ActKind("pause", "Pause", GateForm, others.plan_gate),
        ActKind("resume", "Resume", GateForm, others.plan_gate),
        ActKind("sweep", "Sweep for missed changes", SweepForm, others.plan_sweep),
        ActKind("prune", "Delete expired rows", PruneForm, others.plan_prune, is_dangerous=True),
        ActKind("erase", "Erase an entity", EraseForm, others.plan_erase, is_dangerous=True),
        ActKind("readmit", "Readmit rejected requests", ReadmitForm, others.plan_readmit),
    )
}


def order_of(kind: ActKind) -> type[msgspec.Struct]:
    """Return the struct of the API's body: the fields of the form, `reason`, `plan` and `dry_run`."""
    fields: list[Any] = [
        (each.name, each.type) if each.required else (each.name, each.type, each.default)
        for each in msgspec.structs.fields(kind.form)
    ]
    more: list[Any] = [("reason", Reason), ("plan", str | None, None), ("dry_run", bool, False)]
    return msgspec.defstruct(f"{kind.kind.title()}Order", fields + more, kw_only=True, frozen=True)


ORDERS: Mapping[str, type[msgspec.Struct]] = {name: order_of(kind) for name, kind in ACTS.items()}
"""The body of `POST /api/v1/acts/KIND`."""


class ActAnswer(msgspec.Struct, frozen=True):
    """The command that was asked for. A relay carries it out; its address tells how far it has come."""

    id: int
    kind: str
    href: str
    """Path of the command in the API."""
