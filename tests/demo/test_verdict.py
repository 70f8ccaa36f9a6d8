"""The demo's changes are reproducible and of every kind, and its verdict finds whatever differs between the services."""

from __future__ import annotations

import random
import tomllib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from falcon import testing

from relay.demo import run
from relay.demo.commercial import CONTACT, TEAM, CommercialService
from relay.demo.compare import Mismatch, compare, differences, mapped_fields
from relay.demo.identity import GROUP, USER, IdentityService
from relay.demo.scenario import ChangeMade, Scenario, sample_edit, sample_group, sample_user
from relay.demo.webhooks import WebhookSender
from relay.demo.workspace import configuration

WHOLE = "(whole record)"


@contextmanager
def identity(url: str | None = None) -> Iterator[IdentityService]:
    service = IdentityService(WebhookSender(url))
    try:
        yield service
    finally:
        service.webhooks.close()


# --- the changes


def changes_of(seed: int, number: int = run.CHANGES) -> list[ChangeMade]:
    with identity() as service:
        scenario = Scenario(service, random.Random(seed), users=run.USERS, groups=run.GROUPS)
        return [scenario.step() for _ in range(number)]


def without_ids(changes: list[ChangeMade]) -> list[tuple[str, str, str, dict[str, Any]]]:
    return [(change.action, change.entity_type.name, change.name, dict(change.fields)) for change in changes]


def test_the_same_seed_makes_the_same_changes_and_another_seed_others() -> None:
    assert without_ids(changes_of(7)) == without_ids(changes_of(7)) != without_ids(changes_of(8))


@pytest.mark.parametrize("seed", range(10))
def test_it_begins_with_so_many_users_and_groups_then_makes_changes_of_every_kind(seed: int) -> None:
    """Most edits change a field that the other side has, and some do not."""
    changes = changes_of(seed)
    assert len(changes) >= 200
    begin, rest = changes[: run.USERS + run.GROUPS], changes[run.USERS + run.GROUPS :]
    assert Counter((change.action, change.entity_type.name) for change in begin) == {
        ("create", "USER"): run.USERS,
        ("create", "GROUP"): run.GROUPS,
    }
    kinds = {(change.action, change.entity_type) for change in rest}
    assert {("create", USER), ("update", USER), ("delete", USER), ("update", GROUP)} <= kinds
    kept = [change for change in changes if change.action != "delete"]
    seen = [change for change in kept if change.fields]
    assert len(kept) > len(seen) > 0.75 * len(kept)
    assert all(change.action == "update" for change in kept if not change.fields)
    assert any(change.fields.get("phone", "") is None for change in changes)


@pytest.mark.parametrize("seed", range(5))
def test_some_changes_are_reported_by_no_webhook_and_the_other_side_has_a_field_for_each(seed: int) -> None:
    with identity("http://127.0.0.1:9") as service:
        scenario = Scenario(service, random.Random(seed), users=3, groups=1)
        for _ in range(4):
            scenario.step()
        busy = {user["id"] for user in service.all(USER)[1:]}
        free = service.all(USER)[0]["id"]
        unreported = scenario.change_unreported(busy)
        deleted = scenario.delete_unreported(busy | {unreported[2].entity_id})
        assert service.webhooks.pending() == 4
        unmapped, late = scenario.edit_quietly(())
        assert service.webhooks.pending() == 6
        assert service.read(USER, late.entity_id) != service.get(USER, late.entity_id)
    assert (unmapped.fields, list(late.fields)) == ({}, ["last_name"])
    assert unmapped.entity_id != late.entity_id
    assert [(change.action, change.entity_type) for change in (*unreported, deleted)] == [
        ("update", USER),
        ("update", GROUP),
        ("create", USER),
        ("delete", USER),
    ]
    assert all(change.fields for change in unreported)
    assert not any(change.is_reported for change in (*unreported, deleted))
    assert unreported[0].entity_id == deleted.entity_id == free, "one of which nothing is open"
    assert scenario.deleted == {deleted.entity_id}


@pytest.mark.parametrize("seed", range(10))
def test_there_are_always_users_and_groups_left_to_change(seed: int) -> None:
    with identity() as service:
        scenario = Scenario(service, random.Random(seed), users=4, groups=1)
        changes = []
        for _ in range(300):
            changes.append(scenario.step())
            assert len(service.all(USER)) <= 6
            assert len(service.all(GROUP)) <= 1
        assert (len(service.all(USER)) >= 2, len(service.all(GROUP))) == (True, 1)
    assert scenario.deleted == {change.entity_id for change in changes if change.action == "delete"}


def test_every_sample_user_is_another_and_every_edit_changes_something() -> None:
    users = [sample_user(number) for number in range(2000)]
    assert len({user["username"] for user in users}) == len({user["emails"][0]["address"] for user in users}) == 2000
    rng = random.Random(3)
    assert all(sample_edit(user, rng) != user for user in users)
    assert len({sample_group(number)["name"] for number in range(40)}) == 40


# --- the verdict


class Pair:
    """Both services, with two users and a group that the commercial service knows too."""

    def __init__(self, service: IdentityService) -> None:
        self.identity = service
        self.commercial = CommercialService()
        client = testing.TestClient(self.commercial.app, headers={"Authorization": "Bearer demo"})
        self.post, self.patch = client.simulate_post, client.simulate_patch
        self.users = [service.create(USER, sample_user(number)) for number in range(2)]
        self.group = service.create(GROUP, sample_group(0))
        for user in self.users:
            assert self.post("/contacts", json=mapped_fields(USER, user)).status_code == 201
        assert self.post("/teams", json=mapped_fields(GROUP, self.group)).status_code == 201

    def found(self, *deleted: str) -> list[Mismatch]:
        return compare(self.identity, self.commercial, deleted)[1]


@pytest.fixture
def pair() -> Iterator[Pair]:
    with identity() as service:
        yield Pair(service)


def test_services_that_are_alike_agree_in_every_field(pair: Pair) -> None:
    compared, found = compare(pair.identity, pair.commercial)
    assert found == []
    assert [len(fields) for fields in compared] == [5, 5, 2]


@pytest.mark.parametrize("field", ["email", "first_name", "last_name", "phone"])
@pytest.mark.parametrize("value", ["planted", None])
def test_a_planted_difference_in_any_field_is_found(pair: Pair, field: str, value: str | None) -> None:
    before = mapped_fields(USER, pair.users[1])[field]
    assert pair.patch("/contacts/contact-2", json={field: value}).status_code == 200
    assert pair.patch("/teams/team-1", json={"name": value}).status_code == 200
    assert pair.found() == [
        Mismatch("contacts", pair.users[1]["id"], field, before, value),
        Mismatch("teams", pair.group["id"], "name", pair.group["name"], value),
    ]


def test_a_contact_that_is_missing_or_left_over_is_found(pair: Pair) -> None:
    created, gone = pair.identity.create(USER, sample_user(7))["id"], pair.users[0]["id"]
    pair.identity.delete(USER, gone)
    assert pair.found(gone) == [
        Mismatch("contacts", created, WHOLE, "there", "missing"),
        Mismatch("contacts", gone, WHOLE, "deleted", "contact-1"),
    ]


@pytest.mark.parametrize("external_id", ["stranger", None])
def test_a_contact_that_nobody_asked_for_is_found(pair: Pair, external_id: str | None) -> None:
    assert pair.post("/contacts", json={"email": "x@example.com", "external_id": external_id}).status_code == 201
    assert pair.found() == [Mismatch("contacts", external_id, WHOLE, "no such record", "contact-3")]


def test_a_second_contact_of_the_same_user_is_found() -> None:
    fields: dict[str, Any] = {"external_id": "u", "email": "u@example.com"}
    twice = [{"id": "contact-1", **fields}, {"id": "contact-2", **fields}]
    assert list(differences("contacts", [fields], twice)) == [
        Mismatch("contacts", "u", WHOLE, "no such record", "contact-2")
    ]


def test_a_user_without_phone_needs_a_contact_without_phone(pair: Pair) -> None:
    user = pair.users[0]
    pair.identity.replace(USER, user["id"], {**user, "mobiles": []})
    assert [(difference.field, difference.expected) for difference in pair.found()] == [("phone", None)]
    assert pair.patch("/contacts/contact-1", json={"phone": None}).status_code == 200
    assert pair.found() == []


def test_every_field_that_the_demo_maps_and_the_service_has_is_compared(pair: Pair) -> None:
    routes = tomllib.loads(configuration(database_url="", users="", token="", identity_url="", commercial_url=""))[
        "routes"
    ]
    for route, record_type, entity_type, entity in (
        ("users-to-contacts", CONTACT, USER, pair.users[0]),
        ("groups-to-teams", TEAM, GROUP, pair.group),
    ):
        fields = set(mapped_fields(entity_type, entity))
        assert set(routes[route]["sync"]["map"]) == set(record_type.fields) == fields
