"""Slack destinations: their messages, and the outcome of each answer."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec
import pytest

from inbox.errors import ConfigError
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery import facts
from relay.delivery.failure_rules import RULES, Rule
from relay.delivery.outcome import Delivery, Outcome, Skipped
from relay.delivery.policy import decide, policies
from relay.destinations import Context, Deliverer
from tests.destinations.scripted import Act, ScriptedServer, answer, serving
from tests.helpers.delivering import delivered, failed

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
    return destinations.build(parse_config(config_of(url, text)))["to-chat"]


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
    assert delivered(deliver(server)).did == "forwarded"
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
    outcome = failed(deliver(server, text))
    assert (outcome.error_class, outcome.calls) == ("mapping", ())
    assert outcome.error.startswith("destinations.chat.text: ")
    assert server.seen == []


def said(server: ScriptedServer, text: str, value: str) -> str:
    """The message, of an event about an entity with this id."""
    delivered(deliver(server, text, msgspec.structs.replace(DELIVERY, entity_id=value)))
    message: str = json.loads(server.seen[-1].body)["text"]
    return message


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<!channel> <!here> <@U1>", "&lt;!channel&gt; &lt;!here&gt; &lt;@\u2060U1&gt;"),
        ("<https://evil.example|crm>", "&lt;https://evil.example|crm&gt;"),
        ("@channel, @here and a@b.example", "@\u2060channel, @\u2060here and a@b.example"),
        ("[crm](https://evil.example)", "[crm]\u2060(https://evil.example)"),
        ("u1\r\n:red_circle: forged\u2028more", "u1 :red_circle: forged more"),
        ("```all that follows", "\u02cb\u02cb\u02cball that follows"),
        ("\u202egnp.exe\x1b[1m\ud800", "\\u202egnp.exe\\x1b[1m\\ud800"),
        ("a & b|c", "a &amp; b|c"),
    ],
)
def test_no_value_mentions_anybody_forges_a_line_or_hides_a_link(
    server: ScriptedServer, value: str, shown: str
) -> None:
    assert said(server, "about {event.entity_id}.", value) == f"about {shown}."


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        ("<https://crm/{event.entity_id}|open>", "u|evil>\n<!here>/..", "<https://crm/u%7Cevil%3E%0A%3C%21here%3E%2F..|open>"),
        ("<https://crm/{event.entity_id:url}>", "1 2|3", "<https://crm/1%202%7C3>"),
        ("<https://crm/?id={event.entity_id}>", "1&id=2 3", "<https://crm/?id=1%26id%3D2%203>"),
        ("<https://crm|open {event.entity_id}>", "a|b>\n<!here>", "<https://crm|open a\u00a6b&gt; &lt;!here&gt;>"),
        ("<{event.entity_id}|open>", "https://x/a|b?c=1&d=%20>", "<https://x/a%7Cb?c=1&amp;d=%20%3E|open>"),
        ("<{event.entity_id}>", "HTTP://x/\u00e4 b", "<HTTP://x/%C3%A4%20b>"),
        ("<@{event.entity_id}> <b> {event.entity_id}", "U1|x", "<@U1%7Cx> <b> U1|x"),
    ],
)  # fmt: skip
def test_a_value_in_a_link_stays_in_its_part_of_it(server: ScriptedServer, text: str, value: str, shown: str) -> None:
    assert said(server, text, value) == shown


@pytest.mark.parametrize(
    "value", ["!channel", "@U1", "#C1", "javascript:x", "mailto:a@b", "https://", "x", "https://x/\ud800"]
)
def test_what_is_no_url_can_not_be_a_link_and_is_dead_without_a_call(server: ScriptedServer, value: str) -> None:
    outcome = failed(deliver(server, "<{event.entity_id}|open>", msgspec.structs.replace(DELIVERY, entity_id=value)))
    assert (outcome.error_class, server.seen) == ("mapping", [])
    assert outcome.error.startswith("destinations.chat.text: ")


def test_half_a_character_can_not_stand_in_a_url(server: ScriptedServer) -> None:
    text = "<https://crm/{event.entity_id}>"
    outcome = failed(deliver(server, text, msgspec.structs.replace(DELIVERY, entity_id="\ud800")))
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
        outcome = failed(deliver(server))
    assert outcome.error_class == error_class
    assert RULES[outcome.error_class] is rule
    assert "_" in (outcome.calls[0].excerpt or "")


def test_slacks_retry_after_is_heard() -> None:
    with serving(answer(429, b"rate_limited", retry_after="3600")) as server:
        outcome = deliver(server)
        policy = policies(parse_config(config_of(server.url, TEXT)))["to-chat"]
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
