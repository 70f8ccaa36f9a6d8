"""Hashes of passwords and tokens, as the users and tokens files have them. Pure, apart from the random bytes.

A person chooses a password, so its hash is scrypt: slow, and in much memory. A token is 32 random bytes, which nobody can
guess, so SHA-256 is enough for it.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import re
import secrets
import unicodedata

import msgspec

SHORTEST_PASSWORD = 12
"""Characters. NIST SP 800-63B asks for 8 where another factor helps, and for 15 without; there is a rate limit here."""
LONGEST_PASSWORD = 1_000
TOKEN_PREFIX = "irw_"  # noqa: S105  # no token, only its beginning
"""A scanner of repositories recognises a token by it."""


class Cost(msgspec.Struct, frozen=True):
    """Parameters of scrypt (RFC 7914)."""

    log_n: int = 15
    r: int = 8
    p: int = 3

    @property
    def memory(self) -> int:
        """Return the bytes that one hash needs, about: 32 MiB by default."""
        return 128 * self.r * ((1 << self.log_n) + self.p + 2)


DEFAULT_COST = Cost()
"""One of OWASP's equal settings for scrypt, with the least memory that suits a small machine."""
_MOST_MEMORY = 256 * 1024 * 1024
_MOST_P = 16
_SALT_BYTES, _HASH_BYTES = 16, 32
_PASSWORD_HASH = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([\w+/]{22})\$([\w+/]{43})", re.ASCII)
_TOKEN_HASH = re.compile(r"sha256\$[0-9a-f]{64}")


class PasswordHash(msgspec.Struct, frozen=True):
    """A salted hash with the parameters that made it. Its text form is the one of PHC: `$scrypt$ln=15,r=8,p=3$SALT$HASH`."""

    cost: Cost
    salt: bytes
    digest: bytes

    def __repr__(self) -> str:
        return "PasswordHash(…)"

    @classmethod
    def parse(cls, text: str) -> PasswordHash:
        """Parse its text form.

        Raises:
            ValueError: no such hash, or one that needs too much memory. The message does not repeat it.
        """
        match = _PASSWORD_HASH.fullmatch(text)
        if match is None:
            raise ValueError("the hash is none of `relay web passwd`")
        cost = Cost(*map(int, match.groups()[:3]))
        if not (1 <= cost.log_n and 1 <= cost.r and 1 <= cost.p <= _MOST_P and cost.memory <= _MOST_MEMORY):
            raise ValueError("the hash needs too much memory or time; make it anew with `relay web passwd`")
        try:
            return cls(cost, _decoded(match[4]), _decoded(match[5]))
        except binascii.Error:
            raise ValueError("the hash is cut short or misspelled; make it anew with `relay web passwd`") from None

    @property
    def text(self) -> str:
        """Return its text form."""
        cost = self.cost
        return f"$scrypt$ln={cost.log_n},r={cost.r},p={cost.p}${_encoded(self.salt)}${_encoded(self.digest)}"

    def matches(self, password: str) -> bool:
        """Return whether the password is the one. Slow by design; the time does not depend on the answer."""
        return hmac.compare_digest(self.digest, scrypt(password, self.salt, self.cost))


def scrypt(password: str, salt: bytes, cost: Cost) -> bytes:
    """Hash a password. It is normalised first, as keyboards write `é` in two ways."""
    given = unicodedata.normalize("NFKC", password).encode("utf-8", "surrogatepass")
    return hashlib.scrypt(
        given, salt=salt, n=1 << cost.log_n, r=cost.r, p=cost.p, dklen=_HASH_BYTES, maxmem=2 * cost.memory
    )


def hash_password(password: str, cost: Cost = DEFAULT_COST) -> PasswordHash:
    """Hash a new password.

    Raises:
        ValueError: it is too short or too long.
    """
    if not SHORTEST_PASSWORD <= len(password) <= LONGEST_PASSWORD:
        raise ValueError(f"a password has {SHORTEST_PASSWORD} to {LONGEST_PASSWORD} characters")
    salt = secrets.token_bytes(_SALT_BYTES)
    return PasswordHash(cost, salt, scrypt(password, salt, cost))


def decoy(cost: Cost = DEFAULT_COST) -> PasswordHash:
    """Return a hash that no password has: it gives an unknown name the same work as a known one."""
    return PasswordHash(cost, bytes(_SALT_BYTES), bytes(_HASH_BYTES))


def new_token() -> str:
    """Return a new token, with 32 random bytes in it."""
    return TOKEN_PREFIX + secrets.token_urlsafe(32)


def hash_token(token: str) -> str:
    """Return the text that stands for a token in the tokens file."""
    return f"sha256${hashlib.sha256(token.encode('utf-8', 'surrogatepass')).hexdigest()}"


def check_token_hash(text: str) -> str:
    """Return the text of a token's hash.

    Raises:
        ValueError: no such hash. The message does not repeat it.
    """
    if not _TOKEN_HASH.fullmatch(text):
        raise ValueError("the hash is none of `relay web token`")
    return text


def _encoded(value: bytes) -> str:
    return base64.b64encode(value).decode().rstrip("=")


def _decoded(text: str) -> bytes:
    value = base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    if _encoded(value) != text:
        raise binascii.Error("unused bits")
    return value
