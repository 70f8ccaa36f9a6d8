"""Each vendor's own client works against the service of the tests and reads all pages."""

from __future__ import annotations

import json
from contextlib import closing
from datetime import UTC, datetime
from typing import Any

import pytest
from stripe import StripeClient

from relay.demo.scenario import sample_user
from relay.demo.services import USER, IdentityService, WebhookSender, serve
from tests.vendors import clients, stripe_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe
from tests.vendors.trivore_api import Trivore


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients call the services themselves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_githubs_client_reads_an_issue_and_follows_the_links_of_a_listing() -> None:
    with closing(GitHub()) as github, clients.github_client(github.url) as client:
        for number in range(7):
            github.issue("acme/shop", f"Issue {number + 1}", labels=("bug",))
        issues = client.rest.issues
        read = issues.get("acme", "shop", 1).parsed_data
        assert (read.title, read.labels[0].name) == ("Issue 1", "bug")
        listed = client.rest.paginate(
            issues.list_for_repo, owner="acme", repo="shop", per_page=3, sort="updated", direction="asc"
        )
        assert [issue.number for issue in listed] == [1, 2, 3, 4, 5, 6, 7]
        assert sum("/issues?" in each for each in github.asked) == 3
        recent = issues.list_for_repo("acme", "shop", since=datetime(2026, 11, 2, 9, 0, 6, tzinfo=UTC)).parsed_data
        assert [issue.number for issue in recent] == [7, 6]


def test_hubspots_client_creates_contacts_once_finds_and_pages_them() -> None:
    from hubspot.crm import contacts  # noqa: PLC0415  # as in clients.py

    def contact(**properties: str) -> Any:  # noqa: ANN401  # untyped
        return contacts.SimplePublicObjectInputForCreate(properties=properties, associations=[])

    with closing(HubSpot("stripe_customer_id")) as hubspot, clients.hubspot_client(hubspot.url) as client:
        basic = contacts.BasicApi(client)
        made = [basic.create(contact(email=f"c{n}@example.com", stripe_customer_id=f"cus_{n}")) for n in range(5)]
        found = basic.get_by_id("cus_1", id_property="stripe_customer_id", properties=["firstname"])
        assert (found.id, found.properties["email"]) == (made[1].id, "c1@example.com")
        for wrong, why in (({"email": "c1@example.com"}, "already exists"), ({"shoe_size": "39"}, "does not exist")):
            with pytest.raises(contacts.exceptions.ApiException, match=why):
                basic.create(contact(**wrong))
        pages: list[int] = []
        after = None
        while not pages or after:
            page = basic.get_page(limit=2, after=after)
            pages.append(len(page.results))
            after = page.paging.next.after if page.paging else None
        assert pages == [2, 2, 1]


def test_shopifys_client_reads_orders_follows_the_links_of_a_listing_and_asks_by_graphql() -> None:
    with closing(Shopify()) as shopify, clients.shopify_client(shopify.url) as client:
        for number in range(5):
            made = shopify.order(f"c{number}@example.com", "1.00")
        assert client.Order.find(made["id"]).line_items[0].sku == "TEA-100"
        page = client.Order.find(limit=2, status="any", updated_at_min="2026-11-02T09:00:02+00:00")
        names = [order.name for order in page]
        while page.has_next_page():
            page = page.next_page()
            names += [order.name for order in page]
        assert names == ["#1002", "#1003", "#1004", "#1005"]
        query = "query($id: ID!) { order(id: $id) { id name email updatedAt totalPriceSet { shopMoney { amount } } } }"
        answer = json.loads(client.GraphQL().execute(query, {"id": made["admin_graphql_api_id"]}))
        assert answer["data"]["order"]["name"] == "#1005"


def test_stripes_client_reads_and_pages_customers() -> None:
    with closing(Stripe()) as stripe:
        client = StripeClient(stripe_api.KEY, base_addresses={"api": stripe.url})
        for number in range(5):
            stripe.customer(f"cus_{number}", email=f"c{number}@example.com")
        assert client.v1.customers.retrieve("cus_3").email == "c3@example.com"
        listed = client.v1.customers.list({"limit": 2})
        assert [customer.id for customer in listed.auto_paging_iter()] == ["cus_4", "cus_3", "cus_2", "cus_1", "cus_0"]


def test_trivores_client_reads_and_pages_users() -> None:
    from trivoreid.utils.criteria import Filter  # noqa: PLC0415  # as in clients.py

    with closing(Trivore()) as trivore:
        client = clients.trivore_client(trivore.url)
        for number in range(3):
            trivore.user(f"u{number}", f"2026-11-02T09:00:0{number}.000Z", "Aino", "Aalto", f"aino{number}@example.com")
        assert client.user_service.get("u1").name.familyName == "Aalto"
        recent = Filter(Filter.GREATER_OR_EQUAL_THAN, "meta.lastModified", "2026-11-02T09:00:01.000Z")
        page = client.user_service.get_all(recent, start_index=0, count=1)
        assert ([user.id for user in page.resources], page.totalResults) == (["u1"], 2)


def test_trivores_client_creates_replaces_and_deletes_users_of_the_demo() -> None:
    with closing(WebhookSender()) as webhooks:
        demo = IdentityService(webhooks)
        with serve(demo.app) as url:
            from trivoreid.models.user import User  # noqa: PLC0415  # as in clients.py

            users = clients.trivore_client(url, "demo", "demo").user_service
            user = users.create(User(sample_user(0)))
            user.name.familyName = "Virtanen"
            users.update(user)
            assert [each["name"]["familyName"] for each in demo.all(USER)] == ["Virtanen"]
            users.delete(user.id)
            assert list(demo.all(USER)) == []
