"""Shopify's webhooks.

From https://shopify.dev/docs/apps/build/webhooks/subscribe/https (the signature is over the body alone, with the app's client
secret; a 200 within five seconds) and https://shopify.dev/docs/apps/build/webhooks (headers). `X-Shopify-Webhook-Id` stays
the same when a webhook is sent again. `X-Shopify-Event-Id` is one for all webhooks that one act of a merchant leads to, also
of different topics, so it does not tell them apart.

Only the body is signed, and with one secret for all shops of an app: who owns a shop can send its webhooks under another
shop's name. So a source should be one shop's, with an address of its own. A new client secret is used only after up to an
hour: keep both.

The newer "events" have the same headers without `X-`, and an action of their own. No limit of size is documented; more than
a megabyte has been seen.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_LONGEST_TOPIC = 49
_NAMES = ("topic", "webhook-id", "triggered-at", "event-id", "shop-domain", "action")


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    prefix = "x-shopify-" if "x-shopify-topic" in raw.headers else "shopify-"
    topic = fields.header_field(raw, f"{prefix}topic", _LONGEST_TOPIC)
    if f"{prefix}action" in raw.headers:
        topic = f"{topic}/{fields.header_field(raw, f'{prefix}action', _LONGEST_TOPIC)}"
    triggered = f"{prefix}triggered-at"
    things, _, word = topic.rpartition("/")
    return Identity(
        *fields.entity(things, payload.get("id")),
        event_type=topic,
        action=fields.action_of(word),
        occurred_ns=fields.time_field(raw.headers, triggered, raw.received_at)
        if triggered in raw.headers
        else fields.arrival(raw),
        event_id=fields.header_field(raw, f"{prefix}webhook-id", fields.LONGEST_ID),
    )


_SAMPLE = {
    "X-Shopify-Topic": "{kind}/{last}",
    "X-Shopify-Webhook-Id": "{unique}",
    "X-Shopify-Triggered-At": "{time}",
}

PRESET = Preset(
    title="Shopify",
    shown_at="the app's client secret in the Dev Dashboard; for webhooks of the shop's own settings, below their list",
    read=fields.reader_of_object(_event),
    sample=json_sample({"id": "{number}"}, _SAMPLE),
    signatures=(
        Signature(header="X-Shopify-Hmac-Sha256", encoding="base64"),
        Signature(header="Shopify-Hmac-Sha256", encoding="base64"),
    ),
    max_body=4 * 1024 * 1024,
    kept_headers=frozenset(f"{x}shopify-{name}" for x in ("x-", "") for name in _NAMES),
)
