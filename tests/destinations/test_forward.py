"""Forward destinations: their requests, and the outcome of each answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from inbox.config.routing import ADDED
from inbox.errors import ConfigError
from inbox.sources.signing import Message
from relay.delivery.outcome import Delivery
from relay.destinations import Context
from relay.destinations.forward import signer_of
from tests.helpers.delivering import LOCAL, a_delivery, build, config_text, deliver, delivered, failed, failure
from tests.helpers.scripted import ScriptedServer, answer, reset, serving

AT = datetime(2021, 2, 25, 14, 55, 30, tzinfo=UTC)
BODY = b'{"id": "IDNUMBER1234",  "entityType": "USER"}\n'
EVENT = a_delivery(
    attempt=2, run=1, entity_id="ID €", occurred_at=AT, received_at=AT, body=BODY,
    content_type="application/json; charset=utf-8",
)  # fmt: skip
CONTEXT = Context(lambda: float("inf"), threading.Event(), lambda: AT)


def config_of(url: str, extra: str = "") -> str:
    return config_text("forward", f'url = "{url}"\ntimeout = "30s"\n{LOCAL}{extra}')


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(202)) as server:
        yield server


def forwarded(server: ScriptedServer, delivery: Delivery = EVENT, extra: str = "") -> dict[str, str]:
    """The headers that arrived."""
    outcome = deliver(config_of(f"{server.url}/hook", extra), delivery, CONTEXT)
    assert delivered(outcome).did == "forwarded"
    return server.seen[-1].headers


def test_the_body_arrives_byte_for_byte_with_its_content_type(server: ScriptedServer) -> None:
    headers = forwarded(server)
    assert server.seen[0].body == BODY
    assert (server.seen[0].method, server.seen[0].target) == ("POST", "/hook")
    assert headers["content-type"] == "application/json; charset=utf-8"


def test_headers_tell_what_the_event_is_about(server: ScriptedServer) -> None:
    headers = forwarded(server)
    named = ("inbox-", "idempotency", "trace", "webhook-id", "webhook-signature")
    assert {name: headers[name] for name in headers if name.startswith(named)} == {
        "inbox-source": "trivore",
        "inbox-entity-type": "USER",
        "inbox-entity-id": "ID %E2%82%AC",
        "inbox-event-type": "UPDATE",
        "inbox-seq": "7",
        "inbox-attempt": "2",
        "idempotency-key": f"{EVENT.webhook_id}-1",
        "traceparent": EVENT.traceparent,
        "webhook-id": EVENT.webhook_id,  # and no signature without a secret
    }


def test_an_event_without_entity_content_type_or_trace_has_no_such_header(server: ScriptedServer) -> None:
    bare = msgspec.structs.replace(EVENT, entity_type=None, entity_id=None, content_type="", traceparent=None)
    headers = forwarded(server, bare)
    assert not headers.keys() & {"inbox-entity-type", "inbox-entity-id", "content-type", "traceparent"}


def test_every_header_that_a_call_adds_is_one_of_the_reference(server: ScriptedServer) -> None:
    headers = forwarded(server, extra='signing_secret = "any text"')
    assert headers.keys() == {name.lower() for name in ADDED} | {"host", "content-length"}


PASSED = 'pass_headers = ["X-GitHub-Event", "X-GitHub-Delivery", "tracestate"]'


def test_headers_of_the_webhook_are_passed_on_as_they_are_listed(server: ScriptedServer) -> None:
    kept = {"x-github-event": "issues", "tracestate": "a=\xffb", "x-hub": "no", "user-agent": "GitHub-Hookshot/1"}
    headers = forwarded(server, msgspec.structs.replace(EVENT, headers=kept), PASSED)
    assert (headers["x-github-event"], headers["tracestate"]) == ("issues", "a=%C3%BFb")
    assert headers["user-agent"] == "inbox-relay"
    assert not headers.keys() & {"x-github-delivery", "x-hub"}


SHARED = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_published_vector_is_signed_as_published() -> None:
    message = Message(id=b"msg_p5jXN8AQM9LWM0D4loKWxJek", body=b'{"test": 2432232314}')
    at = datetime.fromtimestamp(1614265330, UTC)
    assert (
        signer_of(SHARED, "here")(message, at)["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", [SHARED, "any text"])
def test_a_signed_delivery_can_be_verified_by_what_arrived(server: ScriptedServer, secret: str) -> None:
    headers = forwarded(server, extra=f'signing_secret = "{secret}"')
    assert headers["webhook-timestamp"] == "1614264930"
    message = Message(id=headers["webhook-id"].encode(), body=server.seen[0].body)
    signed = signer_of(secret, "here")(message, datetime.fromtimestamp(1614264930, UTC))
    assert headers.items() >= signed.items()


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64!", "whsec_é", "whsk_", "whsk_AAAA", "whpk_AAAA"])
def test_a_signing_secret_that_is_no_key_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"destinations.crm.signing_secret"):
        build(config_of("http://127.0.0.1", f'signing_secret = "{secret}"'))


@pytest.mark.parametrize(
    ("act", "error_class", "error"),
    [
        (answer(429, b"", retry_after="7"), "throttled", "forward: answered 429 Too Many Requests"),
        (answer(410), "gone", "forward: answered 410 Gone"),
        (answer(302), "redirect", "forward: answered 302 Found"),
        (reset, "unknown", "forward: Connection reset by peer"),
    ],
)
def test_any_other_answer_is_a_failure_that_names_the_step(act: Any, error_class: str, error: str) -> None:  # noqa: ANN401
    with serving(act) as server:
        outcome = failed(deliver(config_of(server.url), EVENT))
    assert failure(outcome) == (error_class, error)
    assert outcome.retry_after == (7.0 if error_class == "throttled" else None)
    assert [call.step for call in outcome.calls] == ["forward"]


def test_a_url_kept_as_a_secret_is_not_logged(server: ScriptedServer, tmp_path: Path) -> None:
    place = tmp_path / "url"
    place.write_text(f"{server.url}/services/T0/s3cr3t?key=k3y\n")
    outcome = deliver(config_of(f"file:{place}"))
    assert server.seen[0].target == "/services/T0/s3cr3t?key=k3y"
    assert outcome.calls[0].url == f"{server.url}/…?key=…"
