"""HubSpot's CRM API for contacts: https://developers.hubspot.com/docs/api-reference/crm-contacts-v3 and its OpenAPI description.

A contact is `{id, properties, createdAt, updatedAt, archived}`, with text properties. `idProperty` names a unique property
to use as the id. Listings and searches page by `paging.next.after`. A duplicate email answers 409, an unknown property 400.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

TOKEN = "hubspot-token"
_STANDARD = {"email", "firstname", "lastname", "phone", "company", "createdate", "lastmodifieddate", "hs_object_id"}
_SHOWN = ("createdate", "email", "firstname", "hs_object_id", "lastmodifieddate", "lastname")
"""Default properties of a response."""
_LIMIT = {"x_hubspot_ratelimit_max": "190", "x_hubspot_ratelimit_remaining": "189"}
_CORRELATION = "aeb5f871-7f07-4993-9211-075dc63e7cbf"

Contact = dict[str, Any]


class HubSpot(VendorService):
    """Contacts for the bearer of TOKEN. `unique` names custom properties with unique values."""

    def __init__(self, *unique: str) -> None:
        self.contacts: dict[str, Contact] = {}
        self._unique = ("email", *unique)
        super().__init__()

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"Bearer {TOKEN}":
            return _problem(401, "INVALID_AUTHENTICATION", "Authentication credentials not found.")
        if asked.path[:4] != ("crm", "v3", "objects", "contacts"):
            return _problem(404, "OBJECT_NOT_FOUND", "resource not found")
        return self._answer(asked)

    def _answer(self, asked: Asked) -> Act:
        match asked.method, asked.path[4:]:
            case "GET", ():
                return self._page(self.contacts.values(), asked.query, asked.query.get("properties", "").split(","))
            case "POST", ():
                return self._create(asked.body["properties"])
            case "POST", ("search",):
                return self._search(asked.body)
            case "GET", (name,):
                by = asked.query.get("idProperty", "hs_object_id")
                for contact in self.contacts.values():
                    if contact["properties"].get(by) == name:
                        return answer_json(200, _shown(contact, asked.query.get("properties", "").split(",")), **_LIMIT)
        return _problem(404, "OBJECT_NOT_FOUND", "resource not found")

    def _create(self, properties: dict[str, str]) -> Act:
        unknown = sorted(properties.keys() - _STANDARD - set(self._unique))
        if unknown:
            why = f'Property values were not valid: Property "{unknown[0]}" does not exist'
            return _problem(400, "VALIDATION_ERROR", why)
        for contact in self.contacts.values():
            if any(properties.get(name, "") == contact["properties"].get(name) for name in self._unique):
                return _problem(409, "CONFLICT", f"Contact already exists. Existing ID: {contact['id']}")
        now, number = self.clock.tick().strftime("%Y-%m-%dT%H:%M:%S.000Z"), str(501 + len(self.contacts))
        own = {"createdate": now, "lastmodifieddate": now, "hs_object_id": number}
        made = {"id": number, "properties": properties | own, "createdAt": now, "updatedAt": now, "archived": False}
        self.contacts[number] = made
        return answer_json(201, made, **_LIMIT)

    def _search(self, body: dict[str, Any]) -> Act:
        (only,) = [one for group in body["filterGroups"] for one in group["filters"]]
        assert only["operator"] == "GTE", "this service searches by GTE alone"
        since = datetime.fromtimestamp(int(only["value"]) / 1000, UTC)
        found = [
            contact
            for contact in self.contacts.values()
            if datetime.fromisoformat(contact["properties"][only["propertyName"]]) >= since
        ]
        query = {name: str(body[name]) for name in ("limit", "after") if body.get(name)}
        return self._page(found, query, body.get("properties") or [])

    def _page(self, found: Iterable[Contact], query: dict[str, str], wanted: list[str]) -> Act:
        present = list(found)
        begin, size = int(query.get("after", "0")), int(query.get("limit", "10"))
        page: dict[str, Any] = {"results": [_shown(each, wanted) for each in present[begin : begin + size]]}
        if begin + size < len(present):
            after = str(begin + size)
            page["paging"] = {"next": {"after": after, "link": f"{self.url}/crm/v3/objects/contacts?after={after}"}}
        return answer_json(200, page, **_LIMIT)


def _shown(contact: Contact, wanted: list[str]) -> Contact:
    names = {*_SHOWN, *filter(None, wanted)}
    return contact | {"properties": {name: contact["properties"].get(name) for name in sorted(names)}}


def _problem(status: int, category: str, message: str) -> Act:
    return answer_json(
        status, {"status": "error", "message": message, "correlationId": _CORRELATION, "category": category}
    )
