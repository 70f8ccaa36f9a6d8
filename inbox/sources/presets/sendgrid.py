"""SendGrid's Event Webhook, signed with a private key: one request holds many events.

From https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features (ECDSA
over time and body), https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event (the events), and the client
`sendgrid` on PyPI (`sendgrid/helpers/eventwebhook`): P-256 with SHA-256, the public key in base64.

It is not documented whether a retry is signed anew, and there are retries for a day: so a signature counts for a day. A
captured request adds nothing: `sg_event_id` is signed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.config.values import Duration
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample

_RETRIED_SECONDS = 25 * 3600


def _event(raw: RawRequest, event: Mapping[str, object], part: bytes | None, dedup: Sequence[str] | None) -> Identity:
    event_id = fields.text_field(event, "sg_event_id", fields.LONGEST_ID)
    message = event.get(
        "sg_message_id"
    )  # 14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0: what follows is the route
    kind, identifier = fields.entity("message", message.partition(".")[0] if isinstance(message, str) else None)
    return Identity(
        entity_type=kind,
        entity_id=identifier,
        event_type=fields.text_field(event, "event", fields.LONGEST_TYPE),
        action="update",
        occurred_ns=fields.epoch_field(event, "timestamp", raw.received_at),
        key_parts=fields.key_of(event, dedup, event_id),
        event_id=event_id,
        part=part,
    )


def sample(_kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make a request with one event about a message."""
    event = {
        "sg_event_id": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
        "sg_message_id": identifier,
        "event": event_type,
        "timestamp": int(at.timestamp()),
    }
    return Sample(msgspec.json.encode([event]))


PRESET = Preset(
    name="sendgrid",
    read=fields.reader_of_list(_event),
    has_own_time=True,
    sample=sample,
    signatures=(
        Signature(
            header="X-Twilio-Email-Event-Webhook-Signature",
            timestamp_header="X-Twilio-Email-Event-Webhook-Timestamp",
            tolerance=Duration(_RETRIED_SECONDS),
            content="{timestamp}{body}",
            algorithm="ecdsa",
            encoding="base64",
            key="base64",
        ),
    ),
    max_body=1024 * 1024,  # batches of 768 KB
    docs=PresetDocs(
        title="SendGrid (Event Webhook)",
        event_id="`sg_event_id` of each event",
        entity="the `message` by `sg_message_id` up to its first dot",
        event_type="`event`",
        time="`timestamp`",
        same_event="the id",
        sends="again for 24 hours; wants a 2xx",
        shown_at="the verification key: Settings, Mail Settings, Event Webhooks, Security features",
        unchecked="the retries, whether they are signed anew, the size of a batch",
    ),
)
