"""Requests signed by the providers, and sources and requests for the tests of all presets.

Published requests are copied unchanged. Others were signed by the provider's library, or by plain HMAC as its
documentation says, outside this project's code.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode

import msgspec
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inbox.config.sources import NoAuth, Source
from inbox.config.values import Secret
from inbox.errors import NotAuthenticated
from inbox.events.event import Event, RawRequest
from inbox.sources import PRESETS, build_preset
from inbox.sources.base import Preset
from inbox.sources.credentials import REJECTION, Verifier, build_verifier
from inbox.sources.fields import FORM, LONGEST_ID, LONGEST_TYPE
from inbox.sources.normalize import make_events
from inbox.sources.signing import PUBLIC, Message, sign, sort_params


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


# --- sources and requests


NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIGNING = sorted(
    name for name, each in PRESETS.items() if each.signatures and each.signatures[0].algorithm not in PUBLIC
)
"""Presets whose providers sign with a shared secret."""
SIGNING_IN_BODY = sorted(name for name, each in PRESETS.items() if each.signer)
"""Presets whose providers sign parts of a body, with the signature in the body."""
WITH_SAMPLE = sorted(name for name, preset in PRESETS.items() if preset.sample)
ALL_VECTORS = [(name, vector) for name, vectors in VECTORS.items() for vector in vectors]


def make_source(name: str, *secrets: Secret) -> Source:
    """Make a source of a preset: with these secrets, or without authentication."""
    if secrets:
        return Source(name=name, preset=name, secrets=list(secrets), public_url=PUBLIC_URL)
    return Source(name=name, preset=name, auth=NoAuth())


def make_verifier(name: str, *secrets: Secret) -> Verifier:
    return build_verifier(make_source(name, *secrets), PRESETS[name], {})


def make_request(
    name: str, body: bytes, headers: Mapping[str, str], at: datetime = NOW, method: str = "POST"
) -> RawRequest:
    """Make a request as the receiver does: with header names in lower case."""
    return RawRequest(name, {key.lower(): value for key, value in headers.items()}, body, at, method=method)


def find_refusal(verifier: Verifier, raw: RawRequest, now: datetime | None = None) -> str | None:
    """Return the reason the operator sees, or None for an accepted request. The sender always sees the same text."""
    try:
        verifier.verify(raw, now or raw.received_at)
    except NotAuthenticated as error:
        return error.why if error.detail == REJECTION else f"told the sender: {error.detail}"
    return None


def request_from_vector(name: str, vector: Vector) -> RawRequest:
    return make_request(name, vector.body, vector.headers, vector.at)


def sign_sample(name: str, secret: str, at: datetime = NOW, event_type: str = "issue.updated") -> RawRequest:
    """Return a signed sample of the preset about issue 42."""
    preset = PRESETS[name]
    assert preset.sample is not None
    sample = preset.sample("issue", "42", event_type, at)
    if preset.signer is not None:
        sample = preset.signer(sample, secret, at)
    headers = {"Content-Type": "application/json", **sample.headers}
    if name in SIGNING:
        message = Message(
            id=sample.message_id.encode(),
            url=PUBLIC_URL.encode(),
            body=sample.body,
            sorted_params=sort_params(headers["Content-Type"], sample.body),
        )
        headers |= sign(preset.signatures[0], secret, message, at)
    return make_request(name, sample.body, headers, at)


def read(raw: RawRequest, source: Source | None = None) -> tuple[Event, ...]:
    """Return the events of a request."""
    source = source or make_source(raw.source)
    return make_events(source, build_preset(source), raw, [])


def assert_storable(events: Iterable[Event]) -> None:
    """Assert that each text fits its column and can be stored in both databases."""
    for event in events:
        for text, longest in (
            (event.entity_id, LONGEST_ID),
            (event.entity_type, LONGEST_TYPE),
            (event.event_type, LONGEST_TYPE),
            (event.event_id, LONGEST_ID),
        ):
            assert text is None or (len(text) <= longest and "\x00" not in text)
        "".join(filter(None, (event.dedup_key, event.entity_id, event.event_type, event.event_id))).encode()
        assert event.event_type
        assert (event.entity_id is None) == (event.entity_type is None)


def make_secret(preset: Preset, number: int = 0) -> str:
    """Return a secret in the provider's format."""
    text = f"number{number}secret0123456789abcdefgh"  # 32 characters: base64 of 24 bytes, as well
    if preset is PRESETS["adyen"]:
        return text.encode().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ed25519":
        return Ed25519PrivateKey.from_private_bytes(text.encode().ljust(32)).public_key().public_bytes_raw().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ecdsa":
        public = ec.derive_private_key(number + 2, ec.SECP256R1()).public_key()
        return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return f"{preset.signatures[0].key_prefix}{text}" if preset.signatures else text


# --- extreme values of known members and headers


_DEEP = "@deep@"
TEXTS = [
    *("", "\x00", "x\x00y", "\ud800", "x" * 255, "x" * 256, "x" * 10_000, "é" * 256, "😀" * 200),
    *("|\\|", " ", "\n", "..", "1"),
]
EXTREMES: Sequence[object] = [
    *TEXTS,
    *(None, True, False, 0, -1, 2**63, -(2**70), 10**400, 10**20, 1e308, -0.0, 1.5, 99_999_999_999_999),
    *([], {}, [[]], [{}], [None], {"id": None}, {"": ""}, ["x"] * 1001, [{"id": 1}] * 2, _DEEP),
    *("0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"),
]
NO_WEBHOOKS = [b"", b"null", b"[]", b'"x"', b"1", b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b"<a>" * 9]


def _replace_members(value: object) -> Iterator[object]:
    """Yield the value with each member, at any depth, replaced by each extreme or removed."""
    yield from EXTREMES
    if isinstance(value, Mapping):
        for name, inner in value.items():
            rest = {other: each for other, each in value.items() if other != name}
            yield rest
            for each in _replace_members(inner):
                yield {**rest, name: each}
    elif isinstance(value, list) and value:
        yield from ([each] for each in _replace_members(value[0]))


def _encode(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return text.replace(json.dumps(_DEEP).encode(), b"[" * 500 + b"]" * 500)


def extreme_bodies(sample: RawRequest) -> Iterator[bytes]:
    """Yield bodies that are not webhooks, and the body with each member replaced by each extreme."""
    yield from NO_WEBHOOKS
    if sample.content_type == FORM:
        fields = parse_qsl(sample.body.decode(), keep_blank_values=True)
        for place, (name, _) in enumerate(fields):
            for text in TEXTS:
                others = [*fields[:place], (name, text), *fields[place + 1 :]]
                yield urlencode(others, errors="surrogatepass").encode()
    elif sample.body.startswith(b"<"):
        for found in re.finditer(rb">([^<]+)<", sample.body):
            for text in TEXTS:
                inner = text.encode("utf-8", "surrogatepass")
                yield sample.body[: found.start(1)] + inner + sample.body[found.end(1) :]
    else:
        yield from map(_encode, _replace_members(json.loads(sample.body)))


def extreme_headers(sample: RawRequest) -> Iterator[dict[str, str]]:
    """Yield the headers with each of them replaced or removed."""
    for header in sample.headers:
        for text in ("", "\x00", "x" * 10_000, "é", "\x80", "0" * 400, "nan", "application/json; charset=latin-1"):
            yield {**sample.headers, header: text}
        yield {name: value for name, value in sample.headers.items() if name != header}
