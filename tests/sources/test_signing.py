"""The template beyond what the presets use of it: forms, URLs, milliseconds, and what a custom source may say."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.config.sources import Signature
from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources.signing import Message, SignatureProof, find_mistakes, key_of, sign
from tests.helpers.webhooks import mistake

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def signed(signature: Signature, *secrets: str, url: str = "") -> SignatureProof:
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
    proof = signed(twilio, "12345", url="https://mycompany.com/myapp.php")
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
def test_whatever_the_template_says_what_is_signed_by_it_is_let_in_and_any_other_bit_is_not(
    signature: Signature, body: bytes, moment: int
) -> None:
    at = NOW + timedelta(microseconds=moment)
    message = Message(id=b"msg_1", url=b"https://hooks.example.com/webhooks/a", body=body)
    secret = f"{signature.key_prefix}deadbeefdeadbeef"
    headers = {name.lower(): value for name, value in sign(signature, secret, message, at).items()}
    proof = signed(signature, "cafecafecafecafe", secret, url="https://hooks.example.com/webhooks/a")
    assert proof.fault(RawRequest("a", headers, body, at), at) is None
    assert proof.fault(RawRequest("a", headers, body + b"\x00", at), at) is not None
    for name, value in headers.items():
        flipped = value[:-2] + ("0" if value[-2] != "0" else "1") + value[-1]
        if name != "x-id" or "{id}" in signature.content:
            assert proof.fault(RawRequest("a", {**headers, name: flipped}, body, at), at) is not None


def test_a_secret_that_is_no_key_is_a_mistake_and_is_not_repeated_and_base64_may_lack_its_padding() -> None:
    keys: list[tuple[Literal["base64", "hex", "text"], str]] = [
        *(("base64", "not base64!"), ("hex", "abc"), ("text", ""), ("base64", ""), ("hex", "zz")),
    ]
    for key, secret in keys:
        with pytest.raises(ConfigError) as raised:
            key_of(Signature(header="X", key=key), secret)
        assert not secret or secret not in str(raised.value)
    assert key_of(Signature(header="X", key="base64", key_prefix="whsec_"), "whsec_YWI") == b"ab"


SOURCE = """
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
    parse_config(SOURCE)
    found = mistake(SOURCE + line)
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
