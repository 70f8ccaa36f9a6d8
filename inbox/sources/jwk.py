"""Public keys that tokens are verified with: a JWKS document (RFC 7517), or one key as PEM.

A key verifies what it says that it is for, and nothing else (RFC 8725 §3.1): the `alg` that it names, else those of its type and
curve. A key that is for something else, or is too weak, is passed over as RFC 7517 §5 asks; a document without any other is a
mistake.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from inbox.errors import ConfigError, RequestError
from inbox.events import strict_json

SMALLEST_RSA = 2048
"""Bits; from RFC 7518 §3.3."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),  # each curve has its own hash (RFC 7518 §3.4)
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Algorithms by type and curve. None of them is symmetric: a public key is no secret."""


class PublicKey(msgspec.Struct, frozen=True):
    """One key, and the algorithms that it may verify."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


def public_keys(text: str) -> list[PublicKey]:
    """Return the keys of a JWKS document or a PEM that can be used.

    Raises:
        ConfigError: there is none. The text says why for each; it repeats nothing of a key but its `kid`.
    """
    if not text.lstrip().startswith("{"):
        try:
            return [_key(_of_pem(text))]
        except ConfigError as error:
            raise ConfigError(f"a secret's public key {error}") from None
    try:
        document = strict_json.parse(text.strip().encode("utf-8", "surrogateescape"))
    except RequestError as error:
        raise ConfigError(f"a secret is no JWKS document: {error.detail.replace('the body', 'it')}") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ConfigError("a secret is no JWKS document: it has no list of keys")
    found, faults = [], []
    for number, jwk in enumerate(listed, 1):
        try:
            found.append(_key(jwk))
        except ConfigError as error:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            faults.append(f"key {number}{f' ({kid!r})' if isinstance(kid, str) else ''} {error}")
    if not found:
        raise ConfigError(f"a JWKS document has no key that can be used: {'; '.join(faults)}")
    return found


def _key(jwk: object) -> PublicKey:
    """Return the key that a table describes.

    Raises:
        ConfigError: it can't be used. The text is the second half of a sentence.
    """
    if not isinstance(jwk, dict):
        raise ConfigError("is no table")
    kid, kty, crv, alg = (jwk.get(name) for name in ("kid", "kty", "crv", "alg"))
    fitting = _ALGORITHMS.get((str(kty), None if kty == "RSA" else str(crv)))
    if fitting is None:
        raise ConfigError(
            f"is of type {kty!r}, curve {crv!r}: RSA, EC (P-256, P-384, P-521) and OKP (Ed25519) can be used"
        )
    if alg is not None and alg not in fitting:
        raise ConfigError(f"is for alg {alg!r}, and such a key can be for {', '.join(fitting)}")
    if jwk.get("use") not in (None, "sig"):
        raise ConfigError(f"has use {jwk['use']!r}, not 'sig'")
    operations = jwk.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise ConfigError(f"has key_ops {operations!r}, without 'verify'")
    if "d" in jwk:
        raise ConfigError("is a private key: leave that to the sender, and take the public one")
    if not isinstance(kid, str | None):
        raise ConfigError("has a kid that is no text")
    try:
        key = jwt.PyJWK(jwk, algorithm=alg or fitting[0]).key
    except (ValueError, KeyError, TypeError, OverflowError, UnsupportedAlgorithm, jwt.PyJWTError):
        raise ConfigError("can't be read") from None
    if isinstance(key, RSAPublicKey) and key.key_size < SMALLEST_RSA:
        raise ConfigError(f"has {key.key_size} bits: an RSA key needs {SMALLEST_RSA} or more")
    return PublicKey(kid, fitting if alg is None else (alg,), key)


def _of_pem(text: str) -> dict[str, object]:
    if "PRIVATE KEY" in text:
        raise ConfigError("is a private one: leave that to the sender, and take the public one")
    try:
        key = load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm):  # UnicodeError is a ValueError
        raise ConfigError("can't be read: neither a JWKS document nor a PEM") from None
    for algorithm in ("RS256", "ES256", "EdDSA"):
        made = jwt.get_algorithm_by_name(algorithm)
        try:
            found: dict[str, object] = json.loads(made.to_jwk(key))
        except (AttributeError, TypeError, ValueError, jwt.PyJWTError):
            continue
        return found
    raise ConfigError("is of a kind that signs no tokens")
