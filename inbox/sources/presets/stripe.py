"""Stripe's webhooks: events with a snapshot of their object, and thin events that only name it.

From https://docs.stripe.com/webhooks and https://docs.stripe.com/api/events, and the client `stripe` on PyPI
(`stripe/_webhook.py`: the whole secret is the key, `v1` is HMAC-SHA256 over time, dot and body, five minutes). A header may
have several `v1`, while a secret is being rolled. An event keeps its id however often it is sent; every attempt is signed
anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `id`, `type` or `created` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    event_id = fields.text_field(payload, "id", fields.LONGEST_ID)
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    thin = isinstance(payload.get("created"), str)
    snapshot = fields.member(payload, "data", "object")
    related = payload.get("related_object")
    kind = fields.entity_type(fields.member(related, "type") if thin else fields.member(snapshot, "object"))
    identifier = fields.entity_id(fields.member(related, "id") if thin else fields.member(snapshot, "id"))
    account = fields.entity_id(payload.get("account"))
    if account and identifier:  # of Connect: merchants choose ids of coupons and products, so two may have the same
        identifier = fields.entity_id(f"{account}/{identifier}")
    return (
        Identity(
            entity_type=kind if identifier else None,
            entity_id=identifier if kind else None,
            event_type=event_type,
            action=fields.action_of(event_type.rpartition(".")[2]),
            occurred_ns=(fields.time_field if thin else fields.epoch_field)(payload, "created", raw.received_at),
            key_parts=fields.key_of(payload, dedup, event_id),
            event_id=event_id,
        ),
    )


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event with little more than the ids."""
    return Sample(
        msgspec.json.encode(
            {
                "id": f"evt_sample_{identifier}_{at:%Y%m%d%H%M%S}",
                "object": "event",
                "type": event_type,
                "created": int(at.timestamp()),
                "data": {"object": {"id": identifier, "object": kind}},
            }
        )
    )


PRESET = Preset(
    name="stripe",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(
        Signature(
            header="Stripe-Signature", prefix="v1=", separator=",", timestamp_prefix="t=", content="{timestamp}.{body}"
        ),
    ),
    max_body=1024 * 1024,  # none is documented
    docs=PresetDocs(
        title="Stripe",
        event_id="`id`",
        entity="`data.object` (`object`, `id`), of a thin event `related_object` (`type`, `id`); of Connect `account/id`",
        event_type="`type`",
        time="`created`",
        same_event="the id",
        sends="again for up to three days; wants a 2xx",
        shown_at="the Signing secret of the endpoint, whsec_…: Workbench, Webhooks",
    ),
)
