"""The original body, byte for byte, to one URL, signed as Standard Webhooks 1.0.0."""

from __future__ import annotations

import binascii
import hmac
import re
from base64 import b64decode, b64encode
from urllib.parse import urlsplit

from inbox.config import ForwardDestination, Route
from inbox.errors import ConfigError
from relay.destinations.base import Caller, Clients, Context
from relay.endpoint import header_value
from relay.http import Request
from relay.outcome import Delivered, Delivery, Outcome, Skipped

_KEY_PREFIX = "whsec_"
_FROM_ELSEWHERE = re.compile(r"(env|file):")


class Forward:
    """The deliverer of one route to a forward destination."""

    def __init__(self, client: Caller, key: bytes | None) -> None:
        self._client = client
        self._key = key

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """One POST: any 2xx is success, and what the answer says besides is of no interest."""
        if delivery.body is None:
            return Skipped((), "the event's body was erased")
        headers = self._headers(delivery, int(context.now().timestamp()), delivery.body)
        answer = self._client.call(Request("forward", "POST", headers, body=delivery.body), context)
        calls = (answer.call,)
        return Delivered(calls, "forwarded") if answer.error_class is None else answer.failed(calls)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _headers(self, delivery: Delivery, timestamp: int, body: bytes) -> dict[str, str]:
        headers = {
            "Accept": "*/*",
            "Inbox-Source": delivery.source,
            "Inbox-Event-Type": header_value(delivery.event_type),
            "Inbox-Seq": str(delivery.seq),
            "Inbox-Attempt": str(delivery.attempt),
            "Webhook-Id": delivery.webhook_id,
            "Webhook-Timestamp": str(timestamp),
            "Idempotency-Key": delivery.idempotency_key,
        }
        if delivery.content_type:
            headers["Content-Type"] = header_value(delivery.content_type)
        if delivery.entity_type is not None:
            headers["Inbox-Entity-Type"] = header_value(delivery.entity_type)
        if delivery.entity_id is not None:
            headers["Inbox-Entity-Id"] = header_value(delivery.entity_id)
        if delivery.traceparent is not None:
            headers["Traceparent"] = header_value(delivery.traceparent)
        if self._key is not None:
            headers["Webhook-Signature"] = sign(self._key, delivery.webhook_id, timestamp, body)
        return headers


def build(route: Route, destination: ForwardDestination, clients: Clients) -> Forward:  # noqa: ARG001  # as every kind's
    """The deliverer of `route`.

    Raises:
        ConfigError: the URL or the signing secret can't be used.
    """
    where = f"destinations.{destination.name}"
    secrets: list[str] = []
    key = None
    if destination.signing_secret is not None:
        text = destination.signing_secret.reveal()
        key = signing_key(text, f"{where}.signing_secret")
        secrets += [text, text.removeprefix(_KEY_PREFIX)]
    # A URL from a secret's place is one as a whole, such as a chat's incoming webhook: the log shows its host alone.
    hidden = _FROM_ELSEWHERE.match(destination.url.reference) is not None
    url = destination.url.reveal()
    if hidden:
        secrets += [url, urlsplit(url).path]
    client = clients.destination(destination, url, secrets=secrets, shown_path="/…" if hidden else None)
    return Forward(client, key)


def signing_key(text: str, where: str) -> bytes:
    """The key of a signing secret: `whsec_` and base64, as Standard Webhooks writes it, or else the text's own bytes.

    Raises:
        ConfigError: what follows `whsec_` is not base64, or nothing.
    """
    if not text.startswith(_KEY_PREFIX):
        return text.encode()
    try:
        key = b64decode(text.removeprefix(_KEY_PREFIX), validate=True)
    except binascii.Error:
        key = b""
    if not key:
        raise ConfigError(f"{where}: what follows whsec_ must be base64")
    return key


def sign(key: bytes, message_id: str, timestamp: int, body: bytes) -> str:
    """The value of `webhook-signature`; `timestamp` is in whole seconds since 1970."""
    signed = b"%b.%d.%b" % (message_id.encode(), timestamp, body)
    return "v1," + b64encode(hmac.digest(key, signed, "sha256")).decode()
