"""Stripe's API for customers and events: https://docs.stripe.com/api/customers. PyPI `stripe` works against it.

Lists are newest first, have `has_more`, and page by `starting_after`.
"""

from __future__ import annotations

from typing import Any

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

KEY = "sk_test_key"

Customer = dict[str, Any]


class Stripe(VendorService):
    """Customers of one account, and an event for each change."""

    def __init__(self) -> None:
        self._customers: dict[str, Customer] = {}
        self._events: list[dict[str, Any]] = []
        super().__init__()

    def customer(self, number: str, at: int = 1_686_089_970, **fields: Any) -> Customer:  # noqa: ANN401  # any JSON
        """Create a customer, or change one, at a time in seconds since 1970."""
        plain: Customer = {"email": None, "name": None, "phone": None, "description": None, "metadata": {}}
        made = {"id": number, "object": "customer", "created": at, "livemode": False, **plain}
        word = "updated" if number in self._customers else "created"
        changed = self._customers[number] = self._customers.get(number, made) | fields
        event = {"id": f"evt_{len(self._events) + 1}", "object": "event", "type": f"customer.{word}"}
        self._events.append({**event, "created": at, "livemode": False, "data": {"object": dict(changed)}})
        return changed

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller and respond."""
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return _problem(401, "Invalid API Key provided: sk_test_***", "invalid_request_error")
        match asked.method, asked.path:
            case "GET", ("v1", "customers"):
                return _list("customers", list(self._customers.values()), asked.query)
            case "GET", ("v1", "events"):
                since = int(asked.query.get("created[gte]", "0"))
                return _list("events", [each for each in self._events if each["created"] >= since], asked.query)
            case "GET", ("v1", "customers", number) if number in self._customers:
                return answer_json(200, self._customers[number], request_id="req_1")
        return _problem(404, "Unrecognized request URL", "invalid_request_error")


def _list(name: str, found: list[dict[str, Any]], query: dict[str, str]) -> Act:
    newest = found[::-1]
    after = query.get("starting_after")
    begin = 1 + [each["id"] for each in newest].index(after) if after else 0
    size = int(query.get("limit", "10"))
    page, has_more = newest[begin : begin + size], begin + size < len(newest)
    return answer_json(200, {"object": "list", "url": f"/v1/{name}", "has_more": has_more, "data": page})


def _problem(status: int, message: str, kind: str) -> Act:
    return answer_json(status, {"error": {"message": message, "type": kind}})
