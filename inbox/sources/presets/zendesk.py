"""Zendesk's webhooks of events.

From https://developer.zendesk.com/documentation/webhooks/verifying/ (base64 of the HMAC-SHA256 of time and body) and
https://developer.zendesk.com/api-reference/webhooks/event-types/webhook-event-types/ (the payload).

A webhook that is connected to a trigger or an automation has the body that its author wrote. Such a source needs the
preset `custom` with the signature of this one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `id`, `type` or `time` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    event_id = fields.text_field(payload, "id", fields.LONGEST_ID)
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    subject = payload.get("subject")  # zen:ticket:35436
    kind, _, identifier = (subject if isinstance(subject, str) else "").removeprefix("zen:").partition(":")
    kind_, identifier_ = fields.entity(kind, identifier)
    return (
        Identity(
            entity_type=kind_,
            entity_id=identifier_,
            event_type=event_type,
            action=_action(event_type.rpartition(".")[2]),
            occurred_ns=fields.time_field(payload, "time", raw.received_at),
            key_parts=fields.key_of(payload, dedup, event_id),
            event_id=event_id,
        ),
    )


def _action(word: str) -> Action:
    """Return the action on the entity: `created` and `deleted` are its own, `comment_added` changes it."""
    part, _, done = word.rpartition("_")
    action = fields.action_of(done)
    if not part or part in {"soft", "permanently"}:
        return action
    return "other" if action == "other" else "update"


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event with little more than the ids; `kind` stands before a type that has no dot."""
    event = {
        "type": f"zen:event-type:{event_type if '.' in event_type else f'{kind}.{event_type}'}",
        "id": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
        "time": rfc3339(at, "milliseconds"),
        "zendesk_event_version": "2022-11-06",
        "subject": f"zen:{kind}:{identifier}",
        "detail": {"id": identifier},
        "event": {},
    }
    return Sample(msgspec.json.encode(event))


PRESET = Preset(
    name="zendesk",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(
        Signature(
            header="X-Zendesk-Webhook-Signature",
            timestamp_header="X-Zendesk-Webhook-Signature-Timestamp",
            timestamp_unit="rfc3339",
            content="{timestamp}{body}",
            encoding="base64",
        ),
    ),
    docs=PresetDocs(
        title="Zendesk (event webhooks)",
        event_id="`id`",
        entity="the second and third part of `subject`: `zen:ticket:35436`",
        event_type="`type`",
        time="`time`",
        same_event="the id",
        sends="again after a timeout, a 409, or a 429 or 503 with `Retry-After`; wants a 2xx within 12 s",
        shown_at="the webhook's signing secret: Admin Center, Apps and integrations, Webhooks",
        unchecked="the retries, the time that it waits",
    ),
)
