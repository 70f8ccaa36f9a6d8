"""CloudEvents 1.0 over HTTP: binary, structured and batched.

From https://github.com/cloudevents/spec: `cloudevents/bindings/http-protocol-binding.md` (the three modes, and how
headers are percent-encoded), `cloudevents/http-webhook.md` (202 for stored, unprocessed events; the OPTIONS request
that asks for permission to send), `cloudevents/spec.md` ("events with identical source and id are duplicates").

The specification leaves authentication to HTTP: a bearer token in `Authorization`, or in the query as `access_token`,
so configure `auth = { kind = "bearer", … }`.

The entity's id is the event's `subject`, and its type is the event's up to the last dot, so that
`com.example.order.created` and `com.example.order.updated` are about the same entity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import unquote_to_bytes

from inbox.errors import InvalidEvent, UnsupportedType
from inbox.events import strict_json
from inbox.events.event import Identity, RawRequest
from inbox.sources import fields
from inbox.sources.base import Handshake, HandshakeResponse, Mac, Preset, json_sample

STRUCTURED, BATCHED = "application/cloudevents+json", "application/cloudevents-batch+json"
_ORIGIN, _RATE = "webhook-request-origin", "webhook-request-rate"
_LONGEST_SOURCE = 500
_ATTRIBUTES = ("id", "source", "specversion", "type", "time", "subject", "dataschema", "partitionkey", "sequence")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')
_HOST = re.compile(r"[A-Za-z0-9._:-]{1,255}")


def read(raw: RawRequest, dedup: fields.Dedup) -> tuple[Identity, ...]:
    """Return the event or events of a request; a batch may be empty.

    Raises:
        Unreadable: structured or batched, but not strict JSON.
        InvalidEvent: a required attribute is missing or wrong.
        UnsupportedType: not one of the three modes.
    """
    if raw.content_type == STRUCTURED:
        return (_event(raw, fields.json_object(raw.body), dedup),)
    if raw.content_type == BATCHED:
        batch = strict_json.parse(raw.body)
        if not isinstance(batch, list) or len(batch) > fields.MOST_EVENTS:
            raise InvalidEvent(f"a batch must be a list of at most {fields.MOST_EVENTS} events", field="body")
        return tuple(
            _event(raw, each, dedup, part) for each, part in zip(batch, fields.split_list(raw.body), strict=True)
        )
    if "ce-specversion" not in raw.headers:
        raise UnsupportedType(
            f"send the body as {STRUCTURED} or {BATCHED}, or the attributes in ce-… headers", field="content-type"
        )
    attributes = {name: _decode(raw, name) for name in _ATTRIBUTES if f"ce-{name}" in raw.headers}
    return (_event(raw, attributes, dedup),)


def _event(raw: RawRequest, attributes: object, dedup: fields.Dedup, part: bytes | None = None) -> Identity:
    if not isinstance(attributes, Mapping):
        raise InvalidEvent("an event of the batch is not an object", field="body")
    if attributes.get("specversion") != "1.0":
        raise InvalidEvent('specversion must be "1.0"', field="specversion")
    event_id = fields.text_field(attributes, "id", fields.LONGEST_ID)
    source = fields.text_field(attributes, "source", _LONGEST_SOURCE)
    event_type = fields.text_field(attributes, "type", fields.LONGEST_TYPE)
    things, _, word = event_type.rpartition(".")
    timed = attributes.get("time") is not None
    identity = Identity(
        *fields.entity(things, attributes.get("subject")),
        event_type=event_type,
        action=fields.classify_action(word),
        occurred_ns=fields.time_field(attributes, "time", raw.received_at) if timed else fields.arrival(raw),
        key_parts=(source, event_id),
        event_id=event_id,
        part_type=STRUCTURED if part is not None else None,
    )
    return fields.with_key(identity, attributes, dedup, part)


def _decode(raw: RawRequest, attribute: str) -> str:
    """Return a header's value, unquoted, then percent-decoded once as UTF-8."""
    value = raw.headers[f"ce-{attribute}"]
    if quoted := _QUOTED.fullmatch(value):
        value = re.sub(r"\\(.)", r"\1", quoted[1])
    try:
        return unquote_to_bytes(value.encode("latin-1")).decode("utf-8")
    except ValueError:
        raise InvalidEvent(f"the header ce-{attribute} is not UTF-8", field=f"ce-{attribute}") from None


def greet(raw: RawRequest, _mac: Mac) -> HandshakeResponse:
    """Grant permission to the asking origin; the source's `rate` limits it."""
    origin = raw.headers[_ORIGIN]
    if _HOST.fullmatch(origin) is None:
        raise InvalidEvent("WebHook-Request-Origin must be the name of a host", field=_ORIGIN)
    headers = {"Allow": "POST", "WebHook-Allowed-Origin": origin}
    if _RATE in raw.headers:
        headers["WebHook-Allowed-Rate"] = "*"
    return HandshakeResponse(200, headers)


_SAMPLE = {"specversion": "1.0", "id": "{unique}", "type": "{dotted}", "subject": "{id}", "time": "{time}"}

PRESET = Preset(
    title="CloudEvents",
    shown_at="the bearer token that the sender is configured with",
    read=read,
    has_own_time=True,
    sample=json_sample({**_SAMPLE, "source": "urn:inbox-relay:sample"}, {"Content-Type": STRUCTURED}),
    media_types=frozenset(),
    kept_headers=frozenset(f"ce-{name}" for name in _ATTRIBUTES),
    status=202,
    handshake=Handshake(
        method="OPTIONS",
        header=_ORIGIN,
        answer=greet,
        docs="OPTIONS with `WebHook-Request-Origin`: `WebHook-Allowed-Origin` (and `-Rate`) come back",
    ),
    starter='auth = { kind = "bearer", secrets = ["env:{variable}"] }',
)
