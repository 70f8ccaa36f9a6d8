"""The parts of a preset.

A preset describes one provider: its signatures, its bodies, the changes of entities in them, and the answers that it
expects. To add one, write one file in `inbox/sources/presets/` that ends in a `PRESET`; its name is the file's.
Its `read` may raise `RequestError` subclasses only, whatever the bytes are (anything else would be answered 500), so it reads
them with what `inbox/sources/fields.py` has.
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
"""Reads the events of a body, in its order. The second argument is the source's `dedup`, if it has one.

Raises `Unreadable` or `InvalidEvent`.
"""

Revealed = Sequence[tuple[Secret, str]]
"""Pairs of a secret and its text."""

MADE_UP = Secret("")
"""The secret of decoy keys, which only make a rejection take as long as another source's."""
TOLERANCE_SECONDS = 300.0
"""Largest difference between the time of signing and the time of arrival, before and after."""
_DECOY_BYTES = 32
_SEPARATOR = re.compile(r"[./_-]")


class Proof(ABC):
    """One thing that a request has to prove. Nothing it does may raise, whatever the request holds."""

    kind: Hashable = None
    """A key that is equal for proofs that do the same work for any request, apart from their number of keys."""

    @property
    def keys(self) -> int:
        """Count of the keys that it tries on each request, decoys included; 0: it needs no decoys."""
        return 0

    @property
    def passes(self) -> int:
        """The largest number of its passes through a body."""
        return 0

    def pad(self, keys: int) -> None:  # noqa: B027  # most have no keys
        """Add decoy keys, which prove nothing, up to `keys` in all."""

    @abstractmethod
    def fault(self, raw: RawRequest, now: datetime) -> str | MissingCertificate | None:
        """Return for the operator why it is not proven, or the certificate without which nobody can tell; None when it is."""


class KeyedProof(Proof):
    """A proof by one of several secret keys, of which only those count that are valid."""

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
        """Return whether a text is one of the secrets, of which `digest_of` has made the keys. Takes the same time for any."""
        digest, known = hashlib.sha256(secret).digest(), False
        for valid, expected in self._keys:
            known |= hmac.compare_digest(digest, expected) & valid.valid_at(now)
        return known


def digest_of(secret: str) -> bytes:
    """Return the digest by which a shared secret is known: those of secrets of any length compare in constant time."""
    # A variable of the environment may hold bytes that are not UTF-8; Python shows them as lone surrogates.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


Prover = Callable[[Source, Revealed], Proof]
"""Makes a preset's own kind of proof of a source and its `secrets`. Raises ConfigError when it can't."""


Mac = Callable[[bytes], bytes]
"""Returns the HMAC of a content with the secret that has signed the request; empty where none has."""


class HandshakeResponse(msgspec.Struct, frozen=True):
    """The answer to a handshake."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    content_type: str = "application/json"


class Handshake(msgspec.Struct, frozen=True):
    """A provider's check that its webhooks are wanted, before it sends any or among them."""

    answer: Callable[[RawRequest, Mac], HandshakeResponse | None]
    """Called once the request is proven to come from the source. None: it is no handshake after all.

    Raises `RequestError`.
    """
    docs: str
    """Request and answer in words, for the documentation."""
    method: str = "POST"
    header: str | None = None
    """In lower case; only a request that has it is one. None: `answer` can tell by the body."""


class Sample(msgspec.Struct, frozen=True):
    """An unsigned request as the provider would make it, for `inbox send`."""

    body: bytes
    headers: Mapping[str, str] = {}
    message_id: str = ""
    """Of the message, where the signature covers one."""


MakeSample = Callable[[str, str, str, datetime], Sample]
"""Makes a webhook about an entity from its type, its id, the event type and the time."""


def json_sample(body: object, headers: Mapping[str, str] = {}, message_id: str = "") -> MakeSample:
    """Make samples of a template, in whose texts `{…}` stands for these.

    `kind`, `id`, `type`; `first` and `last`, words of the type; `dotted`, the type behind the kind, unless it has a dot;
    `unique`, an id of the event; `time`; and where a text is nothing else, as numbers: `number`, the id, and `s` and `ms`,
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
    """One provider. The receiver knows nothing else about it."""

    title: str
    shown_at: str
    """The place where the provider shows the secret, or where one is set there: for messages, after "the secret is"."""
    read: Read
    reader: Callable[[Source], Read] | None = None
    """Makes the `read` of one source, where it depends on what that configures; raises ValueError when it can't."""
    reads_by: str = ""
    """The key of a source that `reader` reads: what it raises is a mistake of that key."""
    signatures: tuple[Signature, ...] = ()
    """Its signatures; several are the same under other names of headers."""
    signed_at: Callable[[bytes], bytes] | None = None
    """Finds the time of sending in a body, as it is written, where no header has it; empty where the body has none."""
    tolerance: float = TOLERANCE_SECONDS
    """Seconds between signing and arrival, unless a source has its own."""
    may_be_unsigned: bool = False
    """True when the provider signs only where somebody has set that up; otherwise its signature is required."""
    prover: Prover | None = None
    """Its own proof, where that is no signature with a shared secret."""
    proves_by: str = "secrets"
    """The key of a source that `prover` proves by; another than `secrets` is in `needs`."""
    signer: Callable[[Sample, str, datetime], Sample] | None = None
    """Signs a sample in its body with a secret, where the provider does; raises ConfigError when it can't."""
    own_keys: frozenset[str] = frozenset()
    """The keys of a source that are for this preset alone."""
    needs: frozenset[str] = frozenset()
    """The keys of a source that this preset requires."""
    media_types: frozenset[str] = frozenset({"application/json"})
    """In lower case; empty when `read` looks at the type itself."""
    has_own_time: bool = False
    """True when its requests hold the event's time where nobody else can change it: in the signed part, if any."""
    max_body: int = 256 * 1024
    """Bytes, unless the source has its own `max_body`."""
    kept_headers: frozenset[str] = frozenset()
    """Headers, in lower case, that describe the event and are stored with it. Never one that holds a secret."""
    keeps: Callable[[Source], frozenset[str]] | None = None
    """More of them, which depend on the source's configuration."""
    status: int = 200
    """The status that it expects when an event is stored."""
    answers_empty: bool = False
    """True when it expects that answer without a body."""
    acknowledgement: tuple[str, bytes] | None = None
    """Media type and body of that answer, where the provider looks for a text of its own."""
    acknowledged: str = ""
    """The body in words, for the documentation."""
    rejection: Callable[[RequestError], tuple[int, bytes]] | None = None
    """Makes the status and the JSON of its error answers, once it has authenticated; None: those of every other source."""
    handshake: Handshake | None = None
    starter: str = 'secrets = ["env:{variable}"]'
    """Lines of a source's table in a new configuration. `{variable}` is the environment variable with its secret,
    `{token}` one for the end of the URL."""
    sample: MakeSample | None = None

    @property
    def always_signs(self) -> bool:
        """True when every request of the provider is signed."""
        return bool(self.signatures or self.prover) and not self.may_be_unsigned

    def handshake_response(self, raw: RawRequest, mac: Mac) -> HandshakeResponse | None:
        """Return the answer, if the request is this provider's handshake.

        Raises:
            RequestError: it is one, and can't be answered.
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
        """Check the media type, ignoring case; the charset must be UTF-8, and nothing may be compressed.

        Raises:
            UnsupportedType: the body is of a type that this preset does not read.
        """
        given = raw.headers.get("content-type", "")
        if given not in self.media_types:  # else it is one of them already, as most senders write it
            if self.media_types and raw.content_type not in self.media_types:
                wanted = " or ".join(sorted(self.media_types))
                raise UnsupportedType(f"send the body with Content-Type: {wanted}", field="content-type")
            for parameter in given.split(";")[1:]:
                name, _, value = parameter.partition("=")
                if name.strip().lower() == "charset" and value.strip().strip('"').lower() != "utf-8":
                    raise UnsupportedType("send the body in UTF-8", field="content-type")
        if raw.headers.get("content-encoding", "identity").strip().lower() != "identity":
            raise UnsupportedType("send the body without Content-Encoding", field="content-encoding")
