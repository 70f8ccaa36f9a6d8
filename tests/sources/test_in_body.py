"""Signatures that stand in the body: Adyen's notifications, Mailgun's tokens."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest

from inbox.config.values import Duration, Secret
from inbox.errors import ConfigError, InvalidEvent
from inbox.events.event import Identity, RawRequest
from inbox.sources import PRESETS
from inbox.sources.base import Sample
from inbox.sources.credentials import verifier_of
from inbox.sources.signing import MOST_PARTS
from tests.sources.presenting import NOW, a_request, a_secret, a_source, a_verifier, read, signed_sample, why_refused

JSON = {"Content-Type": "application/json"}
ADYEN_KEY = "44782DEF547AAA06C910C43932B1EB0C71FC68D9D0C057550C48EC2ACF6BA056"
ITEM: dict[str, Any] = {  # of the tests of Adyen's own library, test/UtilTest.py
    "pspReference": "7914073381342284",
    "merchantReference": "TestPayment-1407325143704",
    "merchantAccountCode": "TestMerchant",
    "amount": {"currency": "EUR", "value": 1130},
    "eventCode": "AUTHORISATION",
    "success": "true",
    "eventDate": "2019-05-06T17:15:34.121+02:00",
    "operations": ["CANCEL", "CAPTURE", "REFUND"],
    "paymentMethod": "visa",
    "additionalData": {"hmacSignature": "coqCmt/IZ4E3CzPvMY8zTjQVL5hYJUiBRg8UU+iCWo0="},
}
MAILGUN_KEY = "key-of-webhooks"
TOKEN = "a8ce0edb2dd8301dee6c2405235584e45aa91d1e9f979f3de0"
MAILGUN: dict[str, Any] = {  # its members as in Mailgun's documentation; the signature by OpenSSL
    "signature": {
        "token": TOKEN,
        "timestamp": "1529006854",
        "signature": "701f8f60a0b5123d1a4ee6976a5a1371a9aa591c135ec7d0bc6bf02469f94764",
    },
    "event-data": {
        "event": "failed",
        "severity": "permanent",
        "timestamp": 1529006854.329574,
        "id": "DACSsAdVSeGpLid7TN03WA",
        "message": {"headers": {"message-id": "20130503182626.18666.16540@example.com"}},
    },
}
MAILED = datetime.fromtimestamp(1_529_006_854, UTC)


def notified(*items: object) -> RawRequest:
    listed = [{"NotificationRequestItem": item} for item in items]
    return a_request("adyen", json.dumps({"live": "false", "notificationItems": listed}).encode(), JSON)


def mailed(at: datetime = MAILED, /, **changes: object) -> RawRequest:
    proof = {**MAILGUN["signature"], **changes}
    return a_request("mailgun", json.dumps({**MAILGUN, "signature": proof}).encode(), JSON, at)


def why(raw: RawRequest, *secrets: Secret) -> str | None:
    return why_refused(a_verifier(raw.source, *secrets), raw)


def identities(raw: RawRequest) -> tuple[Identity, ...]:
    return PRESETS[raw.source].read(raw, None)


# --- Adyen


def test_adyens_own_example_is_let_in_and_each_signed_field_counts() -> None:
    assert why(notified(ITEM), Secret(ADYEN_KEY)) is None
    assert why(notified(ITEM), Secret("00" * 32)) is not None
    texts = ("pspReference", "merchantReference", "merchantAccountCode", "eventCode")
    amounts: list[object] = [{"currency": "USD", "value": 1130}, {"currency": "EUR", "value": 11300}, {}, None]
    changes: list[dict[str, Any]] = [
        *[{name: f"{ITEM[name]}x"} for name in texts],
        *({"amount": amount} for amount in amounts),
        {"originalReference": "1"},
        {"success": "false"},
    ]
    for change in changes:
        assert why(notified({**ITEM, **change}), Secret(ADYEN_KEY)) is not None, change


def test_a_field_that_adyen_does_not_sign_is_no_part_of_the_key() -> None:
    """Whoever has a notification could send it again with another time: it is a duplicate all the same."""
    again = {**ITEM, "eventDate": "2020-01-01T00:00:00Z", "reason": "x", "additionalData": {**ITEM["additionalData"]}}
    assert why(notified(again), Secret(ADYEN_KEY)) is None
    ((first,), (second,)) = (read(notified(item)) for item in (ITEM, again))
    assert first.dedup_key == second.dedup_key


def test_no_field_of_adyens_can_be_moved_into_its_neighbour() -> None:
    """No colon is escaped: `a:b` and `c` give the text of `a` and `b:c`. Only the merchant's own reference may have one."""
    colons = {**ITEM, "merchantReference": "order:1::2", "additionalData": {}}
    body = PRESETS["adyen"].signer(Sample(notified(colons).body), ADYEN_KEY, NOW).body  # type: ignore[misc]
    (entry,) = json.loads(body)["notificationItems"]
    signed = entry["NotificationRequestItem"]
    assert why(notified(signed), Secret(ADYEN_KEY)) is None
    texts = ["7914073381342284", "", "TestMerchant", "order", "1", "", "2", "1130", "EUR", "AUTHORISATION", "true"]
    names = ("pspReference", "originalReference", "merchantAccountCode", "merchantReference")
    for first in range(1, 5):  # fields of the text that each name holds, the first one's among them
        moved = {**signed, "pspReference": ":".join(texts[:first])}
        rest = [*texts[first : first + 2], ":".join(texts[first + 2 : 7])]
        moved |= dict(zip(names[1:], rest, strict=True))
        assert (why(notified(moved), Secret(ADYEN_KEY)) is None) == (first == 1), moved
    later = {**signed, "merchantReference": "order", "eventCode": "1130:EUR:AUTHORISATION"}
    later["amount"] = {"value": "1:", "currency": "2"}
    assert why(notified(later), Secret(ADYEN_KEY)) is not None


def test_one_notification_that_is_not_signed_rejects_them_all() -> None:
    forged = {**ITEM, "pspReference": "1"}
    for items in ((ITEM, forged), (forged, ITEM), (ITEM, {}), (ITEM, None)):
        assert why(notified(*items), Secret(ADYEN_KEY)) is not None
    assert why(notified(*[ITEM] * MOST_PARTS), Secret(ADYEN_KEY)) is None
    assert "more than 100 parts" in (why(notified(*[ITEM] * (MOST_PARTS + 1)), Secret(ADYEN_KEY)) or "")


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({}, ("payment", "7914073381342284", "AUTHORISATION", "create")),
        ({"success": "false"}, ("payment", "7914073381342284", "AUTHORISATION.failed", "update")),
        ({"success": False}, ("payment", "7914073381342284", "AUTHORISATION.failed", "update")),
        (
            {"eventCode": "REFUND", "originalReference": "791", "pspReference": "2"},
            ("payment", "791", "REFUND", "update"),
        ),
        (
            {"eventCode": "REPORT_AVAILABLE", "pspReference": "settlement.csv"},
            ("report", "settlement.csv", "REPORT_AVAILABLE", "create"),
        ),
    ],
)
def test_a_notification_of_adyen(change: dict[str, object], expected: tuple[str, ...]) -> None:
    (identity,) = identities(notified({**ITEM, **change}))
    assert (identity.entity_type, identity.entity_id, identity.event_type, identity.action) == expected
    assert identity.occurred_ns == 1_557_155_734_121_000_000


def test_several_notifications_of_adyen_are_stored_each_by_itself() -> None:
    events = identities(notified(ITEM, {**ITEM, "eventCode": "CAPTURE"}))
    assert [each.event_type for each in events] == ["AUTHORISATION", "CAPTURE"]
    assert [len(json.loads(each.part or b"")["notificationItems"]) for each in events] == [1, 1]
    for broken in ({**ITEM, "eventCode": ""}, {**ITEM, "pspReference": "x" * 256}, "x"):
        with pytest.raises(InvalidEvent):
            identities(notified(ITEM, broken))


# --- Mailgun


def test_mailguns_time_and_token_are_signed_and_the_event_is_not() -> None:
    assert why(mailed(), Secret(MAILGUN_KEY)) is None
    assert why(mailed(timestamp=1_529_006_854), Secret(MAILGUN_KEY)) is None, "a number, as its documentation has it"
    own: dict[str, Any] = {"signature": "0" * 64, "parent-signature": MAILGUN["signature"]["signature"]}
    assert why(mailed(**own), Secret(MAILGUN_KEY)) is None, "a subaccount's is proven by the key of its parent"
    for change in ({"token": TOKEN[:-1]}, {"timestamp": "1529006855"}, {"signature": "0" * 64}, {"token": ""}):
        assert why(mailed(**change), Secret(MAILGUN_KEY)) is not None, change
    other = json.loads(mailed().body)
    other["event-data"]["id"] = "forged"
    forged = msgspec.structs.replace(mailed(), body=json.dumps(other).encode())
    assert why(forged, Secret(MAILGUN_KEY)) is None, "which the documentation of the preset says"
    ((first,), (second,)) = (read(each) for each in (mailed(), forged))
    assert first.dedup_key == second.dedup_key, "so the token is the key: the forged one is a duplicate"


def test_a_signature_of_mailgun_counts_as_long_as_its_retries_last_unless_a_source_shortens_that_time() -> None:
    for hours, let_in in ((-9, True), (-9.01, False), (9, True), (9.01, False)):
        raw = mailed(MAILED + timedelta(hours=hours))
        assert (why(raw, Secret(MAILGUN_KEY)) is None) == let_in
    source = msgspec.structs.replace(a_source("mailgun", Secret(MAILGUN_KEY)), tolerance=Duration(60))
    verifier = verifier_of(source, PRESETS["mailgun"], {})
    assert why_refused(verifier, mailed(MAILED + timedelta(seconds=60))) is None
    assert "61 s before" in (why_refused(verifier, mailed(MAILED + timedelta(seconds=61))) or "")


def test_an_event_of_mailgun() -> None:
    (identity,) = identities(mailed())
    assert (identity.entity_type, identity.entity_id) == ("message", "20130503182626.18666.16540@example.com")
    assert (identity.event_type, identity.event_id) == ("failed.permanent", "DACSsAdVSeGpLid7TN03WA")
    assert identity.key_parts == (TOKEN,)
    (by_id,) = PRESETS["mailgun"].read(mailed(), ["id"])
    assert by_id.key_parts == ("DACSsAdVSeGpLid7TN03WA",)


# --- both


NO_PLACE: dict[str, bytes] = {
    "nothing": b"",
    "no JSON": b"\xff",
    "another JSON": b"{}",
    "nested": b"[" * 100_000,
    "an empty list": b'{"notificationItems": [], "signature": {}}',
    "other types": b'{"notificationItems": [{"NotificationRequestItem": 1}], "signature": []}',
    "a number of 5,000 digits": b'{"notificationItems": [{"NotificationRequestItem": {"amount": {"value": %b}}}],'
    b' "signature": {"token": "x", "timestamp": %b}}' % (b"1" * 5_000, b"1" * 5_000),
}


@pytest.mark.parametrize("body", NO_PLACE.values(), ids=NO_PLACE)
@pytest.mark.parametrize("name", ["adyen", "mailgun"])
def test_a_body_without_a_place_for_the_signature_proves_nothing(name: str, body: bytes) -> None:
    secret = a_secret(PRESETS[name])
    assert "is missing" in (why(a_request(name, body, JSON), Secret(secret)) or "")
    signer: Callable[[Sample, str, datetime], Sample] | None = PRESETS[name].signer
    assert signer is not None
    with pytest.raises(ConfigError):
        signer(Sample(body), secret, NOW)


def test_a_key_that_is_not_hex_is_a_mistake_that_does_not_show_it() -> None:
    with pytest.raises(ConfigError, match="a secret is not hex") as caught:
        a_verifier("adyen", Secret("not-hex"))
    assert "not-hex" not in str(caught.value)


@pytest.mark.parametrize("name", ["adyen", "mailgun"])
def test_signing_anew_changes_nothing_else(name: str) -> None:
    first, second = (json.loads(signed_sample(name, a_secret(PRESETS[name], n)).body) for n in (0, 1))
    assert first != second
    for each in (first, second):
        each.get("signature", {}).pop("signature", None)
        for item in each.get("notificationItems", ()):
            item["NotificationRequestItem"].pop("additionalData")
    assert first == second
