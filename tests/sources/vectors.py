"""For every preset that signs, a request that its provider (or the provider's own library) has signed.

What a provider publishes is here as it stands there. Where it publishes nothing, the request was signed by its library, or
by plain HMAC as its documentation says, outside of this project's code.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime

import msgspec


class Vector(msgspec.Struct, frozen=True):
    secret: str
    headers: Mapping[str, str]
    body: bytes
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    source: str = ""
    """Origin of the vector."""

    @property
    def lower(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}


_SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121."
    b"803a0bc887a14d10d2c447fce8b6703c"
)
_JSON = {"Content-Type": "application/json"}
_FORM = {"Content-Type": "application/x-www-form-urlencoded"}

VECTORS: Mapping[str, tuple[Vector, ...]] = {
    "github": (
        Vector(
            "It's a Secret to Everybody",
            {
                **_JSON,
                "X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17",
            },
            b"Hello, World!",
            source="docs.github.com, Validating webhook deliveries",
        ),
        Vector(
            "It's a Secret to Everybody",
            {
                **_FORM,
                "X-Hub-Signature-256": "sha256=fddacfb7d7106fd32f5d94dc8846df6694e2ed5e2aed3806b11ab82cccff8d01",
                "X-GitHub-Event": "ping",
                "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
            },
            b"payload=%7B%22zen%22%3A%22Keep+it+logically+awesome.%22%2C%22hook_id%22%3A1%7D",
            source="HMAC; accepted by gidgethub 6.0.0",
        ),
    ),
    "gitlab": (
        Vector(
            "whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q=",
            {
                **_JSON,
                "Idempotency-Key": "908a6d9e-45fd-46c8-97e6-c4f350f219dd",
                "webhook-id": "908a6d9e-45fd-46c8-97e6-c4f350f219dd",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1,p777r7PMFzu7ylGC1pXmH/QF8ryXtwOtYdbKRic4S4g=",
            },
            b'{"object_kind":"push"}',
            datetime.fromtimestamp(1_614_265_330, UTC),
            "standardwebhooks 1.1.0, with the key of GitLab's own tests",
        ),
    ),
    "shopify": (
        Vector(
            "hush",
            {
                **_JSON,
                "X-Shopify-Topic": "orders/create",
                "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
                "X-Shopify-Hmac-SHA256": "qBvrsZF7RfB1iS6BX6IHqJTp5L911P7intnPeTPsH0I=",
            },
            b'{"id":820982911946154508}',
            source="HMAC, as shopify.dev says",
        ),
    ),
    "slack": (
        Vector(
            "8f742231b10e8888abcd99yyyzzz85a5",
            {
                **_FORM,
                "X-Slack-Request-Timestamp": "1531420618",
                "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
            },
            _SLACK_BODY,
            datetime.fromtimestamp(1_531_420_618, UTC),
            "docs.slack.dev, Verifying requests from Slack",
        ),
    ),
    "standard-webhooks": (
        Vector(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            {
                **_JSON,
                "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "webhook-timestamp": "1614265330",
                "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            },
            b'{"test": 2432232314}',
            datetime.fromtimestamp(1_614_265_330, UTC),
            "the specification's own library",
        ),
        Vector(
            "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
            {
                **_JSON,
                "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
                "svix-timestamp": "1614265330",
                "svix-signature": "v1a,AAAA v2,x v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
            },
            b'{"test": 2432232314}',
            datetime.fromtimestamp(1_614_265_330, UTC),
            "docs.svix.com",
        ),
    ),
    "stripe": (
        Vector(
            "whsec_test_secret",
            {
                **_JSON,
                "Stripe-Signature": "t=1614265330,"
                "v1=3c5817089d739023dd6190f70a3757e04f7a2fd8b5dab12c2e000f51970dccff,v0=aa",
            },
            b'{"id":"evt_test_webhook","object":"event"}',
            datetime.fromtimestamp(1_614_265_330, UTC),
            "stripe 16.1.0, WebhookSignature.generate_signature_header",
        ),
    ),
}
