"""ECDSA signatures on P-256 with SHA-256 (FIPS 186-5), in DER: the sender's public key is configured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inbox.errors import ConfigError


def verifier(key: bytes) -> Callable[[bytes, Sequence[bytes]], bool]:
    """Return a check of a content and its signatures: was any of them made with the private half of this key?

    `key` is the DER of a `SubjectPublicKeyInfo` (RFC 5480): a PEM without its first and last line.

    Raises:
        ConfigError: it is no public key of this curve. The text does not repeat it.
    """
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm  # noqa: PLC0415  # as in ed25519.py
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
