"""Building blocks of presets.

A preset describes one provider: its signatures, bodies, entities, and expected responses. To add one, write a file in
`inbox/sources/presets/` that ends in a `PRESET`; the file gives its name. Its `read` may raise only subclasses of
`RequestError`, whatever the bytes (any other exception causes a 500), so use the readers of `inbox/sources/fields.py`.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

import msgspec

from inbox.config.sources import Signature, Source
from inbox.config.values import Secret
from inbox.errors import RequestError, UnsupportedType
from inbox.events import timestamps
from inbox.events.event import Identity, RawRequest
from inbox.sources.keys import MissingCertificate

Read = Callable[[RawRequest, Sequence[str] | None], tuple[Identity, ...]]
"""Reads the events of a body in their order. The second argument is the source's `dedup`, if any.

Raises `Unreadable` or `InvalidEvent`.
"""

Revealed = Sequence[tuple[Secret, str]]
"""Pairs of a secret and its text."""

MADE_UP = Secret("")
"""Secret of decoy keys, which make every rejection take the same time."""
TOLERANCE_SECONDS = 300.0
"""Maximum difference between the times of signing and arrival, in seconds, either way."""
_DECOY_BYTES = 32
_SEPARATOR = re.compile(r"[./_-]")


class Proof(ABC):
    """A check that authenticates requests. Its methods must not raise, whatever the request holds."""

    kind: Hashable = None
    """Key shared by proofs that do the same work for any request, apart from their number of keys."""

    @property
    def keys(self) -> int:
        """Number of keys tried on each request, including decoys; 0 if it needs no decoys."""
        return 0

    @property
    def passes(self) -> int:
        """Maximum number of passes through a body."""
        return 0

    def pad(self, keys: int) -> None:  # noqa: B027  # most have no keys
        """Add decoy keys, which match nothing, up to `keys` in all."""

    @abstractmethod
    def fault(self, raw: RawRequest, now: datetime) -> str | MissingCertificate | None:
        """Return the reason for a rejection, for operators, or the missing certificate; None if the request is proven."""


class KeyedProof(Proof):
    """A proof by one of several secret keys, considering only valid ones."""

    def __init__(self, keys: Iterable[tuple[Secret, bytes]]) -> None:
        self._keys = tuple(keys)

    @property
    def keys(self) -> int:
        """See Proof."""
        return len(self._keys)

    def pad(self, keys: int) -> None:
        """See Proof."""
        self._keys += tuple((MADE_UP, os.urandom(_DECOY_BYTES)) for _ in range(keys - self.keys))

    def is_known(self, secret: bytes, now: datetime) -> bool:
        """Return in constant time whether a text is one of the secrets, whose keys are made by `compute_digest`."""
        digest, known = hashlib.sha256(secret).digest(), False
        for valid, expected in self._keys:
            known |= hmac.compare_digest(digest, expected) & valid.valid_at(now)
        return known


def compute_digest(secret: str) -> bytes:
    """Return the digest of a shared secret, so that secrets of any length compare in constant time."""
    # An environment variable may hold bytes that are not UTF-8; Python reads them as lone surrogates.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


Prover = Callable[[Source, Revealed], Proof]
"""Makes a preset's own proof from a source and its `secrets`. Raises ConfigError if it can't."""


Mac = Callable[[bytes], bytes]
"""Returns the HMAC of a content with the secret that signed the request; empty if none did."""


class HandshakeResponse(msgspec.Struct, frozen=True):
    """The response to a handshake."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    content_type: str = "application/json"


class Handshake(msgspec.Struct, frozen=True):
    """A provider's check that its webhooks are wanted, before or between them."""

    answer: Callable[[RawRequest, Mac], HandshakeResponse | None]
    """Returns the response, once the request is authenticated; None if it is not a handshake after all.

    Raises `RequestError`.
    """
    docs: str
    """Description of request and response, for the documentation."""
    method: str = "POST"
    header: str | None = None
    """Header of every handshake, in lower case; None if `answer` decides by the body."""


class Sample(msgspec.Struct, frozen=True):
    """An unsigned request like the provider's, for `inbox send`."""

    body: bytes
    headers: Mapping[str, str] = {}
    message_id: str = ""
    """Message id, if the signature covers one."""


MakeSample = Callable[[str, str, str, datetime], Sample]
"""Makes a webhook about an entity from its type and id, the event type and the time."""


def json_sample(body: object, headers: Mapping[str, str] = {}, message_id: str = "") -> MakeSample:
    """Make samples from a template whose texts may contain these placeholders in `{…}`.

    `kind`, `id`, `type`; `first` and `last`, words of the type; `dotted`, the type after the kind, unless it has a dot;
    `unique`, an event id; `time`. A text of only such a placeholder becomes a number: `number`, the id; `s` and `ms`,
    the time.
    """

    def make(kind: str, identifier: str, event_type: str, at: datetime) -> Sample:
        values: dict[str, object] = {
            "kind": kind,
            "id": identifier,
            "number": int(identifier) if identifier.isdigit() else identifier,
            "type": event_type,
            "first": _SEPARATOR.split(event_type)[0],
            "last": _SEPARATOR.split(event_type)[-1],
            "dotted": event_type if "." in event_type else f"{kind}.{event_type}",
            "unique": f"sample-{identifier}-{at:%Y%m%d%H%M%S}",
            "time": timestamps.rfc3339(at, "milliseconds"),
            "s": int(at.timestamp()),
            "ms": timestamps.to_nanoseconds(at) // 1_000_000,
        }

        def fill(template: object) -> object:
            match template:
                case str():
                    is_whole = template.startswith("{") and template[1:-1] in values
                    return values[template[1:-1]] if is_whole else template.format_map(values)
                case list():
                    return [fill(each) for each in template]
                case dict():
                    return {fill(name): fill(each) for name, each in template.items()}
            return template

        own = {name: value.format_map(values) for name, value in headers.items()}
        return Sample(msgspec.json.encode(fill(body)), own, message_id.format_map(values))

    return make


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """Everything that the receiver knows about one provider."""

    title: str
    shown_at: str
    """Place of the secret at the provider; completes "the secret is" in messages."""
    read: Read
    reader: Callable[[Source], Read] | None = None
    """Makes the `read` of one source, if it depends on the source's configuration; raises ValueError if it can't."""
    reads_by: str = ""
    """Key of a source that `reader` reads; its errors are reported as mistakes of that key."""
    signatures: tuple[Signature, ...] = ()
    """Signatures; several differ only in the names of headers."""
    signed_at: Callable[[bytes], bytes] | None = None
    """Finds the written time of sending in a body, if no header has it; empty if the body has none."""
    tolerance: float = TOLERANCE_SECONDS
    """Maximum seconds between signing and arrival, unless the source sets it."""
    may_be_unsigned: bool = False
    """True if signing is optional at the provider; otherwise the signature is required."""
    prover: Prover | None = None
    """Makes a custom proof, for authentication other than a shared secret's signature."""
    proves_by: str = "secrets"
    """Key of a source that `prover` uses; if not `secrets`, it is in `needs`."""
    signer: Callable[[Sample, str, datetime], Sample] | None = None
    """Signs a sample in its body, for providers that sign there; raises ConfigError if it can't."""
    own_keys: frozenset[str] = frozenset()
    """Keys of a source that only this preset uses."""
    needs: frozenset[str] = frozenset()
    """Keys of a source that this preset requires."""
    media_types: frozenset[str] = frozenset({"application/json"})
    """Accepted media types in lower case; empty if `read` checks the type itself."""
    has_own_time: bool = False
    """True if the event's time can't be forged: it is in the signed part, if any."""
    max_body: int = 256 * 1024
    """Maximum body size in bytes, unless the source sets `max_body`."""
    kept_headers: frozenset[str] = frozenset()
    """Headers in lower case that describe the event and are stored with it; never one that holds a secret."""
    keeps: Callable[[Source], frozenset[str]] | None = None
    """Returns additional stored headers, depending on the source's configuration."""
    status: int = 200
    """Status that the provider expects for a stored event."""
    answers_empty: bool = False
    """True if the provider expects an empty response body."""
    acknowledgement: tuple[str, bytes] | None = None
    """Media type and body of that response, if the provider expects a specific text."""
    acknowledged: str = ""
    """Description of that body, for the documentation."""
    rejection: Callable[[RequestError], tuple[int, bytes]] | None = None
    """Makes the status and JSON of error responses to authenticated requests; None for the usual ones."""
    handshake: Handshake | None = None
    starter: str = 'secrets = ["env:{variable}"]'
    """Lines of the source's table in a new configuration. `{variable}` is the environment variable with its secret,
    `{token}` the one with the URL's token."""
    sample: MakeSample | None = None

    @property
    def always_signs(self) -> bool:
        """True if every request of the provider is signed."""
        return bool(self.signatures or self.prover) and not self.may_be_unsigned

    def handshake_response(self, raw: RawRequest, mac: Mac) -> HandshakeResponse | None:
        """Return the response if the request is a handshake of this provider.

        Raises:
            RequestError: the handshake is invalid.
        """
        shake = self.handshake
        if (
            shake is None
            or shake.method != raw.method
            or (shake.header is not None and shake.header not in raw.headers)
        ):
            return None
        return shake.answer(raw, mac)

    def check_type(self, raw: RawRequest) -> None:
        """Check the media type, ignoring case; the charset must be UTF-8, without compression.

        Raises:
            UnsupportedType: this preset does not read the type.
        """
        given = raw.headers.get("content-type", "")
        if given not in self.media_types:  # most senders write it exactly like this
            if self.media_types and raw.content_type not in self.media_types:
                wanted = " or ".join(sorted(self.media_types))
                raise UnsupportedType(f"send the body with Content-Type: {wanted}", field="content-type")
            for parameter in given.split(";")[1:]:
                name, _, value = parameter.partition("=")
                if name.strip().lower() == "charset" and value.strip().strip('"').lower() != "utf-8":
                    raise UnsupportedType("send the body in UTF-8", field="content-type")
        if raw.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedType("send the body without Content-Encoding", field="content-encoding")
