"""Random changes to made-up users and groups."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from dataclasses import dataclass

from relay.demo.services import GROUP, USER, Document, IdentityService

_GIVEN = ("Aino", "Bilal", "Chiara", "Dmitri", "Eeva", "Farida", "Goran", "Hanna", "Ines", "Jussi", "Linh", "Mikael")
_FAMILY = ("Aalto", "Berg", "Costa", "Dubois", "Eriksson", "Fontana", "Korhonen", "Laine", "Mäkinen", "Nguyen")
_GROUPS = ("Customers", "Season tickets", "Library", "Drivers", "Staff", "Newsletter", "Students", "Partners")
_FIRST = (*(("create", USER),) * 6, *(("create", GROUP),) * 2)
_ROUND = (
    *(("update", USER),) * 5,
    *(("update", GROUP), ("create", USER), ("update", USER), ("update", GROUP), ("delete", USER), ("create", GROUP)),
)
"""The following changes, in a loop that keeps the number of users."""


@dataclass(frozen=True, slots=True)
class ChangeMade:
    """A change to a user or a group, with the fields that its counterpart must get."""

    action: str
    entity_type: str
    entity_id: str
    name: str
    fields: Mapping[str, str | None]
    is_reported: bool = True


class Scenario:
    """A sequence of changes that begins with new users and groups, and continues with random edits."""

    def __init__(self, identity: IdentityService, rng: random.Random) -> None:
        """Prepare the sequence without making a change."""
        self._identity, self._rng = identity, rng
        self._next = itertools.chain(_FIRST, itertools.cycle(_ROUND))
        self._created = {USER: 0, GROUP: 0}

    def step(self) -> ChangeMade:
        """Make the next change."""
        match next(self._next):
            case "create", entity_type:
                return self.create(entity_type)
            case "delete", _:
                return self.delete()
            case _, entity_type:
                return self.edit(entity_type)

    def create(self, entity_type: str) -> ChangeMade:
        """Create a user or a group."""
        sample = (sample_user if entity_type == USER else sample_group)(self._created[entity_type])
        self._created[entity_type] += 1
        stored = self._identity.create(entity_type, sample)
        return _make_change("create", entity_type, {}, stored)

    def edit(self, entity_type: str, *, report: bool = True) -> ChangeMade:
        """Edit a user or a group; an unreported edit changes a mapped field."""
        old = self._rng.choice(self._identity.all(entity_type))
        if entity_type == GROUP:
            new = {**old, "name": f"{old['name'].partition(' (')[0]} ({self._rng.randrange(1000)})"}
        else:
            new = sample_edit(old, self._rng, seen_there=not report)
        stored = self._identity.replace(entity_type, old["id"], new, report=report)
        return _make_change("update", entity_type, map_fields(entity_type, old), stored, report=report)

    def delete(self, *, report: bool = True) -> ChangeMade:
        """Delete a user."""
        user = self._rng.choice(self._identity.all(USER))
        self._identity.delete(USER, user["id"], report=report)
        return _make_change("delete", USER, map_fields(USER, user), user, report=report)


def _make_change(
    action: str, entity_type: str, before: Mapping[str, str | None], entity: Document, *, report: bool = True
) -> ChangeMade:
    name = entity["name"] if entity_type == GROUP else "{givenName} {familyName}".format_map(entity["name"])
    fields = {field: to for field, to in map_fields(entity_type, entity).items() if to != before.get(field)}
    return ChangeMade(action, entity_type, entity["id"], name, fields, report)


def map_fields(entity_type: str, entity: Document) -> dict[str, str | None]:
    """Return the fields that the counterpart of a user or a group must have by the relay's map."""
    if entity_type == GROUP:
        return {"name": entity["name"]}
    return {
        "email": entity["emails"][0]["address"] if entity["emails"] else None,
        "first_name": entity["name"].get("givenName"),
        "last_name": entity["name"].get("familyName"),
        "phone": entity["mobiles"][0]["number"] if entity["mobiles"] else None,
    }


def sample_user(number: int) -> Document:
    """Make the document of user `number`, with a username that is unique and stable for each number."""
    given, family = _GIVEN[number % len(_GIVEN)], _FAMILY[number // len(_GIVEN) % len(_FAMILY)]
    username = f"{given}.{family}.{number}".lower().replace("ä", "a")
    return {
        "username": username,
        "nsCode": "demo",
        "name": {"givenName": given, "familyName": family},
        "emails": [{"address": f"{username}@example.com", "verified": True}],
        "mobiles": [{"number": _mobile(number), "verified": False}],
        "memberOf": [],
    }


def sample_group(number: int) -> Document:
    """Make the document of group `number`."""
    return {"name": f"{_GROUPS[number % len(_GROUPS)]} ({number + 1})", "nsCode": "demo"}


def sample_edit(user: Document, rng: random.Random, *, seen_there: bool = False) -> Document:
    """Return a user's document with one change; with `seen_there`, to a mapped field."""
    name, number = user["name"], rng.randrange(1000)
    edits: tuple[Document, ...] = (
        {"emails": [{"address": f"{name['givenName'].lower()}.{number}@example.org"}]},
        {"name": {**name, "familyName": rng.choice([other for other in _FAMILY if other != name["familyName"]])}},
        {"mobiles": [{"number": _mobile(number), "verified": True}]},
        {"mobiles": []},
        {"name": {**name, "middleName": rng.choice(_GIVEN)}},
    )
    return {**user, **rng.choice(edits[:2] if seen_there else edits)}


def _mobile(number: int) -> str:
    # Ofcom reserves 07700 900000 to 900999 for drama: they have no subscribers.
    return f"+447700900{number % 1000:03d}"
