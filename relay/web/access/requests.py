"""Rules about a request's headers: the same origin, a bearer token, a proxy's header, and paths to go on to. Pure."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from urllib.parse import quote

from inbox.config.types import Network
from inbox.config.web import WebProxy
from relay.web.access.actor import Actor

Headers = Iterable[tuple[bytes, bytes]]
"""As ASGI has them: names in small letters, in their order, each as often as it was sent."""

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
LONGEST_NAME = 200
_LONGEST_PATH = 4_000
_NO_PATH = re.compile(r"[\x00-\x20\x7f\\]")
"""Browsers strip some of them, and take a backslash for a slash: `/\\example.com` would be another host."""


def values_of(headers: Headers, name: str) -> list[str]:
    """Return every value of a header. Bytes that are not UTF-8 become U+FFFD."""
    wanted = name.lower().encode()
    return [value.decode("utf-8", "replace").strip() for key, value in headers if key == wanted]


def is_same_origin(headers: Headers, own: str, configured: str | None) -> bool:
    """Return whether a page of ours sent the request, by what the browser says. A script can't set either header.

    Args:
        headers: of the request.
        own: scheme and host that the request itself names.
        configured: `[web] origin`.
    """
    sites = values_of(headers, "sec-fetch-site")
    if sites:
        return sites == ["same-origin"]
    origins = values_of(headers, "origin")
    return len(origins) == 1 and origins[0].lower() in {each.lower() for each in (own, configured) if each}


def bearer_token(headers: Headers) -> str | None:
    """Return the token of `Authorization: Bearer`; empty when it is given twice, None without one."""
    given = values_of(headers, "authorization")
    tokens = [value[7:].strip() for value in given if value[:7].lower() == "bearer " or value.lower() == "bearer"]
    if not tokens:
        return None
    return tokens[0] if len(given) == 1 else ""


def named_by_proxy(headers: Headers, peer: str | None, proxy: WebProxy) -> Actor | None:
    """Return the person that a proxy has signed in; None when another address says so, or the header is no single name."""
    if peer is None or not is_listed(peer, proxy.networks):
        return None
    names = values_of(headers, proxy.header)
    if len(names) != 1:
        return None
    name = names[0]
    if not name or len(name) > LONGEST_NAME or not name.isprintable() or "\ufffd" in name:
        return None
    return Actor(name, "operator" if name in proxy.operators else "viewer", "proxy")


def address_of(headers: Headers, peer: str | None, proxies: Iterable[Network]) -> str:
    """Return the address that a request comes from, which may be behind proxies.

    A listed proxy, or one at a Unix socket, is believed what it has added to `X-Forwarded-For`: the last address there that
    is no listed proxy's. What stands before it, anybody may have written.
    """
    if peer is not None and not is_listed(peer, proxies):
        return peer
    for given in reversed(",".join(values_of(headers, "x-forwarded-for")).split(",")):
        address = given.strip()
        if not _is_address(address):
            break
        if not is_listed(address, proxies):
            return address
    return peer or "a socket"


def _is_address(given: str) -> bool:
    try:
        ipaddress.ip_address(given)
    except ValueError:
        return False
    return True


def is_listed(peer: str, networks: Iterable[Network]) -> bool:
    """Return whether an address is in one of the networks; IPv4 in IPv6 counts as IPv4."""
    try:
        address = ipaddress.ip_address(peer.partition("%")[0])
    except ValueError:
        return False
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return any(address in ipaddress.ip_network(network) for network in networks)


def local_path(given: str) -> str:
    """Return a path of this page to go on to; `/` for anything that a browser could take for another host."""
    if not given.startswith("/") or given.startswith("//") or len(given) > _LONGEST_PATH or _NO_PATH.search(given):
        return "/"
    if given.partition("?")[0] in {"/sign-in", "/sign-out"}:
        return "/"
    return quote(given, safe="/?&=%:@!$'()*+,;~-._[]")
