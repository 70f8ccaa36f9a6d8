"""The providers' own libraries sign what is let in, and accept what `inbox send` signs: any body, not only the fixed vectors.

Each is imported where it is used, as collecting all tests must not take longer.
"""

# ruff: noqa: PLC0415

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.clock import SystemClock
from inbox.config.values import Secret
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.fields import FORM
from tests.sources.presenting import NOW, a_request, a_secret, a_verifier, signed_sample, why_refused
from tests.sources.vectors import PUBLIC_URL

JSON = {"Content-Type": "application/json"}
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BODIES = st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT), max_size=4).map(
    lambda drawn: json.dumps(drawn, ensure_ascii=False)
)


def refused(name: str, secret: str, body: str, headers: Mapping[str, str], at: datetime = NOW) -> str | None:
    raw = a_request(name, body.encode(), {**JSON, **headers}, at)
    return why_refused(a_verifier(name, Secret(secret)), raw)


# --- libraries that sign


def by_stripe(body: str, at: datetime) -> dict[str, str]:
    import stripe

    sent = int(at.timestamp())
    return {"Stripe-Signature": stripe.WebhookSignature.generate_signature_header(body, KEY, sent)}


def by_slack(body: str, at: datetime) -> dict[str, str]:
    from slack_sdk.signature import SignatureVerifier

    sent = str(int(at.timestamp()))
    signature = SignatureVerifier(KEY).generate_signature(timestamp=sent, body=body) or ""
    return {"X-Slack-Request-Timestamp": sent, "X-Slack-Signature": signature}


def by_standard_webhooks(body: str, at: datetime) -> dict[str, str]:
    from standardwebhooks.webhooks import Webhook

    return _with_prefix("webhook", at, Webhook(KEY).sign("msg_1", at, body))


def by_svix(body: str, at: datetime) -> dict[str, str]:
    from svix.webhooks import Webhook

    return _with_prefix("svix", at, Webhook(KEY).sign("msg_1", at, body))


def _with_prefix(prefix: str, at: datetime, signature: str) -> dict[str, str]:
    signed = {"id": "msg_1", "timestamp": str(int(at.timestamp())), "signature": signature}
    return {f"{prefix}-{name}": value for name, value in signed.items()}


SIGNING_LIBRARIES = [
    ("stripe", by_stripe),
    ("slack", by_slack),
    ("standard-webhooks", by_standard_webhooks),
    ("standard-webhooks", by_svix),
    ("gitlab", by_standard_webhooks),
]


@pytest.mark.parametrize(("name", "sign"), SIGNING_LIBRARIES)
@given(body=BODIES)
def test_a_library_signs_any_body(name: str, sign: Callable[[str, datetime], dict[str, str]], body: str) -> None:
    assert refused(name, KEY, body, sign(body, NOW)) is None
    assert refused(name, KEY, f"{body} ", sign(body, NOW)) is not None


@pytest.mark.parametrize(
    ("name", "sign", "other"),
    [("standard-webhooks", by_svix, "webhook-id"), ("gitlab", by_standard_webhooks, "Idempotency-Key")],
)
def test_an_id_that_is_not_signed_does_not_count(
    name: str, sign: Callable[[str, datetime], dict[str, str]], other: str
) -> None:
    """A stranger who has seen a request could send it with another id beside the signed one."""
    body = '{"object_kind": "push"}'
    raw = a_request(name, body.encode(), {**JSON, **sign(body, NOW), other: "forged"})
    assert PRESETS[name].read(raw, None)[0].event_id == "msg_1"


@given(
    texts=st.lists(TEXT | st.none(), min_size=5, max_size=5),
    value=st.integers(0, 2**53),
    success=st.sampled_from(["true", "false"]),
)
def test_adyens_library_signs_any_fields(texts: list[str | None], value: int, success: str) -> None:
    from Adyen.util import generate_notification_sig

    names = ("pspReference", "originalReference", "merchantAccountCode", "merchantReference", "eventCode")
    item: dict[str, Any] = {name: text for name, text in zip(names, texts, strict=True) if text is not None}
    item |= {"amount": {"value": value, "currency": "EUR"}, "success": success, "reason": "not signed"}
    secret = a_secret(PRESETS["adyen"])
    item["additionalData"] = {"hmacSignature": generate_notification_sig(item, secret).decode()}
    body = json.dumps({"live": "false", "notificationItems": [{"NotificationRequestItem": item}]}, ensure_ascii=False)
    is_ambiguous = any(":" in item.get(name, "") for name in names if name != "merchantReference")
    assert (refused("adyen", secret, body, {}) is None) == (not is_ambiguous), "a colon is in no other field of Adyen's"


@given(body=BODIES, milliseconds=st.integers(-299_000, 299_000))
def test_hubspots_library_signs_any_body(body: str, milliseconds: int) -> None:
    from hubspot.utils.signature import Signature as HubSpot

    sent = str(int(NOW.timestamp()) * 1000 + milliseconds)
    signature = HubSpot.get_signature("secret", body, "v3", http_uri=PUBLIC_URL, http_method="POST", timestamp=sent)
    headers = {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": sent}
    assert refused("hubspot", "secret", body, headers) is None


@given(fields=st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=6))
def test_twilios_library_signs_any_form(fields: list[tuple[str, str]]) -> None:
    from twilio.request_validator import RequestValidator

    params: dict[str, list[str]] = {}
    for name, value in fields:
        params.setdefault(name, []).append(value)
    signature = RequestValidator("token").compute_signature(PUBLIC_URL, _MultiDict(params))
    headers = {"Content-Type": FORM, "X-Twilio-Signature": signature}
    assert refused("twilio", "token", urlencode(fields), headers) is None


class _MultiDict(dict[str, list[str]]):
    """A form as web frameworks hand it on: the library asks it for all values of a name."""

    def getall(self, name: str) -> list[str]:
        return self[name]


# --- libraries that only verify: they accept what is signed here


def accepted_by_mailgun(raw: RawRequest, secret: str) -> bool:
    from mailgun.security import SecurityGuard

    proof = json.loads(raw.body)["signature"]
    return SecurityGuard.verify_webhook(secret, proof["token"], proof["timestamp"], proof["signature"])


def accepted_by_square(raw: RawRequest, secret: str) -> bool:
    from square.utils.webhooks_helper import verify_signature

    signature = raw.headers["x-square-hmacsha256-signature"]
    return verify_signature(
        request_body=raw.body.decode(), signature_header=signature, signature_key=secret, notification_url=PUBLIC_URL
    )


VERIFYING = {"mailgun": accepted_by_mailgun, "square": accepted_by_square}


@pytest.mark.parametrize("name", VERIFYING)
def test_the_library_accepts_a_sample_that_is_signed_here_and_nothing_else(name: str) -> None:
    accepted, secret = VERIFYING[name], a_secret(PRESETS[name])
    raw = signed_sample(name, secret, SystemClock().now().replace(microsecond=0))  # mailgun's has the machine's clock
    assert why_refused(a_verifier(name, Secret(secret)), raw) is None
    assert accepted(raw, secret)
    assert not accepted(raw, a_secret(PRESETS[name], 1))


def test_the_documentation_says_of_every_preset_what_checks_it() -> None:
    page = (Path(__file__).parents[2] / "docs/reference/sources.md").read_text(encoding="utf-8")
    table = page.partition("| preset | checked by |")[2].partition("\n\n")[0]
    named = [name for row in table.splitlines() for name in re.findall(r"`([a-z0-9-]+)`", row.partition(" | ")[0])]
    assert sorted(named) == sorted(PRESETS)
    for name in {*VERIFYING, "discord", "sendgrid", "slack", "standard-webhooks", "stripe"}:
        assert re.search(rf"`{name}`.* on PyPI", table), name
