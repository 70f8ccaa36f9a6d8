"""The changes that are made to the identity service: the same ones, in the same order, for the same seed."""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

from relay.demo.compare import changed_fields, mapped_fields
from relay.demo.entities import GROUP, USER, EntityType
from relay.demo.identity import IdentityService
from relay.demo.people import sample_edit, sample_group, sample_user
from relay.demo.webhooks import Action

_WEIGHTS: Mapping[tuple[EntityType, Action], int] = {
    (USER, "update"): 68,
    (USER, "create"): 8,
    (USER, "delete"): 8,
    (GROUP, "update"): 8,
    (GROUP, "create"): 4,
    (GROUP, "delete"): 4,
}
_LOSES_PHONE = 0.15
_GETS_MIDDLE_NAME = 0.12
"""Which the other side has no field for."""
_LAST_NUMBERS = 1000
A_MOMENT_SECONDS = 1.1
"""So long after the last told change one has to come for a sweep to know it is not the same: times may be cut to the second."""


@dataclass(frozen=True, slots=True)
class Made:
    """A change that was made."""

    action: Action
    entity_type: EntityType
    entity_id: str
    name: str
    fields: Mapping[str, Any]
    """The counterpart's fields that are to change with it; none for a delete, or where it has none of what was changed."""
    is_told: bool = True
    """Whether a webhook tells of it."""


class Scenario:
    """Creates so many users and groups first; from then on every change is one that chance picks.

    There are never fewer than half nor more than half as many again of either.
    """

    def __init__(self, identity: IdentityService, rng: random.Random, *, users: int, groups: int) -> None:
        """Changes nothing yet. The identity service must be empty, and nobody else may change it."""
        self.deleted: set[str] = set()
        self.names: dict[str, str] = {}
        self._identity, self._rng = identity, rng
        self._wanted = {USER: users, GROUP: groups}
        self._created = {USER: 0, GROUP: 0}

    def step(self) -> Made:
        """Make the next change."""
        for entity_type, wanted in self._wanted.items():
            if self._created[entity_type] < wanted:
                return self._create(entity_type)
        entity_type, action = self._pick()
        if action == "create":
            return self._create(entity_type)
        entity = self._rng.choice(self._identity.all(entity_type))
        return self._delete(entity_type, entity) if action == "delete" else self._update(entity_type, entity)

    def change_untold(self, but: Collection[str]) -> list[Made]:
        """A user is edited, a group is, and a user is created, and no webhook tells of it.

        None of these ids is edited, unless there are no others.
        """
        with self._identity.silent():
            user, group = self._any(USER, but), self._any(GROUP, but)
            made = [self._rename(USER, user), self._rename(GROUP, group), self._create(USER)]
        return [replace(each, is_told=False) for each in made]

    def free_users(self, but: Collection[str]) -> list[dict[str, Any]]:
        """Those who are none of these."""
        return [user for user in self._identity.all(USER) if user["id"] not in but]

    def edit_quietly(self, but: Collection[str]) -> list[Made]:
        """Two edits of users who are free: one of what the other side has no field for, one that is seen late."""
        first = self._any(USER, but)
        second = self._any(USER, {*but, first["id"]})
        unseen = self._made(
            "update", USER, first, self._identity.replace(USER, first["id"], self._with_middle_name(first))
        )
        with self._identity.slow():
            late = self._rename(USER, second)
        return [unseen, late]

    def delete_untold(self, but: Collection[str]) -> Made:
        """A user is deleted, and no webhook tells of it; none of these ids, unless there are no others."""
        with self._identity.silent():
            return replace(self._delete(USER, self._any(USER, but)), is_told=False)

    def _any(self, entity_type: EntityType, but: Collection[str]) -> dict[str, Any]:
        entities = self._identity.all(entity_type)
        return self._rng.choice([entity for entity in entities if entity["id"] not in but] or entities)

    def _pick(self) -> tuple[EntityType, Action]:
        entity_type, action = self._rng.choices(list(_WEIGHTS), list(_WEIGHTS.values()))[0]
        number, wanted = len(self._identity.all(entity_type)), self._wanted[entity_type]
        too_many = action == "create" and number >= wanted + wanted // 2
        too_few = action == "delete" and number <= max(1, wanted - wanted // 2)
        return (entity_type, "update") if too_many or too_few else (entity_type, action)

    def _create(self, entity_type: EntityType) -> Made:
        number = self._created[entity_type]
        self._created[entity_type] += 1
        sample = sample_user(number) if entity_type is USER else sample_group(number)
        return self._made("create", entity_type, {}, self._identity.create(entity_type, sample))

    def _update(self, entity_type: EntityType, entity: dict[str, Any]) -> Made:
        after = self._edited_user(entity) if entity_type is USER else self._renamed_group(entity)
        return self._made("update", entity_type, entity, self._identity.replace(entity_type, entity["id"], after))

    def _rename(self, entity_type: EntityType, entity: dict[str, Any]) -> Made:
        """An update that the other side has a field for, in any case."""
        if entity_type is USER:
            after = {**entity, "name": {**entity["name"], "familyName": f"{entity['name']['familyName']}-Moe"}}
        else:
            after = self._renamed_group(entity)
        return self._made("update", entity_type, entity, self._identity.replace(entity_type, entity["id"], after))

    def _delete(self, entity_type: EntityType, entity: dict[str, Any]) -> Made:
        self._identity.delete(entity_type, entity["id"])
        self.deleted.add(entity["id"])
        return Made("delete", entity_type, entity["id"], self.names[entity["id"]], {})

    def _edited_user(self, user: dict[str, Any]) -> dict[str, Any]:
        if user["mobiles"] and self._rng.random() < _LOSES_PHONE:
            return {**user, "mobiles": []}
        if self._rng.random() < _GETS_MIDDLE_NAME:
            return self._with_middle_name(user)
        return sample_edit(user, self._rng)

    def _with_middle_name(self, user: dict[str, Any]) -> dict[str, Any]:
        middle = sample_user(self._rng.randrange(_LAST_NUMBERS))["name"]["givenName"]
        return {**user, "name": {**user["name"], "middleName": middle}}

    def _renamed_group(self, group: dict[str, Any]) -> dict[str, Any]:
        names = {sample_group(self._rng.randrange(_LAST_NUMBERS))["name"] for _ in range(2)} - {group["name"]}
        return {**group, "name": min(names, default=f"{group['name']} again")}

    def _made(
        self, action: Action, entity_type: EntityType, before: Mapping[str, Any], after: Mapping[str, Any]
    ) -> Made:
        old = mapped_fields(entity_type, before) if before else {}
        fields = changed_fields(old, mapped_fields(entity_type, after))
        fields.pop("external_id", None)
        name = self.names[after["id"]] = name_of(entity_type, after)
        return Made(action, entity_type, after["id"], name, fields)


def name_of(entity_type: EntityType, entity: Mapping[str, Any]) -> str:
    """What people call a user or a group."""
    if entity_type is GROUP:
        return str(entity["name"])
    return f"{entity['name'].get('givenName', '')} {entity['name'].get('familyName', '')}".strip()
