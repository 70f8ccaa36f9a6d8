"""Routing: an event's routes, its lane on each, and the headers that they pass on. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal

from inbox.config.model import Config, Destination, ForwardDestination, Route, When
from inbox.config.values import is_name
from inbox.events.event import Action, Enrolment, Identity, escape

ROUTE_LANE = "*"
OWN_LANE = "|"


def select_routes(source: str, routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return the routes of `source`, in the order of the file."""
    return tuple(route for route in routes if route.source == source)


def enrol(identity: Identity, key: str, routes: Iterable[Route]) -> tuple[Enrolment, ...]:
    """Enrol an event in each matching route of its source, with its lane there; `key` is its dedup key."""
    return tuple(
        Enrolment(route.name, name_lane(route, entity_type=identity.entity_type, entity_id=identity.entity_id, key=key))
        for route in routes
        if matches(route.when, identity.entity_type, identity.event_type, identity.action)
    )


def matches(when: When, entity_type: str | None, event_type: str, action: Action) -> bool:
    """Return whether every given condition matches the event."""
    return (
        (not when.entity_type or entity_type in when.entity_type)
        and (not when.event_type or event_type in when.event_type)
        and (not when.action or action in when.action)
    )


def name_lane(route: Route, *, entity_type: str | None, entity_id: str | None, key: str) -> str:
    """Return the event's lane on the route: its entity, the whole route, or the event itself with the dedup key `key`.

    An event without an entity is its own lane. The three forms can't collide: an event's lane begins with a bare `|`,
    an entity's has one later, and the route's has none.
    """
    if route.lane == "route":
        return ROUTE_LANE
    if route.lane == "entity" and entity_type is not None and entity_id is not None:
        return entity_lane(entity_type, entity_id)
    return f"{OWN_LANE}{key}"


def chosen_routes(config: Config, route: str | None, destination: str | None) -> frozenset[str] | None:
    """Return the routes selected by route and by destination; None means all."""
    if destination is None:
        return None if route is None else frozenset({route})
    there = frozenset(name for name, each in config.routes.items() if each.destination == destination)
    return there if route is None else there & {route}


def possible_lanes(*, entity_type: str | None, entity_id: str | None, key: str) -> frozenset[str]:
    """Return every lane that an event can have under any `lane` setting."""
    lanes = {ROUTE_LANE, f"{OWN_LANE}{key}"}
    if entity_type is not None and entity_id is not None:
        lanes.add(entity_lane(entity_type, entity_id))
    return frozenset(lanes)


def get_lane_kind(lane: str) -> Literal["entity", "route", "event"]:
    """Return the `lane` setting that produces this lane."""
    if lane == ROUTE_LANE:
        return "route"
    return "event" if lane.startswith(OWN_LANE) else "entity"


def entity_lane(entity_type: str, entity_id: str) -> str:
    """Return the lane of an entity."""
    return f"{escape(entity_type)}|{escape(entity_id)}"


# --- Headers of a forwarded webhook: those that the relay adds, and the original ones that it may pass on.


ADDED: Mapping[str, str] = {
    "Content-Type": "that of the webhook, if any",
    "Inbox-Source": "name of the source",
    "Inbox-Event-Type": "event type",
    "Inbox-Entity-Type": "type of the entity; missing for an event without one",
    "Inbox-Entity-Id": "id of the entity; missing for an event without one",
    "Inbox-Seq": "number of the event in the inbox",
    "Inbox-Attempt": "number of the attempt, from 1",
    "Webhook-Id": "identifies the event on its route, equally for every attempt and run",
    "Webhook-Timestamp": "time of the attempt, in seconds since 1970",
    "Webhook-Signature": "signature of Standard Webhooks; missing without `signing_secret`",
    "Idempotency-Key": "identifies the run, equally for each of its attempts",
    "Traceparent": "trace context of the webhook, if any",
    "Accept": "`*/*`",
    "Accept-Encoding": "`identity`",
    "User-Agent": "`inbox-relay`, unless `headers` has another",
}
"""Headers added to a forwarded webhook, with descriptions of their values."""

_ADDED = frozenset(name.lower() for name in ADDED)
_OURS = ("inbox-", "webhook-")
_OF_THE_CONNECTION = re.compile(
    "host|connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade|expect|content-length|content-encoding"
    # Proxies write the original URL into some of these, including the token of a `url_token` source.
    "|via|forwarded|x-forwarded(-.*)?|x-original(-.*)?|x-rewrite(-.*)?|x-envoy-.*|x-real-ip|referer|origin"
)
_SECRET = re.compile(
    r"(.*[-_])?(auth|authenticate|authorization|cookie|credentials?|hmac|jwt|password|secret|signature|token|api[-_]?key)([-_].*)?"
)


def list_passed_headers(
    source: str, routes: Iterable[Route], destinations: Mapping[str, Destination]
) -> frozenset[str]:
    """Return the lower-case names of the headers that a source's destinations pass on and that are stored for them."""
    found = {
        name.lower()
        for route in routes
        if route.source == source and isinstance(destination := destinations.get(route.destination), ForwardDestination)
        for name in destination.pass_headers
    }
    return frozenset(name for name in found if explain_refusal(name) is None)


def explain_refusal(name: str) -> str | None:
    """Return the reason why a header of this name can't be passed on; None if it can."""
    lower = name.lower()
    if not is_name(name):
        return f"{name!r} is not a header name; write one such as X-GitHub-Event"
    if lower in _ADDED or lower.startswith(_OURS):
        return f"{name!r} is a header that the relay adds itself; remove it"
    if _OF_THE_CONNECTION.fullmatch(lower):
        return f"{name!r} belongs to the connection, and is never passed on; remove it"
    if _SECRET.fullmatch(lower):
        return f"{name!r} is named as a header with a secret, and is never stored; remove it"
    return None
