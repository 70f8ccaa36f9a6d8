"""Sources and requests for the tests of all presets."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from inbox.config.sources import NoAuth, Source
from inbox.config.values import Secret
from inbox.errors import NotAuthenticated
from inbox.events.event import Event, RawRequest
from inbox.sources import PRESETS, preset_of
from inbox.sources.base import Preset
from inbox.sources.credentials import REJECTION, Verifier, verifier_of
from inbox.sources.fields import LONGEST_ID, LONGEST_TYPE
from inbox.sources.normalize import events_of
from inbox.sources.signing import PUBLIC, Message, sign, sort_params
from tests.sources.vectors import PUBLIC_URL, VECTORS, Vector

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIGNING = sorted(
    name for name, each in PRESETS.items() if each.signatures and each.signatures[0].algorithm not in PUBLIC
)
"""Presets whose providers sign with a shared secret."""
SIGNING_IN_BODY = sorted(name for name, each in PRESETS.items() if each.signer)
"""Presets whose providers sign parts of a body, within it."""
WITH_SAMPLE = sorted(name for name, preset in PRESETS.items() if preset.sample)
ALL_VECTORS = [(name, vector) for name, vectors in VECTORS.items() for vector in vectors]


def a_source(name: str, *secrets: Secret) -> Source:
    """A source of a preset: with these secrets, or open to everybody."""
    if secrets:
        return Source(name=name, preset=name, secrets=list(secrets), public_url=PUBLIC_URL)
    return Source(name=name, preset=name, auth=NoAuth())


def a_verifier(name: str, *secrets: Secret) -> Verifier:
    return verifier_of(a_source(name, *secrets), PRESETS[name], {})


def a_request(
    name: str, body: bytes, headers: Mapping[str, str], at: datetime = NOW, method: str = "POST"
) -> RawRequest:
    """As the receiver makes it: names of headers in lower case."""
    return RawRequest(name, {key.lower(): value for key, value in headers.items()}, body, at, method=method)


def why_refused(verifier: Verifier, raw: RawRequest, now: datetime | None = None) -> str | None:
    """The reason an operator is told; None when it is let in. A sender is told the same, whatever it is."""
    try:
        verifier.verify(raw, now or raw.received_at)
    except NotAuthenticated as error:
        return error.why if error.detail == REJECTION else f"told the sender: {error.detail}"
    return None


def of_vector(name: str, vector: Vector) -> RawRequest:
    return a_request(name, vector.body, vector.headers, vector.at)


def signed_sample(name: str, secret: str, at: datetime = NOW, event_type: str = "issue.updated") -> RawRequest:
    """A sample of the preset about issue 42, signed by the template."""
    preset = PRESETS[name]
    assert preset.sample is not None
    sample = preset.sample("issue", "42", event_type, at)
    if preset.signer is not None:
        sample = preset.signer(sample, secret, at)
    headers = {"Content-Type": "application/json", **sample.headers}
    if name in SIGNING:
        message = Message(
            id=sample.message_id.encode(),
            url=PUBLIC_URL.encode(),
            body=sample.body,
            sorted_params=sort_params(headers["Content-Type"], sample.body),
        )
        headers |= sign(preset.signatures[0], secret, message, at)
    return a_request(name, sample.body, headers, at)


def read(raw: RawRequest, source: Source | None = None) -> tuple[Event, ...]:
    """The events that a request tells of."""
    source = source or a_source(raw.source)
    return events_of(source, preset_of(source), raw, [])


def assert_storable(events: Iterable[Event]) -> None:
    """Each text has the length that its column takes, and holds what both databases store."""
    for event in events:
        for text, longest in (
            (event.entity_id, LONGEST_ID),
            (event.entity_type, LONGEST_TYPE),
            (event.event_type, LONGEST_TYPE),
            (event.event_id, LONGEST_ID),
        ):
            assert text is None or (len(text) <= longest and "\x00" not in text)
        "".join(filter(None, (event.dedup_key, event.entity_id, event.event_type, event.event_id))).encode()
        assert event.event_type
        assert (event.entity_id is None) == (event.entity_type is None)


def a_secret(preset: Preset, number: int = 0) -> str:
    """A secret that is written as this provider's are."""
    text = f"number{number}secret0123456789abcdefgh"  # 32 characters: base64 of 24 bytes, as well
    if preset is PRESETS["adyen"]:
        return text.encode().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ed25519":
        return Ed25519PrivateKey.from_private_bytes(text.encode().ljust(32)).public_key().public_bytes_raw().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ecdsa":
        public = ec.derive_private_key(number + 2, ec.SECP256R1()).public_key()
        return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return f"{preset.signatures[0].key_prefix}{text}" if preset.signatures else text
