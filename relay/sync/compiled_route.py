"""A compiled sync route: templates and expressions, compiled at startup and evaluated for each event. Pure.

A template is text with JMESPath expressions in braces, such as `{event.entity_id}`. A map has a JMESPath expression for
each field of the counterpart. Both read a scope with `event`, `entity` and `target`, as far as each is known at that step.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from datetime import datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import Any

import msgspec

from inbox.config.sync import CallKeys, Find, MapField, SyncRoute, Update
from inbox.errors import ConfigError, MappingError, Unreadable, UnusableResponse, collect_config_errors
from inbox.events.timestamps import parse_rfc3339, rfc3339, to_datetime
from inbox.sources.fields import body_value
from relay.delivery.outcome import Delivery
from relay.sync.calls import MEDIA_TYPES, CallPlan, compile_call, evaluate
from relay.sync.expressions import ErasedEvent, Expression, Scope, decode
from relay.sync.fields import Fields, compile_fields
from relay.sync.forms import format_text
from relay.sync.templates import Placeholder, SearchTemplate


class SyncPlan(msgspec.Struct, frozen=True):
    """A sync route, compiled."""

    table: SyncRoute
    fetch: CallPlan | None
    """None if the webhook's body is the entity; `modified` and `pick` are then None too."""
    modified: Expression | None
    """Yields the time of the entity's last change."""
    fields: Fields
    find: FindPlan | None
    create: CallPlan | None
    update: CallPlan | None
    delete: CallPlan | None
    deactivate: CallPlan | None
    identity: tuple[Expression, ...]
    """The values of a counterpart that the paths of update and delete need."""
    inactive: Expression | None
    """Yields true for an inactive counterpart."""
    if_match: Expression | None
    carried: tuple[Carried, ...]
    """Values that a fetched entity must have."""
    pick: Expression | None
    """Finds the entity in the response to the fetch."""

    def is_stale(self, modified: datetime | None, delivery: Delivery) -> bool:
        """Return True if an entity last changed at this time is older than the event."""
        tolerance = None if self.table.fetch is None else self.table.fetch.tolerance
        return (
            tolerance is not None
            and modified is not None
            and modified + timedelta(seconds=tolerance) < delivery.occurred_at
        )


def compile_sync(route: str, sync: SyncRoute) -> SyncPlan:
    """Compile the sync table of a route, which `inbox.loader.checks` has accepted.

    Raises:
        ConfigError: an expression or template is wrong. The text has a line for each mistake, with its place.
    """
    where = f"routes.{route}.sync"
    target = {"target"} if sync.find is not None else set()
    fetch, find, update, deactivate = sync.fetch, sync.find, sync.update, sync.deactivate
    # A delete has no entity.
    findable = {"event", "entity"} if sync.gone == "skip" else {"event"}

    def call(key: str, table: CallKeys | None, method: str, known: Collection[str], **options: Any) -> CallPlan | None:  # noqa: ANN401  # as in compile_call
        method = getattr(table, "method", None) or method
        return None if table is None else compile_call(f"{where}.{key}", known, table, method, **options)

    def expression(key: str, text: str | None, known: Collection[str] | None) -> Expression | None:
        return None if text is None else Expression(text, f"{where}.{key}", known)

    parts: dict[str, Callable[[], Any]] = {
        "fetch": partial(call, "fetch", fetch, "GET", {"event"}, texts=SearchTemplate),
        "pick": lambda: fetch and expression("fetch.pick", fetch.pick, None),
        "modified": lambda: fetch and expression("fetch.modified", fetch.modified, None),
        "carried": lambda: compile_named(fetch.verify, f"{where}.fetch.verify", {"event"}) if fetch else (),
        "fields": partial(compile_fields, route, sync),
        "find": lambda: find and compile_find(find, f"{where}.find", findable, sync.map),
        "create": partial(call, "create", sync.create, "POST", {"event", "entity"}, sends_fields=True),
        "update": lambda: update and _update(update, f"{where}.update", {"event", "entity"} | target),
        "if_match": lambda: update and expression("update.if_match", update.if_match, {"target", "etag"}),
        "delete": partial(call, "delete", sync.delete, "DELETE", {"event"} | target),
        "deactivate": partial(call, "deactivate", deactivate, "PATCH", {"event"} | target),
        "inactive": lambda: deactivate and expression("deactivate.unless", deactivate.unless, {"event"} | target),
    }
    made = collect_config_errors(parts)
    return SyncPlan(sync, **made, identity=_identity(made["update"], made["delete"], made["deactivate"]))


def _update(update: Update, where: str, known: Collection[str]) -> CallPlan:
    call = compile_call(where, known, update, update.method, sends_fields=True)
    return call if call.body is not None else msgspec.structs.replace(call, media_type=MEDIA_TYPES[update.format])


def event_scope(delivery: Delivery) -> Scope:
    """Return the part of the scope that describes the event.

    `body` is the parsed webhook (`inbox.sources.fields.body_value`); None if it can't be parsed. Reading an erased body
    raises `inbox.errors.BodyErased`.
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
        "body": None if delivery.body is None else _parse(delivery.body, delivery.content_type),
    }
    return ErasedEvent(scope) if delivery.body is None else scope


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


def _parse(body: bytes, content_type: str) -> object:
    try:
        return body_value(body, content_type, decode)
    except (ValueError, Unreadable):
        return None


# --- Verifies responses: a fetched entity must have the requested id, and a match must have the value searched for.
#
# A destination may misread or ignore a filter, and return another record. The relay would then change or delete that
# record, so it writes nothing to a match that has another value or none.


_LONGEST_SHOWN = 80


class Carried(msgspec.Struct, frozen=True):
    """A value searched for, and the fields of a match; one of them must have the value."""

    searched: Expression
    fields: tuple[Expression, ...]


def compile_verify(
    find: Find,
    where: str,
    known: Collection[str],
    placeholders: Iterable[Placeholder],
    mapped: Mapping[str, str | MapField],
) -> tuple[Carried, ...]:
    """Compile `find.verify`.

    Without a table, each mapped field whose expression is also one of the find's `placeholders` must have that value.

    Raises:
        ConfigError: an expression is wrong, the table is empty, or there is neither a table nor such a field.
    """
    if find.verify is False:
        return ()
    if find.verify is True:
        asked = tuple(placeholders)
        carried = tuple(_derive_from_map(asked, mapped, where))
        if not carried:
            searched = asked[0].text if asked else "event.entity_id"
            raise ConfigError(
                f"{where}: a match can't be verified: no mapped field has the value searched for; "
                f'write verify = {{ FIELD = "{searched}" }} with the field of a match that has it, '
                "or verify = false to accept any match"
            )
        return carried
    if not find.verify:
        raise ConfigError(f'{where}: names no field; write verify = {{ FIELD = "event.entity_id" }}, or verify = false')
    return compile_named(find.verify, where, known)


def compile_named(verify: Mapping[str, str], where: str, known: Collection[str]) -> tuple[Carried, ...]:
    """Compile a table of `JMESPath into the response = JMESPath over the known values`.

    Raises:
        ConfigError: an expression is wrong.
    """

    def compile_pair(field: str, searched: str) -> Carried:
        return Carried(Expression(searched, f"{where}.{field}", known), (Expression(field, where, None),))

    return tuple(collect_config_errors({each[0]: partial(compile_pair, *each) for each in verify.items()}).values())


def require_entity(carried: Iterable[Carried], entity: Mapping[str, Any], scope: Scope) -> None:
    """Refuse a fetched entity that lacks the requested value.

    Raises:
        UnusableResponse: the entity has another value. The text names both values.
        MappingError: the event has no such value.
    """
    for each in carried:
        wanted = each.searched.value(scope)
        if wanted is None or wanted == "":
            raise MappingError("has no value, so the entity can't be verified", field=each.searched.where)
        came = _values(each.fields[0], entity)
        if not any(_same(wanted, value, ignore_case=False) for value in came):
            has = _shown(came[0]) if came else "nothing"
            raise UnusableResponse(
                f"the entity has {has} at {each.fields[0].text}, and {_shown(wanted)} was asked for; does the api answer "
                "with the entity of the path? Then name in fetch.verify the field that has the id"
            )


def require_carried(carried: Iterable[Carried], match: Mapping[str, Any], scope: Scope, *, ignore_case: bool) -> None:
    """Refuse a match that lacks the value searched for.

    Raises:
        UnusableResponse: the match has another value. The text names both, and the setting to accept it nevertheless.
        MappingError: there is no value to compare with, or only empty texts, which many destinations read as no filter.
    """
    empty, proving = None, False
    for each in carried:
        wanted = each.searched.value(scope)
        if wanted is None:
            raise MappingError("has no value, so no match can be verified", field=each.searched.where)
        empty, proving = (each, proving) if wanted == "" else (empty, True)
        came = [value for field in each.fields for value in _values(field, match)]
        if not any(_same(wanted, value, ignore_case=ignore_case) for value in came):
            raise UnusableResponse(_refusal(each, wanted, came))
    if empty is not None and not proving:
        raise MappingError("is empty, so no match can be verified", field=empty.searched.where)


def _derive_from_map(
    placeholders: Iterable[Placeholder], mapped: Mapping[str, str | MapField], where: str
) -> Iterator[Carried]:
    sources = [(name, source) for name, given in mapped.items() if (source := _source(given)) is not None]
    seen: list[object] = []
    for placeholder in placeholders:
        names = [name for name, source in sources if source.tree == placeholder.tree]
        if names and placeholder.tree not in seen:
            seen.append(placeholder.tree)
            fields = tuple(Expression(json.dumps(name, ensure_ascii=False), where, None) for name in names)
            yield Carried(placeholder, fields)


def _source(given: str | MapField) -> Expression | None:
    """Return the expression of a field that gets its value unchanged."""
    if isinstance(given, MapField):
        is_as_found = given.cast in {None, "text"} and given.lookup is None
        text = given.expression if is_as_found else None
    else:
        text = given
    try:
        return None if text is None else Expression(text, "", None)
    except ConfigError:  # reported where the map is compiled
        return None


def _values(field: Expression, match: Mapping[str, Any]) -> list[Any]:
    """Return the values of a match at `field`. A list yields each of its values: any may match, as in a SCIM filter."""
    try:
        found = field.value(dict(match))
    except MappingError:
        return []
    values = found if isinstance(found, list) else [found]
    return [value for value in values if isinstance(value, str | int | float | Decimal)]


def _same(wanted: object, value: object, *, ignore_case: bool) -> bool:
    numbers = int | float | Decimal
    if isinstance(wanted, numbers) and isinstance(value, numbers) and not isinstance(wanted, bool):
        return wanted == value and not isinstance(value, bool)
    try:
        texts = format_text(wanted), format_text(value)
    except ValueError:
        return False
    return texts[0] == texts[1] or (ignore_case and texts[0].casefold() == texts[1].casefold())


def _refusal(each: Carried, wanted: object, came: list[Any]) -> str:
    names = " and ".join(field.text.strip('"') for field in each.fields)
    searched = f"{_shown(wanted)} was searched for"
    instead = f'name the field that has it with verify = {{ FIELD = "{each.searched.text}" }}, or write verify = false'
    if not came:
        return f"the match has nothing at {names}, and {searched}; {instead}"
    has = f"the match has {_shown(came[0])} at {names}, and {searched}"
    if any(_same(wanted, value, ignore_case=True) for value in came):
        return f"{has}; if the destination ignores case, write ignore_case = true"
    return f"{has}; check that the destination applies the filter of find. If it does, {instead}"


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


# --- the search


NO_MAP: Mapping[str, str | MapField] = {}


class FindPlan(msgspec.Struct, frozen=True):
    """A find table, compiled."""

    call: CallPlan
    pick: Expression | None
    carried: tuple[Carried, ...] = ()
    """Values that a match must have."""
    ignore_case: bool = False

    def matches_in(self, answer: object) -> list[dict[str, Any]]:
        """Return the distinct matches in a response: a list or an object at `pick`. Without `pick`, also a list at `items`.

        Raises:
            UnusableResponse: the response is unreliable. The text has the reason and a remedy.
        """
        found, pick = answer, self.pick
        if pick is not None:
            found = evaluate(pick, answer)
            if found is None and isinstance(answer, dict) and answer.get("totalResults") == 0:
                return []  # SCIM omits an empty list (RFC 7644 §3.4.2)
            if found is None:
                raise UnusableResponse(
                    f"the response has no value at {pick.text}; if that means that there is no match, "
                    f"write pick = '{pick.text} || `[]`'"
                )
        elif isinstance(answer, dict) and isinstance(answer.get("items"), list):
            found = answer["items"]
        if isinstance(found, dict):
            return [found]
        if not isinstance(found, list):
            where = "the response" if pick is None else f"the value of the response at {pick.text}"
            raise UnusableResponse(f"{where} is neither a list nor an object")
        if not all(isinstance(match, dict) for match in found):
            raise UnusableResponse("a match is not an object")
        return [match for at, match in enumerate(found) if match not in found[:at]]


def compile_find(
    find: Find, where: str, known: Collection[str], mapped: Mapping[str, str | MapField] = NO_MAP
) -> FindPlan:
    """Compile a find table. `where` names the table, `known` the values for its templates; `mapped` is the route's map.

    Raises:
        ConfigError: a template or an expression is wrong.
    """
    parts: dict[str, Callable[[], Any]] = {
        "call": lambda: compile_call(where, known, find, find.method, texts=SearchTemplate),
        "pick": lambda: None if find.pick is None else Expression(find.pick, f"{where}.pick", None),
    }
    made = collect_config_errors(parts)
    carried = compile_verify(find, f"{where}.verify", known, made["call"].placeholders, mapped)
    return FindPlan(**made, carried=carried, ignore_case=find.ignore_case)


def can_be_named(value: object) -> bool:
    """Return True if this value can identify a counterpart in a path."""
    return isinstance(value, str | int | float | Decimal) and not isinstance(value, bool) and value != ""
