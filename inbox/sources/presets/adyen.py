"""Adyen's payment webhooks ("Standard"), with an HMAC in each notification.

From https://docs.adyen.com/development-resources/webhooks/verify-hmac-signatures (the signed fields, the key in hex),
https://docs.adyen.com/development-resources/webhooks/handle-webhook-events and
https://www.adyen.com/knowledge-hub/webhooks-accept-2xx (the response: a 2xx, or formerly `[accepted]`; ten seconds),
https://docs.adyen.com/development-resources/webhooks/troubleshoot (the retries), and `Adyen` on PyPI (`Adyen/util.py`),
whose tests have the vector.

Eight fields of a notification are signed, but neither its time nor `additionalData`. The dedup key therefore consists
of signed fields: a duplicate has the same `pspReference`, `eventCode` and `success`. Captures and refunds belong to
their payment's entity, which they name in `originalReference`.

The signed text joins fields by colons without escaping them. A colon in any field but the merchant's own reference is
therefore rejected: an attacker with a captured notification could shift its fields and forge another event.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial

import msgspec

from inbox.config.sources import Signature
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields, signing
from inbox.sources.base import Preset, Sample, json_sample

_LONGEST_CODE = 80
_ITEM = "NotificationRequestItem"
_REPORT = "REPORT_AVAILABLE"
"""Event code of a report, whose `pspReference` is a file name."""


class _Amount(msgspec.Struct, frozen=True):
    value: int | str | None = None
    currency: str | None = None


class _Additional(msgspec.Struct, frozen=True):
    hmacSignature: str = ""  # noqa: N815  # Adyen's names, here and below


class _AdyenItem(msgspec.Struct, frozen=True):
    pspReference: str | None = None  # noqa: N815
    originalReference: str | None = None  # noqa: N815
    merchantAccountCode: str | None = None  # noqa: N815
    merchantReference: str | None = None  # noqa: N815
    amount: _Amount = _Amount()
    eventCode: str | None = None  # noqa: N815
    success: str | bool | None = None
    additionalData: _Additional = _Additional()  # noqa: N815

    def to_signed_part(self) -> signing.SignedPart:
        """Return the signed fields and their signature, or no fields if a colon makes them ambiguous."""
        success = str(self.success).lower() if isinstance(self.success, bool) else self.success
        before = (self.pspReference, self.originalReference, self.merchantAccountCode)
        after = (self.amount.value, self.amount.currency, self.eventCode, success)
        values = ["" if each is None else str(each) for each in (*before, self.merchantReference, *after)]
        own = len(before)
        has_one_reading = not any(":" in each for each in (*values[:own], *values[own + 1 :]))
        content = ":".join(values).encode("utf-8", "surrogatepass")
        return signing.SignedPart(content, (self.additionalData.hmacSignature,) if has_one_reading else ())


class _Entry(msgspec.Struct):
    NotificationRequestItem: _AdyenItem


class _Items(msgspec.Struct):
    notificationItems: list[_Entry]  # noqa: N815


def read_signed_parts(body: bytes) -> list[signing.SignedPart]:
    """Return the signed fields and the signature of each notification; empty if the body is unreadable.

    It stops one beyond the maximum, as strangers could send a million.
    """
    items = fields.decode_as(_Items, body)
    entries = [] if items is None else items.notificationItems[: signing.MOST_PARTS + 1]
    return [each.NotificationRequestItem.to_signed_part() for each in entries]


SCHEME = signing.Scheme(
    Signature(header="additionalData.hmacSignature", encoding="base64", key="hex"),
    read_signed_parts,
)


def sign(sample: Sample, secret: str, _at: datetime) -> Sample:
    """Sign each notification of a sample.

    Raises:
        ConfigError: the sample has no notifications, or the secret is not hex.
    """
    signatures = signing.sign_parts(SCHEME, secret, sample.body)
    payload = msgspec.json.decode(sample.body)
    for each, signature in zip(payload["notificationItems"], signatures, strict=True):
        each["NotificationRequestItem"].setdefault("additionalData", {})["hmacSignature"] = signature
    return msgspec.structs.replace(sample, body=msgspec.json.encode(payload))


def _event(raw: RawRequest, entry: fields.Payload) -> Identity:
    item = fields.object_field(entry, _ITEM)
    code = fields.text_field(item, "eventCode", _LONGEST_CODE)
    reference = fields.text_field(item, "pspReference", fields.LONGEST_ID)
    failed = item.get("success") in ("false", False)
    is_new = code == _REPORT or (code == "AUTHORISATION" and not failed)
    original = fields.entity_id(item.get("originalReference"))
    return Identity(
        *fields.entity("report" if code == _REPORT else "payment", original or reference),
        event_type=f"{code}.failed" if failed else code,
        action="create" if is_new else "update",
        occurred_ns=fields.time_field(item, "eventDate", raw.received_at),
        key_parts=(reference, code, "false" if failed else "true"),
        event_id=reference,
    )


_SAMPLE = {"eventCode": "{type}", "eventDate": "{time}", "pspReference": "{unique}", "originalReference": "{id}"}
_REST = {"amount": {"currency": "EUR", "value": 1000}, "merchantAccountCode": "Sample", "merchantReference": "sample"}

PRESET = Preset(
    title="Adyen (standard webhooks)",
    shown_at="the HMAC key of the webhook: Customer Area, Developers, Webhooks, Security",
    read=fields.make_list_reader(_event, "notificationItems", inner=_ITEM),
    sample=json_sample({"live": "false", "notificationItems": [{_ITEM: {**_SAMPLE, **_REST, "success": "true"}}]}),
    prover=partial(signing.InBodyProof, SCHEME),
    signer=sign,
    acknowledgement=("text/plain; charset=utf-8", b"[accepted]"),
    acknowledged="`[accepted]`",
)
