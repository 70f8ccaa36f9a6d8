"""What a slack destination gets, and what becomes of what Slack answers."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest

from inbox import config_file
from inbox.errors import ConfigError
from relay import destinations, facts
from relay.destinations import Context, Deliverer
from relay.outcome import Delivered, Delivery, Failed, Outcome, Skipped
from relay.policy import decide, policies
from relay.rules import RULES, Rule
from tests.destinations.scripted import Act, ScriptedServer, answer, serving

NOW = datetime(2026, 1, 1, tzinfo=UTC)
DELIVERY = Delivery(
    seq=7, route="to-chat", lane="USER|1", attempt=1, run=0, lease_token=1, source="trivore", entity_type="USER",
    entity_id="u1", event_type="UPDATE", action="update", event_id=None, dedup_key="k1", occurred_at=NOW, received_at=NOW,
    content_type="application/json", headers={}, body=b'{"who": "Ada & <!channel> > all", "n": [1], "t": true}',
    traceparent="00-" + "a" * 32 + "-" + "b" * 16 + "-01",
)  # fmt: skip
CONTEXT = Context(lambda: float("inf"), threading.Event(), lambda: NOW)
PATH = "/services/T0000/B0000/s3cr3tOfTheHook"
TEXT = "{event.entity_type} {event.entity_id}: {event.event_type}"


def config_of(url: str, text: str) -> str:
    return f"""
        [sources.trivore]
        preset = "trivore"
        auth = {{ kind = "none" }}
        [destinations.chat]
        kind = "slack"
        url = "{url}{PATH}"
        text = {json.dumps(text, ensure_ascii=False)}
        allow_private = true
        allow_http = true
        timeout = "2s"
        [routes.to-chat]
        source = "trivore"
        destination = "chat"
    """


def deliverer(url: str, text: str = TEXT) -> Deliverer:
    return destinations.build(config_file.parse(config_of(url, text)))["to-chat"]


def deliver(server: ScriptedServer, text: str = TEXT, delivery: Delivery = DELIVERY) -> Outcome:
    target = deliverer(server.url, text)
    outcome = target.deliver(delivery, CONTEXT)
    target.close()
    return outcome


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(200, b"ok")) as server:
        yield server


def test_a_message_is_posted_as_json_to_the_hook(server: ScriptedServer) -> None:
    outcome = deliver(server)
    assert isinstance(outcome, Delivered)
    assert outcome.did == "forwarded"
    (seen,) = server.seen
    assert (seen.method, seen.target) == ("POST", PATH)
    assert json.loads(seen.body) == {"text": "USER u1: UPDATE"}
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"] == f"{DELIVERY.webhook_id}-0"
    assert seen.headers["traceparent"] == DELIVERY.traceparent


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{event.body.who} changed", "Ada &amp; &lt;!channel&gt; &gt; all changed"),
        ("<https://crm/{event.entity_id}|open> & see", "<https://crm/u1|open> & see"),
        ("it's \"{event.body.who}\", isn't it?", "it's \"Ada &amp; &lt;!channel&gt; &gt; all\", isn't it?"),
        ("{event.seq} {event.body.t} {event.occurred_at}", "7 true 2026-01-01T00:00:00Z"),
        ("{event.body.nobody || 'nobody'}", "nobody"),
        ("sch\u00f6n \U0001f389", "sch\u00f6n \U0001f389"),
    ],
)
def test_what_is_put_into_a_message_is_escaped_and_what_is_written_in_it_is_markup(
    server: ScriptedServer, text: str, said: str
) -> None:
    deliver(server, text)
    assert json.loads(server.seen[0].body) == {"text": said}


@pytest.mark.parametrize("text", ["{event.body.nobody}", "{event.body.n}", "{length(event.seq)}"])
def test_a_message_that_can_not_be_written_is_dead_without_a_call(server: ScriptedServer, text: str) -> None:
    outcome = deliver(server, text)
    assert isinstance(outcome, Failed)
    assert (outcome.error_class, outcome.calls) == ("mapping", ())
    assert outcome.error.startswith("destinations.chat.text: ")
    assert server.seen == []


def test_half_a_character_can_not_be_sent(server: ScriptedServer) -> None:
    outcome = deliver(server, delivery=msgspec.structs.replace(DELIVERY, entity_id="\ud800"))
    assert isinstance(outcome, Failed)
    assert outcome.error_class == "mapping"


@pytest.mark.parametrize("text", ["{event.seq", "{entity.name}", "{seq}", "{event.[}"])
def test_a_template_that_can_not_be_used_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"destinations.chat.text: "):
        deliverer("http://127.0.0.1", text)


@pytest.mark.parametrize(
    ("act", "error_class", "rule"),
    [
        (answer(400, b"invalid_payload"), "rejected", Rule.CONFIRM),
        (answer(403, b"action_prohibited"), "auth", Rule.STOP),
        (answer(404, b"channel_not_found"), "not_found", Rule.RETRY),
        (answer(404, b"no_service"), "not_found", Rule.RETRY),
        (answer(410, b"channel_is_archived"), "gone", Rule.RETIRE),
        (answer(429, b"rate_limited", retry_after="30"), "throttled", Rule.RETRY),
        (answer(500, b"rollup_error"), "server_error", Rule.RETRY),
    ],
)
def test_what_slack_documents_is_of_the_usual_classes_and_its_word_is_in_the_log(
    act: Act, error_class: str, rule: Rule
) -> None:
    with serving(act) as server:
        outcome = deliver(server)
    assert isinstance(outcome, Failed)
    assert outcome.error_class == error_class
    assert RULES[outcome.error_class] is rule
    assert "_" in (outcome.calls[0].excerpt or "")


def test_slacks_retry_after_is_heard() -> None:
    with serving(answer(429, b"rate_limited", retry_after="3600")) as server:
        outcome = deliver(server)
        policy = policies(config_file.parse(config_of(server.url, TEXT)))["to-chat"]
    fact = decide(DELIVERY, outcome, policy, NOW)
    assert isinstance(fact, facts.AttemptFailed)
    assert (fact.due_at - NOW).total_seconds() == 3600


def test_the_hooks_path_is_in_no_outcome_even_when_it_is_echoed() -> None:
    with serving(answer(404, f"no such hook: {PATH}, {PATH.rpartition('/')[2]}".encode())) as server:
        outcome = deliver(server)
        assert outcome.calls[0].url == f"{server.url}/…"
    assert "s3cr3t" not in repr(outcome)


def test_an_erased_event_is_skipped_without_a_call(server: ScriptedServer) -> None:
    outcome = deliver(server, delivery=msgspec.structs.replace(DELIVERY, body=None))
    assert outcome == Skipped((), "the event's body was erased")
    assert server.seen == []
