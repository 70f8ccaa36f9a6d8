"""Stripe's API for customers: https://docs.stripe.com/api/customers. PyPI `stripe` works against it.

Lists have `has_more` and go on by `starting_after`. A deleted customer is still there, as `{id, object, deleted: true}`.
"""

from __future__ import annotations

from typing import Any

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

KEY = "sk_test_key"

Customer = dict[str, Any]


class Stripe(VendorService):
    """Customers of one account, newest first."""

    def __init__(self) -> None:
        self._customers: dict[str, Customer] = {}
        super().__init__()

    def customer(self, number: str, **fields: Any) -> Customer:  # noqa: ANN401  # any JSON
        """Create a customer, or change one."""
        made = {"id": number, "object": "customer", "created": 1_680_893_993 + len(self._customers), "livemode": False}
        plain: Customer = {"email": None, "name": None, "phone": None, "description": None, "metadata": {}}
        self._customers[number] = self._customers.get(number, made | plain) | fields
        return self._customers[number]

    def delete(self, number: str) -> None:
        """Delete a customer: only its id remains."""
        self._customers[number] = {"id": number, "object": "customer", "deleted": True}

    def respond(self, asked: Asked) -> Act:
        """Authenticate the caller, and answer."""
        if asked.headers.get("authorization") != f"Bearer {KEY}":
            return _problem(401, "Invalid API Key provided: sk_test_***", "invalid_request_error")
        match asked.method, asked.path:
            case "GET", ("v1", "customers"):
                return self._list(asked.query)
            case "GET", ("v1", "customers", number) if number in self._customers:
                return answer_json(200, self._customers[number], request_id="req_1")
            case "GET", ("v1", "customers", number):
                return _problem(404, f"No such customer: '{number}'", "invalid_request_error")
        return _problem(404, "Unrecognized request URL", "invalid_request_error")

    def _list(self, query: dict[str, str]) -> Act:
        present = [each for each in reversed(self._customers.values()) if not each.get("deleted")]
        after = query.get("starting_after")
        begin = 1 + [each["id"] for each in present].index(after) if after else 0
        size = int(query.get("limit", "10"))
        page = present[begin : begin + size]
        has_more = begin + size < len(present)
        return answer_json(200, {"object": "list", "url": "/v1/customers", "has_more": has_more, "data": page})


def _problem(status: int, message: str, kind: str) -> Act:
    return answer_json(status, {"error": {"message": message, "type": kind}})
