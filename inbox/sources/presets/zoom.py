"""Zoom's webhooks.

From https://developers.zoom.us/docs/api/webhooks/ (the signature, the validation of the URL, a 200 or 204 within three
seconds) and https://developers.zoom.us/blog/webhook-delays (retries after 5, 20 and 60 minutes).

Events have no id: the time in milliseconds and the body are the key. Zoom validates the URL when it is configured and
every 72 hours, by a signed POST of `endpoint.url_validation` that expects the HMAC of its token.
"""

from __future__ import annotations

import hashlib

import msgspec

from inbox.config.sources import Signature
from inbox.errors import InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Handshake, HandshakeResponse, Mac, Preset, json_sample

_VALIDATION = "endpoint.url_validation"
_LONGEST_TOKEN = 1000


def _event(raw: RawRequest, event: fields.Payload) -> Identity:
    event_type = fields.text_field(event, "event", fields.LONGEST_TYPE)
    kind, _, word = event_type.partition(".")
    thing = fields.member(event, "payload", "object")
    return Identity(
        *fields.entity(kind, fields.entity_id(fields.member(thing, "id")) or fields.member(thing, "uuid")),
        event_type=event_type,
        action=fields.classify_action(word),
        occurred_ns=fields.epoch_field(event, "event_ts", raw.received_at, per_second=1000),
        key_parts=(hashlib.sha256(raw.body).hexdigest(),),
        key_has_time=True,
    )


def greet(raw: RawRequest, mac: Mac) -> HandshakeResponse | None:
    """Return the token of a validation, and its HMAC with the secret that signed it."""
    if _VALIDATION.encode() not in raw.body:
        return None
    payload = fields.json_object(raw.body)
    if payload.get("event") != _VALIDATION:
        return None
    token = fields.member(payload, "payload", "plainToken")
    if not isinstance(token, str) or not 0 < len(token) <= _LONGEST_TOKEN or not token.isascii():
        raise InvalidEvent("payload.plainToken must be a token", field="payload.plainToken")
    answer = {"plainToken": token, "encryptedToken": mac(token.encode()).hex()}
    return HandshakeResponse(200, body=msgspec.json.encode(answer))


PRESET = Preset(
    title="Zoom",
    shown_at="the app's Secret Token: Features, Access, in the App Marketplace",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample({"event": "{dotted}", "event_ts": "{ms}", "payload": {"object": {"id": "{id}"}}}),
    signatures=(
        Signature(
            header="x-zm-signature",
            prefix="v0=",
            timestamp_header="x-zm-request-timestamp",
            content="v0:{timestamp}:{body}",
        ),
    ),
    handshake=Handshake(
        answer=greet,
        docs="POST of `endpoint.url_validation`, signed: `plainToken` and its HMAC `encryptedToken` come back",
    ),
)
