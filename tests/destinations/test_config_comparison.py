"""Differences between two configurations over an event: how it is read, its routes, and the request on each."""

from __future__ import annotations

import json

import msgspec
import pytest

from inbox.config.model import Config
from inbox.events.event import RawRequest
from inbox.loader.load import parse_config
from inbox.sources.normalize import readers_of
from relay.delivery.outcome import Delivery
from relay.destinations.preview import Variant, compare
from tests.helpers.delivering import NOW, delivery_of

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


def stored(config: Config, body: object = ORDER) -> Delivery:
    raw = RawRequest("shop", {"content-type": "application/json"}, json.dumps(body).encode(), NOW)
    (event,) = readers_of(config)["shop"](raw)
    return delivery_of(1, event)


def differences(before: str, after: str, event: Delivery | None = None) -> list[tuple[object, ...]]:
    old = parse_config(CONFIG)
    assert before in CONFIG
    new = parse_config(CONFIG.replace(before, after))
    found = compare(Variant(old), Variant(new), event or stored(old))
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
def test_each_difference_is_named_with_both_values_and_no_secret(
    before: str, after: str, expected: list[tuple[object, ...]]
) -> None:
    found = differences(before, after)
    assert found == expected


def test_without_its_payload_an_event_is_compared_as_it_is_stored() -> None:
    gone = msgspec.structs.replace(stored(parse_config(CONFIG)), body=None, headers={})
    assert differences('"body.order"', '"body.id"', gone) == []
    assert differences('["paid"]', '["sent"]', gone) == [("to-chat", "takes it", "yes", "no")]
