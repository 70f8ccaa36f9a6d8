"""Signatures that stand in the body, over chosen parts of it: HMAC with a shared secret, as those of a header.

The rest of such a body is not signed. Its provider has to be reached by TLS, and what is not signed must not be a dedup key.

Whatever a request holds, each key makes one HMAC of each signed part, and a body has at most `MOST_PARTS`.
"""

from __future__ import annotations

import hmac
import os
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta

import msgspec

from inbox.config.sources import Signature, Source
from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.sources.base import MADE_UP, Revealed
from inbox.sources.signing import digests, encoded, key_of, out_of_time

MOST_PARTS = 100
"""Signed parts of one body: a body with more proves nothing."""
_MADE_UP_BYTES = 32


class SignedPart(msgspec.Struct, frozen=True):
    """A signed part of a body: one of its signatures has to match."""

    content: bytes
    signatures: tuple[str, ...]
    signed_at: bytes = b""
    """Time of signing, as it is written; a part of `content`."""


class Scheme(msgspec.Struct, frozen=True):
    """A provider's way to sign in a body."""

    signature: Signature
    """Algorithm and encodings; its `header` names the place of the signature, for operators."""
    parts: Callable[[bytes], Sequence[SignedPart]]
    """Returns the signed parts of a body; none where it can't be read. Must not raise, whatever the bytes are."""
    timed: bool = False
    """True when the time of signing is signed, and has to be within the tolerance."""


class InBodyProof:
    """Proves that each signed part of a body, at least one, was signed with one of a source's secrets."""

    passes = 1

    def __init__(self, scheme: Scheme, source: Source, secrets: Revealed) -> None:
        """Take the keys of a source.

        Raises:
            ConfigError: a secret is not written as keys are here. The text does not repeat it.
        """
        self._scheme = scheme
        tolerance = scheme.signature.tolerance if source.tolerance is None else source.tolerance
        self._tolerance = timedelta(seconds=tolerance)
        self._keys: tuple[tuple[Secret, bytes], ...] = tuple(
            (secret, key_of(scheme.signature, text)) for secret, text in secrets
        )
        self.kind = scheme

    @property
    def keys(self) -> int:
        """See Proof."""
        return len(self._keys)

    def pad(self, keys: int) -> None:
        """See Proof."""
        self._keys += tuple((MADE_UP, os.urandom(_MADE_UP_BYTES)) for _ in range(keys - self.keys))

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See Proof."""
        place, parts = self._scheme.signature.header, self._scheme.parts(raw.body)
        if not 0 < len(parts) <= MOST_PARTS:
            return f"{place} is missing" if not parts else f"more than {MOST_PARTS} parts of the body are signed"
        faults: list[str] = []
        for part in parts:
            given = digests(self._scheme.signature, part.signatures)
            proven = False
            for secret, key in self._keys:
                expected = hmac.digest(key, part.content, self._scheme.signature.algorithm)
                matches = sum(hmac.compare_digest(expected, each) for each in given)
                proven |= bool(matches) & secret.valid_at(now)
            if self._scheme.timed:
                faults += out_of_time(self._scheme.signature.timestamp_unit, part.signed_at, now, self._tolerance)
            if not proven:
                faults.append(f"no secret that is valid now gives the signature in {place}")
        return faults[0] if faults else None


def sign_parts(scheme: Scheme, secret: str, body: bytes) -> list[str]:
    """Return the signature of each signed part of a body, as its provider writes it.

    Raises:
        ConfigError: the body has no such parts, or the secret is not written as keys are here.
    """
    parts, key = scheme.parts(body), key_of(scheme.signature, secret)
    if not parts:
        raise ConfigError(f"the body has no place for {scheme.signature.header}: it is no webhook of this provider")
    digests = (hmac.digest(key, part.content, scheme.signature.algorithm) for part in parts)
    return [encoded(scheme.signature, each) for each in digests]
