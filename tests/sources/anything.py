"""Strategies for what anybody may send to any preset: the members and headers that presets look at, with anything in them."""

from __future__ import annotations

import json
from datetime import datetime

from hypothesis import strategies as st

_MEMBERS = st.sampled_from(
    [
        *("id", "type", "data", "object", "events", "created", "event", "event_id", "event_time", "user", "channel"),
        *("action", "object_kind", "object_attributes", "project_id", "specversion", "source", "subject", "time"),
        *("uuid", "published", "eventType", "target", "timestamp", "entityType", "text", "payload", "challenge"),
        *("attachments", "blocks", "fields", "elements", "value"),
        *(
            "value",
            "resourceData",
            "resource",
            "clientState",
            "changeType",
            "lifecycleEvent",
            "subscriptionType",
            "objectId",
        ),
        *(
            "eventId",
            "log_id",
            "user_id",
            "webhookEvent",
            "resourcePath",
            "entity",
            "timestamp",
            "sg_message_id",
            "plainToken",
        ),
        *("Type", "MessageId", "Timestamp", "Message", "event_type", "resource_type", "create_time"),
        *("notificationItems", "NotificationRequestItem", "eventCode", "pspReference", "success", "amount"),
        *("additionalData", "hmacSignature", "event-data", "signature", "token", "severity", "message", "headers"),
        *("related_object", "issue", "repository", "subtype", "item", "actor", "outcome", "result", "name"),
    ]
)
_LIKELY = st.sampled_from(
    ["1.0", "2026-01-01T00:00:00Z", "url_verification", "user_change", "issues", "Notification", 1_767_225_600]
)
_HEADERS = [
    *("x-github-event", "x-github-delivery", "x-shopify-topic", "x-shopify-webhook-id", "x-shopify-triggered-at"),
    *("webhook-id", "svix-id", "idempotency-key", "ce-id", "ce-source", "ce-type", "ce-specversion", "ce-time"),
    "ce-subject",
    *("x-goog-channel-id", "x-goog-message-number", "x-goog-resource-state", "x-goog-resource-id"),
    "paypal-transmission-id",
    *("linear-delivery", "x-atlassian-webhook-identifier"),
]
_TYPES = [
    *("application/json", "application/x-www-form-urlencoded", "application/cloudevents+json", "text/plain"),
    *("application/cloudevents-batch+json", "application/secevent+jwt"),
]

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
    """Some of the headers that tell of an event."""
    values = st.sampled_from(["1.0", "2026-01-01T00:00:00Z", "issues", "%C0%A0", '"a\\"b"']) | st.text(max_size=300)
    return st.dictionaries(st.sampled_from(_HEADERS), values)


def media_types() -> st.SearchStrategy[str]:
    """Draw one of the media types that some preset accepts, or one that none does."""
    return st.sampled_from(_TYPES)
