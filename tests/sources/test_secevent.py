"""Security event tokens, signed by the JWT library with keys that are made here."""

from __future__ import annotations

import base64
import json
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inbox.config.sources import Source
from inbox.config.values import Secret
from inbox.errors import InvalidEvent, TooLarge
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, verifier_of
from tests.sources import presenting
from tests.sources.presenting import NOW, a_request

PRESET = PRESETS["secevent"]
ISSUER, AUDIENCE = "https://transmitter.okta.com", "https://receiverexample.com"
RSA, EC, ED = (
    rsa.generate_private_key(65537, 2048),
    ec.generate_private_key(ec.SECP256R1()),
    ed25519.Ed25519PrivateKey.generate(),
)
STRANGE = ec.generate_private_key(ec.SECP256R1())
CHANGE = "https://schemas.openid.net/secevent/caep/event-type/credential-change"
CLAIMS: dict[str, Any] = {  # as Okta's documentation has it
    "iss": ISSUER,
    "jti": "set-07efd930f0977e4fcc1149a733ce7f78",
    "iat": 1_615_305_159,
    "aud": AUDIENCE,
    "events": {
        CHANGE: {
            "subject": {"format": "iss_sub", "iss": ISSUER, "sub": "okta-user-id1"},
            "credential_type": "password",
            "change_type": "revoke",
            "event_timestamp": 1_615_304_991_643,
        }
    },
}


def jwks(**keys: Any) -> str:  # noqa: ANN401  # the library's keys have no common type
    makers = {rsa.RSAPrivateKey: "RS256", ec.EllipticCurvePrivateKey: "ES256", ed25519.Ed25519PrivateKey: "EdDSA"}
    found = []
    for kid, key in keys.items():
        algorithm = next(name for kind, name in makers.items() if isinstance(key, kind))
        jwk = json.loads(jwt.get_algorithm_by_name(algorithm).to_jwk(key.public_key()))
        found.append({**jwk, "kid": kid, "use": "sig"})
    return json.dumps({"keys": found})


def a_token(key: Any, algorithm: str, kid: str | None = None, typ: str = "secevent+jwt", **claims: Any) -> bytes:  # noqa: ANN401
    header = {"typ": typ, **({"kid": kid} if kid else {})}
    made = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(made, key, algorithm=algorithm, headers=header).encode()


def pem(key: Any) -> str:  # noqa: ANN401  # likewise
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def segment(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def verifier(*secrets: Secret) -> Verifier:
    source = Source(name="signals", preset="secevent", secrets=list(secrets), issuer=ISSUER, audience=AUDIENCE)
    return verifier_of(source, PRESET, {})


def raw(body: bytes) -> RawRequest:
    return a_request("signals", body, {"Content-Type": "application/secevent+jwt"})


def why_refused(asked: Verifier, body: bytes) -> str | None:
    return presenting.why_refused(asked, raw(body))


ALL = Secret(jwks(r=RSA, e=EC, d=ED))


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "r"), (RSA, "PS512", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d"), (EC, "ES256", None)],
)
def test_a_token_is_let_in_and_read(key: Any, algorithm: str, kid: str | None) -> None:  # noqa: ANN401
    body = a_token(key, algorithm, kid)
    assert why_refused(verifier(ALL), body + b"\n") is None
    (identity,) = PRESET.read(raw(body), None)
    assert (identity.entity_type, identity.entity_id) == ("subject", "okta-user-id1")
    assert (identity.event_type, identity.action) == (CHANGE, "delete")
    assert identity.key_parts == (ISSUER, "set-07efd930f0977e4fcc1149a733ce7f78")
    assert identity.occurred_ns == 1_615_305_159 * 10**9


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (a_token(STRANGE, "ES256", "e"), "InvalidSignature"),
        (a_token(EC, "ES256", "r"), "no key that is valid now"),
        (a_token(EC, "ES256", "unknown"), "no key that is valid now"),
        (a_token(EC, "ES256", "e", iss="https://another.example.com"), "InvalidIssuer"),
        (a_token(EC, "ES256", "e", aud="https://another.example.com"), "InvalidAudience"),
        (a_token(EC, "ES256", "e", iat=None), "MissingRequiredClaim"),
        (a_token(EC, "ES256", "e", jti=None), "MissingRequiredClaim"),
        (a_token(EC, "ES256", "e", iat=32_503_680_000), "ImmatureSignature"),
        (jwt.encode(CLAIMS, None, algorithm="none").encode(), "no key that is valid now"),  # type: ignore[arg-type]
        (b"", "no JWT"),
        (b"a.b.c", "no JWT"),
        (b"\xff.\xff.\xff", "no JWT"),
        (b"." * 5_000, "no JWT"),
        (segment({"alg": "ES256", "kid": []}) + b".e30.x", "no JWT"),
        (segment({"alg": "ES256", "kid": {"e": 1}}) + b".e30.x", "no JWT"),
        (segment({"alg": ["ES256"]}) + b".e30.x", "no JWT"),
        (segment({"alg": "ES256", "x": "x" * 5_000}) + b".e30.x", "no JWT"),
    ],
)
def test_a_token_that_proves_nothing_is_refused(body: bytes, why: str) -> None:
    assert why in (why_refused(verifier(ALL), body) or "let in")


def test_old_keys_are_good_until_their_end() -> None:
    old = Secret(jwks(e=EC), not_after=NOW)
    assert why_refused(verifier(old, Secret(jwks(r=RSA))), a_token(EC, "ES256", "e")) is not None
    assert why_refused(verifier(old, Secret(jwks(r=RSA))), a_token(RSA, "RS256", "r")) is None


def test_a_token_has_no_end_and_an_old_one_is_let_in() -> None:
    assert why_refused(verifier(ALL), a_token(EC, "ES256", "e", exp=1_600_000_000)) is None


@pytest.mark.parametrize(
    ("claims", "subject"),
    [
        ({"sub_id": {"format": "opaque", "id": "u1"}}, "u1"),
        ({"sub_id": {"format": "email", "email": "a@example.com"}}, "a@example.com"),
        ({"sub_id": {"user": {"format": "iss_sub", "iss": "i", "sub": "u2"}, "session": {"id": "s"}}}, "u2"),
        ({"events": {CHANGE: {}}, "sub": "u3"}, "u3"),
        ({"events": {CHANGE: {"subject": {"subject_type": "iss-sub", "iss": "i", "sub": "u4"}}}}, "u4"),
        ({"events": {"https://schemas.openid.net/secevent/ssf/event-type/verification": {"state": "x"}}}, None),
    ],
)
def test_a_subject_is_found_in_each_of_its_forms(claims: dict[str, Any], subject: str | None) -> None:
    (identity,) = PRESET.read(raw(a_token(EC, "ES256", "e", **claims)), None)
    assert identity.entity_id == subject


def test_the_times_of_a_token_may_have_fractions() -> None:
    claims: dict[str, Any] = {"iat": 1_615_305_159.25, "toe": None}
    body = a_token(EC, "ES256", "e", **claims)
    assert why_refused(verifier(ALL), body) is None
    (identity,) = PRESET.read(raw(body), None)
    assert identity.occurred_ns == 1_615_305_159_250_000_000


def test_a_token_without_events_is_none_of_these() -> None:
    with pytest.raises(InvalidEvent, match="events"):
        PRESET.read(raw(a_token(EC, "ES256", "e", events=None)), None)


def test_it_is_refused_as_the_rfc_has_it() -> None:
    assert PRESET.rejection is not None
    status, body = PRESET.rejection(InvalidEvent("jti is missing", field="jti"))
    assert (status, json.loads(body)) == (400, {"err": "invalid_request", "description": "jti is missing"})
    assert PRESET.rejection(TooLarge("too large"))[0] == 413
