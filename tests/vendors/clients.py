"""The vendors' own clients for the services of the tests."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
from scim2_client import BaseSyncSCIMClient
from scim2_server.utils import load_default_provider

from tests.vendors import github_api, hubspot_api, scim_api, shopify_api, trivore_api

if TYPE_CHECKING:
    from scim2_client.client import RawResponse


@contextmanager
def github_client(url: str) -> Iterator[Any]:
    """Run PyPI githubkit, whose models from GitHub's OpenAPI description reject other responses."""
    from githubkit import GitHub, TokenAuthStrategy  # noqa: PLC0415  # it takes 0.5 s

    with GitHub(
        TokenAuthStrategy(github_api.TOKEN), base_url=url, auto_retry=False, http_cache=False, trust_env=False
    ) as client:
        yield client


@contextmanager
def hubspot_client(url: str) -> Iterator[Any]:
    """Run PyPI hubspot-api-client, generated from HubSpot's OpenAPI description, for contacts."""
    from hubspot.crm import contacts  # noqa: PLC0415  # as above

    configuration = contacts.Configuration(host=url)
    configuration.access_token = hubspot_api.TOKEN
    with contacts.ApiClient(configuration) as client:
        yield client
        client.rest_client.pool_manager.clear()


@contextmanager
def shopify_client(url: str) -> Iterator[Any]:
    """Run PyPI ShopifyAPI with a session for the shop at `url`."""
    import shopify as library  # noqa: PLC0415  # as above

    first, _, rest = (urlsplit(url).hostname or "").partition(".")
    library.Session.setup(protocol="http", myshopify_domain=rest, port=urlsplit(url).port)
    library.ShopifyResource.activate_session(library.Session(first, shopify_api.VERSION, shopify_api.TOKEN))
    try:
        yield library
    finally:
        library.ShopifyResource.clear_session()


class _ScimClient(BaseSyncSCIMClient):
    """PyPI scim2-client over httpx, which rejects responses outside the schemas of RFC 7643."""

    def __init__(self, client: httpx.Client) -> None:
        super().__init__(provider=load_default_provider())
        self._client = client

    def _stays_under_base_url(self, endpoint: str) -> bool:
        return endpoint.startswith("/")

    def _parse_json(self, response: RawResponse) -> Any:  # noqa: ANN401  # any JSON
        return response.json()  # type: ignore[attr-defined]

    def request(self, method: str, url: str, **kwargs: Any) -> RawResponse:  # noqa: ANN401  # httpx's
        return self._client.request(method, url, **kwargs)


@contextmanager
def scim_client(url: str) -> Iterator[BaseSyncSCIMClient]:
    """Run PyPI scim2-client with the service's token."""
    with httpx.Client(base_url=url, headers={"Authorization": f"Bearer {scim_api.TOKEN}"}, trust_env=False) as client:
        yield _ScimClient(client)


def trivore_client(url: str, client: str = trivore_api.CLIENT, secret: str = trivore_api.SECRET) -> Any:  # noqa: ANN401  # the package has no types
    """Return PyPI trivoreid's client with the service's credentials."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # trivoreid 2.0.10 compares numbers with `is`
        from trivoreid.client import TrivoreID  # noqa: PLC0415  # the first import warns
    return TrivoreID(path="/nowhere", server=url, client_id=client, client_secret=secret)
