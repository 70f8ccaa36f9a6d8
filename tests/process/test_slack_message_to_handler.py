"""From a Slack-style message to a function of the user's: a real receiver and a real relay."""

from __future__ import annotations

import json
import urllib.request
from urllib.parse import urlencode

import pytest
from sqlalchemy import Engine

from tests.helpers.evidence import facts
from tests.helpers.processes import Site
from tests.helpers.reading import count

CONFIG = """
[database]
url = {database}

[sources.chat]
preset = "slack-message"
auth = {{ kind = "url_token", secrets = ["a-token"] }}
pattern = '(?P<type>[a-z]+) (?P<id>\\d+) was (?P<event_type>\\w+)'

[destinations.ours]
kind = "python"
function = "ours.handlers:on_event"
timeout = "15s"

[routes.chat-to-ours]
source = "chat"
destination = "ours"
retry = {{ schedule = ["0s"] }}
"""

HANDLER = """
import json
import threading
from pathlib import Path

from relay.handler import Event, GiveUp, Retry, Skip


def on_event(event: Event) -> None:
    with Path(__file__).with_name("handled.jsonl").open("a") as file:
        file.write(json.dumps([event.entity_type, event.entity_id, event.event_type, event.attempt, event.body]) + "\\n")
    if event.entity_id is None:
        raise Skip("small talk")
    if event.event_type == "hanged":
        threading.Event().wait()
    if event.event_type == "deleted":
        raise GiveUp("nothing is ever deleted")
    if event.attempt == 1:
        raise Retry("once more")
"""


@pytest.fixture
def place(place: Site, database_url: str) -> Site:
    ours = place.folder / "ours"
    ours.mkdir()
    (ours / "handlers.py").write_text(HANDLER, encoding="utf-8")
    place.configure(CONFIG.format(database=json.dumps(database_url)))
    return place


def send(port: int, body: bytes, content_type: str = "application/json") -> dict[str, object]:
    """Say something as a Slack integration would; gives the answer."""
    url = f"http://127.0.0.1:{port}/webhooks/chat/a-token"
    request = urllib.request.Request(url, data=body, headers={"Content-Type": content_type})
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200
        told: dict[str, object] = json.loads(answer.read())
        return told


def kinds(engine: Engine, seq: object) -> list[str]:
    return [fact["kind"] for fact in facts(engine) if fact["seq"] == seq]


def drained(place: Site) -> str:
    relay = place.relay("--drain")
    assert relay.ends(within=60) == 0, relay.output
    return relay.output


def test_messages_become_calls_of_the_function_in_inbox_tomls_folder(place: Site, engine: Engine) -> None:
    _, port = place.receiver(workers=1)
    blocks = {"blocks": [{"type": "section", "text": {"type": "mrkdwn", "text": "*user 1 was created*"}}]}
    created = send(port, json.dumps(blocks).encode())
    form = urlencode({"payload": json.dumps({"text": "user 2 was deleted"})}).encode()
    deleted = send(port, form, "application/x-www-form-urlencoded")
    talk = send(port, b'{"text": "Lunch?"}')
    assert send(port, b'{"text": "Lunch?"}') in (
        {"status": "duplicate", "seq": talk["seq"]},
        {"status": "accepted", "seq": 4},  # five minutes began between the two
    )
    drained(place)

    assert kinds(engine, created["seq"]) == ["attempt_failed", "delivered"]
    assert kinds(engine, deleted["seq"]) == ["dead"]
    assert kinds(engine, talk["seq"]) == ["skipped"]
    calls = [json.loads(line) for line in (place.folder / "ours" / "handled.jsonl").read_text().splitlines()]
    assert [call[3] for call in calls if call[:3] == ["user", "1", "created"]] == [1, 2]
    assert [call[4] for call in calls if call[1] == "2"] == [{"payload": '{"text": "user 2 was deleted"}'}]
    assert [fact["detail"].get("did") for fact in facts(engine) if fact["kind"] == "delivered"] == ["handled"]
    assert count(engine, "open_delivery WHERE state <> 'dead'") == 0

    place.configure((place.folder / "inbox.toml").read_text().replace('"15s"', '"200ms"'))
    hanged = send(port, b'{"text": "user 3 was hanged"}')
    assert "handler ours.handlers:on_event left behind" in drained(place), "it does not keep the relay from ending"
    assert kinds(engine, hanged["seq"]) == ["attempt_failed", "dead"]
    assert facts(engine)[-2]["detail"]["error_class"] == "unknown"
