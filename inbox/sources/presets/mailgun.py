"""Mailgun's message webhooks in JSON. Only a time and a token in the body are signed, not the event.

From https://documentation.mailgun.com/docs/mailgun/user-manual/webhooks/securing-webhooks (the signature, a
subaccount's `parent-signature`, single-use tokens),
https://documentation.mailgun.com/docs/mailgun/user-manual/events/webhooks (the retries), and `mailgun` on PyPI
(`mailgun/security.py`), which verifies our signatures.

An attacker who captured a signature could attach another event. The token is therefore the dedup key, as Mailgun
advises: any event with a known token is a duplicate. A retry with a new token would become a second event with the same
`event_id`; `dedup = ["id"]` makes the event's id the key instead.

It is not documented whether retries are signed anew. They continue for eight hours, so a signature is valid for nine.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

import msgspec

from inbox.config.sources import Signature
from inbox.errors import ConfigError, RequestError
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields, signing
from inbox.sources.base import Preset, Sample, json_sample

RETRIED_SECONDS = 9 * 3600
_INNER = "event-data"


class _Proof(msgspec.Struct):
    timestamp: str | int = ""
    token: str = ""
    signature: str = ""
    parent: str = msgspec.field(name="parent-signature", default="")


class _Webhook(msgspec.Struct):
    signature: _Proof


def read_signed_parts(body: bytes) -> list[signing.SignedPart]:
    """Return the time and the token with their signatures; empty if they are unreadable."""
    webhook = fields.decode_as(_Webhook, body)
    if webhook is None or not webhook.signature.token:
        return []
    proof = webhook.signature
    at = str(proof.timestamp).encode("utf-8", "surrogatepass")
    return [signing.SignedPart(at + proof.token.encode("utf-8", "surrogatepass"), (proof.signature, proof.parent), at)]


SCHEME = signing.Scheme(Signature(header="signature.signature"), read_signed_parts, tolerance=RETRIED_SECONDS)


def sign(sample: Sample, secret: str, at: datetime) -> Sample:
    """Sign the token and the time of a sample.

    Raises:
        ConfigError: it is not a JSON object, or has no token.
    """
    try:
        payload = fields.json_object(sample.body)
    except RequestError as error:
        raise ConfigError(f"the body can't be signed: {error.detail}") from None
    proof = {"timestamp": str(int(at.timestamp())), "token": fields.member(payload, "signature", "token")}
    (signature,) = signing.sign_parts(SCHEME, secret, msgspec.json.encode({"signature": proof}))
    return msgspec.structs.replace(
        sample, body=msgspec.json.encode({**payload, "signature": {**proof, "signature": signature}})
    )


def _event(raw: RawRequest, payload: fields.Payload) -> Identity:
    event, signature = fields.object_field(payload, _INNER), payload.get("signature")
    word = fields.text_field(event, "event", fields.LONGEST_WORD)
    severity = event.get("severity")
    token = fields.text_field(signature if isinstance(signature, dict) else {}, "token", fields.LONGEST_ID)
    return Identity(
        *fields.entity("message", fields.member(event, "message", "headers", "message-id")),
        event_type=fields.entity_type(f"{word}.{severity}" if isinstance(severity, str) else word) or word,
        action="create" if word == "accepted" else "update",
        occurred_ns=fields.epoch_field(event, "timestamp", raw.received_at),
        key_parts=(token,),
        event_id=fields.entity_id(event.get("id")),
    )


_SAMPLE = {"event": "{type}", "id": "{unique}", "message": {"headers": {"message-id": "{id}"}}, "timestamp": "{s}"}

PRESET = Preset(
    title="Mailgun",
    shown_at="the webhook signing key: Mailgun's dashboard, API security",
    read=fields.make_object_reader(_event, _INNER),
    sample=json_sample({"signature": {"token": "{unique}-{type}"}, _INNER: _SAMPLE}),
    prover=partial(signing.InBodyProof, SCHEME),
    signer=sign,
    max_body=1024 * 1024,  # no limit is documented; the body may contain a message's user variables
)
