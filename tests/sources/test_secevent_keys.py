"""Use of a sender's keys: attacks on tokens by way of their keys (RFC 8725), and documents without any key."""

from __future__ import annotations

import base64
import hmac
import json
from collections.abc import Iterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from inbox.config.values import Secret
from inbox.errors import ConfigError
from tests.helpers.scripted import answer, serving
from tests.sources.test_secevent import CLAIMS, EC, ED, RSA, STRANGE, a_token, jwks, pem, segment, verifier, why_refused

WEAK = rsa.generate_private_key(65537, 1024)  # noqa: S505  # weak on purpose
P384 = ec.generate_private_key(ec.SECP384R1())
NO_KEY = "no key that is valid now has the token's kid and alg"


def jwk(key: Any, **members: object) -> dict[str, object]:  # noqa: ANN401  # the library's keys have no common type
    """A public key as a table, with these members besides."""
    (found,) = json.loads(jwks(k=key))["keys"]
    return {**{name: value for name, value in found.items() if name not in {"use", "key_ops"}}, **members}


def document(*keys: object) -> Secret:
    return Secret(json.dumps({"keys": keys}))


def mistake(*secrets: Secret) -> str:
    with pytest.raises(ConfigError) as caught:
        verifier(*secrets)
    return str(caught.value)


# --- what a key is for


@pytest.mark.parametrize("algorithm", ["RS384", "RS512", "PS256", "PS384", "PS512"])
def test_a_key_for_one_algorithm_verifies_no_other_of_its_kind(algorithm: str) -> None:
    bound, free = verifier(document(jwk(RSA, alg="RS256"))), verifier(document(jwk(RSA)))
    assert why_refused(bound, a_token(RSA, algorithm, "k")) == NO_KEY
    assert why_refused(bound, a_token(RSA, "RS256", "k")) is None
    assert why_refused(free, a_token(RSA, algorithm, "k")) is None


def test_a_curve_has_one_algorithm() -> None:
    """RFC 7518 §3.4: a signature of P-384 under the name of another curve's algorithm is none."""
    asked = verifier(document(jwk(P384), jwk(EC, kid="e")))
    assert why_refused(asked, a_token(P384, "ES384", "k")) is None
    header, claims, signature = a_token(P384, "ES384", "k").split(b".")
    assert header != segment({"alg": "ES256", "kid": "k"})
    assert why_refused(asked, b".".join((segment({"alg": "ES256", "kid": "k"}), claims, signature))) == NO_KEY


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
        ({"kid": 7}, "kid that is no text"),
    ],
)
def test_a_key_that_is_for_something_else_is_not_used_and_alone_is_a_mistake(
    members: dict[str, object], why: str
) -> None:
    unfit = jwk(RSA, **members)
    assert "[sources.signals] secrets: a JWKS document has no key that can be used: key 1" in mistake(document(unfit))
    assert why in mistake(document(unfit))
    assert why_refused(verifier(document(unfit, jwk(EC, kid="e"))), a_token(RSA, "RS256", "k")) == NO_KEY


def test_a_weak_key_is_refused() -> None:
    assert "key 1 ('k') has 1024 bits: an RSA key needs 2048 or more" in mistake(document(jwk(WEAK)))
    asked = verifier(document(jwk(WEAK, kid="weak"), jwk(RSA)))
    with pytest.warns(jwt.InsecureKeyLengthWarning):
        token = a_token(WEAK, "RS256", "weak")
    assert why_refused(asked, token) == NO_KEY


# --- documents


def test_every_key_that_can_not_be_used_is_told_with_its_reason() -> None:
    told = mistake(document({"kty": "oct", "kid": "shared", "k": "dG9wc2VjcmV0"}, 7, jwk(RSA, use="enc")))
    assert "key 1 ('shared') is of type 'oct'" in told
    assert "key 2 is no table; key 3 ('k') has use 'enc'" in told
    assert "dG9wc2VjcmV0" not in told


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("no key", "a secret is no JWKS document: it is not JSON"),
        (pem(RSA), "a secret is no JWKS document: it is not JSON"),
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
        assert why_refused(verifier(document(*keys)), a_token(EC, "ES256", "k")) is None
    assert why_refused(verifier(document(jwk(STRANGE), jwk(RSA))), a_token(EC, "ES256", "k")) is not None


# --- what a token says of its key


def forged(header: dict[str, object]) -> Iterator[bytes]:
    """Claims of the sender's under another header, with signatures that an attacker can make."""
    _, claims, signature = a_token(RSA, "RS256", "k").split(b".")
    signed = b".".join((segment(header), claims))
    for secret in (pem(RSA).encode(), pem(RSA).strip().encode(), json.dumps(jwk(RSA)).encode(), b""):
        yield b".".join((signed, base64.urlsafe_b64encode(hmac.digest(secret, signed, "sha256")).rstrip(b"=")))
    for other in (b"", signature, base64.urlsafe_b64encode(bytes(64)).rstrip(b"="), b"AA"):
        yield b".".join((signed, other))


@pytest.mark.parametrize(
    "algorithm",
    ["HS256", "hs256", "HS384", "none", "None", "nOnE", "", "RS1", "ES256", "ES256K", "EdDSA", "dir", "rs256"],
)
def test_another_algorithm_in_the_header_lets_nobody_in(algorithm: str) -> None:
    asked = verifier(document(jwk(RSA), jwk(EC), jwk(ED)))
    for token in forged({"alg": algorithm, "kid": "k"}):
        assert why_refused(asked, token) is not None


def test_a_key_that_the_token_brings_or_names_is_not_used_nor_fetched() -> None:
    with serving(answer(200, {"keys": [jwk(STRANGE)]})) as theirs:
        for header in (
            {"jwk": jwk(STRANGE)},
            {"jku": f"{theirs.url}/jwks"},
            {"x5u": f"{theirs.url}/x5u"},
            {"kid": f"{theirs.url}/kid"},
            {"kid": "../../dev/null"},
        ):
            claims = a_token(STRANGE, "ES256", "k").split(b".")[1]
            signed = segment({"alg": "ES256", "kid": "k", **header}) + b"." + claims
            algorithm = jwt.get_algorithm_by_name("ES256")
            signature = base64.urlsafe_b64encode(algorithm.sign(signed, STRANGE)).rstrip(b"=")
            assert why_refused(verifier(document(jwk(EC))), signed + b"." + signature) is not None
        assert theirs.seen == []


@pytest.mark.parametrize("critical", [["exp"], ["acme"], [], "exp", [7]])
def test_a_critical_header_that_is_not_known_is_refused(critical: object) -> None:
    """RFC 7515 §4.1.11, also of the right sender."""
    token = jwt.encode(CLAIMS, EC, "ES256", headers={"kid": "k", "crit": critical, "acme": 1}).encode()
    assert why_refused(verifier(document(jwk(EC))), token) is not None
