"""Recipes whose providers and destinations are vendors: their services are those of tests/vendors, which vendors' clients prove."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from scim2_models import ListResponse, User

from tests.recipes.walking import Service, follow
from tests.vendors import clients, github_api, hubspot_api, okta_api, scim_api, shopify_api, stripe_api, trivore_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.okta_api import Okta
from tests.vendors.scim_api import serving_scim
from tests.vendors.service import Records
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe
from tests.vendors.trivore_api import Trivore

OWN_TOKEN = "own-token"


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the vendors' clients call the services themselves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


def test_issues_of_github_become_tickets(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(GitHub()) as github, closing(Records("tickets", OWN_TOKEN)) as tracker:
        for number, title in enumerate(("Spelling error in the README file", "A second one"), start=1):
            github.issue("Codertocat/Hello-World", title, labels=("bug",), id=444_500_040 + number)
        github.issue("Codertocat/Hello-World", "A pull request", pull_request={"url": "…"})
        services = {"https://api.github.com": github, "https://tracker.example.com": tracker}
        secrets = {"GITHUB_SECRET": "x", "GITHUB_TOKEN": github_api.TOKEN, "TRACKER_TOKEN": OWN_TOKEN}
        follow("github-to-tracker", tmp_path, sqlite_database_url, services, **secrets)
        assert [ticket["title"] for ticket in tracker.all.values()] == [
            "Spelling error in the README file",
            "A second one",
        ]


def test_orders_of_shopify_come_to_an_erp(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Shopify()) as shopify, closing(Records("sales-orders", OWN_TOKEN)) as erp:
        shopify.order("jon@example.com", "398.00", id=820_982_911_946_154_508, name="#9999")
        shopify.order("eve@example.com", "12.00")
        services = {"https://example.myshopify.com": shopify, "https://erp.example.com": erp}
        secrets = {"SHOPIFY_SECRET": "x", "SHOPIFY_TOKEN": shopify_api.TOKEN, "ERP_TOKEN": OWN_TOKEN}
        follow("shopify-to-erp", tmp_path, sqlite_database_url, services, **secrets)
        assert [order["customer"] for order in erp.all.values()] == ["jon@example.com", "eve@example.com"]


def test_customers_of_stripe_become_contacts_of_hubspot(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Stripe()) as stripe, closing(HubSpot("stripe_customer_id")) as hubspot:
        stripe.customer("cus_NffrFeUfNV2Hib", email="jennyrosen@example.com", name="Jenny Rosen")
        stripe.customer("cus_2", 1_686_089_971, email="jon@example.com", name="Jon")
        stripe.customer("cus_3", 1_686_089_972)
        services = {"https://api.stripe.com": stripe, "https://api.hubapi.com": hubspot}
        secrets = {"STRIPE_SECRET": "x", "STRIPE_KEY": stripe_api.KEY, "HUBSPOT_TOKEN": hubspot_api.TOKEN}
        follow("stripe-to-hubspot", tmp_path, sqlite_database_url, services, **secrets)
        assert hubspot_names(hubspot.url) == [("Jenny", "Rosen"), (None, "Jon")]


def test_users_of_okta_have_accounts(postgres_database_url: str, tmp_path: Path) -> None:
    with closing(Okta()) as okta, serving_scim() as app, clients.scim_client(app.url) as scim:
        names = (("00uuv7y8Aq6kYDqT70h7", "Isaac", "Brock"), ("00uuv7y8Aq6kYDqT70h9", "Jeremiah", "Green"))
        for second, (number, first, last) in enumerate(names):
            email = f"{first}.{last}@example.com".lower()
            at = f"2026-11-02T09:00:0{second + 1}.000Z"
            okta.user(number, at, login=email, email=email, firstName=first, lastName=last)
        scim.create(
            User[Any].model_validate({"userName": "eric.judy@example.com", "externalId": "00uuv7y8Aq6kYDqT70h8"})
        )
        services: dict[str, Service] = {
            "https://example.okta.com": okta,
            "https://app.example.com": scim_api.AtRoot(app),
        }
        secrets = {"OKTA_API_TOKEN": f"SSWS {okta_api.TOKEN}", "SCIM_TOKEN": scim_api.TOKEN}
        follow("okta-to-scim", tmp_path, postgres_database_url, services, OKTA_HOOK_SECRET="x", **secrets)
        found = scim.query(User, query_parameters={"sortBy": "userName"})
        assert isinstance(found, ListResponse)
        assert [(user.user_name, user.active) for user in found.resources or ()] == [
            ("eric.judy@example.com", False),
            ("isaac.brock@example.com", True),
            ("jeremiah.green@example.com", True),
        ]


def test_users_of_trivore_have_contacts(sqlite_database_url: str, tmp_path: Path) -> None:
    with closing(Trivore()) as trivore, closing(Records("contacts", OWN_TOKEN)) as crm:
        trivore.user("IDNUMBER1234", "2026-11-02T09:00:01.000Z", "Aino", "Aalto", "aino@example.com")
        trivore.user("IDNUMBER1235", "2026-11-02T09:00:02.000Z", "Eino", "Leino", "eino@example.com")
        services = {"https://id.example.com": trivore, "https://crm.example.com": crm}
        secrets = {"TRIVORE_CLIENT": trivore_api.CLIENT, "TRIVORE_SECRET": trivore_api.SECRET, "CRM_TOKEN": OWN_TOKEN}
        follow("trivore-to-contacts", tmp_path, sqlite_database_url, services, WEBHOOK_TOKEN="x", **secrets)
        assert [contact["last_name"] for contact in crm.all.values()] == ["Aalto", "Leino"]


def hubspot_names(url: str) -> list[tuple[str | None, str | None]]:
    """The first and last names of all contacts, as HubSpot's own client reads them."""
    with clients.hubspot_client(url) as client:
        from hubspot.crm import contacts  # noqa: PLC0415  # as in tests/vendors/clients.py

        found = contacts.BasicApi(client).get_page(limit=100, properties=["firstname", "lastname"]).results
        return [(contact.properties["firstname"], contact.properties["lastname"]) for contact in found]
