"""Notion's webhooks of connections.

From https://developers.notion.com/reference/webhooks (the signature over the body, with the `verification_token` as its key)
and https://developers.notion.com/reference/webhooks-events-delivery (the payload).

Notion generates the key and sends it in a first, unsigned request: `{"verification_token": "secret_…"}`. To receive it,
start the source with `unsigned = true` and an `auth` of kind `url_token`. Find the token in the stored event of type
`verification_token`, put it into `secrets`, remove `unsigned`, and confirm the token in Notion.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_TOKEN = "verification_token"  # noqa: S105  # the name of a member


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    if _TOKEN in event and "type" not in event:
        return Identity(None, None, _TOKEN, "other", fields.arrival(raw), fields.content_key(raw, raw.body))
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    things, _, word = event_type.rpartition(".")
    kind = fields.entity_type(fields.member(event, "entity", "type")) or things
    changed = word.endswith(("_updated", "moved", "locked"))
    return Identity(
        *fields.entity(kind, fields.member(event, "entity", "id")),
        event_type=event_type,
        action="create" if word == "undeleted" else "update" if changed else fields.classify_action(word),
        occurred_ns=fields.time_field(event, "timestamp", raw.received_at),
        event_id=fields.text_field(event, "id", fields.LONGEST_ID),
    )


PRESET = Preset(
    title="Notion",
    shown_at="the verification_token of Notion's first request, which inbox/sources/presets/notion.py describes",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"id": "{unique}", "timestamp": "{time}", "type": "{dotted}", "entity": {"id": "{id}", "type": "{kind}"}}
    ),
    signatures=(Signature(header="X-Notion-Signature", prefix="sha256="),),
)
