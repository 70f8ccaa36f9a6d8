"""Headers of a forwarded webhook: those that the relay adds, and the original ones that may be passed on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from inbox.config.endpoint import Destination, ForwardDestination
from inbox.config.model import Route

ADDED: Mapping[str, str] = {
    "Content-Type": "that of the webhook; missing where the webhook has none",
    "Inbox-Source": "name of the source",
    "Inbox-Event-Type": "event type",
    "Inbox-Entity-Type": "type of the entity; missing for an event without one",
    "Inbox-Entity-Id": "id of the entity; missing for an event without one",
    "Inbox-Seq": "number of the event in the inbox",
    "Inbox-Attempt": "number of the attempt, from 1",
    "Webhook-Id": "identifies the event on its route, equally for every attempt and run",
    "Webhook-Timestamp": "time of the attempt, in seconds since 1970",
    "Webhook-Signature": "signature of Standard Webhooks; missing without `signing_secret`",
    "Idempotency-Key": "identifies the run, equally for each of its attempts",
    "Traceparent": "trace context of the webhook; missing where the webhook has none",
    "Accept": "`*/*`",
    "Accept-Encoding": "`identity`",
    "User-Agent": "`inbox-relay`, unless `headers` has another",
}
"""Each header that a forwarded webhook gets, and its value in words."""

_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_ADDED = frozenset(name.lower() for name in ADDED)
_OURS = ("inbox-", "webhook-")
_OF_THE_CONNECTION = re.compile(
    "host|connection|keep-alive|proxy-.*|te|trailer|transfer-encoding|upgrade|expect|content-length|content-encoding"
    # A proxy writes the original URL into some of these, with the token of a `url_token` source in it.
    "|via|forwarded|x-forwarded(-.*)?|x-original(-.*)?|x-rewrite(-.*)?|x-envoy-.*|x-real-ip|referer|origin"
)
_SECRET = re.compile(
    r"(.*[-_])?(auth|authenticate|authorization|cookie|credentials?|hmac|jwt|password|secret|signature|token|api[-_]?key)([-_].*)?"
)


def passed_headers(source: str, routes: Iterable[Route], destinations: Mapping[str, Destination]) -> frozenset[str]:
    """Return the names, in lower case, of a source's headers that its destinations pass on, and that are stored for them."""
    found = {
        name.lower()
        for route in routes
        if route.source == source and isinstance(destination := destinations.get(route.destination), ForwardDestination)
        for name in destination.pass_headers
    }
    return frozenset(name for name in found if fault(name) is None)


def fault(name: str) -> str | None:
    """Return for the operator why no destination may pass on a header of this name; None when one may."""
    lower = name.lower()
    if _NAME.fullmatch(name) is None:
        return f"{name!r} is no name of a header; write one such as X-GitHub-Event"
    if lower in _ADDED or lower.startswith(_OURS):
        return f"{name!r} is a header that the relay adds itself; remove it"
    if _OF_THE_CONNECTION.fullmatch(lower):
        return f"{name!r} belongs to the connection, and is never passed on; remove it"
    if _SECRET.fullmatch(lower):
        return f"{name!r} is named as a header with a secret, and is never stored; remove it"
    return None
