"""The plan of a sync route: templates and expressions, compiled at the start and evaluated for each event. Pure.

A template is text with JMESPath expressions in braces, `{event.entity_id}`. A map has a JMESPath expression for each field
of the counterpart. Both read a scope of `event`, `entity` and `target`, as far as these are known at that step.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from datetime import datetime, timedelta
from typing import Any

import msgspec

from inbox.config.sync import CallKeys, SyncRoute, Update
from inbox.errors import MappingError, Unreadable, collect_config_errors
from inbox.events.timestamps import parse_rfc3339, rfc3339, to_datetime
from inbox.sources.fields import FORM, form_fields
from relay.delivery.outcome import Delivery
from relay.sync.calls import MEDIA_TYPES, CallPlan, compile_call
from relay.sync.expressions import ErasedEvent, Expression, Scope, decode, digest
from relay.sync.fields import Fields, compile_fields
from relay.sync.find import Carried, FindPlan, compile_find, compile_named
from relay.sync.templates import SearchTemplate

_MOST_FORM_FIELDS = 1000


class SyncPlan(msgspec.Struct, frozen=True):
    """A sync route, compiled."""

    table: SyncRoute
    fetch: CallPlan
    modified: Expression
    """Finds the time of the entity's last change."""
    fields: Fields
    find: FindPlan | None
    create: CallPlan | None
    update: CallPlan | None
    delete: CallPlan | None
    deactivate: CallPlan | None
    identity: tuple[Expression, ...]
    """The values of a counterpart in the paths of update and delete: without them it can't be addressed."""
    inactive: Expression | None
    """Finds true in a counterpart that is inactive already."""
    if_match: Expression | None
    carried: tuple[Carried, ...]
    """The values that a fetched entity must carry."""
    pick: Expression | None
    """Finds the entity in the answer of the fetch."""
    config: bytes
    """Hash of its tables: an ETag of an entity that was applied under others doesn't count."""

    @property
    def calls_to_destination(self) -> list[tuple[str, CallPlan]]:
        """The calls to the destination, by the table that each comes from."""
        calls = {
            "find": None if self.find is None else self.find.pages.further,
            "create": self.create,
            "update": self.update,
            "delete": self.delete,
            "deactivate": self.deactivate,
        }
        return [(name, call) for name, call in calls.items() if call is not None]

    def config_of_fetch(self, scope: Scope) -> bytes:
        """Hash of the tables, and of what the fetch asks for: an ETag belongs to one URL (RFC 9110 §8.8.3).

        Raises:
            MappingError: a template has no usable value.
        """
        fetch = self.fetch
        return digest([self.config.hex(), fetch.path.expand(scope), fetch.query(scope), fetch.own_headers(scope)])

    def known_etag(self, delivery: Delivery, config: bytes) -> str | None:
        """Return the ETag by which to ask for the entity of a delivery under this `config_of_fetch`; None to fetch it whole."""
        can_be_unchanged = self.table.fetch.conditional and delivery.run == 0 and delivery.action != "delete"
        etag = delivery.applied_etag if can_be_unchanged and delivery.etag_config == config else None
        return None if etag is None else usable_etag(etag)

    def is_stale(self, modified: datetime | None, delivery: Delivery) -> bool:
        """Return True when an entity last changed at this time is older than the event implies."""
        tolerance = self.table.fetch.tolerance
        return (
            tolerance is not None
            and modified is not None
            and modified + timedelta(seconds=tolerance) < delivery.occurred_at
        )


def compile_sync(route: str, sync: SyncRoute) -> SyncPlan:
    """Compile the sync table of the route of that name, which `inbox.loader.checks` has accepted.

    Raises:
        ConfigError: an expression or template is wrong. The text has a line for each mistake, with its place.
    """
    where = f"routes.{route}.sync"
    target = {"target"} if sync.find is not None else set()
    fetch, find, create, update, deactivate = sync.fetch, sync.find, sync.create, sync.update, sync.deactivate
    # Before a delete there is no entity to look into.
    findable = {"event", "entity"} if sync.gone == "skip" else {"event"}

    def call(key: str, table: CallKeys | None, method: str, known: Collection[str], **options: Any) -> CallPlan | None:  # noqa: ANN401  # those of compile_call
        return None if table is None else compile_call(f"{where}.{key}", known, table, method, **options)

    def expression(key: str, text: str | None, known: Collection[str] | None) -> Expression | None:
        return None if text is None else Expression(text, f"{where}.{key}", known)

    parts: dict[str, Callable[[], Any]] = {
        "fetch": lambda: call("fetch", fetch, fetch.method, {"event"}, texts=SearchTemplate),
        "pick": lambda: expression("fetch.pick", fetch.pick, None),
        "modified": lambda: expression("fetch.modified", fetch.modified, None),
        "carried": lambda: compile_named(fetch.verify, f"{where}.fetch.verify", {"event"}),
        "fields": lambda: compile_fields(route, sync),
        "find": lambda: find and compile_find(find, f"{where}.find", findable, sync.map),
        "create": lambda: call(
            "create", create, (create and create.method) or "POST", {"event", "entity"}, sends_fields=True
        ),
        "update": lambda: update and _update(update, f"{where}.update", {"event", "entity"} | target),
        "if_match": lambda: update and expression("update.if_match", update.if_match, {"target", "etag"}),
        "delete": lambda: call(
            "delete", sync.delete, (sync.delete and sync.delete.method) or "DELETE", {"event"} | target
        ),
        "deactivate": lambda: deactivate and call("deactivate", deactivate, deactivate.method, {"event"} | target),
        "inactive": lambda: deactivate and expression("deactivate.unless", deactivate.unless, {"event"} | target),
    }
    made = collect_config_errors(parts)
    return SyncPlan(
        sync,
        **made,
        identity=_identity(made["update"], made["delete"], made["deactivate"]),
        config=digest(msgspec.to_builtins(sync, enc_hook=float)),
    )


def _update(update: Update, where: str, known: Collection[str]) -> CallPlan:
    call = compile_call(where, known, update, update.method, sends_fields=True)
    return call if call.body is not None else msgspec.structs.replace(call, media_type=MEDIA_TYPES[update.format])


def event_scope(delivery: Delivery) -> Scope:
    """Return the part of the scope that describes the event.

    `body` is the webhook itself, parsed; None when it is neither JSON nor a form of at most 1,000 fields. Of one that was
    erased, a look into it raises `inbox.errors.BodyErased`.
    """
    scope = {
        "source": delivery.source,
        "entity_type": delivery.entity_type,
        "entity_id": delivery.entity_id,
        "event_type": delivery.event_type,
        "action": delivery.action,
        "event_id": delivery.event_id,
        "occurred_at": rfc3339(delivery.occurred_at),
        "received_at": rfc3339(delivery.received_at),
        "seq": delivery.seq,
        "body": None if delivery.body is None else _parsed(delivery.body, delivery.content_type),
    }
    return ErasedEvent(scope) if delivery.body is None else scope


def usable_etag(value: str | None) -> str | None:
    """Return an ETag that can be stored and sent back; None for any other text (RFC 9110 §8.8.3)."""
    return value if value is not None and _ETAG.fullmatch(value) else None


_ETAG = re.compile(r'(?:W/)?"[!#-~]{0,256}"')


def last_modified(entity: Mapping[str, Any], where: Expression) -> datetime | None:
    """Return the time of the entity's last change; None without a readable one (RFC 3339)."""
    try:
        text = where.value(dict(entity))
        return to_datetime(parse_rfc3339(text)) if isinstance(text, str) else None
    except (ValueError, MappingError):
        return None


def _identity(*calls: CallPlan | None) -> tuple[Expression, ...]:
    parts = [part for call in calls if call is not None for part in call.path.placeholders]
    return tuple({part.text: part for part in parts if part.text.startswith("target")}.values())


def _parsed(body: bytes, content_type: str) -> object:
    try:
        if content_type.partition(";")[0].strip().lower() == FORM:
            return dict(form_fields(body, _MOST_FORM_FIELDS))
        return decode(body)
    except (ValueError, Unreadable):
        return None
