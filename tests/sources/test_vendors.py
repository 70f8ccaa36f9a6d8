"""Requests that the vendors' own libraries sign or make are let in and read; what ours signs, theirs accept."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import pytest
import stripe
import svix.webhooks
from cloudevents.core.bindings.http import to_binary_event, to_structured_event
from cloudevents.core.v1.event import CloudEvent
from slack_sdk.signature import SignatureVerifier
from standardwebhooks.webhooks import Webhook

from inbox.clock import SystemClock
from inbox.config.values import Secret
from inbox.errors import InvalidEvent, UnsupportedType
from inbox.events.event import Identity
from inbox.sources import PRESETS
from tests.sources.presenting import a_request, a_verifier, signed_sample

KEY = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def let_in(name: str, secret: str, body: bytes, headers: Mapping[str, str], at: datetime) -> Identity:
    raw = a_request(name, body, {"Content-Type": "application/json", **headers}, at)
    a_verifier(name, Secret(secret)).verify(raw, at)
    (identity,) = PRESETS[name].read(raw, None)
    return identity


def now() -> datetime:
    """In whole seconds; the libraries compare with the clock of the machine."""
    return SystemClock().now().replace(microsecond=0)


def test_stripes_library_signs_and_accepts() -> None:
    at = now()
    body = json.dumps(
        {
            "id": "evt_1NG8Du2eZvKYlo2CUI79vXWy",
            "object": "event",
            "created": int(at.timestamp()),
            "type": "setup_intent.created",
            "data": {"object": {"id": "seti_1NG8Du2eZvKYlo2C9XMqbR0x", "object": "setup_intent"}},
        }
    )
    header = stripe.WebhookSignature.generate_signature_header(body, "whsec_x", int(at.timestamp()))
    identity = let_in("stripe", "whsec_x", body.encode(), {"Stripe-Signature": header}, at)
    assert (identity.entity_type, identity.entity_id) == ("setup_intent", "seti_1NG8Du2eZvKYlo2C9XMqbR0x")
    assert (identity.event_id, identity.action) == ("evt_1NG8Du2eZvKYlo2CUI79vXWy", "create")

    ours = signed_sample("stripe", "whsec_x", at)
    event = stripe.Webhook.construct_event(ours.body, ours.headers["stripe-signature"], "whsec_x")
    assert event.data.object["id"] == "42"


def test_slacks_library_signs_and_accepts() -> None:
    at = now()
    verifier = SignatureVerifier("8f742231b10e8888abcd99yyyzzz85a5")
    seconds = str(int(at.timestamp()))
    event = {"type": "user_change", "user": {"id": "U1", "name": "x"}}
    body = json.dumps({"type": "event_callback", "event_id": "Ev1", "event_time": int(seconds), "event": event})
    headers = {
        "X-Slack-Request-Timestamp": seconds,
        "X-Slack-Signature": verifier.generate_signature(timestamp=seconds, body=body) or "",
    }
    identity = let_in("slack", verifier.signing_secret, body.encode(), headers, at)
    assert (identity.entity_type, identity.entity_id, identity.event_type) == ("user", "U1", "user_change")
    assert identity.action == "update"

    ours = signed_sample("slack", verifier.signing_secret, at)
    assert verifier.is_valid_request(ours.body, dict(ours.headers))


@pytest.mark.parametrize("name", ["standard-webhooks", "gitlab"])
def test_the_library_of_standard_webhooks_signs_and_accepts(name: str) -> None:
    at = now()
    body = '{"type": "contact.created", "object_kind": "issue", "timestamp": "2022-11-03T20:26:10.344522Z",'
    body += ' "data": {"id": "1f81eb52", "type": "contact"}, "object_attributes": {"id": 301, "action": "open"}}'
    headers = {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(KEY).sign("msg_1", at, body),
    }
    identity = let_in(name, KEY, body.encode(), headers, at)
    assert (identity.event_id, identity.action) == ("msg_1", "create")
    assert identity.entity_id == ("301" if name == "gitlab" else "1f81eb52")

    ours = signed_sample(name, KEY, at)
    assert Webhook(KEY).verify(ours.body, dict(ours.headers))


def test_svix_library_signs() -> None:
    at = now()
    body = '{"type": "user.updated", "data": {"id": "user_1", "object": "user"}}'
    headers = {
        "svix-id": "msg_2",
        "svix-timestamp": str(int(at.timestamp())),
        "svix-signature": svix.webhooks.Webhook(KEY).sign("msg_2", at, body),
    }
    identity = let_in("standard-webhooks", KEY, body.encode(), headers, at)
    assert (identity.entity_type, identity.entity_id, identity.event_id) == ("user", "user_1", "msg_2")


def test_an_id_that_is_not_signed_does_not_count() -> None:
    """Somebody who has seen a request could send it with another id beside the signed one."""
    at = now()
    svixed = {
        "svix-id": "msg_2",
        "svix-timestamp": str(int(at.timestamp())),
        "svix-signature": svix.webhooks.Webhook(KEY).sign("msg_2", at, "{}"),
        "webhook-id": "forged",
    }
    assert let_in("standard-webhooks", KEY, b"{}", svixed, at).event_id == "msg_2"
    body = '{"object_kind": "push"}'
    gitlab = {
        "webhook-id": "msg_3",
        "webhook-timestamp": str(int(at.timestamp())),
        "webhook-signature": Webhook(KEY).sign("msg_3", at, body),
        "Idempotency-Key": "forged",
    }
    assert let_in("gitlab", KEY, body.encode(), gitlab, at).event_id == "msg_3"


ATTRIBUTES: dict[str, Any] = {
    "specversion": "1.0",
    "id": "1234",
    "source": "/mycontext/sub context €",
    "type": "com.example.order.updated",
    "subject": "order 7",
    "time": datetime(2018, 4, 5, 3, 56, 24, tzinfo=UTC),
    "datacontenttype": "application/json",
}


@pytest.mark.parametrize("write", [to_binary_event, to_structured_event])
def test_the_library_of_cloudevents_writes_binary_and_structured_events(write: Callable[[CloudEvent], Any]) -> None:
    message = write(CloudEvent(attributes=ATTRIBUTES, data={"a": 1}))
    raw = a_request("cloudevents", message.body, message.headers)
    (identity,) = PRESETS["cloudevents"].read(raw, None)
    assert (identity.entity_type, identity.entity_id) == ("com.example.order", "order 7")
    assert identity.key_parts == ("/mycontext/sub context €", "1234")
    assert (identity.action, identity.occurred_ns) == ("update", 1_522_900_584_000_000_000)


@pytest.mark.parametrize(
    ("value", "read"),
    [
        ("Euro%20%E2%82%AC%20%F0%9F%98%80", "Euro € 😀"),  # the example of the HTTP binding
        ("plain", "plain"),
        ('"a \\"b\\" c"', 'a "b" c'),
        ("needless%61", "needlessa"),
        ("low%c3%a9r", "lowér"),
        ("once%2520", "once%20"),
    ],
)
def test_headers_of_a_binary_event_are_decoded_once(value: str, read: str) -> None:
    headers = {"ce-specversion": "1.0", "ce-id": value, "ce-source": "s", "ce-type": "t"}
    (identity,) = PRESETS["cloudevents"].read(a_request("cloudevents", b"any", headers), None)
    assert identity.event_id == read


def test_headers_that_are_no_utf8_are_refused_and_so_is_what_is_no_event() -> None:
    headers = {"ce-specversion": "1.0", "ce-id": "%C0%A0", "ce-source": "s", "ce-type": "t"}
    with pytest.raises(InvalidEvent, match="not UTF-8"):
        PRESETS["cloudevents"].read(a_request("cloudevents", b"any", headers), None)
    with pytest.raises(InvalidEvent, match="specversion"):
        PRESETS["cloudevents"].read(
            a_request("cloudevents", b"", {**headers, "ce-id": "1", "ce-specversion": "0.3"}), None
        )
    with pytest.raises(UnsupportedType):
        PRESETS["cloudevents"].read(a_request("cloudevents", b"{}", {"content-type": "application/json"}), None)
