"""DocuSign Connect's messages in JSON (event message delivery mode "Send individual messages", SIM).

From https://developers.docusign.com/platform/webhooks/connect/validate/ (base64 of the HMAC-SHA256 of the body, one header
for each key of the account) and https://developers.docusign.com/platform/webhooks/connect/json-sim-event-model/ (the payload).
The first header is signed with the account's oldest key: list each key of the account in `secrets`.

A message has no id. `retryCount` differs in a retry, the time and what happened to whom do not: they are the key. A message
about neither an envelope nor a template, such as one of Click, has its body as the key instead: a retry is then a second event.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.events.timestamps import rfc3339
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample

_ACTIONS: Mapping[str, Action] = {
    "envelope-created": "create",
    "envelope-deleted": "delete",
    "envelope-purge": "delete",
    "template-created": "create",
    "template-deleted": "delete",
}


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `event` or `generatedDateTime` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    event_type = fields.text_field(payload, "event", fields.LONGEST_TYPE)
    data = payload.get("data")
    kind, identifier = fields.entity("envelope", fields.member(data, "envelopeId"))
    if kind is None:
        kind, identifier = fields.entity("template", fields.member(data, "templateId"))
    about = identifier or hashlib.sha256(raw.body).hexdigest()
    recipient = fields.entity_id(fields.member(data, "recipientId")) or ""
    known = event_type.startswith(("envelope-", "recipient-", "template-"))
    return (
        Identity(
            entity_type=kind,
            entity_id=identifier,
            event_type=event_type,
            action=_ACTIONS.get(event_type, "update" if known else "other"),
            occurred_ns=fields.time_field(payload, "generatedDateTime", raw.received_at),
            key_parts=fields.key_of(payload, dedup, event_type, about, recipient),
            key_has_time=dedup is None,
        ),
    )


def sample(_kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make a message about an envelope."""
    event = {
        "event": event_type,
        "apiVersion": "v2.1",
        "retryCount": 0,
        "generatedDateTime": rfc3339(at, "milliseconds"),
        "data": {"envelopeId": identifier},
    }
    return Sample(msgspec.json.encode(event))


PRESET = Preset(
    name="docusign",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(Signature(header="X-DocuSign-Signature-1", encoding="base64"),),
    max_body=16 * 1024 * 1024,  # none is documented; documents may be in it
    docs=PresetDocs(
        title="DocuSign (Connect, JSON)",
        entity="the `envelope` by `data.envelopeId`, else the `template` by `data.templateId`",
        event_type="`event`",
        time="`generatedDateTime`",
        same_event="its time, type, entity (without one, the body) and `data.recipientId`",
        sends="again for up to 15 days; wants a 2xx within 100 s",
        shown_at="an HMAC key of Connect: Settings, Connect, Connect Keys",
        unchecked="the retries, the time that it waits",
    ),
)
