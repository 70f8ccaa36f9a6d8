"""Contents of webhooks that no provider has thought of: members and headers that are known, with anything in them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import datetime
from urllib.parse import parse_qsl, urlencode

from hypothesis import strategies as st

from inbox.events.event import RawRequest
from inbox.sources import PRESETS
from inbox.sources.fields import FORM
from tests.sources.presenting import NOW

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


# --- drawn


def _names(value: object) -> Iterator[str]:
    if isinstance(value, Mapping):
        yield from value
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else ()
    for each in inner:
        yield from _names(each)


_SAMPLES = [each.sample("issue", "1", "issue.updated", NOW).body for each in PRESETS.values() if each.sample]
_MEMBERS = st.sampled_from(
    [
        *sorted({name for body in _SAMPLES if body[:1] in {b"{", b"["} for name in _names(json.loads(body))}),
        *("attachments", "blocks", "elements", "challenge", "payload", "plainToken", "subtype", "outcome", "result"),
    ]
)
_LIKELY = st.sampled_from(
    ["1.0", "2026-01-01T00:00:00Z", "url_verification", "user_change", "issues", "Notification", 1_767_225_600]
)
_HEADERS = st.sampled_from(sorted({header for each in PRESETS.values() for header in each.kept_headers}))
_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text(max_size=20)
    | _LIKELY,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_MEMBERS, inner, max_size=6),
    max_leaves=12,
)
_TIMES = st.datetimes(timezones=st.timezones() | st.none()).map(datetime.isoformat)


def bodies(sample: bytes) -> st.SearchStrategy[bytes]:
    """JSON, the sample with some of its members changed, forms with JSON in them, and plain bytes."""
    known = json.loads(sample) if sample[:1] in {b"{", b"["} else {}
    listed = isinstance(known, list)
    one = known[0] if listed else known
    changes = st.dictionaries(st.sampled_from(sorted(one) or ["id"]) | _MEMBERS, _JSON | _TIMES, max_size=4)
    changed = changes.map(lambda drawn: [{**one, **drawn}, *known[1:]] if listed else {**one, **drawn})
    written = (_JSON | changed).map(
        lambda value: json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")
    )
    spoilt = st.binary(max_size=9).map(lambda noise: sample[:-1] + noise + b"}")
    form = st.binary(max_size=20).map(lambda noise: sample + noise)
    return written | written.map(lambda body: b"payload=" + body) | spoilt | form | st.binary(max_size=60)


def dedups() -> st.SearchStrategy[list[str] | None]:
    """Fields that a source may have as its key, or none."""
    return st.none() | st.lists(_MEMBERS, min_size=1, max_size=4)


def headers() -> st.SearchStrategy[dict[str, str]]:
    """Some of the headers that tell of an event, and a media type that some preset accepts, or one that none does."""
    values = st.sampled_from(["1.0", "2026-01-01T00:00:00Z", "issues", "%C0%A0", '"a\\"b"']) | st.text(max_size=300)
    media = st.sampled_from(
        sorted({each for preset in PRESETS.values() for each in preset.media_types} | {"text/plain"})
    )
    return st.tuples(st.dictionaries(_HEADERS, values), media).map(lambda drawn: {**drawn[0], "content-type": drawn[1]})
