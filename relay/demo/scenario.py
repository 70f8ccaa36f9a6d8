"""The changes of made-up people and groups: the same ones, in the same order, for the same seed."""

from __future__ import annotations

import itertools
import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from relay.demo.compare import changed_fields, mapped_fields
from relay.demo.identity import GROUP, USER, Action, Document, EntityType, IdentityService

_GIVEN = ("Aino", "Bilal", "Chiara", "Dmitri", "Eeva", "Farida", "Goran", "Hanna", "Ines", "Jussi", "Linh", "Mikael")
_FAMILY = ("Aalto", "Berg", "Costa", "Dubois", "Eriksson", "Fontana", "Korhonen", "Laine", "Mäkinen", "Nguyen")
_GROUPS = ("Customers", "Season tickets", "Library", "Drivers", "Staff", "Newsletter", "Students", "Partners")
_DOMAINS = ("example.com", "example.org", "example.net")
_KINDS: tuple[tuple[EntityType, Action], ...] = tuple(itertools.product((USER, GROUP), ("update", "create", "delete")))
_WEIGHTS = (68, 8, 8, 8, 4, 4)
_LOSES_PHONE = 0.15
_GETS_MIDDLE_NAME = 0.12
"""The other side has no field for it."""
_LAST_NUMBERS = 1000
A_MOMENT_SECONDS = 1.1
"""Least time between a reported and an unreported change: a sweep takes them for one where times are cut to the second."""


@dataclass(frozen=True, slots=True)
class ChangeMade:
    """A change of a user or a group."""

    action: Action
    entity_type: EntityType
    entity_id: str
    name: str
    fields: Mapping[str, str | None]
    """The counterpart's fields that are to change with it; none for a delete, or where it has none of what was changed."""
    is_reported: bool = True
    """False when no webhook reports it."""


class Scenario:
    """Creates so many users and groups first; from then on every change is random.

    There are never fewer than half nor more than half as many again of either.
    """

    def __init__(self, identity: IdentityService, rng: random.Random, *, users: int, groups: int) -> None:
        """Change nothing yet. The identity service must be empty, and nobody else may change it."""
        self.deleted: set[str] = set()
        self._identity, self._rng = identity, rng
        self._wanted = {USER: users, GROUP: groups}
        self._created = {USER: 0, GROUP: 0}

    def step(self) -> ChangeMade:
        """Make the next change."""
        for entity_type, wanted in self._wanted.items():
            if self._created[entity_type] < wanted:
                return self._create(entity_type)
        entity_type, action = self._pick()
        if action == "create":
            return self._create(entity_type)
        entity = self._rng.choice(self._identity.all(entity_type))
        if action == "delete":
            return self._delete(entity_type, entity)
        return self._replace(entity_type, entity, self._edited(entity_type, entity))

    def change_unreported(self, busy: Collection[str]) -> list[ChangeMade]:
        """Edit a user, edit a group and create a user, without webhooks; avoid `busy` ids where there are others."""
        user, group = self._any(USER, busy), self._any(GROUP, busy)
        return [
            self._replace(USER, user, _with_double_name(user), report=False),
            self._replace(GROUP, group, self._edited(GROUP, group), report=False),
            self._create(USER, report=False),
        ]

    def delete_unreported(self, busy: Collection[str]) -> ChangeMade:
        """Delete a user without a webhook; avoid `busy` ids where there are others."""
        return self._delete(USER, self._any(USER, busy), report=False)

    def edit_quietly(self, busy: Collection[str]) -> list[ChangeMade]:
        """Edit two users who are not busy: something that the other side has no field for, and something read late."""
        first = self._any(USER, busy)
        second = self._any(USER, {*busy, first["id"]})
        return [
            self._replace(USER, first, self._with_middle_name(first)),
            self._replace(USER, second, _with_double_name(second), late=True),
        ]

    def free_users(self, busy: Collection[str]) -> list[Document]:
        """List the users who are not busy."""
        return [user for user in self._identity.all(USER) if user["id"] not in busy]

    def _any(self, entity_type: EntityType, busy: Collection[str]) -> Document:
        entities = self._identity.all(entity_type)
        return self._rng.choice([entity for entity in entities if entity["id"] not in busy] or entities)

    def _pick(self) -> tuple[EntityType, Action]:
        entity_type, action = self._rng.choices(_KINDS, _WEIGHTS)[0]
        number, wanted = len(self._identity.all(entity_type)), self._wanted[entity_type]
        too_many = action == "create" and number >= wanted + wanted // 2
        too_few = action == "delete" and number <= max(1, wanted - wanted // 2)
        return (entity_type, "update") if too_many or too_few else (entity_type, action)

    def _create(self, entity_type: EntityType, *, report: bool = True) -> ChangeMade:
        number = self._created[entity_type]
        self._created[entity_type] += 1
        sample = sample_user(number) if entity_type is USER else sample_group(number)
        stored = self._identity.create(entity_type, sample, report=report)
        return self._made("create", entity_type, stored, mapped_fields(entity_type, stored), report=report)

    def _replace(
        self, entity_type: EntityType, old: Document, new: Document, *, report: bool = True, late: bool = False
    ) -> ChangeMade:
        stored = self._identity.replace(entity_type, old["id"], new, report=report, late=late)
        fields = changed_fields(mapped_fields(entity_type, old), mapped_fields(entity_type, stored))
        return self._made("update", entity_type, stored, fields, report=report)

    def _delete(self, entity_type: EntityType, entity: Document, *, report: bool = True) -> ChangeMade:
        self._identity.delete(entity_type, entity["id"], report=report)
        self.deleted.add(entity["id"])
        return self._made("delete", entity_type, entity, {}, report=report)

    def _made(
        self, action: Action, entity_type: EntityType, entity: Document, fields: dict[str, str | None], *, report: bool
    ) -> ChangeMade:
        fields.pop("external_id", None)
        return ChangeMade(action, entity_type, entity["id"], name_of(entity_type, entity), fields, report)

    def _edited(self, entity_type: EntityType, entity: Document) -> Document:
        if entity_type is GROUP:
            names = {sample_group(self._rng.randrange(_LAST_NUMBERS))["name"] for _ in range(2)} - {entity["name"]}
            return {**entity, "name": min(names, default=f"{entity['name']} again")}
        if entity["mobiles"] and self._rng.random() < _LOSES_PHONE:
            return {**entity, "mobiles": []}
        if self._rng.random() < _GETS_MIDDLE_NAME:
            return self._with_middle_name(entity)
        return sample_edit(entity, self._rng)

    def _with_middle_name(self, user: Document) -> Document:
        middle = sample_user(self._rng.randrange(_LAST_NUMBERS))["name"]["givenName"]
        return {**user, "name": {**user["name"], "middleName": middle}}


def _with_double_name(user: Document) -> Document:
    return {**user, "name": {**user["name"], "familyName": f"{user['name']['familyName']}-Moe"}}


def name_of(entity_type: EntityType, entity: Document) -> str:
    """Return what people call a user or a group."""
    if entity_type is GROUP:
        return str(entity["name"])
    return f"{entity['name'].get('givenName', '')} {entity['name'].get('familyName', '')}".strip()


def sample_user(number: int) -> dict[str, Any]:
    """Make the document of made-up person `number`; each number is another username, and the same one every time."""
    given = _GIVEN[number % len(_GIVEN)]
    family = _FAMILY[number // len(_GIVEN) % len(_FAMILY)]
    return {
        "username": _plain(f"{given}.{family}.{number}"),
        "nsCode": "demo",
        "name": {"givenName": given, "familyName": family},
        "emails": [{"address": _plain(f"{given}.{family}.{number}@{_DOMAINS[0]}"), "verified": True}],
        "mobiles": [{"number": _mobile(number), "verified": False}],
        "memberOf": [],
    }


def sample_group(number: int) -> dict[str, Any]:
    """Make the document of made-up group `number`; each number is another name."""
    name = _GROUPS[number % len(_GROUPS)]
    return {"name": name if number < len(_GROUPS) else f"{name} {number // len(_GROUPS) + 1}", "nsCode": "demo"}


def sample_edit(user: dict[str, Any], rng: random.Random) -> dict[str, Any]:
    """Change one thing about a person: e-mail, mobile number or family name. Returns the user's new document."""
    name = user["name"]
    change = rng.randrange(3)
    if change == 0:
        number, domain = rng.randrange(10_000), rng.choice(_DOMAINS)
        address = _plain(f"{name['givenName']}.{name['familyName']}.{number}@{domain}")
        return {**user, "emails": [{"address": address, "verified": True}]}
    if change == 1:
        taken = {mobile["number"] for mobile in user["mobiles"]}
        free = [number for number in map(_mobile, range(1000)) if number not in taken]
        return {**user, "mobiles": [{"number": rng.choice(free), "verified": True}]}
    family = rng.choice([family for family in _FAMILY if family != name["familyName"]])
    return {**user, "name": {**name, "familyName": family}}


def _plain(name: str) -> str:
    return name.lower().replace("ä", "a")


def _mobile(number: int) -> str:
    # Ofcom keeps 07700 900000 to 900999 free of subscribers, for use in drama: nobody's number.
    return f"+447700900{number % 1000:03d}"
