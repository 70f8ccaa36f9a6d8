"""Sources and requests for the tests of all presets."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from urllib.parse import parse_qsl, urlencode

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
from inbox.sources.fields import FORM, LONGEST_ID, LONGEST_TYPE
from inbox.sources.normalize import events_of
from inbox.sources.signing import PUBLIC, Message, sign, sort_params
from tests.sources.vectors import PUBLIC_URL, VECTORS, Vector

NOW = datetime(2026, 1, 1, 12, tzinfo=UTC)
SIGNING = sorted(
    name for name, each in PRESETS.items() if each.signatures and each.signatures[0].algorithm not in PUBLIC
)
"""Presets whose providers sign with a shared secret."""
SIGNING_IN_BODY = sorted(name for name, each in PRESETS.items() if each.signer)
"""Presets whose providers sign parts of a body, with the signature in the body."""
WITH_SAMPLE = sorted(name for name, preset in PRESETS.items() if preset.sample)
ALL_VECTORS = [(name, vector) for name, vectors in VECTORS.items() for vector in vectors]


def make_source(name: str, *secrets: Secret) -> Source:
    """Make a source of a preset: with these secrets, or without authentication."""
    if secrets:
        return Source(name=name, preset=name, secrets=list(secrets), public_url=PUBLIC_URL)
    return Source(name=name, preset=name, auth=NoAuth())


def make_verifier(name: str, *secrets: Secret) -> Verifier:
    return verifier_of(make_source(name, *secrets), PRESETS[name], {})


def make_request(
    name: str, body: bytes, headers: Mapping[str, str], at: datetime = NOW, method: str = "POST"
) -> RawRequest:
    """Make a request as the receiver does: with header names in lower case."""
    return RawRequest(name, {key.lower(): value for key, value in headers.items()}, body, at, method=method)


def find_refusal(verifier: Verifier, raw: RawRequest, now: datetime | None = None) -> str | None:
    """Return the reason the operator sees, or None for an accepted request. The sender always sees the same text."""
    try:
        verifier.verify(raw, now or raw.received_at)
    except NotAuthenticated as error:
        return error.why if error.detail == REJECTION else f"told the sender: {error.detail}"
    return None


def request_from_vector(name: str, vector: Vector) -> RawRequest:
    return make_request(name, vector.body, vector.headers, vector.at)


def sign_sample(name: str, secret: str, at: datetime = NOW, event_type: str = "issue.updated") -> RawRequest:
    """Return a signed sample of the preset about issue 42."""
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
    return make_request(name, sample.body, headers, at)


def read(raw: RawRequest, source: Source | None = None) -> tuple[Event, ...]:
    """Return the events of a request."""
    source = source or make_source(raw.source)
    return events_of(source, preset_of(source), raw, [])


def assert_storable(events: Iterable[Event]) -> None:
    """Assert that each text fits its column and can be stored in both databases."""
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


def make_secret(preset: Preset, number: int = 0) -> str:
    """Return a secret in the provider's format."""
    text = f"number{number}secret0123456789abcdefgh"  # 32 characters: base64 of 24 bytes, as well
    if preset is PRESETS["adyen"]:
        return text.encode().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ed25519":
        return Ed25519PrivateKey.from_private_bytes(text.encode().ljust(32)).public_key().public_bytes_raw().hex()
    if preset.signatures and preset.signatures[0].algorithm == "ecdsa":
        public = ec.derive_private_key(number + 2, ec.SECP256R1()).public_key()
        return base64.b64encode(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).decode()
    return f"{preset.signatures[0].key_prefix}{text}" if preset.signatures else text


# --- extreme values of known members and headers


_DEEP = "@deep@"
TEXTS = [
    *("", "\x00", "x\x00y", "\ud800", "x" * 255, "x" * 256, "x" * 10_000, "é" * 256, "😀" * 200),
    *("|\\|", " ", "\n", "..", "1"),
]
EXTREMES: Sequence[object] = [
    *TEXTS,
    *(None, True, False, 0, -1, 2**63, -(2**70), 10**400, 10**20, 1e308, -0.0, 1.5, 99_999_999_999_999),
    *([], {}, [[]], [{}], [None], {"id": None}, {"": ""}, ["x"] * 1001, [{"id": 1}] * 2, _DEEP),
    *("0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"),
]
NO_WEBHOOKS = [b"", b"null", b"[]", b'"x"', b"1", b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b"<a>" * 9]


def _replace_members(value: object) -> Iterator[object]:
    """Yield the value with each member, at any depth, replaced by each extreme or removed."""
    yield from EXTREMES
    if isinstance(value, Mapping):
        for name, inner in value.items():
            rest = {other: each for other, each in value.items() if other != name}
            yield rest
            for each in _replace_members(inner):
                yield {**rest, name: each}
    elif isinstance(value, list) and value:
        yield from ([each] for each in _replace_members(value[0]))


def _encode(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return text.replace(json.dumps(_DEEP).encode(), b"[" * 500 + b"]" * 500)


def extreme_bodies(sample: RawRequest) -> Iterator[bytes]:
    """Yield bodies that are not webhooks, and the body with each member replaced by each extreme."""
    yield from NO_WEBHOOKS
    if sample.content_type == FORM:
        fields = parse_qsl(sample.body.decode(), keep_blank_values=True)
        for place, (name, _) in enumerate(fields):
            for text in TEXTS:
                others = [*fields[:place], (name, text), *fields[place + 1 :]]
                yield urlencode(others, errors="surrogatepass").encode()
    elif sample.body.startswith(b"<"):
        for found in re.finditer(rb">([^<]+)<", sample.body):
            for text in TEXTS:
                inner = text.encode("utf-8", "surrogatepass")
                yield sample.body[: found.start(1)] + inner + sample.body[found.end(1) :]
    else:
        yield from map(_encode, _replace_members(json.loads(sample.body)))


def extreme_headers(sample: RawRequest) -> Iterator[dict[str, str]]:
    """Yield the headers with each of them replaced or removed."""
    for header in sample.headers:
        for text in ("", "\x00", "x" * 10_000, "é", "\x80", "0" * 400, "nan", "application/json; charset=latin-1"):
            yield {**sample.headers, header: text}
        yield {name: value for name, value in sample.headers.items() if name != header}
