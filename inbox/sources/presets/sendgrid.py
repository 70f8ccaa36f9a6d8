"""SendGrid's Event Webhook, signed with a private key, with many events in each request.

From https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/getting-started-event-webhook-security-features (ECDSA
over time and body), https://www.twilio.com/docs/sendgrid/for-developers/tracking-events/event (the events), and the client
`sendgrid` on PyPI (`sendgrid/helpers/eventwebhook`): P-256 with SHA-256, the public key in base64.

It is not documented whether retries are signed anew. They continue for a day, so a signature is valid for a day.
Replaying a captured request has no effect, as `sg_event_id` is signed.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    # 14c5d75ce93.dfd.64b469.filter0001.16648.5515E0B88.0: after the first dot comes the internal route
    message = event.get("sg_message_id")
    return Identity(
        *fields.entity("message", message.partition(".")[0] if isinstance(message, str) else None),
        event_type=fields.text_field(event, "event", fields.LONGEST_TYPE),
        action="update",
        occurred_ns=fields.epoch_field(event, "timestamp", raw.received_at),
        event_id=fields.text_field(event, "sg_event_id", fields.LONGEST_ID),
    )


PRESET = Preset(
    title="SendGrid (Event Webhook)",
    shown_at="the verification key: Settings, Mail Settings, Event Webhooks, Security features",
    read=fields.make_list_reader(_event),
    has_own_time=True,
    sample=json_sample([{"sg_event_id": "{unique}", "sg_message_id": "{id}", "event": "{type}", "timestamp": "{s}"}]),
    signatures=(
        Signature(
            header="X-Twilio-Email-Event-Webhook-Signature",
            timestamp_header="X-Twilio-Email-Event-Webhook-Timestamp",
            content="{timestamp}{body}",
            algorithm="ecdsa",
            encoding="base64",
            key="base64",
        ),
    ),
    tolerance=25 * 3600,
    max_body=1024 * 1024,  # batches of 768 KB
)
