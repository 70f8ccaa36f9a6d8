"""DocuSign Connect's messages in JSON (event message delivery mode "Send individual messages", SIM).

From https://developers.docusign.com/platform/webhooks/connect/validate/ (base64 of the HMAC-SHA256 of the body, one
header for each key of the account) and https://developers.docusign.com/platform/webhooks/connect/json-sim-event-model/
(the payload). The first header is signed with the account's oldest key, so list every key of the account in `secrets`.

Messages have no id. A retry has another `retryCount`, but the same time, event and entity, which are the key. For a
message about neither an envelope nor a template, such as one of Click, the body is the key, so a retry becomes a second
event.
"""

from __future__ import annotations

import hashlib

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_ACTIONS = fields.actions(
    create=("envelope-created", "template-created"), delete=("envelope-deleted", "envelope-purge", "template-deleted")
)


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "event", fields.LONGEST_TYPE)
    data = event.get("data")
    kind, identifier = fields.entity("envelope", fields.member(data, "envelopeId"))
    if kind is None:
        kind, identifier = fields.entity("template", fields.member(data, "templateId"))
    about = identifier or hashlib.sha256(raw.body).hexdigest()
    known = event_type.startswith(("envelope-", "recipient-", "template-"))
    return Identity(
        kind,
        identifier,
        event_type=event_type,
        action=_ACTIONS.get(event_type, "update" if known else "other"),
        occurred_ns=fields.time_field(event, "generatedDateTime", raw.received_at),
        key_parts=(event_type, about, fields.entity_id(fields.member(data, "recipientId")) or ""),
        key_has_time=True,
    )


PRESET = Preset(
    title="DocuSign (Connect, JSON)",
    shown_at="an HMAC key of Connect: Settings, Connect, Connect Keys",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample({"event": "{type}", "generatedDateTime": "{time}", "data": {"envelopeId": "{id}"}}),
    signatures=(Signature(header="X-DocuSign-Signature-1", encoding="base64"),),
    max_body=16 * 1024 * 1024,  # no limit is documented; the body may contain documents
)
