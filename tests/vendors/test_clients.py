"""The services of the tests are what the vendors describe: the vendors' own clients work with them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pyactiveresource.connection import ResourceNotFound
from scim2_client import BaseSyncSCIMClient
from scim2_models import ListResponse, PatchOp, Resource, SCIMException, User
from stripe import StripeClient

from tests.vendors import clients, stripe_api
from tests.vendors.github_api import GitHub
from tests.vendors.scim_api import Scim
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe
from tests.vendors.trivore_api import Trivore


def test_githubs_client_reads_and_writes_issues(github: GitHub, github_client: Any) -> None:  # noqa: ANN401  # untyped
    made = github.issue("acme/shop", "The cart is empty", labels=("bug",))
    read = github_client.rest.issues.get("acme", "shop", 1).parsed_data
    assert (read.id, read.title, read.labels[0].name) == (made["id"], "The cart is empty", "bug")
    created = github_client.rest.issues.create("acme", "shop", title="Second").parsed_data
    closed = github_client.rest.issues.update("acme", "shop", created.number, state="closed").parsed_data
    assert (closed.state, closed.closed_at is None) == ("closed", False)


def test_githubs_client_follows_the_links_of_a_listing(github: GitHub, github_client: Any) -> None:  # noqa: ANN401
    for number in range(7):
        github.issue("acme/shop", f"Issue {number + 1}")
    listed = github_client.rest.paginate(
        github_client.rest.issues.list_for_repo, owner="acme", repo="shop", per_page=3, sort="updated", direction="asc"
    )
    assert [issue.number for issue in listed] == [1, 2, 3, 4, 5, 6, 7]
    assert sum("/issues?" in each for each in github.asked) == 3
    since = datetime(2026, 11, 2, 9, 0, 6, tzinfo=UTC)
    recent = github_client.rest.issues.list_for_repo("acme", "shop", since=since).parsed_data
    assert [issue.number for issue in recent] == [7, 6]


def test_hubspots_client_reads_and_writes_contacts(hubspot_client: Any) -> None:  # noqa: ANN401
    from hubspot.crm import contacts  # noqa: PLC0415  # as in clients.py

    basic = contacts.BasicApi(hubspot_client)
    properties = {"email": "jenny.rosen@example.com", "firstname": "Jenny", "stripe_customer_id": "cus_1"}
    created = basic.create(contacts.SimplePublicObjectInputForCreate(properties=properties, associations=[]))
    assert created.archived is False
    by_customer = basic.get_by_id("cus_1", id_property="stripe_customer_id", properties=["firstname"])
    assert (by_customer.id, by_customer.properties["firstname"]) == (created.id, "Jenny")
    basic.update(created.id, contacts.SimplePublicObjectInput(properties={"lastname": "Rosen"}))
    assert basic.get_by_id("JENNY.rosen@example.com".lower(), id_property="email").properties["lastname"] == "Rosen"
    with pytest.raises(contacts.exceptions.ApiException) as twice:
        basic.create(contacts.SimplePublicObjectInputForCreate(properties=properties, associations=[]))
    assert (twice.value.status, json.loads(twice.value.body)["category"]) == (409, "CONFLICT")
    with pytest.raises(contacts.exceptions.ApiException, match="does not exist"):
        basic.update(created.id, contacts.SimplePublicObjectInput(properties={"shoe_size": "39"}))
    basic.archive(created.id)
    with pytest.raises(contacts.exceptions.NotFoundException):
        basic.get_by_id(created.id)


def test_hubspots_client_pages(hubspot_client: Any) -> None:  # noqa: ANN401
    from hubspot.crm import contacts  # noqa: PLC0415  # as in clients.py

    basic = contacts.BasicApi(hubspot_client)
    for number in range(5):
        properties = {"email": f"c{number}@example.com"}
        basic.create(contacts.SimplePublicObjectInputForCreate(properties=properties, associations=[]))
    pages: list[int] = []
    after = None
    while not pages or after:
        page = basic.get_page(limit=2, after=after)
        pages.append(len(page.results))
        after = page.paging.next.after if page.paging else None
    assert pages == [2, 2, 1]


def test_the_scim_client_reads_and_writes_users(scim_client: BaseSyncSCIMClient) -> None:
    user = {"userName": "isaac.brock@example.com", "externalId": "00u1", "name": {"familyName": "Brock"}}
    created = scim_client.create(User[Any].model_validate(user))
    assert isinstance(created, Resource)
    operations = [{"op": "replace", "path": "active", "value": False}]
    scim_client.modify(User, created.id, PatchOp[User[Any]].model_validate({"Operations": operations}))
    found = scim_client.query(User, query_parameters={"filter": 'externalId eq "00u1"'})
    assert isinstance(found, ListResponse)
    assert [(each.id, each.active) for each in found.resources or ()] == [(created.id, False)]
    scim_client.delete(User, created.id)
    with pytest.raises(SCIMException):
        scim_client.query(User, created.id)


def test_the_scim_client_pages(scim: Scim, scim_client: BaseSyncSCIMClient) -> None:
    for number in range(5):
        scim_client.create(User[Any].model_validate({"userName": f"user{number}"}))
    names: list[str | None] = []
    while len(names) < 5:
        asked = {"startIndex": len(names) + 1, "count": 2, "sortBy": "userName"}
        page = scim_client.query(User, query_parameters=asked)
        assert isinstance(page, ListResponse)
        assert page.total_results == 5
        names += [user.user_name for user in page.resources or ()]
    assert names == [f"user{number}" for number in range(5)]
    assert sum(each.startswith("GET /v2/Users?") for each in scim.asked) == 3


def test_shopifys_client_reads_and_writes_orders(shopify: Shopify, shopify_client: Any) -> None:  # noqa: ANN401
    made = shopify.order("jon@example.com", "199.00")
    order = shopify_client.Order.find(made["id"])
    assert (order.name, order.line_items[0].sku) == ("#1001", "TEA-100")
    order.note = "Wrap it"
    assert order.save()
    assert shopify_client.Order.find(made["id"]).note == "Wrap it"
    shopify.delete(made["id"])
    with pytest.raises(ResourceNotFound):
        shopify_client.Order.find(made["id"])


def test_shopifys_client_follows_the_links_of_a_listing(shopify: Shopify, shopify_client: Any) -> None:  # noqa: ANN401
    for number in range(5):
        shopify.order(f"c{number}@example.com", "1.00")
    page = shopify_client.Order.find(limit=2, status="any", updated_at_min="2026-11-02T09:00:02+00:00")
    names = [order.name for order in page]
    while page.has_next_page():
        page = page.next_page()
        names += [order.name for order in page]
    assert names == ["#1002", "#1003", "#1004", "#1005"]


def test_shopifys_client_asks_by_graphql(shopify: Shopify, shopify_client: Any) -> None:  # noqa: ANN401
    made = shopify.order("jon@example.com", "199.00")
    query = "query($id: ID!) { order(id: $id) { id name email updatedAt totalPriceSet { shopMoney { amount } } } }"
    answer = json.loads(shopify_client.GraphQL().execute(query, {"id": made["admin_graphql_api_id"]}))
    assert answer["data"]["order"]["name"] == "#1001"


def test_stripes_client_reads_and_pages_customers(stripe: Stripe) -> None:
    client = StripeClient(stripe_api.KEY, base_addresses={"api": stripe.url})
    for number in range(5):
        stripe.customer(f"cus_{number}", email=f"c{number}@example.com")
    assert client.v1.customers.retrieve("cus_3").email == "c3@example.com"
    listed = client.v1.customers.list({"limit": 2})
    assert [customer.id for customer in listed.auto_paging_iter()] == ["cus_4", "cus_3", "cus_2", "cus_1", "cus_0"]
    stripe.delete("cus_3")
    assert client.v1.customers.retrieve("cus_3").deleted is True


def test_trivores_client_reads_and_pages_users(trivore: Trivore) -> None:
    from trivoreid.utils.criteria import Filter  # noqa: PLC0415  # as in clients.py

    client = clients.trivore_client(trivore.url)
    for number in range(3):
        trivore.user(f"u{number}", f"2026-11-02T09:00:0{number}.000Z", "Aino", "Aalto", f"aino{number}@example.com")
    assert client.user_service.get("u1").name.familyName == "Aalto"
    recent = Filter(Filter.GREATER_OR_EQUAL_THAN, "meta.lastModified", "2026-11-02T09:00:01.000Z")
    page = client.user_service.get_all(recent, start_index=0, count=1)
    assert ([user.id for user in page.resources], page.totalResults) == (["u1"], 2)
