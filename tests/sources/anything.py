"""Contents of webhooks that no provider has thought of: members and headers that are known, with anything in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from urllib.parse import parse_qsl, urlencode

from inbox.events.event import RawRequest
from inbox.sources.fields import FORM

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


def _changed(value: object) -> Iterator[object]:
    """The value with each of its members, at any depth, replaced by each extreme, and left out."""
    yield from EXTREMES
    if isinstance(value, Mapping):
        for name, inner in value.items():
            rest = {other: each for other, each in value.items() if other != name}
            yield rest
            for each in _changed(inner):
                yield {**rest, name: each}
    elif isinstance(value, list) and value:
        yield from ([each] for each in _changed(value[0]))


def _written(value: object) -> bytes:
    text = json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return text.replace(json.dumps(_DEEP).encode(), b"[" * 500 + b"]" * 500)


def extreme_bodies(sample: RawRequest) -> Iterator[bytes]:
    """The body with every member replaced by each extreme, and bodies that are no webhooks at all."""
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
        yield from map(_written, _changed(json.loads(sample.body)))


def extreme_headers(sample: RawRequest) -> Iterator[dict[str, str]]:
    """The headers with each of them replaced, and left out."""
    for header in sample.headers:
        for text in ("", "\x00", "x" * 10_000, "é", "\x80", "0" * 400, "nan", "application/json; charset=latin-1"):
            yield {**sample.headers, header: text}
        yield {name: value for name, value in sample.headers.items() if name != header}
