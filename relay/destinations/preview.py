"""Previews of sync routes: makes an attempt that reads and maps, and writes nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NoReturn, cast

import msgspec

from inbox.errors import BodyErased, MappingError
from relay.delivery.failure_rules import REFETCH_AFTER
from relay.delivery.outcome import CallStep, Delivery, Failed, Outcome
from relay.destinations.base import Context
from relay.destinations.sync import NO_HEADERS, Attempt, Ended, Sync
from relay.sync.calls import CallPlan
from relay.sync.expressions import digest

Change = Literal["create", "update", "deactivate", "delete", "none", "failed"]


class FieldChange(msgspec.Struct, frozen=True):
    """A field of a counterpart with its value before and after."""

    field: str
    before: Any
    after: Any


class Preview(msgspec.Struct, frozen=True):
    """The change that an attempt would make for one entity."""

    route: str
    entity_type: str | None
    entity_id: str | None
    change: Change
    fields: tuple[FieldChange, ...] = ()
    why: str | None = None
    """The reason for no change, or for a failure."""

    @property
    def is_in_sync(self) -> bool:
        """True when both sides agree."""
        return self.change == "none"


class PlannedWrite(msgspec.Struct, frozen=True):
    """The write that an attempt would make."""

    change: Change
    fields: Mapping[str, Any] | None
    """All mapped fields that it sends; None for a deletion or deactivation."""
    request: str
    """Method, path and query."""
    body: bytes | None
    hashes: frozenset[bytes]
    """Hashes that the lane has, if its last delivery sent the same."""
    changes: tuple[FieldChange, ...] = ()
    """The fields in which the counterpart differs from them."""


def preview(sync: Sync, delivery: Delivery, context: Context) -> Preview:
    """Return the change that an attempt for this event would make now. It waits for no replica, and reads a 404 as final."""
    found = planned(sync, delivery, context)

    def result(change: Change, fields: tuple[FieldChange, ...] = (), why: str | None = None) -> Preview:
        return Preview(delivery.route, delivery.entity_type, delivery.entity_id, change, fields, why)

    if isinstance(found, PlannedWrite):
        is_in_sync = found.change == "update" and not found.changes
        return result("none") if is_in_sync else result(found.change, found.changes)
    if isinstance(found, Failed):
        return result("failed", why=found.error)
    return result("none", why=getattr(found, "why", None))


def planned(sync: Sync, delivery: Delivery, context: Context) -> PlannedWrite | Outcome:
    """Return the write that an attempt for this event would make now; or the outcome of one that ends before."""
    asked = msgspec.structs.replace(
        delivery, attempt=2, stale_before=len(REFETCH_AFTER), applied_hash=None, applied_etag=None
    )
    attempt = _Dry(sync.plan, sync.api, sync.destination, asked, context)
    try:
        return attempt.run()
    except _Planned as end:
        return end.write
    except Ended as end:
        return end.outcome
    except (MappingError, BodyErased) as error:
        return Failed((), "mapping", str(error))


class _Planned(Exception):
    """The planned write. It ends the attempt and is no error."""

    def __init__(self, write: PlannedWrite) -> None:
        super().__init__()
        self.write = write


class _Dry(Attempt):
    """An attempt that stops before it writes."""

    def may_be_behind(self) -> bool:
        """Return False: a preview has no later attempt."""
        return False

    def write(
        self,
        step: CallStep,
        call: CallPlan,
        fields: dict[str, Any] | None,
        body: bytes | None,
        headers: Mapping[str, str] = NO_HEADERS,  # noqa: ARG002  # as the base class has it
    ) -> NoReturn:
        """Raise the planned change instead of writing it.

        Raises:
            _Planned: always.
        """
        request = call.line(self.scope)
        if step == "delete" or fields is None:
            raise _Planned(
                PlannedWrite("delete" if step == "delete" else "deactivate", None, request, body, frozenset())
            )
        target = self.scope["target"] if step == "update" else None
        known = _fields_of(target, call.fields_at) if isinstance(target, dict) else {}
        changed = tuple(
            FieldChange(name, known.get(name), value) for name, value in fields.items() if known.get(name) != value
        )
        # A creation has sent no nulls.
        hashes = {digest({name: value for name, value in fields.items() if value is not None}), digest(fields)}
        if step == "update" and call.body is not None:
            hashes.add(digest([fields, (body or b"").decode()]))
        change: Change = "create" if step == "create" else "update"
        raise _Planned(PlannedWrite(change, fields, request, body, frozenset(hashes), changed))


def _fields_of(target: Mapping[str, Any], keys: Sequence[str]) -> Mapping[str, Any]:
    """Return the part of a counterpart that an update sends fields to, where it is found as it is sent; else the whole."""
    found: Any = target
    for key in keys:
        found = found.get(key)
        if not isinstance(found, dict):
            return target
    return cast("Mapping[str, Any]", found)
