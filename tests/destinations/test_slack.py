"""Slack destinations: their messages, and the outcome of each answer."""

from __future__ import annotations

import json
from collections.abc import Iterator

import msgspec
import pytest

from inbox.errors import ConfigError
from relay.delivery.outcome import Outcome
from tests.helpers.delivering import LOCAL, a_delivery, build, config_text, deliver, delivered, failed
from tests.helpers.scripted import ScriptedServer, answer, serving

EVENT = a_delivery(body=b'{"who": "Ada & <!channel> > all", "n": [1], "t": true}')
PATH = "/services/T0000/B0000/s3cr3tOfTheHook"
TEXT = "{event.entity_type} {event.entity_id}: {event.event_type}"


def config_of(url: str, text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return config_text("slack", f'url = "{url}{PATH}"\ntext = {quoted}\ntimeout = "30s"\n{LOCAL}')


def post(server: ScriptedServer, text: str = TEXT, **changes: object) -> Outcome:
    return deliver(config_of(server.url, text), msgspec.structs.replace(EVENT, **changes))


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(200, b"ok")) as server:
        yield server


def test_a_message_is_posted_as_json_to_the_hook(server: ScriptedServer) -> None:
    assert delivered(post(server)).did == "forwarded"
    (seen,) = server.seen
    assert (seen.method, seen.target) == ("POST", PATH)
    assert json.loads(seen.body) == {"text": "USER u1: UPDATE"}
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"] == f"{EVENT.webhook_id}-0"
    assert seen.headers["traceparent"] == EVENT.traceparent


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
def test_a_value_put_into_a_message_is_escaped_and_its_own_text_is_markup(
    server: ScriptedServer, text: str, said: str
) -> None:
    post(server, text)
    assert json.loads(server.seen[0].body) == {"text": said}


ABOUT = "{event.entity_id}"


@pytest.mark.parametrize(
    ("text", "value", "shown"),
    [
        (ABOUT, "<!channel> <!here> <@U1>", "&lt;!channel&gt; &lt;!here&gt; &lt;@\u2060U1&gt;"),
        (ABOUT, "<https://evil.example|crm>", "&lt;https://evil.example|crm&gt;"),
        (ABOUT, "@channel, @here and a@b.example", "@\u2060channel, @\u2060here and a@b.example"),
        (ABOUT, "[crm](https://evil.example)", "[crm]\u2060(https://evil.example)"),
        (ABOUT, "u1\r\n:red_circle: forged\u2028more", "u1 :red_circle: forged more"),
        (ABOUT, "```all that follows", "\u02cb\u02cb\u02cball that follows"),
        (ABOUT, "\u202egnp.exe\x1b[1m\ud800", "\\u202egnp.exe\\x1b[1m\\ud800"),
        (ABOUT, "a & b|c", "a &amp; b|c"),
        ("<https://crm/{event.entity_id}|open>", "u|evil>\n<!here>/..", "<https://crm/u%7Cevil%3E%0A%3C%21here%3E%2F..|open>"),
        ("<https://crm/{event.entity_id:url}>", "1 2|3", "<https://crm/1%202%7C3>"),
        ("<https://crm/?id={event.entity_id}>", "1&id=2 3", "<https://crm/?id=1%26id%3D2%203>"),
        ("<https://crm|open {event.entity_id}>", "a|b>\n<!here>", "<https://crm|open a\u00a6b&gt; &lt;!here&gt;>"),
        ("<{event.entity_id}|open>", "https://x/a|b?c=1&d=%20>", "<https://x/a%7Cb?c=1&amp;d=%20%3E|open>"),
        ("<{event.entity_id}>", "HTTP://x/\u00e4 b", "<HTTP://x/%C3%A4%20b>"),
        ("<@{event.entity_id}> <b> {event.entity_id}", "U1|x", "<@U1%7Cx> <b> U1|x"),
    ],
)  # fmt: skip
def test_no_value_mentions_anybody_forges_a_line_hides_a_link_or_leaves_its_part_of_one(
    server: ScriptedServer, text: str, value: str, shown: str
) -> None:
    delivered(post(server, text, entity_id=value))
    assert json.loads(server.seen[-1].body) == {"text": shown}


NO_URLS = ["!channel", "@U1", "#C1", "javascript:x", "mailto:a@b", "https://", "x", "https://x/\ud800"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *((text, "u1") for text in ("{event.body.nobody}", "{event.body.n}", "{length(event.seq)}")),
        *(("<{event.entity_id}|open>", value) for value in NO_URLS),
        ("<https://crm/{event.entity_id}>", "\ud800"),
    ],
)
def test_a_message_that_can_not_be_written_is_dead_without_a_call(
    server: ScriptedServer, text: str, value: str
) -> None:
    outcome = failed(post(server, text, entity_id=value))
    assert (outcome.error_class, outcome.calls, server.seen) == ("mapping", (), [])
    assert outcome.error.startswith("destinations.crm.text: ")


@pytest.mark.parametrize("text", ["{event.seq", "{entity.name}", "{seq}", "{event.[}"])
def test_a_template_that_can_not_be_used_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"destinations.crm.text: "):
        build(config_of("http://127.0.0.1", text))


def test_the_hooks_path_is_in_no_outcome_even_when_it_is_echoed() -> None:
    with serving(answer(404, f"no such hook: {PATH}, {PATH.rpartition('/')[2]}".encode())) as server:
        outcome = post(server)
        assert outcome.calls[0].url == f"{server.url}/…"
    assert "s3cr3t" not in repr(outcome)
