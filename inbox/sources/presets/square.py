"""Square's webhooks.

From https://developer.squareup.com/docs/webhooks/step3validate (the signature is over the notification URL and the body),
https://developer.squareup.com/docs/webhooks/overview (the payload, the retries), and the client `squareup` on PyPI
(`square/utils/webhooks_helper.py`). An event keeps its `event_id` however often it is sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `event_id`, `type` or `created_at` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    event_id = fields.text_field(payload, "event_id", fields.LONGEST_ID)
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    kind, identifier = fields.entity(fields.member(payload, "data", "type"), fields.member(payload, "data", "id"))
    deleted = fields.member(payload, "data", "deleted") is True
    return (
        Identity(
            entity_type=kind,
            entity_id=identifier,
            event_type=event_type,
            action="delete" if deleted else fields.action_of(event_type.rpartition(".")[2]),
            occurred_ns=fields.time_field(payload, "created_at", raw.received_at),
            key_parts=fields.key_of(payload, dedup, event_id),
            event_id=event_id,
        ),
    )


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event with little more than the ids; `kind` stands before a type that has no dot."""
    event = {
        "merchant_id": "sample",
        "type": event_type if "." in event_type else f"{kind}.{event_type}",
        "event_id": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
        "created_at": rfc3339(at, "milliseconds"),
        "data": {"type": kind, "id": identifier},
    }
    return Sample(msgspec.json.encode(event))


PRESET = Preset(
    name="square",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(Signature(header="x-square-hmacsha256-signature", content="{url}{body}", encoding="base64"),),
    starter="""\
secrets = ["env:{variable}"]
public_url = "https://hooks.example.com/webhooks/square"  # the subscription's notification URL, which is signed""",
    docs=PresetDocs(
        title="Square",
        event_id="`event_id`",
        entity="`data.type` and `data.id`",
        event_type="`type`",
        time="`created_at`",
        same_event="the id",
        sends="again, up to 11 times in 24 hours; wants a 2xx within 10 s",
        shown_at="the subscription's signature key: Developer Console, Webhooks, Subscriptions",
        unchecked="the number of retries",
    ),
)
