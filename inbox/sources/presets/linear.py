"""Linear's webhooks.

From https://linear.app/developers/webhooks: the signature is over the body alone; `Linear-Delivery` is the id of the
delivery and not signed; `webhookTimestamp`, in the body, is the time of sending. A failed delivery is sent again after a
minute, an hour and six hours. It is not documented whether a retry has a time of its own: so the time counts for as long as there
are retries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Signature
from inbox.config.values import Duration
from inbox.events.event import Action, Identity, RawRequest
from inbox.events.timestamps import rfc3339, to_nanoseconds
from inbox.sources import fields
from inbox.sources.base import Preset, PresetDocs, Sample

_ID = "linear-delivery"
_RETRIED_SECONDS = 8 * 3600
_ACTIONS: Mapping[str, Action] = {"create": "create", "remove": "delete", "restore": "create", "update": "update"}


class _SentWebhook(msgspec.Struct, rename="camel"):
    webhook_timestamp: int | None = None


_DECODER = msgspec.json.Decoder(_SentWebhook)


def signed_at(body: bytes) -> bytes:
    """Return the time of sending, in milliseconds; empty where it can't be read."""
    try:
        sent = _DECODER.decode(body).webhook_timestamp
    except (msgspec.DecodeError, ValueError, RecursionError):  # ValueError: a text that is not UTF-8
        return b""
    return b"" if sent is None else b"%d" % sent


def read(raw: RawRequest, dedup: Sequence[str] | None) -> tuple[Identity, ...]:
    """Return the one event of a body.

    Raises:
        Unreadable: the body is not strict JSON.
        InvalidEvent: the header with the id, `type`, `action` or the time is missing or wrong.
    """
    payload = fields.json_object(raw.body)
    delivery = fields.header_field(raw, _ID, fields.LONGEST_ID)
    things = fields.text_field(payload, "type", fields.LONGEST_WORD)
    word = fields.text_field(payload, "action", fields.LONGEST_WORD)
    timed = isinstance(payload.get("createdAt"), str)
    kind, identifier = fields.entity(things, fields.member(payload, "data", "id"))
    return (
        Identity(
            entity_type=kind,
            entity_id=identifier,
            event_type=f"{things}.{word}",
            action=_ACTIONS.get(word, "other"),
            occurred_ns=fields.time_field(payload, "createdAt", raw.received_at)
            if timed
            else fields.epoch_field(payload, "webhookTimestamp", raw.received_at, per_second=1000),
            key_parts=fields.key_of(payload, dedup, delivery),
            event_id=delivery,
        ),
    )


def sample(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
    """Make an event; the action is what stands behind the type's last dot."""
    event = {
        "action": event_type.rpartition(".")[2],
        "type": kind,
        "createdAt": rfc3339(at, "milliseconds"),
        "data": {"id": identifier},
        "webhookTimestamp": to_nanoseconds(at) // 1_000_000,
    }
    return Sample(msgspec.json.encode(event), {"Linear-Delivery": f"sample-{identifier}-{at:%Y%m%d%H%M%S}"})


PRESET = Preset(
    name="linear",
    read=read,
    has_own_time=True,
    sample=sample,
    signatures=(Signature(header="Linear-Signature", timestamp_unit="ms", tolerance=Duration(_RETRIED_SECONDS)),),
    signed_at=signed_at,
    max_body=1024 * 1024,  # none is documented; an issue's description is in it
    kept_headers=frozenset({_ID, "linear-event"}),
    docs=PresetDocs(
        title="Linear",
        event_id="header `Linear-Delivery`",
        entity="`type` and `data.id`",
        event_type="`type` and `action`, with a dot between: `Issue.update`",
        time="`createdAt`, else `webhookTimestamp`",
        same_event="the id",
        sends="again after a minute, an hour and six hours; wants a 200 within 5 s",
        shown_at="the signing secret of the webhook: Settings, API",
        unchecked="the retries and whether they have a time of their own, the time that it waits",
    ),
)
