"""Templates and expressions of a sync route: compiled at the start, evaluated for each event. Pure.

A template is text with JMESPath expressions in braces, `{event.entity_id}`; a map gives a JMESPath expression for each
field of the counterpart. Both look into a scope of `event`, `entity` and `target`, as far as these are known by then.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any, Literal
from urllib.parse import parse_qsl, quote

import msgspec

from inbox import timestamps
from inbox.config_sync import Fetch, Find, Sync, Update, Write
from inbox.errors import ConfigError, MappingError
from relay.expressions import (
    Expression,
    Path,
    Scope,
    Template,
    decode,
    encode,
    expanded,
    percent_encoded,
    templated,
    without_nulls,
)
from relay.outcome import Delivery

_MEDIA_TYPES = {"merge-patch": "application/merge-patch+json", "json": "application/json"}  # RFC 7396


class CallPlan(msgspec.Struct, frozen=True):
    """A call of the plan: its method, and the templates of its parts."""

    method: str
    path: Path
    params: tuple[tuple[str, Template], ...] = ()
    body: Any = None
    """JSON whose strings are templates."""
    media_type: str = "application/json"

    def query(self, scope: Scope) -> str:
        """The query, encoded; MappingError when a template has no value."""
        return "&".join(
            f"{name}={percent_encoded(template.expand(scope), template.where)}" for name, template in self.params
        )

    def json(self, scope: Scope) -> bytes | None:
        """The body, encoded; MappingError when a template has no value."""
        return None if self.body is None else encode(expanded(self.body, scope))


class SyncPlan(msgspec.Struct, frozen=True):
    """A sync route, compiled."""

    fetch: CallPlan
    fields: tuple[tuple[str, Expression], ...]
    clear_when_absent: frozenset[str]
    find: CallPlan | None
    pick: Expression | None
    create: CallPlan | None
    update: CallPlan | None
    delete: CallPlan | None
    identity: tuple[Expression, ...]
    """What the paths of update and delete need of a counterpart: without them it can't be addressed."""
    missing: Literal["create", "skip", "retry", "dead"]
    many: Literal["dead", "first"]
    gone: Literal["delete", "skip"]

    def mapped(self, scope: Scope, *, creating: bool = False) -> dict[str, Any]:
        """The counterpart's fields.

        A field whose value is absent is left out, never sent as null, which would delete it; those of
        `clear_when_absent` are sent as null to a counterpart that exists. Nulls inside a value are left out likewise.

        Raises:
            MappingError: an expression can't be evaluated, or none has a value.
        """
        result: dict[str, Any] = {}
        for name, expression in self.fields:
            value = without_nulls(expression.value(scope))
            if value is not None or (name in self.clear_when_absent and not creating):
                result[name] = value
        if not result:
            everything = self.fields[0][1].where.rpartition(".")[0]
            raise MappingError("no field has a value, so there is nothing to send", field=everything)
        return result


def compile_sync(route: str, sync: Sync) -> SyncPlan:
    """The plan of the route of that name.

    Raises:
        ConfigError: an expression or template is wrong, or a policy needs a call that isn't there. Names the field.
    """
    where = f"routes.{route}.sync"
    if not sync.map:
        raise ConfigError(f"{where}.map: at least one field must be mapped")
    strangers = sorted(set(sync.clear_when_absent) - set(sync.map))
    if strangers:
        raise ConfigError(f"{where}.clear_when_absent: {strangers[0]!r} is not a field of the map")
    if sync.missing == "create" and sync.create is None:
        raise ConfigError(f'{where}: missing = "create" needs a create table; write one, or another missing')
    if sync.gone == "delete" and sync.delete is None:
        raise ConfigError(f'{where}: gone = "delete" needs a delete table; write one, or gone = "skip"')
    if sync.find is None and sync.update is None and sync.create is None:
        raise ConfigError(f"{where}: nothing is done without a create or an update table")
    target = {"target"} if sync.find is not None else set()
    update = _update(sync.update, f"{where}.update", {"event", "entity"} | target)
    delete = _write(sync.delete, f"{where}.delete", "DELETE", {"event"} | target)
    return SyncPlan(
        fetch=_fetch(sync.fetch, f"{where}.fetch"),
        fields=tuple(
            (name, Expression(text, f"{where}.map.{name}", {"event", "entity", "target"}))
            for name, text in sync.map.items()
        ),
        clear_when_absent=frozenset(sync.clear_when_absent),
        # Before a delete there is no entity to look into.
        find=_find(sync.find, f"{where}.find", {"event"} if sync.gone == "delete" else {"event", "entity"}),
        pick=_pick(sync.find, f"{where}.find.pick"),
        create=_write(sync.create, f"{where}.create", "POST", {"event", "entity"}),
        update=update,
        delete=delete,
        identity=_identity(update, delete),
        missing=sync.missing,
        many=sync.many,
        gone=sync.gone,
    )


def event_scope(delivery: Delivery) -> Scope:
    """What expressions see of the event.

    `body` is the webhook itself, parsed; None when it is neither JSON nor a form, or was erased.
    """
    return {
        "source": delivery.source,
        "entity_type": delivery.entity_type,
        "entity_id": delivery.entity_id,
        "event_type": delivery.event_type,
        "action": delivery.action,
        "event_id": delivery.event_id,
        "occurred_at": _rfc3339(delivery.occurred_at),
        "received_at": _rfc3339(delivery.received_at),
        "seq": delivery.seq,
        "body": _parsed(delivery.body, delivery.content_type),
    }


def last_modified(entity: Mapping[str, Any]) -> datetime | None:
    """The entity's `meta.lastModified` (SCIM's, RFC 7643 §3.1, and Trivore ID's), when it has a readable one."""
    meta = entity.get("meta")
    text = meta.get("lastModified") if isinstance(meta, dict) else None
    if not isinstance(text, str):
        return None
    try:
        return timestamps.to_datetime(timestamps.parse_rfc3339(text))
    except ValueError:
        return None


def _fetch(fetch: Fetch, where: str) -> CallPlan:
    return CallPlan("GET", Path(fetch.path, f"{where}.path", {"event"}), _params(fetch.params, where, {"event"}))


def _find(find: Find | None, where: str, known: Collection[str]) -> CallPlan | None:
    if find is None:
        return None
    body = None if find.body is None else templated(find.body, f"{where}.body", known)
    return CallPlan(find.method, Path(find.path, f"{where}.path", known), _params(find.params, where, known), body)


def _pick(find: Find | None, where: str) -> Expression | None:
    return None if find is None or find.pick is None else Expression(find.pick, where, None)


def _write(write: Write | None, where: str, method: str, known: Collection[str]) -> CallPlan | None:
    return None if write is None else CallPlan(write.method or method, Path(write.path, f"{where}.path", known))


def _update(update: Update | None, where: str, known: Collection[str]) -> CallPlan | None:
    if update is None:
        return None
    return CallPlan(update.method, Path(update.path, f"{where}.path", known), media_type=_MEDIA_TYPES[update.format])


def _identity(*calls: CallPlan | None) -> tuple[Expression, ...]:
    parts = [part for call in calls if call is not None for part in call.path.parts if isinstance(part, Expression)]
    return tuple({part.text: part for part in parts if part.text.startswith("target")}.values())


def _params(params: Mapping[str, str], where: str, known: Collection[str]) -> tuple[tuple[str, Template], ...]:
    return tuple(
        (quote(name, safe=""), Template(text, f"{where}.params.{name}", known)) for name, text in params.items()
    )


def _rfc3339(moment: datetime) -> str:
    return moment.isoformat().replace("+00:00", "Z")


def _parsed(body: bytes | None, content_type: str) -> object:
    if body is None:
        return None
    if content_type.partition(";")[0].strip().lower() == "application/x-www-form-urlencoded":
        return dict(parse_qsl(body.decode("utf-8", "replace"), keep_blank_values=True))
    try:
        return decode(body)
    except ValueError:
        return None
