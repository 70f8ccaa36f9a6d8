"""Square's webhooks.

From https://developer.squareup.com/docs/webhooks/step3validate (the signature is over the notification URL and the
body), https://developer.squareup.com/docs/webhooks/overview (the payload, the retries), and the client `squareup` on
PyPI (`square/utils/webhooks_helper.py`). Retries have the same `event_id`.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "type", fields.LONGEST_TYPE)
    deleted = fields.member(event, "data", "deleted") is True
    return Identity(
        *fields.entity(fields.member(event, "data", "type"), fields.member(event, "data", "id")),
        event_type=event_type,
        action="delete" if deleted else fields.classify_action(event_type.rpartition(".")[2]),
        occurred_ns=fields.time_field(event, "created_at", raw.received_at),
        event_id=fields.text_field(event, "event_id", fields.LONGEST_ID),
    )


PRESET = Preset(
    title="Square",
    shown_at="the subscription's signature key: Developer Console, Webhooks, Subscriptions",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"type": "{dotted}", "event_id": "{unique}", "created_at": "{time}", "data": {"type": "{kind}", "id": "{id}"}}
    ),
    signatures=(Signature(header="x-square-hmacsha256-signature", content="{url}{body}", encoding="base64"),),
    starter="""\
secrets = ["env:{variable}"]
public_url = "https://hooks.example.com/webhooks/square"  # the subscription's notification URL, which is signed""",
)
