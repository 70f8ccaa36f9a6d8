"""Forward: sends the original body, byte for byte, to a URL, signed as Standard Webhooks 1.0.0."""

from __future__ import annotations

import hmac
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from inbox.config.model import ForwardDestination, Route
from inbox.config.values import Secret
from inbox.errors import BodyErased, ConfigError, collect_config_errors
from inbox.sources.presets.standard_webhooks import by_private_key, signature
from inbox.sources.signing import Message, signed_headers
from relay.delivery.outcome import Delivered, Delivery, Outcome, Skipped
from relay.destinations.base import Caller, Clients, Context
from relay.http.client import Request
from relay.http.target import header_value

_SHARED, _PRIVATE, _PUBLIC = "whsec_", "whsk_", "whpk_"
"""Prefixes of the keys of Standard Webhooks."""
_SEED_BYTES = 32

Signer = Callable[[Message, datetime], Mapping[str, str]]
"""Returns the headers of a signed message, with names in lower case."""


class Forward:
    """The deliverer of one route to a forward destination."""

    def __init__(self, client: Caller, signer: Signer | None, passed: Sequence[str] = ()) -> None:
        self._client = client
        self._signer = signer
        self._passed = tuple((name, name.lower()) for name in passed)

    def deliver(self, delivery: Delivery, context: Context) -> Outcome:
        """Make one POST. Any 2xx is success, whatever else the answer says."""
        if delivery.body is None:
            return Skipped((), str(BodyErased()))
        headers = self._headers(delivery, context.now(), delivery.body)
        answer = self._client.call(Request("forward", "POST", headers, body=delivery.body), context)
        calls = (answer.call,)
        return Delivered(calls, "forwarded") if answer.error_class is None else answer.failed(calls)

    def close(self) -> None:
        """Close the idle connections."""
        self._client.close()

    def _headers(self, delivery: Delivery, at: datetime, body: bytes) -> dict[str, str]:
        kept = delivery.headers
        headers = {name: header_value(kept[lower]) for name, lower in self._passed if lower in kept}
        headers |= {
            "Accept": "*/*",
            "Inbox-Source": delivery.source,
            "Inbox-Event-Type": header_value(delivery.event_type),
            "Inbox-Seq": str(delivery.seq),
            "Inbox-Attempt": str(delivery.attempt),
            "Webhook-Id": delivery.webhook_id,
            "Webhook-Timestamp": str(int(at.timestamp())),
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
        if self._signer is not None:
            signed = self._signer(Message(id=delivery.webhook_id.encode(), body=body), at)
            headers |= {name.title(): value for name, value in signed.items()}
        return headers


def build(route: Route, destination: ForwardDestination, clients: Clients) -> Forward:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the URL or the signing secret can't be used.
    """
    where = f"destinations.{destination.name}"
    # A URL that is a secret as a whole, such as a chat's incoming webhook: the log shows its host alone.
    hidden = destination.url.names_a_place

    def reveal(key: str, secret: Secret | None) -> str:
        return "" if secret is None else secret.reveal(at=f"{where}.{key}")

    def signer(text: str) -> Signer | None:
        return signer_of(text, f"{where}.signing_secret") if destination.signing_secret is not None else None

    def client(url: str, signing: str) -> Caller:
        secrets = [signing, signing.removeprefix(_SHARED).removeprefix(_PRIVATE)] if signing else []
        secrets += [url, urlsplit(url).path] if hidden else []
        return clients.destination(destination, url, secrets=secrets, shown_path="/…" if hidden else None)

    revealed = collect_config_errors(
        {key: partial(reveal, key, getattr(destination, key)) for key in ("url", "signing_secret")}
    )
    parts: dict[str, Callable[[], Any]] = {
        "signer": partial(signer, revealed["signing_secret"]),
        "client": partial(client, revealed["url"], revealed["signing_secret"]),
    }
    made = collect_config_errors(parts)
    return Forward(made["client"], made["signer"], destination.pass_headers)


def signer_of(text: str, where: str) -> Signer:
    """Return a signer for a secret of Standard Webhooks: `whsec_` is shared, `whsk_` is private, any other is its own bytes.

    Raises:
        ConfigError: the text after the prefix is no such key, or the key is public.
    """
    if text.startswith(_PUBLIC):
        raise ConfigError(
            f"{where}: is a public key: give the receiver that one, and put the private one (whsk_…) here"
        )
    if text.startswith(_PRIVATE):
        private = _private_key(_decoded(text.removeprefix(_PRIVATE)), where)
        return partial(signed_headers, by_private_key("webhook"), private.sign)
    key = _decoded(text.removeprefix(_SHARED)) if text.startswith(_SHARED) else text.encode()
    if not key:
        raise ConfigError(f"{where}: what follows whsec_ must be base64")
    return partial(signed_headers, signature("webhook"), lambda content: hmac.digest(key, content, "sha256"))


def _private_key(key: bytes, where: str) -> Ed25519PrivateKey:
    """Load a key from its seed, or from seed and public key together, as Svix writes it."""
    seed, public = key[:_SEED_BYTES], key[_SEED_BYTES:]
    if len(seed) == _SEED_BYTES:
        private = Ed25519PrivateKey.from_private_bytes(seed)
        if public in {b"", private.public_key().public_bytes_raw()}:
            return private
    raise ConfigError(
        f"{where}: what follows whsk_ must be a private key of Ed25519 in base64: 32 bytes, or 64 with the public one"
    )


def _decoded(text: str) -> bytes:
    try:
        return b64decode(text, validate=True)
    except ValueError:  # no base64, or not even ASCII
        return b""
