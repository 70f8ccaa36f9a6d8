"""Security event tokens signed with test keys, and attacks on their keys (RFC 8725)."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inbox.config.sources import Source
from inbox.config.values import Secret
from inbox.errors import ConfigError, InvalidEvent, TooLarge
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources import PRESETS
from inbox.sources.credentials import Verifier, build_verifier
from tests.helpers.receiver import receiving
from tests.helpers.scripted import answer, serving
from tests.helpers.webhooks import config_text
from tests.sources import presenting
from tests.sources.presenting import NOW, make_request

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


def make_token(key: Any, algorithm: str, kid: str | None = None, typ: str = "secevent+jwt", **claims: Any) -> bytes:  # noqa: ANN401
    header = {"typ": typ, **({"kid": kid} if kid else {})}
    made = {name: value for name, value in {**CLAIMS, **claims}.items() if value is not None}
    return jwt.encode(made, key, algorithm=algorithm, headers=header).encode()


def pem(key: Any) -> str:  # noqa: ANN401  # likewise
    return str(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode())


def segment(value: object) -> bytes:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")


def trust(*secrets: Secret) -> Verifier:
    source = Source(name="signals", preset="secevent", secrets=list(secrets), issuer=ISSUER, audience=AUDIENCE)
    return build_verifier(source, PRESET, {})


def as_request(body: bytes) -> RawRequest:
    return make_request("signals", body, {"Content-Type": "application/secevent+jwt"})


def find_refusal(asked: Verifier, body: bytes) -> str | None:
    return presenting.find_refusal(asked, as_request(body))


ALL = Secret(jwks(r=RSA, e=EC, d=ED))


@pytest.mark.parametrize(
    ("key", "algorithm", "kid"),
    [(RSA, "RS256", "r"), (RSA, "PS512", "r"), (EC, "ES256", "e"), (ED, "EdDSA", "d"), (EC, "ES256", None)],
)
def test_a_token_is_let_in_and_read(key: Any, algorithm: str, kid: str | None) -> None:  # noqa: ANN401
    body = make_token(key, algorithm, kid)
    assert find_refusal(trust(ALL), body + b"\n") is None
    (identity,) = PRESET.read(as_request(body), None)
    assert (identity.entity_type, identity.entity_id) == ("subject", "okta-user-id1")
    assert (identity.event_type, identity.action) == (CHANGE, "delete")
    assert identity.key_parts == (ISSUER, "set-07efd930f0977e4fcc1149a733ce7f78")
    assert identity.occurred_ns == 1_615_305_159 * 10**9


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (make_token(STRANGE, "ES256", "e"), "InvalidSignature"),
        (make_token(EC, "ES256", "r"), "no key that is valid now"),
        (make_token(EC, "ES256", "unknown"), "no key that is valid now"),
        (make_token(EC, "ES256", "e", iss="https://another.example.com"), "InvalidIssuer"),
        (make_token(EC, "ES256", "e", aud="https://another.example.com"), "InvalidAudience"),
        (make_token(EC, "ES256", "e", iat=None), "MissingRequiredClaim"),
        (make_token(EC, "ES256", "e", jti=None), "MissingRequiredClaim"),
        (make_token(EC, "ES256", "e", iat=32_503_680_000), "ImmatureSignature"),
        (jwt.encode(CLAIMS, None, algorithm="none").encode(), "no key that is valid now"),  # type: ignore[arg-type]
        (b"", "not a JWT"),
        (b"a.b.c", "not a JWT"),
        (b"\xff.\xff.\xff", "not a JWT"),
        (b"." * 5_000, "not a JWT"),
        (segment({"alg": "ES256", "kid": []}) + b".e30.x", "not a JWT"),
        (segment({"alg": "ES256", "kid": {"e": 1}}) + b".e30.x", "not a JWT"),
        (segment({"alg": ["ES256"]}) + b".e30.x", "not a JWT"),
        (segment({"alg": "ES256", "x": "x" * 5_000}) + b".e30.x", "not a JWT"),
    ],
)
def test_a_token_that_proves_nothing_is_refused(body: bytes, why: str) -> None:
    assert why in (find_refusal(trust(ALL), body) or "let in")


def test_old_keys_are_valid_until_their_end_and_tokens_need_no_end() -> None:
    both = trust(Secret(jwks(e=EC), not_after=NOW), Secret(jwks(r=RSA)))
    assert find_refusal(both, make_token(EC, "ES256", "e")) is not None
    assert find_refusal(both, make_token(RSA, "RS256", "r", exp=1_600_000_000)) is None


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
    (identity,) = PRESET.read(as_request(make_token(EC, "ES256", "e", **claims)), None)
    assert identity.entity_id == subject


def test_the_times_of_a_token_may_have_fractions() -> None:
    claims: dict[str, Any] = {"iat": 1_615_305_159.25, "toe": None}
    body = make_token(EC, "ES256", "e", **claims)
    assert find_refusal(trust(ALL), body) is None
    (identity,) = PRESET.read(as_request(body), None)
    assert identity.occurred_ns == 1_615_305_159_250_000_000


def test_a_token_without_events_is_refused_as_the_rfc_has_it() -> None:
    with pytest.raises(InvalidEvent, match="events"):
        PRESET.read(as_request(make_token(EC, "ES256", "e", events=None)), None)
    assert PRESET.rejection is not None
    status, body = PRESET.rejection(InvalidEvent("jti is missing", field="jti"))
    assert (status, json.loads(body)) == (400, {"err": "invalid_request", "description": "jti is missing"})
    assert PRESET.rejection(TooLarge("too large"))[0] == 413


async def test_a_transmitter_beyond_its_rate_is_told_when_to_send_again(sqlite_database_url: str) -> None:
    source = f'preset = "secevent"\nsecrets = [{json.dumps(jwks(e=EC))}]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"'
    config = parse_config(f'{config_text(sqlite_database_url)}[sources.signals]\n{source}\nrate = "2/d"\n')
    async with receiving(config) as receiver:
        headers = {"Content-Type": "application/secevent+jwt"}
        tokens = [make_token(EC, "ES256", "e", jti=str(number)) for number in range(3)]
        answers = [await receiver.post(token, path="/webhooks/signals", headers=headers) for token in tokens]
    assert [each.status_code for each in answers] == [202, 202, 429]
    assert int(answers[2].headers["retry-after"]) > 0


# --- keys

WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505  # weak on purpose
P384 = ec.generate_private_key(ec.SECP384R1())
NO_KEY = "no key that is valid now has the token's kid and alg"


def jwk(key: Any, **members: object) -> dict[str, object]:  # noqa: ANN401  # the library's keys have no common type
    """Return a public key as a table with extra members."""
    (found,) = json.loads(jwks(k=key))["keys"]
    return {**{name: value for name, value in found.items() if name not in {"use", "key_ops"}}, **members}


def as_jwks(*keys: object) -> Secret:
    return Secret(json.dumps({"keys": keys}))


def mistake(*secrets: Secret) -> str:
    with pytest.raises(ConfigError) as caught:
        trust(*secrets)
    return str(caught.value)


# --- the use of a key


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
def test_a_key_for_one_algorithm_verifies_no_other_of_its_kind(algorithm: str) -> None:
    bound, free = trust(as_jwks(jwk(RSA, alg="RS256"))), trust(as_jwks(jwk(RSA)))
    assert find_refusal(bound, make_token(RSA, algorithm, "k")) == NO_KEY
    assert find_refusal(bound, make_token(RSA, "RS256", "k")) is None
    assert find_refusal(free, make_token(RSA, algorithm, "k")) is None


def test_a_curve_has_one_algorithm() -> None:
    """RFC 7518 §3.4: a P-384 signature under another curve's algorithm is invalid."""
    asked = trust(as_jwks(jwk(P384), jwk(EC, kid="e")))
    assert find_refusal(asked, make_token(P384, "ES384", "k")) is None
    _, rest = make_token(P384, "ES384", "k").split(b".", 1)
    assert find_refusal(asked, segment({"alg": "ES256", "kid": "k"}) + b"." + rest) == NO_KEY


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ({"use": "enc"}, "has use 'enc', not 'sig'"),
        ({"use": ["sig"]}, "has use"),
        ({"key_ops": ["encrypt"]}, "without 'verify'"),
        ({"key_ops": "verify"}, "without 'verify'"),
        ({"key_ops": []}, "without 'verify'"),
        ({"alg": "HS256"}, "is for alg 'HS256'"),
        ({"alg": "none"}, "is for alg 'none'"),
        ({"alg": "RSA-OAEP"}, "is for alg 'RSA-OAEP'"),
        ({"alg": "ES256"}, "is for alg 'ES256'"),
        ({"alg": ["RS256"]}, "is for alg"),
        ({"alg": ""}, "is for alg ''"),
        ({"kty": "oct", "k": "c2VjcmV0"}, "is of type 'oct'"),
        ({"kty": "AKP"}, "is of type 'AKP'"),
        ({"kty": None}, "is of type None"),
        ({"kty": ["RSA"]}, "is of type"),
        ({"d": "AQAB"}, "is a private key"),
        ({"n": "AQAB"}, "can't be read"),
        ({"n": 7}, "can't be read"),
        ({"n": "!"}, "can't be read"),
        ({"e": "AQ"}, "can't be read"),
        ({"kid": 7}, "kid that is not a text"),
        (jwk(WEAK), "has 1024 bits: an RSA key needs 2048 or more"),
    ],
)
def test_an_unfit_key_is_not_used_and_alone_is_a_mistake(members: dict[str, object], why: str) -> None:
    unfit = jwk(RSA, **members)
    assert "[sources.signals] secrets: a JWKS document has no usable key: key 1" in mistake(as_jwks(unfit))
    assert why in mistake(as_jwks(unfit))
    assert find_refusal(trust(as_jwks(unfit, jwk(EC, kid="e"))), make_token(RSA, "RS256", "k")) == NO_KEY


# --- documents


def test_every_key_that_can_not_be_used_is_told_with_its_reason() -> None:
    told = mistake(as_jwks({"kty": "oct", "kid": "shared", "k": "dG9wc2VjcmV0"}, 7, jwk(RSA, use="enc")))
    assert "key 1 ('shared') is of type 'oct'" in told
    assert "key 2 is no table; key 3 ('k') has use 'enc'" in told
    assert "dG9wc2VjcmV0" not in told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no key", "a secret is not a JWKS document: it is not JSON"),
        (pem(RSA), "a secret is not a JWKS document: it is not JSON"),
        ("{}", "it has no list of keys"),
        ('{"keys": 1}', "it has no list of keys"),
        ('{"keys": []}', "it has no list of keys"),
        ('{"keys": [', "it is not JSON"),
        ('{"keys": [], "keys": []}', "the same key twice"),
        ('{"keys": ' + "[" * 100_000, "nested deeper"),
    ],
)
def test_a_text_that_is_no_key_is_a_mistake(text: str, why: str) -> None:
    assert why in mistake(Secret(text))


def test_two_keys_with_one_id_are_both_tried() -> None:
    for keys in ((jwk(STRANGE), jwk(EC)), (jwk(EC), jwk(STRANGE)), (jwk(RSA), jwk(EC))):
        assert find_refusal(trust(as_jwks(*keys)), make_token(EC, "ES256", "k")) is None
    assert find_refusal(trust(as_jwks(jwk(STRANGE), jwk(RSA))), make_token(EC, "ES256", "k")) is not None


# --- headers of a token that concern its key


def forge_tokens(header: dict[str, object]) -> Iterator[bytes]:
    """Yield the sender's claims under another header, with signatures that an attacker can make."""
    _, claims, signature = make_token(RSA, "RS256", "k").split(b".")
    signed = b".".join((segment(header), claims))
    for secret in (pem(RSA).encode(), pem(RSA).strip().encode(), json.dumps(jwk(RSA)).encode(), b""):
        yield b".".join((signed, base64.urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")))
    for other in (b"", signature, base64.urlsafe_b64encode(bytes(64)).rstrip(b"="), b"AA"):
        yield b".".join((signed, other))


@pytest.mark.parametrize(
    "algorithm",
    ["HS256", "hs256", "HS384", "none", "None", "nOnE", "", "RS1", "ES256", "ES256K", "EdDSA", "dir", "rs256"],
)
def test_another_algorithm_in_the_header_is_refused(algorithm: str) -> None:
    asked = trust(as_jwks(jwk(RSA), jwk(EC), jwk(ED)))
    for token in forge_tokens({"alg": algorithm, "kid": "k"}):
        assert find_refusal(asked, token) is not None


def test_a_key_that_the_token_brings_or_names_is_not_used_nor_fetched() -> None:
    with serving(answer(200, {"keys": [jwk(STRANGE)]})) as theirs:
        for header in (
            {"jwk": jwk(STRANGE)},
            {"jku": f"{theirs.url}/jwks"},
            {"x5u": f"{theirs.url}/x5u"},
            {"kid": f"{theirs.url}/kid"},
            {"kid": "../../dev/null"},
        ):
            claims = make_token(STRANGE, "ES256", "k").split(b".")[1]
            signed = segment({"alg": "ES256", "kid": "k", **header}) + b"." + claims
            algorithm = jwt.get_algorithm_by_name("ES256")
            signature = base64.urlsafe_b64encode(algorithm.sign(signed, STRANGE)).rstrip(b"=")
            assert find_refusal(trust(as_jwks(jwk(EC))), signed + b"." + signature) is not None
        assert theirs.seen == []


@pytest.mark.parametrize("critical", [["exp"], ["acme"], [], "exp", [7]])
def test_a_critical_header_that_is_not_known_is_refused(critical: object) -> None:
    """RFC 7515 §4.1.11, even from the right sender."""
    token = jwt.encode(CLAIMS, EC, "ES256", headers={"kid": "k", "crit": critical, "acme": 1}).encode()
    assert find_refusal(trust(as_jwks(jwk(EC))), token) is not None
