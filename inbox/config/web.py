"""`[web]`: who may use the operator's page and its API."""

from __future__ import annotations

from inbox.config.types import DatabaseUrl, Duration, Networks, Secret, Table


class WebProxy(Table, frozen=True):
    """A proxy in front of the page that has signed people in, and says in a header who they are."""

    networks: Networks
    """Addresses and networks of the proxy. From others the header does not count. Who can call from one of them is anybody."""
    header: str = "X-Forwarded-User"
    """Header with the name of the person."""
    operators: list[str] = []
    """Names that may change something; everybody else is a viewer."""


class Web(Table, frozen=True):
    """The operator's page (`relay web`). It does not start unless one of `users`, `tokens` and `proxy` says who may use it."""

    users: Secret | None = None
    """Lines of `NAME:ROLE:HASH` of people with a password, as `relay web passwd` writes them; usually `file:/path`."""
    tokens: Secret | None = None
    """Lines of `NAME:ROLE:HASH` of bearer tokens for the API, as `relay web token` writes them; usually `file:/path`."""
    proxy: WebProxy | None = None
    viewer_url: DatabaseUrl | None = None
    """URL of viewers, with the role `inbox_reader` or `inbox_reader_without_payloads`: then a bug of the page can't write."""
    origin: str | None = None
    """Scheme and host of the page as browsers see it, such as `https://relay.example.com`. Else it has
    IP addresses and `localhost` alone."""
    session: Duration = Duration(12 * 3600)
    """Longest time until a person has to sign in again."""
