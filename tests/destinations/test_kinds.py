"""Forward and Slack destinations, the rules of all kinds, and comparisons of configurations."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, get_args

import msgspec
import pytest

from inbox.config.model import Config, Destination
from inbox.config.routing import ADDED
from inbox.errors import ConfigError
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources.normalize import make_readers
from inbox.sources.signing import Message
from relay.delivery.outcome import Delivery, Outcome, Skipped
from relay.destinations import KINDS, Context
from relay.destinations.forward import make_signer
from relay.destinations.preview import Variant, compare
from relay.destinations.python import make_event
from tests.destinations.calling import World, replace_in_sync
from tests.helpers.delivering import (
    LOCAL,
    NOW,
    a_delivery,
    as_delivered,
    as_failed,
    build,
    config_text,
    deliver,
    delivery_of,
    failure,
)
from tests.helpers.scripted import ScriptedServer, answer, reset, serving


def test_every_table_of_a_destination_has_its_kind() -> None:
    assert set(KINDS) == set(get_args(Destination))


# --- idempotency keys

KEYED = a_delivery(attempt=2)
AGAIN = msgspec.structs.replace(KEYED, attempt=9, lease_token=8)
SENT_AGAIN_AFTER_A_RESTORE = msgspec.structs.replace(KEYED, seq=8, received_at=KEYED.received_at.replace(year=2027))
ANOTHER_WITH_ITS_SEQ = msgspec.structs.replace(KEYED, dedup_key="k2")
REPLAYED = msgspec.structs.replace(KEYED, run=KEYED.run + 1)


def write_config(kind: str, server: ScriptedServer) -> str:
    more = 'text = "{event.event_type}"\n' if kind == "slack" else ""
    return config_text(kind, f'url = "{server.url}"\n{more}{LOCAL}')


def key_of_a_call(kind: str, delivery: Delivery) -> str:
    if kind == "python":
        return make_event(delivery).idempotency_key
    with serving(answer(204)) as server:
        if kind == "sync":
            World(server).deliver(delivery)
        else:
            deliver(write_config(kind, server), delivery)
        return next(seen for seen in server.seen if seen.method in {"POST", "PATCH"}).headers["idempotency-key"]


@pytest.mark.parametrize("kind", ["forward", "slack", "python", "sync"])
def test_an_event_has_one_key_a_run_whatever_its_seq_and_no_other_event_has_it(kind: str) -> None:
    key = key_of_a_call(kind, KEYED)
    assert key_of_a_call(kind, AGAIN) == key
    assert key_of_a_call(kind, SENT_AGAIN_AFTER_A_RESTORE) == key
    assert len({key, key_of_a_call(kind, ANOTHER_WITH_ITS_SEQ), key_of_a_call(kind, REPLAYED)}) == 3


def test_the_webhook_id_is_of_the_event_and_the_route_and_has_no_dot() -> None:
    assert AGAIN.webhook_id == SENT_AGAIN_AFTER_A_RESTORE.webhook_id == REPLAYED.webhook_id == KEYED.webhook_id
    others = [
        ANOTHER_WITH_ITS_SEQ,
        msgspec.structs.replace(KEYED, route="other"),
        msgspec.structs.replace(KEYED, source="other"),
        msgspec.structs.replace(KEYED, source="a", dedup_key="b|c", route="d"),
        msgspec.structs.replace(KEYED, source="a|b", dedup_key="c", route="d"),
    ]
    assert len({each.webhook_id for each in [KEYED, *others]}) == 1 + len(others)
    assert "." not in KEYED.webhook_id


# --- erased events

ERASED = a_delivery(body=None)
SKIPPED = Skipped((), "the event's body was erased")


@pytest.mark.parametrize("kind", ["forward", "slack"])
def test_an_erased_event_is_skipped_without_a_call(kind: str) -> None:
    with serving(answer()) as server:
        config = write_config(kind, server).replace("{event.event_type}", "{event.body.title}")
        assert deliver(config, ERASED) == SKIPPED
        assert server.seen == []


def test_an_erased_event_is_delivered_where_nothing_needs_its_body(world: World) -> None:
    with serving(answer()) as server:
        as_delivered(deliver(write_config("slack", server), ERASED))
    as_delivered(world.deliver(ERASED))
    looking = f'transform = "{__name__}:read_event_type"'
    as_delivered(world.deliver(ERASED, sync=replace_in_sync('clear_when_absent = ["phone"]', looking)))


def read_body(fields: dict[str, Any], event: dict[str, Any], *_: object) -> dict[str, Any]:
    return {**fields, "name": event["body"]["name"]}


def read_event_type(fields: dict[str, Any], event: dict[str, Any], *_: object) -> dict[str, Any]:
    return {**fields, "name": event["event_type"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('phone = "entity.phone"', 'phone = "event.body.phone"'),
        ('phone = "entity.phone"', 'phone = "event.*"'),
        ('phone = "entity.phone"', 'phone = "event"'),
        ('"/user/{event.entity_id}"', '"/user/{event.body.id}"'),
        ('clear_when_absent = ["phone"]', f'transform = "{__name__}:read_body"'),
    ],
)
def test_an_erased_event_is_skipped_by_a_sync_that_reads_the_body(world: World, old: str, new: str) -> None:
    outcome = world.deliver(ERASED, sync=replace_in_sync(old, new))
    assert isinstance(outcome, Skipped)
    assert outcome.why == SKIPPED.why, "an absent phone would clear the counterpart's"
    assert {seen.method for seen in world.server.seen} <= {"GET"}


# --- forward destinations


AT = datetime(2021, 2, 25, 14, 55, 30, tzinfo=UTC)
BODY = b'{"id": "IDNUMBER1234",  "entityType": "USER"}\n'
UPDATE_EVENT = a_delivery(
    attempt=2, run=1, entity_id="ID €", occurred_at=AT, received_at=AT, body=BODY,
    content_type="application/json; charset=utf-8",
)  # fmt: skip
CONTEXT = Context(lambda: float("inf"), threading.Event(), lambda: AT)


def forward_config(url: str, extra: str = "") -> str:
    return config_text("forward", f'url = "{url}"\ntimeout = "30s"\n{LOCAL}{extra}')


@pytest.fixture
def server() -> Iterator[ScriptedServer]:
    with serving(answer(200, b"ok")) as server:
        yield server


def forward(server: ScriptedServer, delivery: Delivery = UPDATE_EVENT, extra: str = "") -> dict[str, str]:
    """Forward a delivery and return the headers that arrived."""
    outcome = deliver(forward_config(f"{server.url}/hook", extra), delivery, CONTEXT)
    assert as_delivered(outcome).did == "forwarded"
    return server.seen[-1].headers


def test_the_body_arrives_byte_for_byte_with_its_content_type(server: ScriptedServer) -> None:
    headers = forward(server)
    assert server.seen[0].body == BODY
    assert (server.seen[0].method, server.seen[0].target) == ("POST", "/hook")
    assert headers["content-type"] == "application/json; charset=utf-8"


def test_headers_describe_the_event(server: ScriptedServer) -> None:
    headers = forward(server)
    named = ("inbox-", "idempotency", "trace", "webhook-id", "webhook-signature")
    assert {name: headers[name] for name in headers if name.startswith(named)} == {
        "inbox-source": "trivore",
        "inbox-entity-type": "USER",
        "inbox-entity-id": "ID %E2%82%AC",
        "inbox-event-type": "UPDATE",
        "inbox-seq": "7",
        "inbox-attempt": "2",
        "idempotency-key": f"{UPDATE_EVENT.webhook_id}-1",
        "traceparent": UPDATE_EVENT.traceparent,
        "webhook-id": UPDATE_EVENT.webhook_id,  # and no signature without a secret
    }


def test_an_event_without_entity_content_type_or_trace_has_no_such_header(server: ScriptedServer) -> None:
    bare = msgspec.structs.replace(UPDATE_EVENT, entity_type=None, entity_id=None, content_type="", traceparent=None)
    headers = forward(server, bare)
    assert not headers.keys() & {"inbox-entity-type", "inbox-entity-id", "content-type", "traceparent"}


def test_every_header_that_a_call_adds_is_one_of_the_reference(server: ScriptedServer) -> None:
    headers = forward(server, extra='signing_secret = "any text"')
    assert headers.keys() == {name.lower() for name in ADDED} | {"host", "content-length"}


PASSED = 'pass_headers = ["X-GitHub-Event", "X-GitHub-Delivery", "tracestate"]'


def test_headers_of_the_webhook_are_passed_on_as_they_are_listed(server: ScriptedServer) -> None:
    kept = {"x-github-event": "issues", "tracestate": "a=\xffb", "x-hub": "no", "user-agent": "GitHub-Hookshot/1"}
    headers = forward(server, msgspec.structs.replace(UPDATE_EVENT, headers=kept), PASSED)
    assert (headers["x-github-event"], headers["tracestate"]) == ("issues", "a=%C3%BFb")
    assert headers["user-agent"] == "inbox-relay"
    assert not headers.keys() & {"x-github-delivery", "x-hub"}


SHARED = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_published_vector_is_signed_as_published() -> None:
    message = Message(id=b"msg_p5jXN8AQM9LWM0D4loKWxJek", body=b'{"test": 2432232314}')
    at = datetime.fromtimestamp(1614265330, UTC)
    assert (
        make_signer(SHARED, "here")(message, at)["webhook-signature"]
        == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    )


@pytest.mark.parametrize("secret", [SHARED, "any text"])
def test_the_signature_of_a_delivery_fits_the_received_body(server: ScriptedServer, secret: str) -> None:
    headers = forward(server, extra=f'signing_secret = "{secret}"')
    assert headers["webhook-timestamp"] == "1614264930"
    message = Message(id=headers["webhook-id"].encode(), body=server.seen[0].body)
    signed = make_signer(secret, "here")(message, datetime.fromtimestamp(1614264930, UTC))
    assert headers.items() >= signed.items()


@pytest.mark.parametrize("secret", ["whsec_", "whsec_not base64!", "whsec_é", "whsk_", "whsk_AAAA", "whpk_AAAA"])
def test_a_signing_secret_that_is_no_key_is_refused_at_the_start(secret: str) -> None:
    with pytest.raises(ConfigError, match=r"destinations.crm.signing_secret"):
        build(forward_config("http://127.0.0.1", f'signing_secret = "{secret}"'))


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
        outcome = as_failed(deliver(forward_config(server.url), UPDATE_EVENT))
    assert failure(outcome) == (error_class, error)
    assert outcome.retry_after == (7.0 if error_class == "throttled" else None)
    assert [call.step for call in outcome.calls] == ["forward"]


def test_a_url_kept_as_a_secret_is_not_logged(server: ScriptedServer, tmp_path: Path) -> None:
    place = tmp_path / "url"
    place.write_text(f"{server.url}/services/T0/s3cr3t?key=k3y\n")
    outcome = deliver(forward_config(f"file:{place}"))
    assert server.seen[0].target == "/services/T0/s3cr3t?key=k3y"
    assert outcome.calls[0].url == f"{server.url}/…?key=…"
    with serving(answer(404, b"no hook at /services/T0/s3cr3t")) as echoing:
        place.write_text(f"{echoing.url}/services/T0/s3cr3t\n")
        assert "s3cr3t" not in repr(deliver(forward_config(f"file:{place}")))


# --- Slack destinations


CHAT_EVENT = a_delivery(body=b'{"who": "Ada & <!channel> > all", "n": [1], "t": true}')
PATH = "/services/T0000/B0000/s3cr3tOfTheHook"
TEXT = "{event.entity_type} {event.entity_id}: {event.event_type}"


def slack_config(url: str, text: str) -> str:
    quoted = json.dumps(text, ensure_ascii=False)
    return config_text("slack", f'url = "{url}{PATH}"\ntext = {quoted}\ntimeout = "30s"\n{LOCAL}')


def post(server: ScriptedServer, text: str = TEXT, **changes: object) -> Outcome:
    return deliver(slack_config(server.url, text), msgspec.structs.replace(CHAT_EVENT, **changes))


def test_a_message_is_posted_as_json_to_the_hook(server: ScriptedServer) -> None:
    assert as_delivered(post(server)).did == "forwarded"
    (seen,) = server.seen
    assert (seen.method, seen.target) == ("POST", PATH)
    assert json.loads(seen.body) == {"text": "USER u1: UPDATE"}
    assert seen.headers["content-type"] == "application/json"
    assert seen.headers["idempotency-key"] == f"{CHAT_EVENT.webhook_id}-0"
    assert seen.headers["traceparent"] == CHAT_EVENT.traceparent


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
def test_values_in_a_message_are_escaped_and_its_text_is_markup(server: ScriptedServer, text: str, said: str) -> None:
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
def test_values_forge_no_mention_line_or_link(server: ScriptedServer, text: str, value: str, shown: str) -> None:
    as_delivered(post(server, text, entity_id=value))
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
def test_an_impossible_message_is_dead_without_a_call(server: ScriptedServer, text: str, value: str) -> None:
    outcome = as_failed(post(server, text, entity_id=value))
    assert (outcome.error_class, outcome.calls, server.seen) == ("mapping", (), [])
    assert outcome.error.startswith("destinations.crm.text: ")


@pytest.mark.parametrize("text", ["{event.seq", "{entity.name}", "{seq}", "{event.[}"])
def test_a_template_that_can_not_be_used_is_refused_at_the_start(text: str) -> None:
    with pytest.raises(ConfigError, match=r"destinations.crm.text: "):
        build(slack_config("http://127.0.0.1", text))


def test_the_hooks_path_is_in_no_outcome_even_when_it_is_echoed() -> None:
    with serving(answer(404, f"no such hook: {PATH}, {PATH.rpartition('/')[2]}".encode())) as server:
        outcome = post(server)
        assert outcome.calls[0].url == f"{server.url}/…"
    assert "s3cr3t" not in repr(outcome)


# --- comparisons of two configurations


CONFIG = """
[sources.shop]
preset = "custom"
auth = { kind = "none" }
event = { type = "body.kind", entity_type = "'ORDER'", entity_id = "body.order", time = "body.at" }
[destinations.chat]
kind = "slack"
url = "https://chat.example.com/hooks/s3cret"
text = "{event.entity_id} is {event.body.state}"
[destinations.audit]
kind = "forward"
url = "https://audit.example.com/hook"
signing_secret = "a-secret-of-the-audit"
headers = { X-Key = "hidden" }
[apis.shop]
base_url = "https://shop.example.com"
[destinations.erp]
kind = "sync"
base_url = "https://erp.example.com"
[routes.to-chat]
source = "shop"
destination = "chat"
when = { event_type = ["paid"] }
[routes.to-audit]
source = "shop"
destination = "audit"
[routes.to-erp]
source = "shop"
destination = "erp"
[routes.to-erp.sync]
fetch = { api = "shop", path = "/orders/{event.entity_id}" }
create = { path = "/orders" }
update = { path = "/orders/{event.entity_id}" }
delete = { path = "/orders/{event.entity_id}" }
map = { number = "event.entity_id" }
"""
ORDER = {"kind": "paid", "order": 7, "at": "2025-12-31T11:00:00Z", "state": "new", "id": 9}


def make_stored_delivery(config: Config, body: object = ORDER) -> Delivery:
    raw = RawRequest("shop", {"content-type": "application/json"}, json.dumps(body).encode(), NOW)
    (event,) = make_readers(config)["shop"](raw)
    return delivery_of(1, event)


def differences(before: str, after: str, event: Delivery | None = None) -> list[tuple[object, ...]]:
    old = parse_config(CONFIG)
    assert before in CONFIG
    new = parse_config(CONFIG.replace(before, after))
    found = compare(Variant(old), Variant(new), event or make_stored_delivery(old))
    return [(each.route, each.part, each.before, each.after) for each in found]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("body.order", "body.order", []),
        ('when = { event_type = ["paid"] }', "", []),
        ('["paid"]', '["sent"]', [("to-chat", "takes it", "yes", "no")]),
        (
            '"body.order"',
            '"body.id"',
            [
                (None, "entity_id", "7", "9"),
                ("to-chat", "lane", "ORDER|7", "ORDER|9"),
                ("to-chat", "body.text", "7 is new", "9 is new"),
                ("to-audit", "lane", "ORDER|7", "ORDER|9"),
                ("to-audit", "header Inbox-Entity-Id", "…", "…"),
                ("to-erp", "lane", "ORDER|7", "ORDER|9"),
                ("to-erp", "request", "GET https://shop.example.com/orders/7", "GET https://shop.example.com/orders/9"),
            ],
        ),
        ('type = "body.kind"', 'type = "body.sort"', [(None, "rejected", None, "type is missing")]),
        (
            "{event.body.state}",
            "{event.body.x}",
            [("to-chat", "fails", None, "destinations.chat.text: {event.body.x} has no value")],
        ),
        ("is {event.body.state}", "was {event.body.state}", [("to-chat", "body.text", "7 is new", "7 was new")]),
        ("hooks/s3cret", "hooks/other", [("to-chat", "request", "POST https://chat.example.com/…", "POST https://chat.example.com/…")]),
        ('"a-secret', '"b-secret', [("to-audit", "header Webhook-Signature", "…", "…")]),
        ('"hidden"', '"others"', [("to-audit", "header X-Key", "…", "…")]),
        ('destination = "audit"', 'destination = "audit"\nlane = "route"', [("to-audit", "lane", "ORDER|7", "*")]),
        ('destination = "erp"\n[', 'destination = "erp"\non_dead = "block"\n[', [("to-erp", "on_dead", "continue", "block")]),
    ],
)  # fmt: skip
def test_differences_have_both_values_but_no_secret(
    before: str, after: str, expected: list[tuple[object, ...]]
) -> None:
    found = differences(before, after)
    assert found == expected


def test_without_its_payload_an_event_is_compared_as_it_is_stored() -> None:
    gone = msgspec.structs.replace(make_stored_delivery(parse_config(CONFIG)), body=None, headers={})
    assert differences('"body.order"', '"body.id"', gone) == []
    assert differences('["paid"]', '["sent"]', gone) == [("to-chat", "takes it", "yes", "no")]
