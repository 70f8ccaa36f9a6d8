"""Routing: the routes that an event takes, and its lane on each. Pure; the receiver calls it before the event is stored."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from inbox.config.model import Config, Route, When
from inbox.events.event import Action, Enrolment, Identity, escape

ROUTE_LANE = "*"
OWN_LANE = "|"


def routes_of(source: str, routes: Iterable[Route]) -> tuple[Route, ...]:
    """Return the routes of `source`, in the order of the file."""
    return tuple(route for route in routes if route.source == source)


def enrol(identity: Identity, key: str, routes: Iterable[Route]) -> tuple[Enrolment, ...]:
    """Enrol an event in each route of its source that matches, with its lane there; `key` is its dedup key."""
    return tuple(
        Enrolment(route.name, lane_of(route, entity_type=identity.entity_type, entity_id=identity.entity_id, key=key))
        for route in routes
        if matches(route.when, identity.entity_type, identity.event_type, identity.action)
    )


def matches(when: When, entity_type: str | None, event_type: str, action: Action) -> bool:
    """Return whether every condition that is set matches the event."""
    return (
        (not when.entity_type or entity_type in when.entity_type)
        and (not when.event_type or event_type in when.event_type)
        and (not when.action or action in when.action)
    )


def lane_of(route: Route, *, entity_type: str | None, entity_id: str | None, key: str) -> str:
    """Return the unit of order on the route: the entity, the whole route, or the event itself, whose dedup key is `key`.

    An event without an entity is its own lane. The three forms can't collide: an event's own lane begins with a bare
    `|`, an entity's has one further in, and the whole route's has none.
    """
    if route.lane == "route":
        return ROUTE_LANE
    if route.lane == "entity" and entity_type is not None and entity_id is not None:
        return entity_lane(entity_type, entity_id)
    return f"{OWN_LANE}{key}"


def chosen_routes(config: Config, route: str | None, destination: str | None) -> frozenset[str] | None:
    """Return the routes that filters by a route and by a destination leave; None: all."""
    if destination is None:
        return None if route is None else frozenset({route})
    there = frozenset(name for name, each in config.routes.items() if each.destination == destination)
    return there if route is None else there & {route}


def possible_lanes(*, entity_type: str | None, entity_id: str | None, key: str) -> frozenset[str]:
    """Return every lane that the event can have, for any `lane` setting of its routes."""
    lanes = {ROUTE_LANE, f"{OWN_LANE}{key}"}
    if entity_type is not None and entity_id is not None:
        lanes.add(entity_lane(entity_type, entity_id))
    return frozenset(lanes)


def kind_of_lane(lane: str) -> Literal["entity", "route", "event"]:
    """Return the `lane` setting that makes such a lane."""
    if lane == ROUTE_LANE:
        return "route"
    return "event" if lane.startswith(OWN_LANE) else "entity"


def entity_lane(entity_type: str, entity_id: str) -> str:
    """Return the lane of an entity."""
    return f"{escape(entity_type)}|{escape(entity_id)}"
