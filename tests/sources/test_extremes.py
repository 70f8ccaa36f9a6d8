"""Every member of every preset's webhooks, replaced by what is too large, too deep, of another type or can't be stored.

Nothing but a rejection or events that can be stored comes of it, from the proofs, from handshakes and from `read`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

import msgspec
import pytest

from inbox.config.values import Secret
from inbox.errors import RequestError
from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.fields import FORM
from tests.sources.presenting import (
    SIGNING,
    SIGNING_IN_BODY,
    WITH_SAMPLE,
    a_request,
    a_secret,
    a_source,
    a_verifier,
    assert_storable,
    read,
    signed_sample,
    why_refused,
)

_DEEP = "@deep@"
TEXTS = [
    "",
    "\x00",
    "x\x00y",
    "\ud800",
    "x" * 255,
    "x" * 256,
    "x" * 10_000,
    "é" * 256,
    "😀" * 200,
    "|\\|",
    " ",
    "\n",
    "..",
    "1",
]
EXTREMES: Sequence[object] = [
    *TEXTS,
    *(None, True, False, 0, -1, 2**63, -(2**70), 10**400, 10**20, 1e308, -0.0, 1.5, 99_999_999_999_999),
    *([], {}, [[]], [{}], [None], {"id": None}, {"": ""}, ["x"] * 1001, [{"id": 1}] * 2, _DEEP),
    *("0000-00-00T00:00:00Z", "9999-12-31T23:59:59Z", "2026-01-01T00:00:00", "2026-13-01T00:00:00Z"),
]


def changed(value: object) -> Iterator[object]:
    """The value with each of its members, at any depth, replaced by each extreme, and left out."""
    yield from EXTREMES
    if isinstance(value, Mapping):
        for name, inner in value.items():
            rest = {other: each for other, each in value.items() if other != name}
            yield rest
            for each in changed(inner):
                yield {**rest, name: each}
    elif isinstance(value, list) and value:
        yield from ([each] for each in changed(value[0]))


def written(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return text.replace(json.dumps(_DEEP).encode(), b"[" * 500 + b"]" * 500)


def requests(sample: RawRequest) -> Iterator[bytes]:
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
        yield from map(written, changed(json.loads(sample.body)))


def try_all(name: str, raw: RawRequest) -> int:
    """The number of events, none where it is rejected."""
    if name in {*SIGNING, *SIGNING_IN_BODY}:
        why_refused(VERIFIERS[name], raw)
    try:
        PRESETS[name].handshake_response(raw, lambda _: b"")
        events = read(raw)
    except RequestError as error:
        error.detail.encode()
        return 0
    assert_storable(events)
    return len(events)


VERIFIERS = {name: a_verifier(name, Secret(a_secret(PRESETS[name]))) for name in [*SIGNING, *SIGNING_IN_BODY]}


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_every_member_may_be_anything(name: str) -> None:
    sample = signed_sample(name, a_secret(PRESETS[name]))
    read_at_all = [try_all(name, msgspec.structs.replace(sample, body=body)) for body in requests(sample)]
    assert len(read_at_all) >= len(TEXTS)
    assert any(read_at_all), "some members only tell more of an event"


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_every_header_may_be_anything(name: str) -> None:
    sample = signed_sample(name, a_secret(PRESETS[name]))
    for header in sample.headers:
        for text in ("", "\x00", "x" * 10_000, "é", "\x80", "0" * 400, "nan", "application/json; charset=latin-1"):
            try_all(name, msgspec.structs.replace(sample, headers={**sample.headers, header: text}))
        try_all(name, msgspec.structs.replace(sample, headers={k: v for k, v in sample.headers.items() if k != header}))


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize(
    "body", [b"", b"null", b"[]", b'"x"', b"1", b"\x00", b"[" * 100_000, b'{"a":' * 100_000, b"<a>" * 9]
)
def test_what_is_no_webhook_at_all_is_rejected_or_read(name: str, body: bytes) -> None:
    for media in sorted(PRESETS[name].media_types) or ["application/json"]:
        try_all(name, a_request(name, body, {"Content-Type": media}))


@pytest.mark.parametrize("name", WITH_SAMPLE)
def test_a_body_over_the_limit_that_reaches_a_preset_all_the_same(name: str) -> None:
    """The receiver answers 413 first; `inbox readmit` may meet one that was stored under a larger `max_body`."""
    sample = signed_sample(name, a_secret(PRESETS[name]))
    size = min(PRESETS[name].max_body, 4 * 1024 * 1024) + 1
    for filling in (b" ", b"x", b"[", b"\xff"):
        try_all(name, msgspec.structs.replace(sample, body=sample.body + filling * size))
    assert a_source(name).max_body is None
