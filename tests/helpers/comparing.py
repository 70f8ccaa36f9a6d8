"""Two configurations, and requests that arrived under the first of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime

from inbox.config.model import Config
from inbox.events.event import Event, RawRequest
from inbox.loader.load import parse_config
from inbox.sources.readmission import readers_of
from relay.comparison.compare import Comparison
from relay.comparison.differences import ConfigDifference
from relay.comparison.lanes import SeenKeys
from relay.comparison.reading import Arrived, Payload

RECEIVED = datetime(2026, 11, 27, 12, tzinfo=UTC)

CONFIG = """
[sources.shop]
preset = "custom"
auth = { kind = "none" }
max_body = 4000
event = { type = "body.kind", entity_type = "'ORDER'", entity_id = "body.order", time = "body.at" }

[sources.other]
preset = "trivore"
auth = { kind = "none" }

[destinations.chat]
kind = "slack"
url = "env:CHAT_URL"
text = "{event.entity_id} is {event.body.state}"

[apis.shop]
base_url = "https://shop.example.com"

[destinations.erp]
kind = "sync"
base_url = "https://erp.example.com"

[routes.orders-to-chat]
source = "shop"
destination = "chat"
when = { event_type = ["paid"] }

[routes.orders-to-erp]
source = "shop"
destination = "erp"
[routes.orders-to-erp.sync]
fetch = { api = "shop", path = "/orders/{event.entity_id}" }
create = { path = "/orders" }
update = { path = "/orders/{event.entity_id}" }
delete = { path = "/orders/{event.entity_id}" }
map = { number = "event.entity_id", total = "entity.total" }
"""
"""Orders of a shop go to a chat when they are paid, and always to a sync."""


def changed(*changes: tuple[str, str]) -> str:
    """The configuration with texts replaced, each of which is there."""
    text = CONFIG
    for before, after in changes:
        assert before in text, before
        text = text.replace(before, after)
    return text


def order(number: object = 7, kind: str = "paid", second: int = 0, **other: object) -> dict[str, object]:
    """The body of a request of the shop."""
    return {"kind": kind, "order": number, "at": f"2026-11-27T11:00:{second:02d}Z", **other}


def events_of(config: Config, bodies: Iterable[object], source: str = "shop") -> Iterator[Event]:
    """The events that a receiver makes of these bodies; bytes are sent as they are."""
    read = readers_of(config)[source]
    for body in bodies:
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        yield from read(RawRequest(source, {"content-type": "application/json"}, raw, RECEIVED))


def compared(
    new: str, *bodies: object, old: str = CONFIG, arrived_under: str | None = None, without_payload: bool = False
) -> tuple[list[ConfigDifference], Comparison]:
    """Compare events of the shop, the newest of which comes first as the last of `bodies`."""
    before, after = parse_config(old), parse_config(new)
    comparison = Comparison(before, after)
    events = [*events_of(parse_config(arrived_under or old), bodies)]
    found = []
    with SeenKeys() as seen:
        for seq, event in reversed([*enumerate(events, 1)]):
            payload = None if without_payload else Payload(event.headers, event.body)
            found += [
                each
                for each in comparison.compare(arrived(seq, event), payload, seen)
                if isinstance(each, ConfigDifference)
            ]
        found += [
            ConfigDifference(change.kind, change.seq, change.source, change.route, after=change.lanes)
            for change in seen.lane_changes()
        ]
    return found, comparison


def arrived(seq: int, event: Event) -> Arrived:
    """The event as it is read from the database."""
    names = set(Arrived.__struct_fields__) - {"seq", "routes", "body_bytes"}
    return Arrived(
        seq=seq,
        routes=frozenset(enrolment.route for enrolment in event.enrolments),
        body_bytes=len(event.body),
        **{name: getattr(event, name) for name in names},
    )


def briefly(found: Iterable[ConfigDifference]) -> list[tuple[object, ...]]:
    """Kind, route, name, and the values or the reason of each difference."""
    return [
        (each.kind, each.route, each.name, *((each.before, each.after) if each.why is None else (each.why,)))
        for each in found
    ]
