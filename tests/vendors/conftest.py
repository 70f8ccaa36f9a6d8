"""The vendors' services, each with the vendor's own client."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest
from scim2_client import BaseSyncSCIMClient

from tests.vendors import clients
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.scim_api import Scim, serving_scim
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe
from tests.vendors.trivore_api import Trivore


@pytest.fixture(autouse=True)
def without_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clients call the services themselves."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def github() -> Iterator[GitHub]:
    with closing(GitHub()) as service:
        yield service


@pytest.fixture
def github_client(github: GitHub) -> Iterator[Any]:
    with clients.github_client(github.url) as client:
        yield client


@pytest.fixture
def hubspot() -> Iterator[HubSpot]:
    with closing(HubSpot("stripe_customer_id")) as service:
        yield service


@pytest.fixture
def hubspot_client(hubspot: HubSpot) -> Iterator[Any]:
    with clients.hubspot_client(hubspot.url) as client:
        yield client


@pytest.fixture
def scim() -> Iterator[Scim]:
    with serving_scim() as service:
        yield service


@pytest.fixture
def scim_client(scim: Scim) -> Iterator[BaseSyncSCIMClient]:
    with clients.scim_client(scim.url) as client:
        yield client


@pytest.fixture
def shopify() -> Iterator[Shopify]:
    with closing(Shopify()) as service:
        yield service


@pytest.fixture
def shopify_client(shopify: Shopify) -> Iterator[Any]:
    with clients.shopify_client(shopify.url) as client:
        yield client


@pytest.fixture
def stripe() -> Iterator[Stripe]:
    with closing(Stripe()) as service:
        yield service


@pytest.fixture
def trivore() -> Iterator[Trivore]:
    with closing(Trivore()) as service:
        yield service
