"""Public keys of senders: Ed25519, ECDSA on P-256, JSON Web Key Sets, and certificates."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from inbox.errors import ConfigError, RequestError, Unavailable
from inbox.events import strict_json

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509 import Certificate

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
"""Points of the curve, without their sign, for which signatures can be forged, such as an example's key of zeros. From
libsodium's `ge25519_has_small_order`."""


Verifies = Callable[[bytes, Sequence[bytes]], bool]
"""Returns whether one of the signatures of a content was made with the private key."""


def _verifier(verify: Callable[[bytes, bytes], object]) -> Verifies:
    from cryptography.exceptions import InvalidSignature  # noqa: PLC0415  # only a source with a public key needs it

    def is_by_owner(content: bytes, signature: bytes) -> bool:
        try:
            verify(signature, content)
        except InvalidSignature:
            return False
        return True

    return lambda content, given: any(is_by_owner(content, each) for each in given)


def ed25519_verifier(key: bytes) -> Verifies:
    """Return a verifier of Ed25519 signatures with this key.

    Raises:
        ConfigError: it is not a public key, or it allows forgery. The message does not repeat it.
    """
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey  # noqa: PLC0415  # as above

    if len(key) != KEY_BYTES:
        raise ConfigError(f"a public key has {len(key)} bytes, but an Ed25519 key has {KEY_BYTES}")
    if key[:-1] + bytes([key[-1] & ~_SIGN_BIT]) in _SMALL_ORDER:
        raise ConfigError("a public key is invalid: anyone could sign for it")
    return _verifier(Ed25519PublicKey.from_public_bytes(key).verify)


def ecdsa_verifier(key: bytes) -> Verifies:
    """Return a verifier of ECDSA signatures on P-256 with SHA-256 (FIPS 186-5), in DER.

    `key` is a `SubjectPublicKeyInfo` (RFC 5480) in DER: a PEM without its first and last lines.

    Raises:
        ConfigError: it is not a public key of this curve. The message does not repeat it.
    """
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415  # as above
    from cryptography.hazmat.primitives.asymmetric import ec  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415
    from cryptography.hazmat.primitives.serialization import load_der_public_key  # noqa: PLC0415

    try:
        public = load_der_public_key(key)
    except (ValueError, UnsupportedAlgorithm):
        raise ConfigError("a public key can't be read: it is not a SubjectPublicKeyInfo") from None
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise ConfigError("a public key is not on the curve P-256")
    scheme = ec.ECDSA(SHA256())
    return _verifier(lambda signature, content: public.verify(signature, content, scheme))


# --- Public keys for tokens: a JWKS document (RFC 7517).
#
# A key verifies only its own algorithms (RFC 8725 §3.1): the `alg` that it names, or those of its type and curve. Keys
# for other uses and weak keys are ignored, as RFC 7517 §5 asks; a document without any other key is a mistake.


SMALLEST_RSA = 2048
"""Minimum bits of an RSA key (RFC 7518 §3.3)."""

_RSA = ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512")
_ALGORITHMS: Mapping[tuple[str, str | None], tuple[str, ...]] = {
    ("RSA", None): _RSA,
    ("EC", "P-256"): ("ES256",),  # each curve has its own hash (RFC 7518 §3.4)
    ("EC", "P-384"): ("ES384",),
    ("EC", "P-521"): ("ES512",),
    ("OKP", "Ed25519"): ("EdDSA",),
}
"""Algorithms by type and curve. All are asymmetric, as public keys aren't secret."""


class PublicKey(msgspec.Struct, frozen=True):
    """A key, with the algorithms that it may verify."""

    kid: str | None
    algorithms: tuple[str, ...]
    key: Any


def public_keys(text: str) -> list[PublicKey]:
    """Return the usable keys of a JWKS document.

    Raises:
        ConfigError: there is none. The message gives a reason for each key, and repeats only its `kid`.
    """
    try:
        document = strict_json.parse(text.strip().encode("utf-8", "surrogateescape"))
    except RequestError as error:
        raise ConfigError(f"a secret is not a JWKS document: {error.detail.replace('the body', 'it')}") from None
    listed = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(listed, list) or not listed:
        raise ConfigError("a secret is not a JWKS document: it has no list of keys")
    found, faults = [], []
    for number, jwk in enumerate(listed, 1):
        try:
            found.append(_key(jwk))
        except ConfigError as error:
            kid = jwk.get("kid") if isinstance(jwk, dict) else None
            faults.append(f"key {number}{f' ({kid!r})' if isinstance(kid, str) else ''} {error}")
    if not found:
        raise ConfigError(f"a JWKS document has no usable key: {'; '.join(faults)}")
    return found


def _key(jwk: object) -> PublicKey:
    """Parse one JSON Web Key.

    Raises:
        ConfigError: it can't be used. The message completes a sentence.
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
        raise ConfigError(f"is for alg {alg!r}, but such a key supports only {', '.join(fitting)}")
    if jwk.get("use") not in (None, "sig"):
        raise ConfigError(f"has use {jwk['use']!r}, not 'sig'")
    operations = jwk.get("key_ops")
    if operations is not None and not (isinstance(operations, list) and "verify" in operations):
        raise ConfigError(f"has key_ops {operations!r}, without 'verify'")
    if "d" in jwk:
        raise ConfigError("is a private key: leave it with the sender, and use the public one")
    if not isinstance(kid, str | None):
        raise ConfigError("has a kid that is not a text")
    try:
        key = jwt.PyJWK(jwk, algorithm=alg or fitting[0]).key
    except (ValueError, KeyError, TypeError, OverflowError, UnsupportedAlgorithm, jwt.PyJWTError):
        raise ConfigError("can't be read") from None
    if isinstance(key, RSAPublicKey) and key.key_size < SMALLEST_RSA:
        raise ConfigError(f"has {key.key_size} bits: an RSA key needs {SMALLEST_RSA} or more")
    return PublicKey(kid, fitting if alg is None else (alg,), key)


# --- Certificates that providers publish at a URL named in each request.
#
# The URL is untrusted. A provider's pattern therefore matches it as a whole, without userinfo, port, query or escapes,
# and other URLs are never fetched. A certificate counts for one source, while it is valid and names its provider.
# `inbox/receiver/fetcher.py` fetches missing ones.
#
# The certificate's chain is not checked: HTTPS to the pinned host vouches for it. AWS' own library does the same
# (`sns-message-manager` of its SDK for Java). PayPal's older clients checked it against a bundled root.


RsaHash = Literal["sha1", "sha256"]

MOST_KEPT = 8
"""Maximum certificates of one source; providers replace theirs about once a year."""
_SMALLEST_BITS, _LARGEST_BITS = 2048, 8192
UNAVAILABLE = "the certificate of its signature can't be had now; send it again"


class CertificateUrl(msgspec.Struct, frozen=True):
    """A URL allowed by its provider's pattern: always https, on port 443."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"https://{self.host}{self.path}"


class Claim(msgspec.Struct, frozen=True):
    """An RSASSA-PKCS1-v1_5 signature (RFC 8017) in a request, with the texts, one of which it must sign."""

    url: CertificateUrl
    contents: Sequence[bytes]
    signature: bytes
    algorithm: RsaHash


class MissingCertificate(msgspec.Struct, frozen=True):
    """A certificate needed to verify a request, with the store for it."""

    url: CertificateUrl
    store: CertificateStore


class CertificateNeeded(Unavailable):
    """A request can be verified only with a certificate. Fetch it and verify again, or the sender has to retry."""

    def __init__(self, missing: MissingCertificate) -> None:
        super().__init__(UNAVAILABLE)
        self.missing = missing


class _Kept(msgspec.Struct, frozen=True):
    key: RSAPublicKey
    not_before: datetime
    not_after: datetime


class CertificateStore:
    """The certificates of one source.

    `urls` matches a certificate's whole URL, with the groups `host` and `path`; `names` matches a name that the
    certificate must have.
    """

    def __init__(self, urls: re.Pattern[str], names: re.Pattern[str]) -> None:
        self._urls = urls
        self._names = names
        self._kept: dict[CertificateUrl, _Kept] = {}

    def url(self, text: str) -> CertificateUrl | None:
        """Return the URL named in a request; None if it isn't the provider's."""
        found = self._urls.fullmatch(text)
        return None if found is None else CertificateUrl(found["host"], found["path"])

    def fault(self, claim: Claim, now: datetime) -> str | MissingCertificate | None:
        """Return the reason for rejecting a claim, or the missing certificate; None if the claim is proven."""
        kept = self._kept.get(claim.url)
        if kept is None or not kept.not_before <= now <= kept.not_after:
            return MissingCertificate(claim.url, self)
        return None if _is_signed(kept.key, claim) else "its signature is not by the key of its certificate"

    def add(self, url: CertificateUrl, pem: bytes, now: datetime) -> None:
        """Store the first certificate of `pem`, replacing the oldest one if the store is full.

        Raises:
            ValueError: it is unreadable, not the provider's, not valid at `now`, or has an unsuitable key.
        """
        kept = _read_certificate(pem, self._names)
        if not kept.not_before <= now <= kept.not_after:
            raise ValueError(f"it is valid from {kept.not_before:%Y-%m-%d} to {kept.not_after:%Y-%m-%d} only")
        self._kept.pop(url, None)
        while len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[url] = kept


def _read_certificate(pem: bytes, names: re.Pattern[str]) -> _Kept:
    from cryptography import x509  # noqa: PLC0415  # only a source with certificates needs it
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key, given = certificate.public_key(), _names(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("it is not a certificate") from None
    if not any(names.fullmatch(name) for name in given):
        raise ValueError("it is not the provider's: it has another name")
    if not isinstance(key, RSAPublicKey) or not _SMALLEST_BITS <= key.key_size <= _LARGEST_BITS:
        raise ValueError(f"its key is not an RSA key of {_SMALLEST_BITS} to {_LARGEST_BITS} bits")
    return _Kept(key, certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def _names(certificate: Certificate) -> list[str]:
    """Return the common names and the DNS names."""
    from cryptography import x509  # noqa: PLC0415

    common = certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)
    try:
        alternative = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return [str(each.value) for each in common]
    return [*(str(each.value) for each in common), *alternative.get_values_for_type(x509.DNSName)]


def _is_signed(key: RSAPublicKey, claim: Claim) -> bool:
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA1, SHA256  # noqa: PLC0415

    algorithm = SHA256() if claim.algorithm == "sha256" else SHA1()  # noqa: S303  # SNS' version 1
    for content in claim.contents:
        try:
            key.verify(claim.signature, content, PKCS1v15(), algorithm)
        except InvalidSignature:
            continue
        except UnsupportedAlgorithm:  # some builds of OpenSSL have no SHA-1
            return False
        else:
            return True
    return False


def signature_bytes(text: str) -> bytes | None:
    """Decode a base64 signature; None if it is invalid or has the wrong length for RSA."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:  # also for non-ASCII text
        return None
    return decoded if _SMALLEST_BITS <= len(decoded) * 8 <= _LARGEST_BITS else None
