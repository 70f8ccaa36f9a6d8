"""Notion's webhooks of a connection.

From https://developers.notion.com/reference/webhooks (the signature over the body, with the `verification_token` as its key)
and https://developers.notion.com/reference/webhooks-events-delivery (the payload).

Notion makes the key itself and sends it in a first, unsigned request: `{"verification_token": "secret_…"}`. To receive it,
start the source with `unsigned = true` and an `auth` of kind `url_token`. The token is then in the stored event, of type
`verification_token`. Put it into `secrets`, remove `unsigned`, and confirm the token in Notion.
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

_TOKEN = "verification_token"  # noqa: S105  # the name of a member


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: `id`, `type` or `timestamp` is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    if _TOKEN in payload and "type" not in payload:
        return (_verification(raw, payload, dedup),)
    event_id = fields.text_field(payload, "id", fields.LONGEST_ID)
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE)
    things, _, word = event_type.rpartition(".")
    kind, identifier = fields.entity(
        fields.entity_type(fields.member(payload, "entity", "type")) or things, fields.member(payload, "entity", "id")
    )
    changed = word.endswith(("_updated", "moved", "locked"))
    return (
        Identity(
            entity_type=kind,
            entity_id=identifier,
            event_type=event_type,
            action="create" if word == "undeleted" else "update" if changed else fields.action_of(word),
            occurred_ns=fields.time_field(payload, "timestamp", raw.received_at),
            key_parts=fields.key_of(payload, dedup, event_id),
            event_id=event_id,
        ),
    )


def _verification(raw: RawRequest, payload: dict[str, object], dedup: Sequence[str] | None) -> Identity:
    return Identity(
        entity_type=None,
        entity_id=None,
        event_type=_TOKEN,
        action="other",
        occurred_ns=fields.arrival(raw),
        key_parts=fields.key_of(payload, dedup, *fields.content_key(raw, raw.body)),
    )


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event with little more than the ids; `kind` stands before a type that has no dot."""
    event = {
        "id": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
        "timestamp": rfc3339(at, "milliseconds"),
        "type": event_type if "." in event_type else f"{kind}.{event_type}",
        "entity": {"id": identifier, "type": kind},
        "attempt_number": 1,
    }
    return Sample(msgspec.json.encode(event))


PRESET = Preset(
    name="notion",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(Signature(header="X-Notion-Signature", prefix="sha256="),),
    docs=PresetDocs(
        title="Notion",
        event_id="`id`",
        entity="`entity` (`type`, `id`)",
        event_type="`type`",
        time="`timestamp`",
        same_event="the id",
        sends="again, up to 8 times in about 24 hours; wants a 2xx",
        shown_at="the verification_token of Notion's first request, which inbox/sources/presets/notion.py describes",
        unchecked="the number of retries",
    ),
)
