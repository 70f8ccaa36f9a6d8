"""The demo's verdict: compares every mapped field of every user and group, and finds records that should not be there.

The rules for a record are written down here a second time, on purpose: a mistake in the relay's mapping would not be
found by asking the relay's mapping.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relay.demo.commercial import CONTACT, TEAM, CommercialService
from relay.demo.identity import GROUP, USER, EntityType, IdentityService

Fields = dict[str, str | None]

COUNTERPART = {USER: CONTACT, GROUP: TEAM}


@dataclass(frozen=True, slots=True)
class Mismatch:
    """One thing in which the services differ."""

    record: str
    """The path of its type, such as `contacts`."""
    external_id: str | None
    field: str
    expected: str | None
    found: str | None


def mapped_fields(entity_type: EntityType, entity: Mapping[str, Any]) -> Fields:
    """Return what the counterpart of a user or a group must hold; None: nothing."""
    if entity_type is GROUP:
        return {"external_id": entity["id"], "name": entity["name"]}
    name = entity["name"]
    return {
        "external_id": entity["id"],
        "email": entity["emails"][0]["address"] if entity["emails"] else None,
        "first_name": name.get("givenName"),
        "last_name": name.get("familyName"),
        "phone": entity["mobiles"][0]["number"] if entity["mobiles"] else None,
    }


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields of `after` that are not the same in `before`."""
    return {name: value for name, value in after.items() if before.get(name) != value}


def compare(
    identity: IdentityService, commercial: CommercialService, deleted: Collection[str] = ()
) -> tuple[list[Fields], list[Mismatch]]:
    """Compare both services as they are now; return the records that must be there, and what differs.

    `deleted` are ids of entities that are gone, to word a difference well.
    """
    compared: list[Fields] = []
    found: list[Mismatch] = []
    for entity_type, record_type in COUNTERPART.items():
        expected = [mapped_fields(entity_type, entity) for entity in identity.all(entity_type)]
        compared += expected
        found += differences(record_type.path, expected, commercial.all(record_type), deleted)
    return compared, found


def differences(
    record: str, expected: Iterable[Fields], found: Iterable[Mapping[str, Any]], deleted: Collection[str] = ()
) -> Iterator[Mismatch]:
    """Compare the records that must be there with those that are."""
    left = list(found)
    for fields in expected:
        external_id = fields["external_id"]
        counterpart = next((item for item in left if item.get("external_id") == external_id), None)
        if counterpart is None:
            yield Mismatch(record, external_id, "(whole record)", "there", "missing")
            continue
        left.remove(counterpart)
        for name, value in fields.items():
            if counterpart.get(name) != value:
                yield Mismatch(record, external_id, name, value, counterpart.get(name))
    for item in left:
        external_id = item.get("external_id")
        why = "deleted" if external_id in deleted else "no such record"
        yield Mismatch(record, external_id, "(whole record)", why, item.get("id"))
