"""Signatures: the template of custom sources, private keys (`v1a` of Standard Webhooks and Svix), and the providers' own libraries.

The libraries are imported where they are used: collecting the tests must stay fast.
"""
# ruff: noqa: PLC0415

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, Literal
from urllib.parse import urlencode

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from inbox.clock import SystemClock
from inbox.config.sources import Signature
from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.receiver.app import make_endpoints
from inbox.sources import PRESETS, keys
from inbox.sources.credentials import Verifier, pad_work
from inbox.sources.fields import FORM
from inbox.sources.signing import Message, SignatureProof, decode_key, find_mistakes, sign
from tests.helpers.webhooks import mistake
from tests.sources.presenting import (
    NOW,
    PUBLIC_URL,
    find_refusal,
    make_request,
    make_secret,
    make_verifier,
    sign_sample,
)


def make_proof(signature: Signature, *secrets: str, url: str = "") -> SignatureProof:
    return SignatureProof([signature], [(Secret(secret), secret) for secret in secrets], url=url)


def test_a_form_is_signed_by_its_names_and_values_in_order_behind_the_url() -> None:
    """The example of https://www.twilio.com/docs/usage/security, which Twilio's own libraries test."""
    twilio = Signature(header="X-Twilio-Signature", content="{url}{sorted_params}", algorithm="sha1", encoding="base64")
    form = b"CallSid=CA1234567890ABCDE&Caller=%2B14158675309&Digits=1234&From=%2B14158675309&To=%2B18005551212"
    headers = {
        "content-type": "application/x-www-form-urlencoded",
        "x-twilio-signature": "RSOYDt4T1cUTdK1PDd93/VVr8B8=",
    }
    raw = RawRequest("phone", headers, form, NOW, query="foo=1&bar=2")
    proof = make_proof(twilio, "12345", url="https://mycompany.com/myapp.php")
    assert proof.fault(raw, NOW) is None
    for other in (
        RawRequest("phone", headers, form + b"&More=1", NOW, query="foo=1&bar=2"),
        RawRequest("phone", headers, form, NOW, query="foo=1&bar=3"),
        RawRequest("phone", headers, b"%ff=1", NOW, query="foo=1&bar=2"),
        RawRequest("phone", {**headers, "content-type": "application/json"}, form, NOW, query="foo=1&bar=2"),
    ):
        assert proof.fault(other, NOW) is not None


ANY = st.builds(
    Signature,
    header=st.just("X-Sig"),
    prefix=st.sampled_from(["", "v1=", "sha256="]),
    separator=st.sampled_from([",", ";", " "]),
    timestamp_header=st.sampled_from(["", "X-Time"]),
    timestamp_prefix=st.sampled_from(["", "t="]),
    timestamp_unit=st.sampled_from(["s", "ms", "rfc3339"]),
    id_header=st.sampled_from(["", "X-Id"]),
    content=st.sampled_from(["{body}", "{timestamp}.{body}", "v0:{timestamp}:{id}:{method} {url}\n{body}"]),
    algorithm=st.sampled_from(["sha256", "sha1", "sha512"]),
    encoding=st.sampled_from(["hex", "base64"]),
    key=st.sampled_from(["text", "base64", "hex"]),
    key_prefix=st.sampled_from(["", "whsec_"]),
).filter(lambda each: not list(find_mistakes(each, has_url=True)))


@given(ANY, st.binary(max_size=200), st.integers(0, 10**9))
def test_any_template_accepts_its_own_signatures_alone(signature: Signature, body: bytes, moment: int) -> None:
    at = NOW + timedelta(microseconds=moment)
    message = Message(id=b"msg_1", url=b"https://hooks.example.com/webhooks/a", body=body)
    secret = f"{signature.key_prefix}deadbeefdeadbeef"
    headers = {name.lower(): value for name, value in sign(signature, secret, message, at).items()}
    proof = make_proof(signature, "cafecafecafecafe", secret, url="https://hooks.example.com/webhooks/a")
    assert proof.fault(RawRequest("a", headers, body, at), at) is None
    assert proof.fault(RawRequest("a", headers, body + b"\x00", at), at) is not None
    for name, value in headers.items():
        flipped = value[:-2] + ("0" if value[-2] != "0" else "1") + value[-1]
        if name != "x-id" or "{id}" in signature.content:
            assert proof.fault(RawRequest("a", {**headers, name: flipped}, body, at), at) is not None


def test_a_secret_that_is_no_key_is_a_mistake_and_is_not_repeated_and_base64_may_lack_its_padding() -> None:
    keys: list[tuple[Literal["base64", "hex", "text"], str]] = [
        *(("base64", "not base64!"), ("hex", "abc"), ("text", ""), ("base64", ""), ("hex", "zz"))
    ]
    for key, secret in keys:
        with pytest.raises(ConfigError) as raised:
            decode_key(Signature(header="X", key=key), secret)
        assert not secret or secret not in str(raised.value)
    assert decode_key(Signature(header="X", key="base64", key_prefix="whsec_"), "whsec_YWI") == b"ab"


ACME = """
[sources.acme]
preset = "custom"
secrets = ["s3cret"]
[sources.acme.event]
type = "body.type"
[sources.acme.signature]
header = "X-Acme-Signature"
"""


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ('content = "{bdy}"', "may have {body}"),
        ('content = "{ts}.{body}"', "may have {body}"),
        ('content = "{body}{"', "may have {body}"),
        ('content = "signed"', "has no {body}"),
        ('content = "{timestamp}.{body}"', "has {timestamp}: timestamp_header"),
        ('timestamp_header = "X-Time"', "has no {timestamp}"),
        ('timestamp_prefix = "t="', "separator"),
        ('content = "{id}.{body}"', "has {id}: id_header"),
        ('content = "{url}{body}"', "public_url"),
        ('id_header = "X Id"', "is not a header's name"),
        ('algorithm = "md5"', "is not one of"),
        ('algorithm = "ed25519"', "must say how the public keys are written"),
    ],
)
def test_a_signature_that_proves_too_little_or_can_not_be_is_a_mistake(line: str, told: str) -> None:
    parse_config(ACME)
    found = mistake(ACME + line)
    assert "[sources.acme.signature]" in found
    assert told in found


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('preset = "github"', "secrets: are missing: GitHub signs its webhooks, and the secret is the field Secret of"),
        (
            'preset = "github"\nauth = { kind = "header", name = "X-Key", secrets = ["x"] }',
            'write secrets = ["env:NAME"], or unsigned = true',
        ),
        ('preset = "github"\nauth = { kind = "none" }', "secrets: are missing"),
        ('preset = "secevent"\nauth = { kind = "none" }\nissuer = "i"\naudience = "a"', "secrets: are missing"),
        ('preset = "stripe"\nunsigned = true', "auth: is missing"),
        ('preset = "stripe"\nunsigned = true\nsecrets = ["x"]', "unsigned: contradicts secrets"),
        ('preset = "trivore"\nunsigned = true\nauth = { kind = "none" }', "unsigned: says nothing: Trivore ID"),
        ('preset = "trivore"', "auth: is missing"),
        ('preset = "okta"\nsecrets = ["x"]', "secrets: are for signatures"),
        ('preset = "custom"\nauth = { kind = "none" }', "event: is missing"),
        ('preset = "github"\nsecrets = ["x"]\nissuer = "y"', "issuer: is for preset = 'secevent' only"),
        ('preset = "secevent"\nsecrets = ["x"]', "audience: is missing"),
        ('preset = "github"\nunsigned = true\nauth = { kind = "none" }\ntolerance = "1m"', "tolerance: is of no use"),
        ('preset = "githbu"', "did you mean 'github'?"),
        (
            'preset = "github"\nauth = { kind = "header", name = "X-GitHub-Event", secrets = ["x"] }',
            "no place for a secret",
        ),
        ('preset = "custom"\nauth = { kind = "none" }\nevent = { type = "body.[" }', "is not a JMESPath"),
    ],
)
def test_a_source_that_does_not_fit_its_preset_is_a_mistake(text: str, told: str) -> None:
    assert told in mistake(f"[sources.a]\n{text}\n")


# --- signatures by a private key


# From Svix's own test `test_asymmetric_key_signing` (server/svix-server/src/worker.rs).
PUBLIC = "whpk_1SiA4o9hyqTCpIqC5V9HUakiiaeACeqfZTInDBbOir4="
SIGNATURE = "v1a,hnO3f9T8Ytu9HwrXslvumlUpqtNVqkhqw/enGzPCXe5BdqzCInXqYXFymVJaA7AZdpXwVLPo3mNl8EM+m7TBAg=="
BODY, ID, SECONDS = b'{"test": 2432232314}', "msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330"
SHARED, BY_SHARED = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
AT = datetime.fromtimestamp(int(SECONDS), UTC)
CONTENT = f"{ID}.{SECONDS}.".encode() + BODY

GROUP_ORDER = 2**252 + 27742317777372353535851937790883648493


def make_signed(
    *signatures: str, prefix: str = "webhook", body: bytes = BODY, at: datetime = AT, seconds: str = SECONDS
) -> RawRequest:
    headers = {f"{prefix}-id": ID, f"{prefix}-timestamp": seconds, f"{prefix}-signature": " ".join(signatures)}
    return make_request("standard-webhooks", body, {"Content-Type": "application/json", **headers}, at)


def is_let_in(verifier: Verifier, raw: RawRequest) -> bool:
    return find_refusal(verifier, raw) is None


def with_secrets(*secrets: str) -> Verifier:
    return make_verifier("standard-webhooks", *map(Secret, secrets))


def public_key_of(private: Ed25519PrivateKey) -> str:
    return "whpk_" + base64.b64encode(private.public_key().public_bytes_raw()).decode()


def v1a(private: Ed25519PrivateKey, content: bytes = CONTENT) -> str:
    return "v1a," + base64.b64encode(private.sign(content)).decode()


def raw_signature() -> bytes:
    return base64.b64decode(SIGNATURE.removeprefix("v1a,"))


def encode_signature(signature: bytes, prefix: str = "v1a,") -> str:
    return prefix + base64.b64encode(signature).decode()


OTHER = v1a(Ed25519PrivateKey.generate())


@pytest.mark.parametrize(
    ("secrets", "signatures", "expected"),
    [
        ((PUBLIC,), (SIGNATURE,), True),
        ((PUBLIC.rstrip("="),), (SIGNATURE,), True),
        ((PUBLIC,), (BY_SHARED, SIGNATURE), True),
        ((PUBLIC,), (OTHER, SIGNATURE), True),
        ((SHARED,), (SIGNATURE, BY_SHARED), True),
        ((SHARED, PUBLIC), (SIGNATURE,), True),
        ((SHARED, PUBLIC), (BY_SHARED,), True),
        ((PUBLIC, SHARED), (OTHER, BY_SHARED), True),
        ((PUBLIC,), (OTHER,), False),
        ((PUBLIC,), (BY_SHARED,), False),
        ((SHARED,), (SIGNATURE,), False),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v1,"),), False),
        ((PUBLIC,), (SIGNATURE.replace("v1a,", "v2a,"),), False),
        ((SHARED,), (BY_SHARED.replace("v1,", "v1a,"),), False),
        ((SHARED, PUBLIC), (BY_SHARED.replace("v1,", "v1a,"), SIGNATURE.replace("v1a,", "v1,")), False),
        ((PUBLIC,), (*[OTHER] * 5, SIGNATURE), False),
    ],
)
@pytest.mark.parametrize("prefix", ["webhook", "svix"])
def test_one_valid_signature_is_enough(
    prefix: str, secrets: tuple[str, ...], signatures: tuple[str, ...], expected: bool
) -> None:
    assert is_let_in(with_secrets(*secrets), make_signed(*signatures, prefix=prefix)) == expected


def test_the_id_the_time_and_the_body_are_signed() -> None:
    raw = make_signed(SIGNATURE)
    for other in (
        make_signed(SIGNATURE, body=BODY + b" "),
        make_signed(SIGNATURE, seconds=str(int(SECONDS) + 1)),
        make_signed(SIGNATURE, at=AT + timedelta(seconds=301)),
        make_request("standard-webhooks", BODY, {**raw.headers, "webhook-id": "msg_2"}, AT),
    ):
        assert not is_let_in(with_secrets(PUBLIC), other)


def test_the_public_key_is_not_accepted_as_a_shared_secret() -> None:
    """Algorithm confusion: anyone could compute an HMAC with the public key."""
    text = PUBLIC.removeprefix("whpk_")
    for key in (base64.b64decode(text), text.encode(), PUBLIC.encode(), b""):
        for prefix in ("v1,", "v1a,"):
            forged = encode_signature(hmac.digest(key, CONTENT, "sha256"), prefix)
            assert not is_let_in(with_secrets(PUBLIC), make_signed(forged))
            assert not is_let_in(with_secrets(PUBLIC, SHARED), make_signed(forged))


PRIVATE = "whsk_6Xb/dCcHpPea21PS1N9VY/NZW723CEc77N4rJCubMbfVKIDij2HKpMKkioLlX0dRqSKJp4AJ6p9lMicMFs6Kvg=="


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        *((name, secret) for name in ("gitlab", "github", "slack") for secret in (PUBLIC, PRIVATE)),
        ("standard-webhooks", PRIVATE),
        *(("standard-webhooks", f"whpk_{key}") for key in ("", "AAAA", "not base64!", f"{PUBLIC[5:]}AAAA")),
        *(("standard-webhooks", encode_signature(bytes(length), "whpk_")) for length in (31, 64)),
    ],
)
def test_a_key_that_is_of_no_use_there_is_a_mistake_that_does_not_show_it(name: str, secret: str) -> None:
    with pytest.raises(ConfigError) as caught:
        make_verifier(name, Secret(secret))
    assert secret not in str(caught.value)


@pytest.mark.parametrize("point", sorted(keys._SMALL_ORDER), ids=bytes.hex)
@pytest.mark.parametrize("sign", [0, 0x80])
def test_a_public_key_of_small_order_is_a_mistake(point: bytes, sign: int) -> None:
    key = point[:-1] + bytes([point[-1] | sign])
    with pytest.raises(ConfigError, match="anyone could sign for it"):
        with_secrets(encode_signature(key, "whpk_"))


def test_a_signature_has_one_form() -> None:
    """RFC 8032 §5.1.7: the second half is below the group order, or anyone could derive a second signature from a first."""
    first, second = raw_signature()[:32], int.from_bytes(raw_signature()[32:], "little")
    assert not is_let_in(
        with_secrets(PUBLIC), make_signed(encode_signature(first + (second + GROUP_ORDER).to_bytes(32, "little")))
    )
    plain = SIGNATURE.removeprefix("v1a,")
    for other in (plain.rstrip("="), plain[:-3] + "h==", f"{plain}=", plain.replace("+", "-"), f" {plain}\n"):
        assert not is_let_in(with_secrets(PUBLIC), make_signed(f"v1a,{other}")), other


@given(st.integers(0, 511))
def test_any_other_bit_is_refused(bit: int) -> None:
    flipped = (int.from_bytes(raw_signature(), "little") ^ (1 << bit)).to_bytes(64, "little")
    assert not is_let_in(with_secrets(PUBLIC), make_signed(encode_signature(flipped)))


def test_while_a_key_is_rolled_both_are_let_in_and_then_the_new_one_alone() -> None:
    old, new = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    later = AT + timedelta(seconds=1)
    verifier = make_verifier(
        "standard-webhooks", Secret(public_key_of(old), not_after=later), Secret(public_key_of(new))
    )
    found = [is_let_in(verifier, make_signed(v1a(each), at=moment)) for moment in (AT, later) for each in (old, new)]
    assert found == [True, True, False, True]


def test_a_source_with_the_public_key_alone_works_beside_one_that_has_a_shared_secret_too() -> None:
    """Both use one signature, so the first is padded with as many shared keys as the second has."""
    text = "".join(
        f'[sources.{name}]\npreset = "standard-webhooks"\nsecrets = {list(secrets)}\n'
        for name, secrets in (("alone", (PUBLIC,)), ("both", (PUBLIC, SHARED)))
    )
    made = {name: endpoint.verifier for name, endpoint in make_endpoints(parse_config(text)).items()}
    unknown = pad_work(made.values())
    for verifier in made.values():
        assert is_let_in(verifier, make_signed(SIGNATURE))
        assert not is_let_in(verifier, make_signed(v1a(Ed25519PrivateKey.generate())))
    assert [is_let_in(each, make_signed(BY_SHARED)) for each in (made["alone"], made["both"], unknown)] == [
        False,
        True,
        False,
    ]


# --- the providers' own libraries sign any body


JSON = {"Content-Type": "application/json"}
KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
BODIES = st.dictionaries(TEXT, TEXT | st.integers() | st.lists(TEXT), max_size=4).map(
    lambda drawn: json.dumps(drawn, ensure_ascii=False)
)


def find_fault(name: str, secret: str, body: str, headers: Mapping[str, str], at: datetime = NOW) -> str | None:
    raw = make_request(name, body.encode(), {**JSON, **headers}, at)
    return find_refusal(make_verifier(name, Secret(secret)), raw)


# --- libraries that sign


def sign_by_stripe(body: str, at: datetime) -> dict[str, str]:
    import stripe

    make_signed = int(at.timestamp())
    return {"Stripe-Signature": stripe.WebhookSignature.generate_signature_header(body, KEY, make_signed)}


def sign_by_slack(body: str, at: datetime) -> dict[str, str]:
    from slack_sdk.signature import SignatureVerifier

    make_signed = str(int(at.timestamp()))
    signature = SignatureVerifier(KEY).generate_signature(timestamp=make_signed, body=body) or ""
    return {"X-Slack-Request-Timestamp": make_signed, "X-Slack-Signature": signature}


def sign_by_standard_webhooks(body: str, at: datetime) -> dict[str, str]:
    from standardwebhooks.webhooks import Webhook

    return _with_prefix("webhook", at, Webhook(KEY).sign("msg_1", at, body))


def sign_by_svix(body: str, at: datetime) -> dict[str, str]:
    from svix.webhooks import Webhook

    return _with_prefix("svix", at, Webhook(KEY).sign("msg_1", at, body))


def _with_prefix(prefix: str, at: datetime, signature: str) -> dict[str, str]:
    signed = {"id": "msg_1", "timestamp": str(int(at.timestamp())), "signature": signature}
    return {f"{prefix}-{name}": value for name, value in signed.items()}


SIGNING_LIBRARIES = [
    ("stripe", sign_by_stripe),
    ("slack", sign_by_slack),
    ("standard-webhooks", sign_by_standard_webhooks),
    ("standard-webhooks", sign_by_svix),
    ("gitlab", sign_by_standard_webhooks),
]


@pytest.mark.parametrize(("name", "sign"), SIGNING_LIBRARIES)
@given(body=BODIES)
def test_a_library_signs_any_body(name: str, sign: Callable[[str, datetime], dict[str, str]], body: str) -> None:
    assert find_fault(name, KEY, body, sign(body, NOW)) is None
    assert find_fault(name, KEY, f"{body} ", sign(body, NOW)) is not None


@pytest.mark.parametrize(
    ("name", "sign", "other"),
    [("standard-webhooks", sign_by_svix, "webhook-id"), ("gitlab", sign_by_standard_webhooks, "Idempotency-Key")],
)
def test_an_unsigned_id_is_ignored(name: str, sign: Callable[[str, datetime], dict[str, str]], other: str) -> None:
    """An attacker could resend a request with another id beside the signed one."""
    body = '{"object_kind": "push"}'
    raw = make_request(name, body.encode(), {**JSON, **sign(body, NOW), other: "forged"})
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
    secret = make_secret(PRESETS["adyen"])
    item["additionalData"] = {"hmacSignature": generate_notification_sig(item, secret).decode()}
    body = json.dumps({"live": "false", "notificationItems": [{"NotificationRequestItem": item}]}, ensure_ascii=False)
    is_ambiguous = any(":" in item.get(name, "") for name in names if name != "merchantReference")
    assert (find_fault("adyen", secret, body, {}) is None) == (not is_ambiguous), (
        "a colon is in no other field of Adyen's"
    )


@given(body=BODIES, milliseconds=st.integers(-299_000, 299_000))
def test_hubspots_library_signs_any_body(body: str, milliseconds: int) -> None:
    from hubspot.utils.signature import Signature as HubSpot

    make_signed = str(int(NOW.timestamp()) * 1000 + milliseconds)
    signature = HubSpot.get_signature(
        "secret", body, "v3", http_uri=PUBLIC_URL, http_method="POST", timestamp=make_signed
    )
    headers = {"X-HubSpot-Signature-v3": signature, "X-HubSpot-Request-Timestamp": make_signed}
    assert find_fault("hubspot", "secret", body, headers) is None


@given(fields=st.lists(st.tuples(TEXT.filter(bool), TEXT), max_size=6))
def test_twilios_library_signs_any_form(fields: list[tuple[str, str]]) -> None:
    from twilio.request_validator import RequestValidator

    params: dict[str, list[str]] = {}
    for name, value in fields:
        params.setdefault(name, []).append(value)
    signature = RequestValidator("token").compute_signature(PUBLIC_URL, _MultiDict(params))
    headers = {"Content-Type": FORM, "X-Twilio-Signature": signature}
    assert find_fault("twilio", "token", urlencode(fields), headers) is None


class _MultiDict(dict[str, list[str]]):
    """A form as web frameworks pass it on, with `getall` for the library."""

    def getall(self, name: str) -> list[str]:
        return self[name]


# --- libraries that verify the signatures made here


def mailgun_accepts(raw: RawRequest, secret: str) -> bool:
    from mailgun.security import SecurityGuard

    proof = json.loads(raw.body)["signature"]
    return SecurityGuard.verify_webhook(secret, proof["token"], proof["timestamp"], proof["signature"])


def square_accepts(raw: RawRequest, secret: str) -> bool:
    from square.utils.webhooks_helper import verify_signature

    signature = raw.headers["x-square-hmacsha256-signature"]
    return verify_signature(
        request_body=raw.body.decode(), signature_header=signature, signature_key=secret, notification_url=PUBLIC_URL
    )


VERIFYING = {"mailgun": mailgun_accepts, "square": square_accepts}


@pytest.mark.parametrize("name", VERIFYING)
def test_the_library_accepts_a_sample_that_is_signed_here_and_nothing_else(name: str) -> None:
    accepted, secret = VERIFYING[name], make_secret(PRESETS[name])
    raw = sign_sample(
        name, secret, SystemClock().now().replace(microsecond=0)
    )  # Mailgun's library reads the system clock
    assert find_refusal(make_verifier(name, Secret(secret)), raw) is None
    assert accepted(raw, secret)
    assert not accepted(raw, make_secret(PRESETS[name], 1))
