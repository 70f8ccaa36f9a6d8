"""Verify signatures of requests, and sign like providers.

A `Signature` (`inbox/config/sources.py`) describes a provider's scheme as data: the header and its parts, the signed
content, the hash, and the encodings of keys and signatures. All schemes cover the raw bytes: HMAC (RFC 2104) with a
shared secret, or Ed25519 or ECDSA with a public key.

The work is the same for every request: one HMAC for each secret and each decoy, even if the header is unreadable. At
most five signatures of a header are checked, so that thousands of them cost no time.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime

import msgspec

from inbox.config.sources import Algorithm, Signature, Source
from inbox.config.values import Secret, Unit, is_name
from inbox.errors import ConfigError, Unreadable
from inbox.events import timestamps
from inbox.events.event import RawRequest
from inbox.sources import keys
from inbox.sources.base import MADE_UP, TOLERANCE_SECONDS, KeyedProof, Proof, Revealed
from inbox.sources.fields import FORM, form_fields

MOST_SIGNATURES = 5
_MADE_UP_BYTES = 32

_PLACE = re.compile(r"\{([a-z_]+)\}")
_PLACES = ("body", "id", "method", "sorted_params", "timestamp", "url")
_DIGITS = re.compile(r"[0-9]{1,12}")
_MILLIS = re.compile(r"[0-9]{1,15}")
_HEX = re.compile(rb"[0-9a-fA-F]+")
_MOST_PARTS = 20
_FIELDS_AT_MOST = 200
_NO_SECRETS = {
    "whpk_": "a secret is a public key of Standard Webhooks: anyone who knows it could sign with it",
    "whsk_": "a secret is a private key of Standard Webhooks: leave that to the sender, and take the public one (whpk_…)",
}
"""Prefixes of keys that must never be shared secrets."""
PUBLIC: Mapping[Algorithm, Callable[[bytes], keys.Verifies]] = {
    "ecdsa": keys.ecdsa_verifier,
    "ed25519": keys.ed25519_verifier,
}
"""Verifier factories of the public-key algorithms."""
_UNIT_NS = {"s": 1_000_000_000, "ms": 1_000_000}


class Message(msgspec.Struct, frozen=True):
    """Parts that a signature may cover, as bytes; empty if missing."""

    timestamp: bytes = b""
    id: bytes = b""
    method: bytes = b"POST"
    url: bytes = b""
    body: bytes = b""
    sorted_params: bytes = b""


class _VerifyingKey(msgspec.Struct, frozen=True):
    secret: Secret
    algorithm: Algorithm
    matches: keys.Verifies
    mac: Callable[[bytes], bytes] | None = None
    """None for public keys and decoys."""


class SignatureProof(Proof):
    """Proof by a signature with one of a source's secrets."""

    def __init__(
        self,
        signatures: Sequence[Signature],
        secrets: Revealed,
        *,
        url: str = "",
        tolerance: float = TOLERANCE_SECONDS,
        signed_at: Callable[[bytes], bytes] | None = None,
    ) -> None:
        """Take a source's signatures, which differ in headers or kinds of keys.

        `signed_at` finds the time of signing in a body, if no header has it; empty if the body has none.

        The first of these headers in a request counts. A secret's prefix tells for which of them it is a key.

        Raises:
            ConfigError: a secret is not a valid key. The message does not repeat it.
        """
        self._signatures = tuple(signatures)
        self._templates = tuple(_compile(signature.content) for signature in signatures)
        self._keys = tuple(_key(self._signatures, secret, revealed) for secret, revealed in secrets)
        self._algorithms = {key.algorithm for key in self._keys}
        self._url = url
        self._signed_at = signed_at
        self._tolerance = tolerance
        public = (each for (_, each), key in zip(secrets, self._keys, strict=True) if key.algorithm in PUBLIC)
        signed_url = url if any("{url}" in signature.content for signature in signatures) else ""
        self.kind = (self._signatures, signed_url, tuple(public), signed_at)

    @property
    def keys(self) -> int:
        """See Proof. Public keys aren't secret: they are part of the kind, and tried in other sources' rejections."""
        return sum(key.algorithm not in PUBLIC for key in self._keys)

    @property
    def passes(self) -> int:
        """See Proof."""
        by_keys = sum(MOST_SIGNATURES if key.algorithm in PUBLIC else 1 for key in self._keys)
        return by_keys + (self._signed_at is not None)

    def pad(self, keys: int) -> None:
        """See Proof."""
        algorithm = self._signatures[0].algorithm
        self._keys += tuple(
            _VerifyingKey(MADE_UP, algorithm, _matcher(algorithm, os.urandom(_MADE_UP_BYTES)))
            for _ in range(keys - self.keys)
        )
        self._algorithms = {
            key.algorithm for key in self._keys
        }  # with decoys, a proof by public keys has another algorithm

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """Return the reason why no valid secret has signed the request; None if one has."""
        faults: list[str] = []
        signature, content, given, timestamp = self._read(raw, faults)
        proven = False
        for key in self._keys:
            proven |= key.matches(content, given[key.algorithm]) & key.secret.valid_at(now)
        in_body = b"" if self._signed_at is None else self._signed_at(raw.body)
        if in_body or signature.timestamp_header or signature.timestamp_prefix:
            faults += check_time(signature.timestamp_unit, in_body or timestamp, now, self._tolerance)
        if not proven:
            faults.append(f"no secret that is valid now gives the signature in {signature.header}")
        return faults[0] if faults else None

    def mac(self, raw: RawRequest, content: bytes) -> bytes:
        """Return the HMAC of `content` with the secret that has signed `raw`; empty where none has."""
        _, signed, given, _ = self._read(raw, [])
        by = (key.mac for key in self._keys if key.mac is not None and key.matches(signed, given[key.algorithm]))
        return next((mac(content) for mac in by), b"")

    def _read(
        self, raw: RawRequest, faults: list[str]
    ) -> tuple[Signature, bytes, Mapping[Algorithm, list[bytes]], bytes]:
        """Return the signature's scheme, the signed content, the signatures, and the time of signing."""
        number = next((n for n, each in enumerate(self._signatures) if each.header.lower() in raw.headers), 0)
        signature = self._signatures[number]
        kinds = [
            each for each in self._signatures if each.header == signature.header and each.algorithm in self._algorithms
        ]
        given, timestamp = _parse(signature, kinds, raw, faults)
        message = Message(
            timestamp=timestamp,
            id=_header(raw, signature.id_header, faults),
            method=raw.method.encode(),
            url=f"{self._url}?{raw.query}".encode() if raw.query else self._url.encode(),
            body=raw.body,
            sorted_params=_params(raw, faults) if "{sorted_params}" in signature.content else b"",
        )
        return signature, self._templates[number](message), given, timestamp


def sign(signature: Signature, secret: str, message: Message, at: datetime) -> dict[str, str]:
    """Return the signature headers of a provider that sends `message` at `at`.

    Raises:
        ConfigError: the secret is not a valid key, or is a public key.
    """
    if signature.algorithm in PUBLIC:
        raise ConfigError("the configured key is public: only the sender can sign")
    key = decode_key(signature, secret)
    return sign_headers(signature, lambda content: hmac.digest(key, content, signature.algorithm), message, at)


def sign_headers(
    signature: Signature, signer: Callable[[bytes], bytes], message: Message, at: datetime
) -> dict[str, str]:
    """Return the headers of a message signed by `signer` at `at`: signature, time and id."""
    timestamp = _timestamp(signature, at) if signature.timestamp_header or signature.timestamp_prefix else ""
    content = _compile(signature.content)(msgspec.structs.replace(message, timestamp=timestamp.encode()))
    digest = signer(content)
    parts = [f"{signature.timestamp_prefix}{timestamp}"] if signature.timestamp_prefix else []
    headers = {
        signature.header: signature.separator.join([*parts, f"{signature.prefix}{encode_digest(signature, digest)}"])
    }
    if signature.timestamp_header:
        headers[signature.timestamp_header] = timestamp
    if signature.id_header:
        headers[signature.id_header] = message.id.decode("latin-1")
    return headers


def find_mistakes(signature: Signature, *, has_url: bool) -> Iterator[tuple[str, str]]:
    """Yield the mistakes in a signature's configuration, as key and reason."""
    for key in ("header", "timestamp_header", "id_header"):
        name = getattr(signature, key)
        if (name or key == "header") and not is_name(name):
            yield key, f"{name!r} is not a header's name"
    if signature.timestamp_header and signature.timestamp_prefix:
        yield "timestamp_prefix", "says the same as timestamp_header; remove one"
    if signature.timestamp_prefix and not signature.separator:
        yield "separator", "is missing: it separates the time from the signature"
    places = set(_PLACE.findall(signature.content))
    if places - set(_PLACES) or _PLACE.sub("", signature.content).count("{"):
        yield "content", f"may have {', '.join(f'{{{place}}}' for place in _PLACES)}, and no other {{…}}"
    if signature.algorithm in PUBLIC and signature.key == "text":
        yield "key", "must say how the public keys are written: base64 or hex"
    timed = bool(signature.timestamp_header or signature.timestamp_prefix)
    for wrong, text in (
        (
            places.isdisjoint({"body", "sorted_params"}),
            "has no {body}: anyone could send another one with this signature",
        ),
        (timed and "timestamp" not in places, "has no {timestamp}: anyone could send the same request later"),
        ("timestamp" in places and not timed, "has {timestamp}: timestamp_header or timestamp_prefix says where it is"),
        ("id" in places and not signature.id_header, "has {id}: id_header says where it is"),
        ("url" in places and not has_url, "has {url}: the source needs its public_url"),
    ):
        if wrong:
            yield "content", text


def decode_key(signature: Signature, secret: str) -> bytes:
    """Return the key in a secret's text.

    Raises:
        ConfigError: it is not base64 or hex, it is empty, or it is not a shared secret.
    """
    if signature.algorithm not in PUBLIC and (why := _NO_SECRETS.get(secret[:5])) is not None:
        raise ConfigError(why)
    # A variable of the environment may hold bytes that are not UTF-8; Python shows them as lone surrogates.
    text = secret.removeprefix(signature.key_prefix).encode("utf-8", "surrogateescape")
    try:
        match signature.key:
            case "base64":
                key = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)  # some libraries omit the padding
            case "hex":
                key = binascii.unhexlify(text)
            case _:
                key = text
    except ValueError:
        raise ConfigError(f"a secret is not {signature.key}, as this provider's secrets are") from None
    if not key:
        raise ConfigError("a secret is empty: anyone could sign with it")
    return key


def _key(signatures: Sequence[Signature], secret: Secret, revealed: str) -> _VerifyingKey:
    """Make the key of a secret, whose prefix tells the kind."""
    signature = next(
        (each for each in signatures if each.key_prefix and revealed.startswith(each.key_prefix)), signatures[0]
    )
    key, algorithm = decode_key(signature, revealed), signature.algorithm
    mac = None if algorithm in PUBLIC else lambda content: hmac.digest(key, content, algorithm)
    return _VerifyingKey(secret, algorithm, _matcher(algorithm, key), mac)


def _matcher(algorithm: Algorithm, key: bytes) -> keys.Verifies:
    if algorithm in PUBLIC:
        return PUBLIC[algorithm](key)

    def matches(content: bytes, given: Sequence[bytes]) -> bool:
        expected = hmac.digest(key, content, algorithm)
        return bool(sum(hmac.compare_digest(expected, each) for each in given))

    return matches


def _compile(content: str) -> Callable[[Message], bytes]:
    """Compile a template, in which literals alternate with names of `Message` members."""
    pieces = _PLACE.split(content)
    literals, names = [piece.encode() for piece in pieces[::2]], pieces[1::2]

    def fill(message: Message) -> bytes:
        filled = [literals[0]]
        for name, literal in zip(names, literals[1:], strict=True):
            filled += (getattr(message, name), literal)
        return b"".join(filled)

    return fill


def _parse(
    signature: Signature, kinds: Sequence[Signature], raw: RawRequest, faults: list[str]
) -> tuple[Mapping[Algorithm, list[bytes]], bytes]:
    """Return the header's signatures by kind, as bytes, and the written time of signing."""
    value = raw.headers.get(signature.header.lower(), "")
    if not value:
        faults.append(f"{signature.header} is missing")
    parts = value.split(signature.separator, _MOST_PARTS) if signature.separator else [value]
    parts = [part.strip(" ") for part in parts]
    if signature.timestamp_prefix:
        times = [part for part in parts if part.startswith(signature.timestamp_prefix)]
        timestamp = times[0].removeprefix(signature.timestamp_prefix) if len(times) == 1 else ""
        if value and len(times) != 1:
            faults.append(f"{signature.header} has {len(times)} times of signing")
        written = timestamp.encode("latin-1", "replace")
    else:
        written = _header(raw, signature.timestamp_header, faults)
    given = {each.algorithm: decode_digests(each, parts) for each in kinds}
    if value and not any(given.values()):
        faults.append(f"{signature.header} holds no signature as this provider writes them")
    return given, written


def decode_digests(signature: Signature, parts: Sequence[str]) -> list[bytes]:
    """Decode at most `MOST_SIGNATURES` signatures among the parts, skipping undecodable ones."""
    listed = [part.removeprefix(signature.prefix) for part in parts if part.startswith(signature.prefix)]
    return [digest for each in listed[:MOST_SIGNATURES] if (digest := _decode_digest(signature, each)) is not None]


def encode_digest(signature: Signature, digest: bytes) -> str:
    """Encode a digest like the provider."""
    return digest.hex() if signature.encoding == "hex" else base64.b64encode(digest).decode()


def _decode_digest(signature: Signature, text: str) -> bytes | None:
    """Decode a signature's text strictly, unlike Python's decoders; None if it is invalid."""
    try:
        written = text.encode("ascii")
        if signature.encoding == "base64":
            decoded = base64.b64decode(written, validate=True)
            return decoded if base64.b64encode(decoded) == written else None  # only the canonical text
        return binascii.unhexlify(written) if _HEX.fullmatch(written) else None
    except ValueError:
        return None


def _header(raw: RawRequest, name: str, faults: list[str]) -> bytes:
    if not name:
        return b""
    value = raw.headers.get(name.lower(), "")
    if not value:
        faults.append(f"{name} is missing")
    return value.encode("latin-1", "replace")


def check_time(unit: Unit, timestamp: bytes, now: datetime, tolerance: float) -> Iterator[str]:
    """Yield an error if a time of signing, written in this unit, is not within `tolerance` seconds of `now`."""
    try:
        signed_ns = _instant(unit, timestamp.decode("ascii", "replace"))
    except ValueError:
        yield "the time of signing can't be read"
        return
    seconds = (timestamps.to_nanoseconds(now) - signed_ns) / 1e9
    if abs(seconds) > tolerance:
        yield (
            f"it was signed {abs(seconds):.0f} s {'before' if seconds > 0 else 'after'} it arrived, more than the"
            f" {tolerance:g} s allowed; check both clocks"
        )


def _instant(unit: Unit, text: str) -> int:
    if unit == "rfc3339":
        return timestamps.parse_rfc3339(text)
    if (_DIGITS if unit == "s" else _MILLIS).fullmatch(text) is None:
        raise ValueError("not a whole number")
    return int(text) * _UNIT_NS[unit]


def _timestamp(signature: Signature, at: datetime) -> str:
    if signature.timestamp_unit == "rfc3339":
        return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return str(timestamps.to_nanoseconds(at) // _UNIT_NS[signature.timestamp_unit])


def sort_params(content_type: str, body: bytes) -> bytes:
    """Return the distinct names and values of a form, sorted and joined; empty for other bodies.

    Raises:
        Unreadable: the form can't be read.
    """
    pairs = set(form_fields(body, _FIELDS_AT_MOST)) if content_type == FORM else ()
    return "".join(f"{name}{value}" for name, value in sorted(pairs)).encode()


def _params(raw: RawRequest, faults: list[str]) -> bytes:
    try:
        return sort_params(raw.content_type, raw.body)
    except Unreadable:
        faults.append("the form can't be read")
        return b""


# --- Signatures in the body, over parts of it, by HMAC with a shared secret.
#
# The rest of the body is unsigned, so it must arrive by TLS, and its fields must not be dedup keys.
#
# The work is bounded: each key makes one HMAC of each signed part, of which a body has at most `MOST_PARTS`.


MOST_PARTS = 100
"""Maximum signed parts of one body; a body with more is rejected."""


class SignedPart(msgspec.Struct, frozen=True):
    """A signed part of a body; one of its signatures must match."""

    content: bytes
    signatures: tuple[str, ...]
    signed_at: bytes = b""
    """Written time of signing, a part of `content`."""


class Scheme(msgspec.Struct, frozen=True):
    """A provider's signature scheme inside bodies."""

    signature: Signature
    """Algorithm and encodings; its `header` tells operators where the signature is."""
    parts: Callable[[bytes], Sequence[SignedPart]]
    """Returns the signed parts of a body; empty if it is unreadable. Must never raise."""
    tolerance: float | None = None
    """Maximum seconds between signing and arrival, unless the source sets it; None if no time is signed."""


class InBodyProof(KeyedProof):
    """Proof that each signed part of a body, and at least one, was signed with one of a source's secrets."""

    passes = 1

    def __init__(self, scheme: Scheme, source: Source, secrets: Revealed) -> None:
        """Read the keys of a source.

        Raises:
            ConfigError: a secret is not a valid key. The message does not repeat it.
        """
        super().__init__((secret, decode_key(scheme.signature, text)) for secret, text in secrets)
        self._scheme = self.kind = scheme
        self._tolerance = scheme.tolerance if source.tolerance is None else source.tolerance

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """See Proof."""
        place, parts = self._scheme.signature.header, self._scheme.parts(raw.body)
        if not 0 < len(parts) <= MOST_PARTS:
            return f"{place} is missing" if not parts else f"more than {MOST_PARTS} parts of the body are signed"
        faults: list[str] = []
        for part in parts:
            given = decode_digests(self._scheme.signature, part.signatures)
            proven = False
            for secret, key in self._keys:
                matches = _matcher(self._scheme.signature.algorithm, key)
                proven |= matches(part.content, given) & secret.valid_at(now)
            if self._scheme.tolerance is not None and self._tolerance is not None:
                faults += check_time(self._scheme.signature.timestamp_unit, part.signed_at, now, self._tolerance)
            if not proven:
                faults.append(f"no secret that is valid now gives the signature in {place}")
        return faults[0] if faults else None


def sign_parts(scheme: Scheme, secret: str, body: bytes) -> list[str]:
    """Return the signature of each signed part of a body, encoded like the provider's.

    Raises:
        ConfigError: the body has no such parts, or the secret is not a valid key.
    """
    parts, key = scheme.parts(body), decode_key(scheme.signature, secret)
    if not parts:
        raise ConfigError(f"the body has no place for {scheme.signature.header}: it is not a webhook of this provider")
    digests = (hmac.digest(key, part.content, scheme.signature.algorithm) for part in parts)
    return [encode_digest(scheme.signature, each) for each in digests]
