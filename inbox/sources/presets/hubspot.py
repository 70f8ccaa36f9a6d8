"""HubSpot's webhooks of apps, with version 3 signatures and up to 100 events in each request.

From https://developers.hubspot.com/docs/apps/legacy-apps/authentication/validating-requests (the signature is over
method, URL, body and time, with the app's client secret; five minutes),
https://developers.hubspot.com/docs/api-reference/legacy/webhooks/guide (the events, their retries), and the client
`hubspot-api-client` on PyPI (`hubspot/utils/signature.py`), which signed the vector.

An `eventId` may not be unique, and an app receives the events of all accounts that installed it. So the key includes
the time, the subscription, the account and the object. Retries differ only in `attemptNumber`, which is not part of the
key.
"""

from __future__ import annotations

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_ACTIONS = fields.actions(
    create=("creation", "restore"),
    update=("associationChange", "merge", "propertyChange"),
    delete=("deletion", "privacyDeletion"),
)
_KEY = ("subscriptionId", "portalId", "objectId", "fromObjectId", "toObjectId", "propertyName")
"""Members that distinguish events, in addition to time and id; retries repeat them."""


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "subscriptionType", fields.LONGEST_TYPE)
    number = fields.dedup_part(event, "eventId")
    things, _, word = event_type.partition(".")
    # objectTypeId has the type of `object.creation`, such as 0-1
    kind = event.get("objectTypeId", things) if things == "object" else things
    return Identity(
        *fields.entity(kind, event.get("objectId", event.get("fromObjectId"))),
        event_type=event_type,
        action=_ACTIONS.get(word, "other"),
        occurred_ns=fields.epoch_field(event, "occurredAt", raw.received_at, per_second=1000),
        key_parts=(number, *(fields.entity_id(event.get(name)) or "" for name in _KEY)),
        key_has_time=True,
        event_id=fields.entity_id(number),
    )


PRESET = Preset(
    title="HubSpot",
    shown_at="the app's client secret: Auth, in its settings",
    read=fields.make_list_reader(_event),
    has_own_time=True,
    sample=json_sample(
        [{"eventId": "{s}", "subscriptionType": "{dotted}", "objectId": "{number}", "occurredAt": "{ms}"}]
    ),
    signatures=(
        Signature(
            header="X-HubSpot-Signature-v3",
            timestamp_header="X-HubSpot-Request-Timestamp",
            timestamp_unit="ms",
            content="{method}{url}{body}{timestamp}",
            encoding="base64",
        ),
    ),
    max_body=1024 * 1024,  # no limit is documented, but 100 events fit
    starter="""\
secrets = ["env:{variable}"]
public_url = "https://hooks.example.com/webhooks/hubspot"  # the app's target URL, which is signed""",
)
