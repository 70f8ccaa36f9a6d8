"""Linear's webhooks.

From https://linear.app/developers/webhooks: the signature is over the body alone; `Linear-Delivery` is the id of the
delivery and not signed; `webhookTimestamp`, in the body, is the time of sending. A failed delivery is sent again after
a minute, an hour and six hours. It is not documented whether a retry has a new time, so the tolerance covers all
retries.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Action, Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_ID = "linear-delivery"
_ACTIONS: Mapping[str, Action] = {"create": "create", "remove": "delete", "restore": "create", "update": "update"}


class _SentWebhook(msgspec.Struct, rename="camel"):
    webhook_timestamp: int | None = None


def read_sent_at(body: bytes) -> bytes:
    """Return the time of sending in milliseconds; empty if it is unreadable."""
    sent = fields.decode_as(_SentWebhook, body)
    return b"" if sent is None or sent.webhook_timestamp is None else b"%d" % sent.webhook_timestamp


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    things = fields.text_field(event, "type", fields.LONGEST_WORD)
    word = fields.text_field(event, "action", fields.LONGEST_WORD)
    timed = isinstance(event.get("createdAt"), str)
    return Identity(
        *fields.entity(things, fields.member(event, "data", "id")),
        event_type=f"{things}.{word}",
        action=_ACTIONS.get(word, "other"),
        occurred_ns=fields.time_field(event, "createdAt", raw.received_at)
        if timed
        else fields.epoch_field(event, "webhookTimestamp", raw.received_at, per_second=1000),
        event_id=fields.header_field(raw, _ID, fields.LONGEST_ID),
    )


_SAMPLE = {"action": "{last}", "type": "{kind}", "createdAt": "{time}", "webhookTimestamp": "{ms}"}

PRESET = Preset(
    title="Linear",
    shown_at="the signing secret of the webhook: Settings, API",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample({**_SAMPLE, "data": {"id": "{id}"}}, {"Linear-Delivery": "{unique}"}),
    signatures=(Signature(header="Linear-Signature", timestamp_unit="ms"),),
    tolerance=8 * 3600,
    signed_at=read_sent_at,
    max_body=1024 * 1024,  # no limit is documented; the body contains an issue's description
    kept_headers=frozenset({_ID, "linear-event"}),
)
