"""Stripe's webhooks: snapshot events with their object, and thin events that only name it.

From https://docs.stripe.com/webhooks and https://docs.stripe.com/api/events, and the client `stripe` on PyPI
(`stripe/_webhook.py`: the whole secret is the key, `v1` is HMAC-SHA256 over time, dot and body, five minutes). A header
may have several `v1` while a secret is being rolled. Retries have the same event id, but a new signature.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    thin = isinstance(event.get("created"), str)
    thing = event.get("related_object") if thin else fields.member(event, "data", "object")
    identifier = fields.entity_id(fields.member(thing, "id"))
    account = fields.entity_id(event.get("account"))
    if account and identifier:  # Connect: merchants choose the ids of coupons and products, so ids may collide
        identifier = f"{account}/{identifier}"
    return Identity(
        *fields.entity(fields.member(thing, "type" if thin else "object"), identifier),
        event_type=event_type,
        action=fields.classify_action(event_type.rpartition(".")[2]),
        occurred_ns=(fields.time_field if thin else fields.epoch_field)(event, "created", raw.received_at),
        event_id=fields.text_field(event, "id", fields.LONGEST_ID),
    )


PRESET = Preset(
    title="Stripe",
    shown_at="the Signing secret of the endpoint, whsec_…: Workbench, Webhooks",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"id": "{unique}", "type": "{type}", "created": "{s}", "data": {"object": {"id": "{id}", "object": "{kind}"}}}
    ),
    signatures=(
        Signature(
            header="Stripe-Signature", prefix="v1=", separator=",", timestamp_prefix="t=", content="{timestamp}.{body}"
        ),
    ),
    max_body=1024 * 1024,  # none is documented
)
