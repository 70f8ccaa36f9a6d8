from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config import routing
from inbox.config.model import Route, When
from inbox.config.routing import ROUTE_LANE, enrol, matches, routes_of
from inbox.events.event import Enrolment, Identity, dedup_key

NAMES = st.text(alphabet="ab|\\*", min_size=1, max_size=5)


def identity(entity_type: str | None = "USER", entity_id: str | None = "u1", event: str = "UPDATE") -> Identity:
    return Identity(entity_type, entity_id, event, "update", 0, (entity_id or "", event))


def route(name: str, *, source: str = "trivore", when: When | None = None) -> Route:
    return Route(name=name, source=source, destination="crm", when=when or When())


def lane_of(event: Identity, on: Route) -> str:
    key = dedup_key(event)
    return routing.lane_of(on, entity_type=event.entity_type, entity_id=event.entity_id, key=key)


def test_an_event_takes_every_route_of_its_source_that_it_matches_in_the_order_of_the_file() -> None:
    routes = [
        route("all"),
        route("others", source="github"),
        route("groups", when=When(entity_type=["GROUP"])),
        route("users", when=When(entity_type=["GROUP", "USER"], event_type=["UPDATE"], action=["update"])),
    ]
    own = routes_of("trivore", routes)
    assert enrol(identity(), "key", own) == (Enrolment("all", "USER|u1"), Enrolment("users", "USER|u1"))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        (When(), True),
        (When(entity_type=["USER"]), True),
        (When(entity_type=["user"]), False),
        (When(event_type=["CREATE", "UPDATE"]), True),
        (When(event_type=["CREATE"]), False),
        (When(action=["update", "delete"]), True),
        (When(action=["delete"]), False),
        (When(entity_type=["USER"], action=["delete"]), False),
    ],
)
def test_every_condition_that_is_given_must_hold(when: When, expected: bool) -> None:
    assert matches(when, "USER", "UPDATE", "update") is expected


def test_an_event_without_an_entity_matches_no_entity_type() -> None:
    assert not matches(When(entity_type=["USER"]), None, "PING", "other")


def test_the_lane_is_the_entity_the_route_or_the_event_as_the_route_says() -> None:
    per_route = Route(name="r", source="s", destination="d", lane="route")
    per_event = Route(name="r", source="s", destination="d", lane="event")
    assert lane_of(identity(), route("r")) == "USER|u1"
    assert lane_of(identity(), per_route) == ROUTE_LANE
    assert lane_of(identity(event="A"), per_event) != lane_of(identity(event="B"), per_event)


@pytest.mark.parametrize("nobody", [(None, None), ("USER", None), (None, "u1")])
def test_an_event_without_an_entity_is_its_own_lane(nobody: tuple[str | None, str | None]) -> None:
    one, other = identity(*nobody, "A"), identity(*nobody, "B")
    assert lane_of(one, route("r")) != lane_of(other, route("r"))
    assert lane_of(one, route("r")) == lane_of(one, route("r"))


@given(NAMES, NAMES, NAMES, NAMES)
def test_two_entities_share_a_lane_only_if_they_are_the_same(type1: str, id1: str, type2: str, id2: str) -> None:
    same = lane_of(identity(type1, id1), route("r")) == lane_of(identity(type2, id2), route("r"))
    assert same == ((type1, id1) == (type2, id2))
