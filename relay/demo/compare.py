"""Do both services agree? Every mapped field of every user and group, and no record that should not be there.

What a record must be like is written down here a second time, on purpose: a mistake in the relay's mapping would not be
found by asking the relay's mapping.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from relay.demo.commercial import CommercialService
from relay.demo.entities import GROUP, USER, EntityType
from relay.demo.identity import IdentityService
from relay.demo.records import CONTACT, TEAM, RecordType

Fields = dict[str, str | None]

COUNTERPART: Mapping[EntityType, RecordType] = {USER: CONTACT, GROUP: TEAM}


@dataclass(frozen=True, slots=True)
class Difference:
    """One thing in which the services differ."""

    record: str
    """The path of its type, such as `contacts`."""
    external_id: str | None
    field: str
    expected: str | None
    found: str | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """What was compared, and what differs."""

    entities: int
    fields: int
    differences: tuple[Difference, ...]


def mapped_fields(entity_type: EntityType, entity: Mapping[str, Any]) -> Fields:
    """What the counterpart of a user or a group must hold; None: nothing."""
    if entity_type is GROUP:
        return {"external_id": entity["id"], "name": entity["name"]}
    name = entity["name"]
    return {
        "external_id": entity["id"],
        "email": _first(entity["emails"], "address"),
        "first_name": name.get("givenName"),
        "last_name": name.get("familyName"),
        "phone": _first(entity["mobiles"], "number"),
    }


def changed_fields(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `after` that are not the same in `before`."""
    return {name: value for name, value in after.items() if before.get(name) != value}


def compare(identity: IdentityService, commercial: CommercialService, deleted: Collection[str]) -> Comparison:
    """Compare both services as they are now. `deleted` are ids of entities that are gone, to word a difference well."""
    expected = {
        entity_type: [mapped_fields(entity_type, entity) for entity in identity.all(entity_type)]
        for entity_type in COUNTERPART
    }
    return Comparison(
        entities=sum(map(len, expected.values())),
        fields=sum(len(fields) for records in expected.values() for fields in records),
        differences=tuple(
            difference
            for entity_type, record_type in COUNTERPART.items()
            for difference in differences(record_type.path, expected[entity_type], commercial.all(record_type), deleted)
        ),
    )


def differences(
    record: str, expected: Iterable[Fields], found: Iterable[Mapping[str, Any]], deleted: Collection[str] = ()
) -> Iterator[Difference]:
    """What differs between the records that must be there and those that are."""
    left = list(found)
    for fields in expected:
        external_id = fields["external_id"]
        same = [item for item in left if item.get("external_id") == external_id]
        if not same:
            yield Difference(record, external_id, "(whole record)", "there", "missing")
            continue
        left.remove(same[0])
        for name, value in fields.items():
            if same[0].get(name) != value:
                yield Difference(record, external_id, name, value, same[0].get(name))
    for item in left:
        gone = item.get("external_id") in deleted
        yield Difference(
            record, item.get("external_id"), "(whole record)", "deleted" if gone else "no such record", item.get("id")
        )


def _first(values: list[dict[str, Any]], key: str) -> str | None:
    return values[0][key] if values else None
