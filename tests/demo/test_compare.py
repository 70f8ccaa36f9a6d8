"""The demo's verdict can be trusted: whatever differs between the services is found."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from falcon import testing

from relay.demo import commercial, identity
from relay.demo.compare import Difference, compare, differences, mapped_fields
from relay.demo.entities import GROUP, USER
from relay.demo.ground import configuration
from relay.demo.people import sample_group, sample_user
from relay.demo.records import CONTACT, TEAM

BEARER = {"Authorization": "Bearer demo"}


class Pair:
    """Both services, with two users and a group that the commercial service knows too."""

    def __init__(self, service: identity.IdentityService) -> None:
        self.identity = service
        self.commercial = commercial.create_app()
        self.client = testing.TestClient(self.commercial.app, headers=BEARER)
        self.users = [service.create(USER, sample_user(number)) for number in range(2)]
        self.group = service.create(GROUP, sample_group(0))
        for user in self.users:
            assert self.client.simulate_post("/contacts", json=mapped_fields(USER, user)).status_code == 201
        assert self.client.simulate_post("/teams", json=mapped_fields(GROUP, self.group)).status_code == 201

    def found(self, deleted: frozenset[str] = frozenset()) -> list[Difference]:
        return list(compare(self.identity, self.commercial, deleted).differences)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with closing(identity.create_app()) as service:
        yield Pair(service)


def test_services_that_are_alike_agree_in_every_field(pair: Pair) -> None:
    comparison = compare(pair.identity, pair.commercial, ())
    assert comparison.differences == ()
    assert (comparison.entities, comparison.fields) == (3, 2 * 5 + 2)


@pytest.mark.parametrize("field", ["email", "first_name", "last_name", "phone"])
@pytest.mark.parametrize("value", ["planted", None])
def test_a_planted_difference_in_any_field_is_found(pair: Pair, field: str, value: str | None) -> None:
    before = mapped_fields(USER, pair.users[1])[field]
    assert pair.client.simulate_patch("/contacts/contact-2", json={field: value}).status_code == 200
    assert pair.found() == [Difference("contacts", pair.users[1]["id"], field, before, value)]


def test_a_team_of_another_name_is_found(pair: Pair) -> None:
    assert pair.client.simulate_patch("/teams/team-1", json={"name": "planted"}).status_code == 200
    assert pair.found() == [Difference("teams", pair.group["id"], "name", pair.group["name"], "planted")]


def test_a_contact_that_was_never_created_is_found(pair: Pair) -> None:
    created = pair.identity.create(USER, sample_user(7))
    assert pair.found() == [Difference("contacts", created["id"], "(whole record)", "there", "missing")]


def test_a_contact_whose_user_was_deleted_is_found(pair: Pair) -> None:
    gone = pair.users[0]["id"]
    pair.identity.delete(USER, gone)
    assert pair.found(frozenset({gone})) == [Difference("contacts", gone, "(whole record)", "deleted", "contact-1")]


@pytest.mark.parametrize("external_id", ["stranger", None])
def test_a_contact_that_nobody_asked_for_is_found(pair: Pair, external_id: str | None) -> None:
    stranger = {"email": "x@example.com"} | ({"external_id": external_id} if external_id else {})
    assert pair.client.simulate_post("/contacts", json=stranger).status_code == 201
    assert pair.found() == [Difference("contacts", external_id, "(whole record)", "no such record", "contact-3")]


def test_a_second_contact_of_the_same_user_is_found() -> None:
    fields: dict[str, Any] = {"external_id": "u", "email": "u@example.com"}
    twice = [{"id": "contact-1", **fields}, {"id": "contact-2", **fields}]
    assert list(differences("contacts", [fields], twice)) == [
        Difference("contacts", "u", "(whole record)", "no such record", "contact-2")
    ]


def test_a_user_without_phone_needs_a_contact_without_phone(pair: Pair) -> None:
    user = pair.users[0]
    pair.identity.replace(USER, user["id"], {**user, "mobiles": []})
    assert [(difference.field, difference.expected) for difference in pair.found()] == [("phone", None)]
    assert pair.client.simulate_patch("/contacts/contact-1", json={"phone": None}).status_code == 200
    assert pair.found() == []


def test_every_field_that_the_demo_maps_and_the_service_has_is_compared(pair: Pair) -> None:

    written = tomllib.loads(configuration(database_url="", token="", identity_url="", commercial_url=""))
    routes = written["routes"]
    assert set(routes["users-to-contacts"]["sync"]["map"]) == set(mapped_fields(USER, pair.users[0]))
    assert set(routes["groups-to-teams"]["sync"]["map"]) == set(mapped_fields(GROUP, pair.group))
    assert set(CONTACT.fields) == set(mapped_fields(USER, pair.users[0]))
    assert set(TEAM.fields) == set(mapped_fields(GROUP, pair.group))
