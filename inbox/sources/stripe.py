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

from inbox.config.source import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources.base import Preset, PresetDocs, Sample
from inbox.sources.fields import (
    LONGEST_ID,
    LONGEST_TYPE,
    action_of,
    entity_id,
    entity_type,
    epoch_field,
    json_object,
    key_of,
    member,
    text_field,
    time_field,
)


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `id`, `type` or `created` is missing or wrong.
    """
    payload = json_object(raw.body)
    event_id = text_field(payload, "id", LONGEST_ID)
    event_type = text_field(payload, "type", LONGEST_TYPE)
    thin = isinstance(payload.get("created"), str)
    snapshot = member(payload, "data", "object")
    related = payload.get("related_object")
    kind = entity_type(member(related, "type") if thin else member(snapshot, "object"))
    identifier = entity_id(member(related, "id") if thin else member(snapshot, "id"))
    account = entity_id(payload.get("account"))
    if account and identifier:  # of Connect: merchants choose ids of coupons and products, so two may have the same
        identifier = entity_id(f"{account}/{identifier}")
    return (
        Identity(
            entity_type=kind if identifier else None,
            entity_id=identifier if kind else None,
            event_type=event_type,
            action=action_of(event_type.rpartition(".")[2]),
            occurred_ns=(time_field if thin else epoch_field)(payload, "created", raw.received_at),
            key_parts=key_of(payload, dedup, event_id),
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
            header="Stripe-Signature",
            prefix="v1=",
            separator=",",
            timestamp_prefix="t=",
            content="{timestamp}.{body}",
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
    ),
)
