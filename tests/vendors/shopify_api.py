"""Shopify's Admin API for orders: https://shopify.dev/docs/api/admin-rest/latest/resources/order, and by GraphQL beside it.

Pages have a `Link` header whose `page_info` excludes other filters, responses have `X-Shopify-Shop-Api-Call-Limit`, and
GraphQL answers 200 with `errors` and a cost.
"""

from __future__ import annotations

import base64
import json
from datetime import datetime
from typing import Any

from tests.helpers.scripted import Act
from tests.vendors.service import Asked, VendorService, answer_json

TOKEN = "shpat_token"
VERSION = "2026-10"
_BUCKET = 40

Order = dict[str, Any]


class Shopify(VendorService):
    """Orders of one shop, for the app with TOKEN."""

    def __init__(self) -> None:
        self._orders: dict[int, Order] = {}
        super().__init__()

    def order(self, email: str, total: str, **more: Any) -> Order:  # noqa: ANN401  # any JSON
        """Place an order; `more` adds members."""
        number, now = len(self._orders) + 1, self.clock.tick().strftime("%Y-%m-%dT%H:%M:%S+00:00")
        order_id = more.get("id", 820_982_911_946_154_500 + number)
        made: Order = {
            "id": order_id,
            "admin_graphql_api_id": f"gid://shopify/Order/{order_id}",
            "name": f"#{1000 + number}",
            "order_number": 1000 + number,
            "email": email,
            "created_at": now,
            "updated_at": now,
            "cancelled_at": None,
            "currency": "EUR",
            "total_price": total,
            "financial_status": "paid",
            "fulfillment_status": None,
            "note": None,
            "line_items": [
                {"id": 466_157_049 + number, "sku": "TEA-100", "quantity": 2, "price": total, "title": "Green tea"}
            ],
            **more,
        }
        self._orders[made["id"]] = made
        return made

    def respond(self, asked: Asked) -> Act:
        """Authenticate the app and respond."""
        if asked.headers.get("x-shopify-access-token") != TOKEN:
            return answer_json(401, {"errors": "[API] Invalid API key or access token"})
        match asked.method, asked.path:
            case "GET", ("admin", "api", _, "orders.json"):
                return self._list(asked.query)
            case "POST", ("admin", "api", _, "graphql.json"):
                return self._graphql(asked.body)
            case "GET", ("admin", "api", _, "orders", name):
                for number, order in self._orders.items():
                    if name == f"{number}.json":
                        return _answer_with_limit(200, {"order": order})
        return _answer_with_limit(404, {"errors": "Not Found"})

    def _list(self, query: dict[str, str]) -> Act:
        asked = query
        if "page_info" in query:
            if query.keys() - {"page_info", "limit", "fields"}:
                return _answer_with_limit(400, {"errors": {"page_info": "Invalid value."}})
            asked = json.loads(base64.urlsafe_b64decode(query["page_info"])) | {"limit": query.get("limit", "50")}
        since = datetime.fromisoformat(asked.get("updated_at_min", "1970-01-01T00:00:00Z"))
        found = [each for each in self._orders.values() if datetime.fromisoformat(each["updated_at"]) >= since]
        found.sort(key=lambda order: (order["updated_at"], order["id"]))
        begin, size = int(asked.get("begin", "0")), int(asked.get("limit", "50"))
        links = ", ".join(
            f'<{self.url}/admin/api/{VERSION}/orders.json?limit={size}&page_info={_page_info(asked, at)}>; rel="{name}"'
            for name, at in (("previous", begin - size), ("next", begin + size))
            if 0 <= at < len(found)
        )
        return _answer_with_limit(200, {"orders": found[begin : begin + size]}, **({"link": links} if links else {}))

    def _graphql(self, body: dict[str, Any]) -> Act:
        """Answer a query of one order by `id`, with all fields of `_as_graphql`."""
        cost: dict[str, Any] = {"requestedQueryCost": 1, "actualQueryCost": 1}
        cost["throttleStatus"] = {"maximumAvailable": 2000.0, "currentlyAvailable": 1999, "restoreRate": 100.0}
        variables = body.get("variables") or {}
        if "order(id: $id)" not in body["query"] or "id" not in variables:
            error = {"message": "Field is not in this service yet", "extensions": {"code": "undefinedField"}}
            return answer_json(200, {"errors": [error]})
        found = [order for order in self._orders.values() if order["admin_graphql_api_id"] == variables["id"]]
        order = _as_graphql(found[0]) if found else None
        return answer_json(200, {"data": {"order": order}, "extensions": {"cost": cost}})


def _as_graphql(order: Order) -> dict[str, Any]:
    money = {"amount": order["total_price"], "currencyCode": order["currency"]}
    return {
        "id": order["admin_graphql_api_id"],
        "name": order["name"],
        "email": order["email"],
        "updatedAt": order["updated_at"].replace("+00:00", "Z"),
        "cancelledAt": order["cancelled_at"],
        "displayFinancialStatus": order["financial_status"].upper(),
        "totalPriceSet": {"shopMoney": money},
    }


def _page_info(asked: dict[str, str], begin: int) -> str:
    kept = {name: value for name, value in asked.items() if name not in {"limit", "begin"}}
    return base64.urlsafe_b64encode(json.dumps(kept | {"begin": str(begin)}).encode()).decode()


def _answer_with_limit(status: int, body: object, **headers: str) -> Act:
    return answer_json(status, body, x_shopify_shop_api_call_limit=f"1/{_BUCKET}", **headers)
