"""Ed25519 signatures (RFC 8032): the sender alone has the private key, and its public key is configured here."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from inbox.errors import ConfigError

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


def verifier(key: bytes) -> Callable[[bytes, Sequence[bytes]], bool]:
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
