"""What a preset is.

A preset knows one provider: how it signs, which bytes it sends, which change of which entity they tell of, and what it
wants to hear. To add one, write one file beside this that ends in a `PRESET`, and its line in `inbox.sources.PRESETS`. Its
`read` may raise `RequestError` subclasses only, whatever the bytes are (anything else would be answered 500), so it reads
them with what `inbox/sources/fields.py` has.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

import msgspec

from inbox.config.model import Secret, Signature, Source
from inbox.errors import RequestError, UnsupportedType
from inbox.events.event import Identity, RawRequest

Read = Callable[[RawRequest, Sequence[str] | None], tuple[Identity, ...]]
"""The events of a body, in its order. The second argument is the source's `dedup`, if it has one.

Raises `Unreadable` or `InvalidEvent`.
"""

Revealed = Sequence[tuple[Secret, str]]
"""Secrets, each with its text."""


MADE_UP = Secret("")
"""Of keys that nobody knows, and that only make a refusal take as long as another source's."""


class Proof(Protocol):
    """One thing that a request has to prove. Nothing it does may raise, whatever the request holds."""

    @property
    def kind(self) -> Hashable:
        """Equal for proofs that do the same work for any request, but for the number of their keys."""
        ...

    @property
    def keys(self) -> int:
        """Count of the keys that it tries on each request, made-up ones among them."""
        ...

    @property
    def passes(self) -> int:
        """Its most passes through a body."""
        ...

    def pad(self, keys: int) -> None:
        """From now on try so many keys at least: made-up ones, which prove nothing, besides its own."""
        ...

    def fault(self, raw: RawRequest, now: datetime) -> str | None:
        """Why it is not proven, for the operator; None when it is."""
        ...


Prover = Callable[[Source, Revealed], Proof]
"""Makes a preset's own kind of proof of a source's `secrets`. Raises ConfigError when it can't."""


class HandshakeResponse(msgspec.Struct, frozen=True):
    """What is answered to a handshake."""

    status: int
    headers: Mapping[str, str] = {}
    body: bytes = b""
    content_type: str = "application/json"


class Handshake(msgspec.Struct, frozen=True):
    """How a provider sees that somebody wants its webhooks, before it sends any or among them."""

    method: str
    header: str | None
    """In lower case; only a request that has it is one. None: `answer` can tell by the body."""
    answer: Callable[[RawRequest], HandshakeResponse | None]
    """Called once the request is proven to come from the source. None: it is no handshake after all.

    Raises `RequestError`.
    """
    docs: str
    """What comes and what is answered, for the documentation."""


class Sample(msgspec.Struct, frozen=True):
    """A request as the provider would make it, for `inbox send`: not signed yet."""

    body: bytes
    headers: Mapping[str, str] = {}
    message_id: str = ""
    """Of the message, where the signature covers one."""


class PresetDocs(msgspec.Struct, frozen=True, kw_only=True):
    """Where an event stands in a request, in words: a row of the documentation."""

    title: str
    event_id: str = "none"
    entity: str
    event_type: str
    time: str
    same_event: str
    """What makes two requests one event."""
    sends: str
    """When the provider sends again, and what it waits for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Preset:
    """One provider. The receiver knows nothing else about it."""

    name: str
    read: Read
    docs: PresetDocs
    reader: Callable[[Source], Read] | None = None
    """Makes the `read` of one source, where it depends on what that configures; raises ValueError when it can't."""
    reads_by: str = ""
    """The key of a source that `reader` reads: what it raises is a mistake of that key."""
    signatures: tuple[Signature, ...] = ()
    """How it signs; several are the same under other names of headers."""
    prover: Prover | None = None
    """Its own way to prove itself by `secrets`, where that is no signature with a shared secret."""
    own_keys: frozenset[str] = frozenset()
    """The keys of a source that are for this preset alone."""
    needs: frozenset[str] = frozenset()
    """Those of them that it can't do without."""
    media_types: frozenset[str] = frozenset({"application/json"})
    """In lower case; empty when `read` looks at the type itself."""
    has_own_time: bool = False
    """Its requests say when an event happened, where nobody else can change it: in what is signed, if anything is."""
    max_body: int = 256 * 1024
    """Bytes, unless the source has its own `max_body`."""
    kept_headers: frozenset[str] = frozenset()
    """In lower case: headers that tell of the event, and are stored with it. Never one that holds a secret."""
    keeps: Callable[[Source], frozenset[str]] | None = None
    """More of them, where they depend on what the source configures."""
    status: int = 200
    """What it wants to hear when an event is stored."""
    answers_empty: bool = False
    """It wants to hear that without a body."""
    rejection: Callable[[RequestError], tuple[int, bytes]] | None = None
    """The status and the JSON with which it wants to be refused, once it has proven itself; None: as all others."""
    handshake: Handshake | None = None
    sample: Callable[[str, str, str, datetime], Sample] | None = None
    """A webhook about an entity: its type, its id, the event type and the time."""

    def handshake_response(self, raw: RawRequest) -> HandshakeResponse | None:
        """The answer, if the request is this provider's handshake.

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
        return shake.answer(raw)

    def check_type(self, raw: RawRequest) -> None:
        """Compare media types without regard to case; a charset may only be UTF-8, and nothing may be compressed.

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
