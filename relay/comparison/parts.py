"""The parts of a request that follow from its event alone, without an answer of another system. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from inbox.config.endpoint import SlackDestination
from inbox.config.model import Config, Route
from inbox.config.sync import MapField, SyncRoute
from inbox.errors import BodyErased, MappingError
from relay.destinations.slack import MessageTemplate
from relay.sync.calls import CallPlan
from relay.sync.compiled_route import compile_sync
from relay.sync.expressions import EVENT_FIELDS, Expression, Scope, decode

_NO_BODY = re.compile(rf"\bevent\s*\.\s*({'|'.join(sorted(EVENT_FIELDS - {'body'}))})\b")
_ANYTHING = re.compile(r"\bevent\b|@|\*")
"""Signs that an expression may read the event as a whole, once fields other than the body are taken away."""


class Failure(msgspec.Struct, frozen=True):
    """The reason for which a part has no value for an event."""

    why: str


class Parts(msgspec.Struct, frozen=True):
    """The parts of a route's request, compiled."""

    of: Mapping[str, Callable[[Scope], object]] = {}
    """By the key of the configuration that decides it."""
    reads_body: bool = False
    """One of them may look into the event's body."""

    def evaluate(self, scope: Scope) -> dict[str, object]:
        """Evaluate every part. One without a value is a `Failure`; one that needs a body that is gone is left out."""
        values: dict[str, object] = {}
        for name, part in self.of.items():
            try:
                values[name] = part(scope)
            except MappingError as error:
                values[name] = Failure(str(error))
            except BodyErased:
                continue
        return values


NO_PARTS = Parts()


def parts_of(config: Config, route: Route) -> Parts:
    """Compile the parts of a route's request.

    Raises:
        ConfigError: a template or an expression is wrong. The text has a line for each.
    """
    destination = config.destinations[route.destination]
    if isinstance(destination, SlackDestination):
        message = MessageTemplate(destination.text, f"destinations.{destination.name}.text", {"event"})
        reads_body = _reads_body(each.text for each in message.placeholders)
        return Parts({"destination.text": message.expand}, reads_body=reads_body)
    if route.sync is None:
        return NO_PARTS
    plan = compile_sync(route.name, route.sync)
    found = dict(_fetch_parts(plan.fetch)) | {
        f"sync.map.{name}": plan.fields.fields[name].value for name in _of_event_alone(route.name, route.sync)
    }
    texts = [each.text for each in plan.fetch.placeholders]
    texts += [each.text for _, header in plan.fetch.headers for each in header.placeholders]
    texts += [text for name, given in route.sync.map.items() if f"sync.map.{name}" in found and (text := _text(given))]
    return Parts(found, reads_body=_reads_body(texts))


def _fetch_parts(fetch: CallPlan) -> Iterator[tuple[str, Callable[[Scope], object]]]:
    def body(scope: Scope) -> object:
        written = fetch.json(scope)
        return None if written is None else decode(written)

    yield "sync.fetch", fetch.line
    if fetch.body is not None:
        yield "sync.fetch.body", body
    for name, template in fetch.headers:
        yield f"sync.fetch.headers.{name}", template.expand


def _of_event_alone(route: str, sync: SyncRoute) -> Iterator[str]:
    for name, given in sync.map.items():
        if isinstance(given, MapField) and given.function is not None:
            continue
        text = _text(given)
        if text is None:
            yield name
            continue
        expression = Expression(text, f"routes.{route}.sync.map.{name}", None)
        if "@" not in text and not expression.looks_into("entity") and not expression.looks_into("target"):
            yield name


def _text(given: str | MapField) -> str | None:
    return given if isinstance(given, str) else given.expression


def _reads_body(texts: Iterable[str]) -> bool:
    return any(_ANYTHING.search(_NO_BODY.sub("", text)) for text in texts)
