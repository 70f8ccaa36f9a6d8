"""Requests signed by each provider or its own library, for every preset with a signature.

Published requests are copied unchanged. Others were signed by the provider's library, or by plain HMAC as its
documentation says, outside this project's code.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

import msgspec


class Vector(msgspec.Struct, frozen=True):
    preset: str
    secret: str
    signed: Mapping[str, str]
    """Headers except the content type."""
    body: bytes
    at: datetime = datetime(2026, 1, 1, tzinfo=UTC)
    source: str = ""
    """Origin of the vector."""

    @property
    def headers(self) -> dict[str, str]:
        form = not self.body.startswith((b"{", b"[", b"Hello"))
        return {"Content-Type": f"application/{'x-www-form-urlencoded' if form else 'json'}", **self.signed}

    @property
    def lower(self) -> dict[str, str]:
        return {name.lower(): value for name, value in self.headers.items()}


_SLACK_BODY = (
    b"token=xyzz0WbapA4vBCDEFasx0q6G&team_id=T1DC2JH3J&team_domain=testteamnow&channel_id=G8PSS9T3V&channel_name=foobar"
    b"&user_id=U2CERLKJA&user_name=roadrunner&command=%2Fwebhook-collect&text=&response_url=https%3A%2F%2Fhooks.slack.com"
    b"%2Fcommands%2FT1DC2JH3J%2F397700885554%2F96rGlfmibIGlgcZRskXaIFfN&trigger_id=398738663015.47445629121."
    b"803a0bc887a14d10d2c447fce8b6703c"
)
PUBLIC_URL = "https://hooks.example.com/webhooks/a"
"""URL called by the senders that sign it."""
_AT = datetime.fromtimestamp(1_614_265_330, UTC)
_SQUARE_BODY = (
    b'{"merchant_id":"6SSW7HV8K2ST5","type":"payment.created","event_id":"13b867cf-db3d-4b1c-90b6-2f32a9d78124",'
    b'"created_at":"2020-02-06T21:27:34.308Z","data":{"type":"payment","id":"KkAkhdMsgzn59SM8A89WgKwekxLZY"}}'
)
_SENDGRID_BODY = (
    b'[{"email":"hello@world.com","event":"dropped","reason":"Bounced Address",'
    b'"sg_event_id":"ZHJvcC0xMDk5NDkxOS1MUnpYbF9OSFN0T0doUTRrb2ZTbV9BLTA",'
    b'"sg_message_id":"LRzXl_NHStOGhQ4kofSm_A.filterdrecv-p3mdw1-756b745b58-kmzbl-18-5F5FC76C-9.0",'
    b'"smtp-id":"<LRzXl_NHStOGhQ4kofSm_A@ismtpd0039p1iad1.sendgrid.net>","timestamp":1600112492}]\r\n'
)

_ALL = (
    Vector(
        "discord",
        "03a107bff3ce10be1d70dd18e74bc09967e4d6309ba50d5f1ddc8664125531b8",
        {
            "X-Signature-Timestamp": "1614265330",
            "X-Signature-Ed25519": "f64475bd9a83c3ebbbc63032dbd1c877963443e2c3b9b496dee289f9daaf83de"
            "b71b065e6c900ebf66f9c1534e3aefcc0318a28fb6607d7f8f37bf902e77080e",
        },
        b'{"version":1,"application_id":"1234560123453231555","type":0}',
        _AT,
        "PyNaCl 1.6.2; accepted by discord-interactions 0.4.0, verify_key",
    ),
    Vector(
        "docusign",
        "DocuSignKey",
        {"X-DocuSign-Signature-1": "4nd/PSzsuFt8c7PRgIb3QLmrZP62kuTq69iIqDpoRGQ="},
        b'{"event":"envelope-completed","data":{"envelopeId":"e1"}}',
        source="HMAC, as developers.docusign.com says",
    ),
    Vector(
        "github",
        "It's a Secret to Everybody",
        {"X-Hub-Signature-256": "sha256=757107ea0eb2509fc211221cce984b8a37570b6d7586c22c46f4379c8b043e17"},
        b"Hello, World!",
        source="docs.github.com; accepted by @octokit/webhooks-methods 6.0.0",
    ),
    Vector(
        "github",
        "It's a Secret to Everybody",
        {
            "X-Hub-Signature-256": "sha256=fddacfb7d7106fd32f5d94dc8846df6694e2ed5e2aed3806b11ab82cccff8d01",
            "X-GitHub-Event": "ping",
            "X-GitHub-Delivery": "72d3162e-cc78-11e3-81ab-4c9367dc0958",
        },
        b"payload=%7B%22zen%22%3A%22Keep+it+logically+awesome.%22%2C%22hook_id%22%3A1%7D",
        source="HMAC; accepted by gidgethub 6.0.0",
    ),
    Vector(
        "gitlab",
        "whsec_dGVzdHRlc3R0ZXN0dGVzdHRlc3R0ZXN0dGVzdHRlc3Q=",
        {
            "Idempotency-Key": "908a6d9e-45fd-46c8-97e6-c4f350f219dd",
            "webhook-id": "908a6d9e-45fd-46c8-97e6-c4f350f219dd",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,p777r7PMFzu7ylGC1pXmH/QF8ryXtwOtYdbKRic4S4g=",
        },
        b'{"object_kind":"push"}',
        _AT,
        "standardwebhooks 1.1.0, with the key of GitLab's own tests",
    ),
    Vector(
        "hubspot",
        "cfc68c5d-4f1f-4b8d-9d0f-8c1f6f0d7a11",
        {
            "X-HubSpot-Request-Timestamp": "1614265330123",
            "X-HubSpot-Signature-v3": "v6qGu9uEkEbNhQgks4qPPRMm9nfI4aonS/jXOwPjl+g=",
        },
        b'[{"eventId":100,"subscriptionType":"contact.creation","objectId":123,"occurredAt":1614265330000}]',
        _AT,
        "hubspot-api-client 12.0.0, Signature.get_signature",
    ),
    Vector(
        "jira",
        "It's a Secret to Everybody",
        {"X-Hub-Signature": "sha256=a4771c39fbe90f317c7824e83ddef3caae9cb3d976c214ace1f2937e133263c9"},
        b"Hello World!",
        source="developer.atlassian.com, Webhooks, Secure admin webhooks",
    ),
    Vector(
        "keycloak",
        "A3jt6D8lz",
        {"X-Keycloak-Signature": "263ceb19ac5282d96ecda6233f6e1a6ecf3bc4ac44b71c42de38480dbd33b6a4"},
        b'{"uid":"1","type":"access.LOGIN"}',
        source="HMAC, as the code of the extension does",
    ),
    Vector(
        "linear",
        "lin_wh_secret",
        {"Linear-Signature": "a7bba58b65016c49731160ce8b989d0ca1f59132af4325a869c25a5740179f91"},
        b'{"action":"create","type":"Issue"}',
        source="HMAC, as linear.app says and @linear/sdk 98.0.0 does",
    ),
    Vector(
        "notion",
        "secret_tMrlL1qK5vuQAh1b6cZGhFChZTSYJlce98V0pYn7yBl",
        {"X-Notion-Signature": "sha256=5e683e9e94c83465b8b635e8e73d6745a6c2d386772e6af050279cc8cabe33a5"},
        b'{"id":"1","type":"page.created"}',
        source="HMAC; accepted by @notionhq/client 5.26.0",
    ),
    Vector(
        "sendgrid",
        "MFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAE83T4O/n84iotIvIW4mdBgQ/7dAfSmpqIM8kF9mN1flpVKS3GRqe62gw+2fNNRaINXvVpiglSI8eNEc6w"
        "EA3F+g==",
        {
            "X-Twilio-Email-Event-Webhook-Timestamp": "1600112502",
            "X-Twilio-Email-Event-Webhook-Signature": "MEUCIGHQVtGj+Y3LkG9fLcxf3qfI10QysgDWmMOVmxG0u6ZUAiEAyBi"
            "XDWzM+uOe5W0JuG+luQAbPIqHh89M15TluLtEZtM=",
        },
        _SENDGRID_BODY,
        datetime.fromtimestamp(1_600_112_502, UTC),
        "sendgrid 6.12.5, the tests of EventWebhook",
    ),
    Vector(
        "shopify",
        "hush",
        {
            "X-Shopify-Topic": "orders/create",
            "X-Shopify-Webhook-Id": "b54557e4-bdd9-4b37-8a5f-bf7d70bcd043",
            "X-Shopify-Hmac-SHA256": "qBvrsZF7RfB1iS6BX6IHqJTp5L911P7intnPeTPsH0I=",
        },
        b'{"id":820982911946154508}',
        source="HMAC; accepted by @shopify/shopify-api 15.0.0",
    ),
    Vector(
        "slack",
        "8f742231b10e8888abcd99yyyzzz85a5",
        {
            "X-Slack-Request-Timestamp": "1531420618",
            "X-Slack-Signature": "v0=a2114d57b48eac39b9ad189dd8316235a7b4a8d21a10bd27519666489c69b503",
        },
        _SLACK_BODY,
        datetime.fromtimestamp(1_531_420_618, UTC),
        "docs.slack.dev, Verifying requests from Slack",
    ),
    Vector(
        "square",
        "pVuhBSPFdvDhRmLBTzeoFw",
        {"X-Square-HmacSha256-Signature": "7jqpEuzYuup+M4KSniS64Til+NuBjuWi+s0N0tcyhaI="},
        _SQUARE_BODY,
        source="accepted by squareup 46.0.0, verify_signature",
    ),
    Vector(
        "standard-webhooks",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {
            "webhook-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "webhook-timestamp": "1614265330",
            "webhook-signature": "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
        _AT,
        "the specification's own library",
    ),
    Vector(
        "standard-webhooks",
        "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw",
        {
            "svix-id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
            "svix-timestamp": "1614265330",
            "svix-signature": "v1a,AAAA v2,x v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE=",
        },
        b'{"test": 2432232314}',
        _AT,
        "docs.svix.com",
    ),
    Vector(
        "stripe",
        "whsec_test_secret",
        {"Stripe-Signature": "t=1614265330,v1=3c5817089d739023dd6190f70a3757e04f7a2fd8b5dab12c2e000f51970dccff,v0=aa"},
        b'{"id":"evt_test_webhook","object":"event"}',
        _AT,
        "stripe 16.1.0, WebhookSignature.generate_signature_header",
    ),
    Vector(
        "twilio",
        "12345",
        {"X-Twilio-Signature": "1HDSB73nbF8kM9hqcgLb4w6houU="},
        b"CallSid=CA1234567890ABCDE&Caller=%2B14158675310&Digits=1234&From=%2B14158675310&To=%2B18005551212"
        b"&CallStatus=completed",
        source="twilio 9.13.0, RequestValidator.compute_signature",
    ),
    Vector(
        "twilio",
        "12345",
        {"X-Twilio-Signature": "72R7f5B4dZvIIykaUVmkrKk42Po="},
        b"b=2&a=3&a=1&a=3&c=&MessageSid=SM1&MessageStatus=delivered",
        source="twilio 9.13.0, RequestValidator.compute_signature",
    ),
    Vector(
        "zendesk",
        "dGhpc19zZWNyZXRfaXNfZm9yX3Rlc3Rpbmdfb25seQ==",
        {
            "X-Zendesk-Webhook-Signature": "69EIqFt9nbXumm7w0tvopVmD8Bclei89GEk+Qcfyr4Y=",
            "X-Zendesk-Webhook-Signature-Timestamp": "2021-03-25T05:09:27Z",
        },
        b'{"type":"zen:event-type:ticket.created"}',
        datetime(2021, 3, 25, 5, 9, 27, tzinfo=UTC),
        "HMAC, as developer.zendesk.com says, with its test secret",
    ),
    Vector(
        "zoom",
        "zoom-secret-token",
        {
            "x-zm-request-timestamp": "1614265330",
            "x-zm-signature": "v0=c9953c6b30aba9d6510c4e4f308d8f0bc9685b45ddf8f9b3af275e058fe628fb",
        },
        b'{"event":"meeting.started"}',
        _AT,
        "HMAC; accepted by @zoom/rivet 0.4.0",
    ),
)
VECTORS: Mapping[str, Sequence[Vector]] = {
    each.preset: [other for other in _ALL if other.preset == each.preset] for each in _ALL
}
