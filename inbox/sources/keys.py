"""Public keys of senders: Ed25519, ECDSA on P-256, and sets of JSON Web Keys."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from inbox.errors import ConfigError, RequestError
from inbox.events import strict_json

KEY_BYTES = 32

_SIGN_BIT = 0x80
_SMALL_ORDER = frozenset(
    map(
        bytes.fromhex,
        (
            "00" * 32,
            "01" + "00" * 31,
            "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
            "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
            *(f"{last:02x}{'ff' * 30}7f" for last in (0xEC, 0xED, 0xEE)),
        ),
    )
)
"""Points of the curve, without their sign, for which anybody can make signatures; a key of zeros in an example is one. The
list is that of libsodium's `ge25519_has_small_order`."""


def ed25519_verifier(key: bytes) -> Callable[[bytes, Sequence[bytes]], bool]:
    """Return a check of a content and its signatures: was any of them made with the private half of this key?

    Raises:
        ConfigError: it is no public key, or one that anybody could sign for. The text does not repeat it.
    """
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # only a source with a public key needs it
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415

    if len(key) != KEY_BYTES:
        raise ConfigError(f"a public key has {len(key)} bytes, and one of Ed25519 has {KEY_BYTES}")
    if key[:-1] + bytes([key[-1] & ~_SIGN_BIT]) in _SMALL_ORDER:
        raise ConfigError("a public key is none: anybody could sign for it")
    public = Ed25519PublicKey.from_public_bytes(key)

    def is_by_owner(content: bytes, signature: bytes) -> bool:
        try:
            public.verify(signature, content)
        except InvalidSignature:
            return False
        return True

    return lambda content, given: any(is_by_owner(content, each) for each in given)


# --- ECDSA signatures on P-256 with SHA-256 (FIPS 186-5), in DER: the sender's public key is configured here.


def ecdsa_verifier(key: bytes) -> Callable[[bytes, Sequence[bytes]], bool]:
    """Return a check of a content and its signatures: was any of them made with the private half of this key?

    `key` is the DER of a `SubjectPublicKeyInfo` (RFC 5480): a PEM without its first and last line.

    Raises:
        ConfigError: it is no public key of this curve. The text does not repeat it.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415  # as for Ed25519
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    try:
        public = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("a public key can't be read: it is no SubjectPublicKeyInfo") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ConfigError("a public key is not one of the curve P-256")
    scheme = ec.ECDSA(SHA256())

    def is_by_owner(content: bytes, signature: bytes) -> bool:
        try:
            public.verify(signature, content, scheme)
        except InvalidSignature:
            return False
        return True

    return lambda content, given: any(is_by_owner(content, each) for each in given)


# --- Public keys that tokens are verified with: a JWKS document (RFC 7517), or one key as PEM.
#
# A key verifies what it says that it is for, and nothing else (RFC 8725 §3.1): the `alg` that it names, else those of its type and
# curve. A key that is for something else, or is too weak, is passed over as RFC 7517 §5 asks; a document without any other is a
# mistake.


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
    import jwt  # noqa: PLC0415  # only a source with such keys needs it
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415

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
    import jwt  # noqa: PLC0415  # as above
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_pem_public_key  # noqa: PLC0415

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
