"""Two destinations: forward sends the original body unchanged, signed as Standard Webhooks 1.0.0; Slack posts a message.

Facts: https://docs.slack.dev/messaging/sending-messages-using-incoming-webhooks (`text`, and the errors: 400
`invalid_payload`, 403 `action_prohibited`, 404 `channel_not_found` and `no_service`, 410 `channel_is_archived`). Each
status has its usual meaning, so the error texts are only logged.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import urlsplit

import msgspec

from inbox.config.model import ForwardDestination, Route, SlackDestination
from inbox.errors import BodyErased, ConfigError, MappingError, collect_config_errors
from inbox.sources.presets.standard_webhooks import signature
from inbox.sources.signing import Message, decode_key, sign
from relay.delivery import alerts
from relay.delivery.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.destinations.base import Clients, Context, Deliverer
from relay.http.client import HttpClient, Request
from relay.http.target import header_value
from relay.sync.compiled_route import event_scope
from relay.sync.expressions import Scope, encode
from relay.sync.forms import FORMS
from relay.sync.templates import Placeholder, Template, encode_value

_SHARED = "whsec_"
"""Prefix of a shared secret of Standard Webhooks."""
LONGEST_MESSAGE = 40_000
"""Maximum characters in a Slack message."""

Signer = Callable[[Message, datetime], Mapping[str, str]]
"""Returns the headers of a signed message, with names in lower case."""


def _post(client: HttpClient, headers: dict[str, str], body: bytes, delivery: Delivery, context: Context) -> Outcome:
    """Make one POST. Any 2xx is a success, regardless of the response's body."""
    if delivery.traceparent is not None:
        headers["Traceparent"] = header_value(delivery.traceparent)
    answer = client.call(Request("forward", "POST", headers, body=body), context)
    calls = (answer.call,)
    return Delivered(calls, "forwarded") if answer.error_class is None else answer.as_failed(calls)


def _forward(
    client: HttpClient, signer: Signer | None, passed: Sequence[str], delivery: Delivery, context: Context
) -> Outcome:
    """Send the body unchanged."""
    if delivery.body is None:
        return Skipped((), str(BodyErased()))
    kept, at = delivery.headers, context.now()
    headers = {name: header_value(kept[name.lower()]) for name in passed if name.lower() in kept}
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
    optional = {
        "Content-Type": delivery.content_type or None,
        "Inbox-Entity-Type": delivery.entity_type,
        "Inbox-Entity-Id": delivery.entity_id,
    }
    headers |= {name: header_value(value) for name, value in optional.items() if value is not None}
    if signer is not None:
        signed = signer(Message(id=delivery.webhook_id.encode(), body=delivery.body), at)
        headers |= {name.title(): value for name, value in signed.items()}
    return _post(client, headers, delivery.body, delivery, context)


def build(route: Route, destination: ForwardDestination, clients: Clients) -> Deliverer:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the URL or the signing secret is unusable.
    """
    where = f"destinations.{destination.name}"
    # If the whole URL is a secret, such as a chat's incoming webhook, the log shows only its host.
    hidden = destination.url.names_a_place

    given = {"url": destination.url, "signing_secret": destination.signing_secret}
    revealed = collect_config_errors(
        {key: partial(secret.reveal, at=f"{where}.{key}") for key, secret in given.items() if secret is not None}
    )
    url, signing = revealed["url"], revealed.get("signing_secret")
    secrets = [] if signing is None else [signing, signing.removeprefix(_SHARED)]
    secrets += [url, urlsplit(url).path] if hidden else []
    parts: dict[str, Callable[[], Any]] = {
        "signer": lambda: None if signing is None else make_signer(signing, f"{where}.signing_secret"),
        "client": partial(clients.destination, destination, url, secrets=secrets, shown_path="/…" if hidden else None),
    }
    made = collect_config_errors(parts)
    return partial(_forward, made["client"], made["signer"], destination.pass_headers)


def make_signer(text: str, where: str) -> Signer:
    """Return a signer for a shared secret of Standard Webhooks: `whsec_` and base64, or any other text unchanged.

    Raises:
        ConfigError: the text after the prefix is not a valid key, or the key is not a shared secret.
    """
    scheme = signature("webhook")
    if not text.startswith(_SHARED):
        scheme = msgspec.structs.replace(scheme, key="text")
    try:
        decode_key(scheme, text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
    return partial(sign, scheme, text)


# --- Slack, or a compatible service


class MessageTemplate(Template):
    """The text of a message. Values are escaped, so that they can't notify a whole channel, forge a line or hide a link."""

    longest = LONGEST_MESSAGE

    def expand(self, scope: Scope) -> str:
        """Return the text. Each value is escaped for its place: plain text, a link's text, its URL, or a part of the URL.

        Raises:
            MappingError: an expression finds no value, or a value that its place can't hold.
        """
        text = ""
        for part in self.parts:
            text += part if isinstance(part, str) else self._place(self._text(part, scope), part, text)
        return text

    def _is_query(self, around: Sequence[str], placeholders: Sequence[Placeholder]) -> bool:  # noqa: ARG002
        return False  # this class escapes values itself

    def _place(self, value: str, placeholder: Placeholder, before: str) -> str:
        if before.rfind("<") <= before.rfind(">"):
            return alerts.escape_text(value)
        link = before.rpartition("<")[2]
        if "|" in link:
            return alerts.escape_link_text(value)
        if link:
            return value if placeholder.form is FORMS["url"] else encode_value(value, self.where)
        try:
            return alerts.escape_link_url(value)
        except ValueError as error:  # a UnicodeEncodeError is one
            raise MappingError(f"{{{placeholder.text}}}: {error}", field=self.where) from None


def _post_message(client: HttpClient, message: MessageTemplate, delivery: Delivery, context: Context) -> Outcome:
    try:
        body = encode({"text": message.expand({"event": event_scope(delivery)})})
    except MappingError as error:
        return Failed((), "mapping", str(error))
    except BodyErased as erased:
        return Skipped((), str(erased))
    headers = {"Content-Type": "application/json", "Idempotency-Key": delivery.idempotency_key}
    return _post(client, headers, body, delivery, context)


def build_slack(route: Route, destination: SlackDestination, clients: Clients) -> Deliverer:  # noqa: ARG001  # as every kind's
    """Make the deliverer of `route`.

    Raises:
        ConfigError: the URL or the template is unusable.
    """
    where = f"destinations.{destination.name}"

    def client() -> HttpClient:
        url = destination.url.reveal(at=f"{where}.url")
        path = urlsplit(url).path
        secrets = [
            url,
            path,
            *path.split("/")[-1:],
        ]  # the path of a chat's webhook is secret, and its last segment most of all
        return clients.destination(destination, url, secrets=secrets, shown_path="/…")

    parts: dict[str, Callable[[], Any]] = {
        "message": partial(MessageTemplate, destination.text, f"{where}.text", {"event"}),
        "client": client,
    }
    made = collect_config_errors(parts)
    return partial(_post_message, made["client"], made["message"])
