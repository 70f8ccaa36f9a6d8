"""Certificates of providers that publish them at a URL, which each request names.

Nobody has proven anything yet when the URL is read. So a provider pins it as a whole, by one pattern without userinfo, port,
query or escapes, and whatever else a request names is never asked for. A certificate counts for one source, while it is valid
and as long as it names its provider. `inbox/receiver/fetcher.py` fetches those that are missing.

A fetched certificate's chain is not followed: HTTPS to the pinned host vouches for it. AWS' own library does the same
(`sns-message-manager` of its SDK for Java). PayPal's older clients followed it to a root that they brought with them.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Literal

import msgspec

from inbox.errors import Unavailable

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
    from cryptography.x509 import Certificate

Algorithm = Literal["sha1", "sha256"]

MOST_KEPT = 8
"""Certificates of one source: providers replace theirs about once a year."""
_SMALLEST_BITS, _LARGEST_BITS = 2048, 8192
UNAVAILABLE = "the certificate of its signature can't be had now; send it again"


class CertificateUrl(msgspec.Struct, frozen=True):
    """A URL that its provider's pattern allows: always https, on port 443."""

    host: str
    path: str

    def __str__(self) -> str:
        return f"https://{self.host}{self.path}"


class Claim(msgspec.Struct, frozen=True):
    """A signature of RSASSA-PKCS1-v1_5 (RFC 8017) in a request, and the texts of which it should be for one."""

    url: CertificateUrl
    contents: Sequence[bytes]
    signature: bytes
    algorithm: Algorithm


class MissingCertificate(msgspec.Struct, frozen=True):
    """A certificate without which nobody can tell whether a request is proven, and the store that wants it."""

    url: CertificateUrl
    store: CertificateStore


class CertificateNeeded(Unavailable):
    """A request is proven but for a certificate. Fetch it and verify again; else the sender sends again."""

    def __init__(self, missing: MissingCertificate) -> None:
        super().__init__(UNAVAILABLE)
        self.missing = missing


class _Kept(msgspec.Struct, frozen=True):
    key: RSAPublicKey
    not_before: datetime
    not_after: datetime


class CertificateStore:
    """The certificates of one source.

    `urls` matches the whole URL of one, with the groups `host` and `path`; `names` matches a whole name that it must have.
    """

    def __init__(self, urls: re.Pattern[str], names: re.Pattern[str]) -> None:
        self._urls = urls
        self._names = names
        self._kept: dict[CertificateUrl, _Kept] = {}

    def url(self, text: str) -> CertificateUrl | None:
        """Return the URL that a request names; None when it is not one of the provider's."""
        found = self._urls.fullmatch(text)
        return None if found is None else CertificateUrl(found["host"], found["path"])

    def fault(self, claim: Claim, now: datetime) -> str | MissingCertificate | None:
        """Return why a claim is not proven, the certificate without which nobody can tell, or None when it is."""
        kept = self._kept.get(claim.url)
        if kept is None or not kept.not_before <= now <= kept.not_after:
            return MissingCertificate(claim.url, self)
        return None if _is_signed(kept.key, claim) else "its signature is not by the key of its certificate"

    def add(self, url: CertificateUrl, pem: bytes, now: datetime) -> None:
        """Keep the first certificate of `pem`, instead of the oldest one where there are many.

        Raises:
            ValueError: it can't be read, is not the provider's, is not valid at `now`, or has an unfit key.
        """
        kept = _parsed(pem, self._names)
        if not kept.not_before <= now <= kept.not_after:
            raise ValueError(f"it is valid from {kept.not_before:%Y-%m-%d} to {kept.not_after:%Y-%m-%d} only")
        self._kept.pop(url, None)
        while len(self._kept) >= MOST_KEPT:
            del self._kept[next(iter(self._kept))]
        self._kept[url] = kept


def _parsed(pem: bytes, names: re.Pattern[str]) -> _Kept:
    from cryptography import x509  # noqa: PLC0415  # only a source with certificates needs it
    from cryptography.exceptions import UnsupportedAlgorithm  # noqa: PLC0415
    from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey  # noqa: PLC0415

    try:
        certificate = x509.load_pem_x509_certificate(pem)
        key, given = certificate.public_key(), _names(certificate)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise ValueError("it is no certificate") from None
    if not any(names.fullmatch(name) for name in given):
        raise ValueError("it is not the provider's: it has another name")
    if not isinstance(key, RSAPublicKey) or not _SMALLEST_BITS <= key.key_size <= _LARGEST_BITS:
        raise ValueError(f"its key is not one of RSA with {_SMALLEST_BITS} to {_LARGEST_BITS} bits")
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
    """Decode a signature in base64; None when it is none, or of another length than an RSA key's here."""
    try:
        decoded = base64.b64decode(text, validate=True)
    except ValueError:  # also a text that is not ASCII
        return None
    return decoded if _SMALLEST_BITS <= len(decoded) * 8 <= _LARGEST_BITS else None
