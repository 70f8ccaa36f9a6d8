"""Trivore ID's Management API for users, as PyPI `trivoreid` 2.0.10 reads it, with given ids.

A listing is SCIM's, with `resources` in lower case and a `startIndex` from 0.
"""

from __future__ import annotations

import base64
import re
from typing import Any

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

CLIENT, SECRET = "relay", "trivore-secret"
_CREDENTIALS = base64.b64encode(f"{CLIENT}:{SECRET}".encode()).decode()
_SINCE = re.compile(r'meta\.lastModified ge "([^"]+)"')

User = dict[str, Any]


class Trivore(VendorService):
    """Users for the API client of CLIENT and SECRET."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        super().__init__()

    def user(self, number: str, at: str, given: str, family: str, email: str) -> User:
        """Create a user, or replace one."""
        self.users[number] = {
            "id": number,
            "nsCode": "example",
            "username": email.partition("@")[0],
            "name": {"givenName": given, "familyName": family},
            "emails": [{"address": email, "verified": True}],
            "mobiles": [],
            "memberOf": [],
            "meta": {"created": at, "lastModified": at, "location": f"/api/rest/v1/user/{number}"},
        }
        return self.users[number]

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"Basic {_CREDENTIALS}":
            return answer_json(401, {"errorMessage": "Authentication failed.", "statusCode": 401})
        match asked.method, asked.path:
            case "GET", ("api", "rest", "v1", "user"):
                return self._list(asked.query)
            case "GET", ("api", "rest", "v1", "user", number) if number in self.users:
                return answer_json(200, self.users[number])
        return answer_json(404, {"errorMessage": "There is no such user.", "statusCode": 404})

    def _list(self, query: dict[str, str]) -> Act:
        since = _SINCE.search(query.get("filter", ""))
        found = [user for user in self.users.values() if since is None or user["meta"]["lastModified"] >= since[1]]
        found.sort(key=lambda user: (user["meta"]["lastModified"], user["id"]))
        begin, size = int(query.get("startIndex", "0")), int(query.get("count", "100"))
        page = found[begin : begin + size]
        listed = {"totalResults": len(found), "startIndex": begin, "itemsPerPage": len(page), "resources": page}
        return answer_json(200, listed)
