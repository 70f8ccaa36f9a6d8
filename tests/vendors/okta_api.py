"""Okta's API for users: https://developer.okta.com/docs/api/openapi/okta-management/management/tags/user.

Lists page by the `Link` header, whose `after` is opaque. A deleted user answers 404 with an `errorCode`.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import urlencode

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

TOKEN = "okta-token"
_SINCE = re.compile(r'lastUpdated ge "([^"]+)"')
_OPAQUE = 0x5EED

User = dict[str, Any]


class Okta(VendorService):
    """Users of an organisation, for TOKEN in the scheme SSWS."""

    def __init__(self) -> None:
        self.users: dict[str, User] = {}
        super().__init__()

    def user(self, number: str, at: str, *, status: str = "ACTIVE", **profile: Any) -> User:  # noqa: ANN401  # any JSON
        """Create a user, or change one, at a time such as `2026-11-02T09:00:01.000Z`."""
        old = self.users.get(number, {"created": at, "profile": {}})
        self.users[number] = {
            "id": number,
            "status": status,
            "created": old["created"],
            "lastUpdated": at,
            "profile": old["profile"] | profile,
            "_links": {"self": {"href": f"{self.url}/api/v1/users/{number}"}},
        }
        return self.users[number]

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"SSWS {TOKEN}":
            return _problem(401, "E0000011", "Invalid token provided")
        match asked.method, asked.path:
            case "GET", ("api", "v1", "users"):
                return self._list(asked.query)
            case "GET", ("api", "v1", "users", number) if number in self.users:
                return answer_json(200, self.users[number], **_LIMITS)
        return _problem(404, "E0000007", f"Not found: Resource not found: {asked.path[-1]} (User)")

    def _list(self, query: dict[str, str]) -> Act:
        since = _SINCE.search(query.get("search", ""))
        found = [user for user in self.users.values() if since is None or user["lastUpdated"] >= since[1]]
        found.sort(key=lambda user: (user["lastUpdated"], user["id"]))
        begin, size = (
            int(query.get("after", "0"), 16) ^ (_OPAQUE if "after" in query else 0),
            int(query.get("limit", "10")),
        )
        links = [f'<{self.url}/api/v1/users?{urlencode(query)}>; rel="self"']
        if begin + size < len(found):
            further = query | {"after": f"{(begin + size) ^ _OPAQUE:x}"}
            links.append(f'<{self.url}/api/v1/users?{urlencode(further)}>; rel="next"')
        return answer_json(200, found[begin : begin + size], link=", ".join(links), **_LIMITS)


_LIMITS = {"x_rate_limit_limit": "600", "x_rate_limit_remaining": "599", "x_rate_limit_reset": "1793610000"}


def _problem(status: int, code: str, summary: str) -> Act:
    body = {"errorCode": code, "errorSummary": summary, "errorLink": code, "errorId": "oae1", "errorCauses": []}
    return answer_json(status, body, **_LIMITS)
