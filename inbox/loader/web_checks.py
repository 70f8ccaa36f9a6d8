"""Rules of `[web]`: an origin that a browser would send, and a proxy that not everybody can claim to be."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from inbox.config.mistakes import Mistake
from inbox.config.web import Web, WebProxy

_ORIGIN = re.compile(r"https?://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(:[0-9]{1,5})?", re.IGNORECASE)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_OF_BROWSERS = frozenset(
    {"authorization", "cookie", "host", "origin", "referer", "user-agent", "accept", "x-forwarded-for", "forwarded"}
)
"""Headers that a browser fills, or that have no name of a person in them."""
_LEAST_SESSION, _LONGEST_SESSION = 60, 31 * 86400


def web_mistakes(web: Web) -> Iterator[Mistake]:
    """Yield what can't be meant in `[web]`."""
    if web.origin is not None and not _ORIGIN.fullmatch(web.origin):
        yield Mistake(("web", "origin"), 'must be a scheme and a host alone, such as "https://relay.example.com"')
    if not _LEAST_SESSION <= web.session <= _LONGEST_SESSION:
        yield Mistake(("web", "session"), "must be from 1m to 31d")
    for key, secret in (("users", web.users), ("tokens", web.tokens)):
        if secret is not None and (secret.not_before, secret.not_after) != (None, None):
            yield Mistake(("web", key), "has no times: remove the line of who may no longer use the page")
    if web.proxy is not None:
        yield from _proxy(web.proxy)


def _proxy(proxy: WebProxy) -> Iterator[Mistake]:
    if any(ipaddress.ip_network(network).prefixlen == 0 for network in proxy.networks):
        yield Mistake(("web", "proxy", "networks"), "has every address, and so everybody could say to be anybody")
    if not _TOKEN.fullmatch(proxy.header) or proxy.header.lower() in _OF_BROWSERS:
        yield Mistake(("web", "proxy", "header"), 'must be a header of the proxy\'s own, such as "X-Forwarded-User"')
    if any(not name.strip() for name in proxy.operators):
        yield Mistake(("web", "proxy", "operators"), "has an empty name")
