"""Discord's webhook events of an app, signed with Discord's private key.

From https://discord.com/developers/docs/events/webhook-events (the payload, `PING`, a 204 within three seconds, retries
for ten minutes) and https://discord.com/developers/docs/interactions/overview (Ed25519 over time and body, keys in
hex). Discord also sends wrong signatures on purpose and expects a 401.

Events have no id: the time in microseconds and the body are the key. Interactions need custom responses, so this preset
does not support them.
"""

from __future__ import annotations

import hashlib
import re

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Handshake, HandshakeResponse, Mac, Preset, json_sample

_WITHOUT_OFFSET = re.compile(r"[0-9-]{10}T[0-9:.]+")
_PING = 0


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event = fields.object_field(payload, "event")
    event_type, at = fields.text_field(event, "type", fields.LONGEST_TYPE), event.get("timestamp")
    if isinstance(at, str) and _WITHOUT_OFFSET.fullmatch(at):
        event = {**event, "timestamp": f"{at}Z"}
    return Identity(
        *_entity(event_type, event.get("data")),
        event_type=event_type,
        action=fields.classify_action(event_type.rpartition("_")[2]),
        occurred_ns=fields.time_field(event, "timestamp", raw.received_at),
        key_parts=(hashlib.sha256(raw.body).hexdigest(),),
        key_has_time=True,
    )


def _entity(event_type: str, data: object) -> fields.Entity:
    """Return the entitlement or message of the event, otherwise the user."""
    for word in ("entitlement", "message"):
        if word.upper() in event_type:
            return fields.entity(word, fields.member(data, "id"))
    user = fields.member(data, "user", "id")
    return fields.entity("user", fields.member(data, "user_id") if user is None else user)


def greet(raw: RawRequest, _mac: Mac) -> HandshakeResponse | None:
    """Return the empty response to a `PING`."""
    if b'"event"' in raw.body or fields.json_object(raw.body).get("type") != _PING:
        return None
    return HandshakeResponse(204)


PRESET = Preset(
    title="Discord (webhook events)",
    shown_at="the app's Public Key: General Information, in the Developer Portal",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"type": 1, "event": {"type": "{type}", "timestamp": "{time}", "data": {"user": {"id": "{id}"}}}}
    ),
    signatures=(
        Signature(
            header="X-Signature-Ed25519",
            timestamp_header="X-Signature-Timestamp",
            content="{timestamp}{body}",
            algorithm="ed25519",
            key="hex",
        ),
    ),
    status=204,
    answers_empty=True,
    handshake=Handshake(answer=greet, docs="POST of a `PING` (`type` 0), signed: a 204 comes back"),
)
