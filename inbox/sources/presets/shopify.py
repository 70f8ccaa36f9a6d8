"""Shopify's webhooks.

From https://shopify.dev/docs/apps/build/webhooks/subscribe/https (the signature is over the body alone, with the app's
client secret; a 200 within five seconds) and https://shopify.dev/docs/apps/build/webhooks (headers).
`X-Shopify-Webhook-Id` stays the same in retries. `X-Shopify-Event-Id` is shared by all webhooks of one merchant action,
even of different topics, so it can't distinguish them.

Only the body is signed, with one secret for all shops of an app, so the owner of one shop can send webhooks under
another shop's name. Give each shop its own source and URL. A new client secret takes effect within an hour: keep both
meanwhile.

The newer "events" have the same headers without `X-`, and an action field. No size limit is documented; over a megabyte
has been seen.
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
        action=fields.classify_action(word),
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
    shown_at="the app's client secret in the Dev Dashboard; for webhooks created in the shop's settings, below their list",
    read=fields.make_object_reader(_event),
    sample=json_sample({"id": "{number}"}, _SAMPLE),
    signatures=(
        Signature(header="X-Shopify-Hmac-Sha256", encoding="base64"),
        Signature(header="Shopify-Hmac-Sha256", encoding="base64"),
    ),
    max_body=4 * 1024 * 1024,
    kept_headers=frozenset(f"{x}shopify-{name}" for x in ("x-", "") for name in _NAMES),
)
