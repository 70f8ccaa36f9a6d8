"""Standard Webhooks 1.0.0, with its own header names and Svix's older ones.

From https://github.com/standard-webhooks/standard-webhooks/blob/main/spec/standard-webhooks.md, and its Python library
(`standardwebhooks` on PyPI): the key is the base64 after `whsec_`; id, time and body are signed, joined by dots; the
header lists `v1,…`, separated by spaces. Retries have the same id, but their own time. Senders with a private key
(Ed25519) list `v1a,…` instead or in addition; the public key is the base64 after `whpk_`.

The specification recommends, but does not require, a JSON object with `type`, `timestamp` and `data`. All of these are
optional here; only the id is required.
"""

from __future__ import annotations

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Preset, json_sample

_PREFIXES = ("webhook", "svix")
WITHOUT_TYPE = "message"
"""The event type of a message without one."""


def signature(prefix: str) -> Signature:
    """Return the signature of the specification, with header names that begin with `prefix`."""
    return Signature(
        header=f"{prefix}-signature",
        prefix="v1,",
        separator=" ",
        timestamp_header=f"{prefix}-timestamp",
        id_header=f"{prefix}-id",
        content="{id}.{timestamp}.{body}",
        encoding="base64",
        key="base64",
        key_prefix="whsec_",
    )


def with_private_key(prefix: str) -> Signature:
    """Return the same signature by a private key of the sender, whose public key is configured."""
    return msgspec.structs.replace(signature(prefix), prefix="v1a,", algorithm="ed25519", key_prefix="whpk_")


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event_type = fields.text_field(payload, "type", fields.LONGEST_TYPE) if "type" in payload else WITHOUT_TYPE
    things, _, word = event_type.rpartition(".")
    data, identifier = payload.get("data"), fields.member(payload, "data", "id")
    kinds = fields.member(data, "object"), fields.member(data, "type"), things
    timed = isinstance(payload.get("timestamp"), str)
    return Identity(
        *fields.first_entity((kind, identifier) for kind in kinds),
        event_type=event_type,
        action=fields.classify_action(word),
        occurred_ns=fields.time_field(payload, "timestamp", raw.received_at) if timed else fields.arrival(raw),
        event_id=fields.header_field(raw, _id_header(raw), fields.LONGEST_ID),
    )


def _id_header(raw: RawRequest) -> str:
    """Return the signed id header, as an attacker could add the other one."""
    for proof in ("signature", "id"):
        for prefix in _PREFIXES:
            if f"{prefix}-{proof}" in raw.headers:
                return f"{prefix}-id"
    return f"{_PREFIXES[0]}-id"


PRESET = Preset(
    title="Standard Webhooks, Svix",
    shown_at="the signing secret of the endpoint, whsec_…, in the provider's list of webhooks",
    read=fields.make_object_reader(_event),
    has_own_time=True,
    sample=json_sample(
        {"type": "{type}", "timestamp": "{time}", "data": {"id": "{id}", "type": "{kind}"}}, message_id="msg_{unique}"
    ),
    signatures=(*map(signature, _PREFIXES), *map(with_private_key, _PREFIXES)),
    kept_headers=frozenset(f"{prefix}-id" for prefix in _PREFIXES),
)
