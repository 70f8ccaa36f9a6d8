"""Zendesk's webhooks of events.

From https://developer.zendesk.com/documentation/webhooks/verifying/ (base64 of the HMAC-SHA256 of time and body) and
https://developer.zendesk.com/api-reference/webhooks/event-types/webhook-event-types/ (the payload).

A webhook connected to a trigger or an automation has a custom body. Such a source needs the preset `custom` with the
signature of this preset.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    subject = event.get("subject")  # zen:ticket:35436
    kind, _, identifier = (subject if isinstance(subject, str) else "").removeprefix("zen:").partition(":")
    return Identity(
        *fields.entity(kind, identifier),
        event_type=event_type,
        action=_action(event_type.rpartition(".")[2]),
        occurred_ns=fields.time_field(event, "time", raw.received_at),
        event_id=fields.text_field(event, "id", fields.LONGEST_ID),
    )


def _action(word: str) -> Action:
    """Return the action on the entity: only `created` and `deleted` are its own; others, such as `comment_added`, update it."""
    part, _, done = word.rpartition("_")
    action = fields.classify_action(done)
    if not part or part in {"soft", "permanently"}:
        return action
    return "other" if action == "other" else "update"


PRESET = Preset(
    title="Zendesk (event webhooks)",
    shown_at="the webhook's signing secret: Admin Center, Apps and integrations, Webhooks",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"type": "zen:event-type:{dotted}", "id": "{unique}", "time": "{time}", "subject": "zen:{kind}:{id}"}
    ),
    signatures=(
        Signature(
            header="X-Zendesk-Webhook-Signature",
            timestamp_header="X-Zendesk-Webhook-Signature-Timestamp",
            timestamp_unit="rfc3339",
            content="{timestamp}{body}",
            encoding="base64",
        ),
    ),
)
