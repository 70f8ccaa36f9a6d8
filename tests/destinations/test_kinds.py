"""Every kind of destination has what the rest of the relay reads of it."""

from __future__ import annotations

from typing import Any, get_args

import msgspec
import pytest

from inbox.config.model import Destination
from relay.delivery.outcome import Delivery, Skipped
from relay.destinations import KINDS
from relay.destinations.python import event_of
from tests.destinations.syncing import World, changed
from tests.helpers.delivering import LOCAL, a_delivery, config_text, deliver, delivered
from tests.helpers.scripted import ScriptedServer, answer, serving


def test_every_table_of_a_destination_has_its_kind() -> None:
    assert set(KINDS) == set(get_args(Destination))


# --- idempotency keys

EVENT = a_delivery(attempt=2)
AGAIN = msgspec.structs.replace(EVENT, attempt=9, lease_token=8)
SENT_AGAIN_AFTER_A_RESTORE = msgspec.structs.replace(EVENT, seq=8, received_at=EVENT.received_at.replace(year=2027))
ANOTHER_WITH_ITS_SEQ = msgspec.structs.replace(EVENT, dedup_key="k2")
REPLAYED = msgspec.structs.replace(EVENT, run=EVENT.run + 1)


def config_of(kind: str, server: ScriptedServer) -> str:
    more = 'text = "{event.event_type}"\n' if kind == "slack" else ""
    return config_text(kind, f'url = "{server.url}"\n{more}{LOCAL}')


def key_of_a_call(kind: str, delivery: Delivery) -> str:
    if kind == "python":
        return event_of(delivery).idempotency_key
    with serving(answer(204)) as server:
        if kind == "sync":
            World(server).deliver(delivery)
        else:
            deliver(config_of(kind, server), delivery)
        return next(seen for seen in server.seen if seen.method in {"POST", "PATCH"}).headers["idempotency-key"]


@pytest.mark.parametrize("kind", ["forward", "slack", "python", "sync"])
def test_an_event_has_one_key_a_run_whatever_its_number_is_and_no_other_event_has_it(kind: str) -> None:
    key = key_of_a_call(kind, EVENT)
    assert key_of_a_call(kind, AGAIN) == key
    assert key_of_a_call(kind, SENT_AGAIN_AFTER_A_RESTORE) == key
    assert len({key, key_of_a_call(kind, ANOTHER_WITH_ITS_SEQ), key_of_a_call(kind, REPLAYED)}) == 3


def test_the_webhook_id_is_of_the_event_and_the_route_and_has_no_dot() -> None:
    assert AGAIN.webhook_id == SENT_AGAIN_AFTER_A_RESTORE.webhook_id == REPLAYED.webhook_id == EVENT.webhook_id
    others = [
        ANOTHER_WITH_ITS_SEQ,
        msgspec.structs.replace(EVENT, route="other"),
        msgspec.structs.replace(EVENT, source="other"),
        msgspec.structs.replace(EVENT, source="a", dedup_key="b|c", route="d"),
        msgspec.structs.replace(EVENT, source="a|b", dedup_key="c", route="d"),
    ]
    assert len({each.webhook_id for each in [EVENT, *others]}) == 1 + len(others)
    assert "." not in EVENT.webhook_id


# --- erased events

ERASED = a_delivery(body=None)
SKIPPED = Skipped((), "the event's body was erased")


@pytest.mark.parametrize("kind", ["forward", "slack"])
def test_an_erased_event_is_skipped_without_a_call(kind: str) -> None:
    with serving(answer()) as server:
        config = config_of(kind, server).replace("{event.event_type}", "{event.body.title}")
        assert deliver(config, ERASED) == SKIPPED
        assert server.seen == []


def test_an_erased_event_is_delivered_where_nothing_needs_its_body(world: World) -> None:
    with serving(answer()) as server:
        delivered(deliver(config_of("slack", server), ERASED))
    delivered(world.deliver(ERASED))
    looking = f'transform = "{__name__}:looked_at"'
    delivered(world.deliver(ERASED, sync=changed('clear_when_absent = ["phone"]', looking)))


def transformed(fields: dict[str, Any], event: dict[str, Any], *_: object) -> dict[str, Any]:
    return {**fields, "name": event["body"]["name"]}


def looked_at(fields: dict[str, Any], event: dict[str, Any], *_: object) -> dict[str, Any]:
    return {**fields, "name": event["event_type"]}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('phone = "entity.phone"', 'phone = "event.body.phone"'),
        ('phone = "entity.phone"', 'phone = "event.*"'),
        ('phone = "entity.phone"', 'phone = "event"'),
        ('"/user/{event.entity_id}"', '"/user/{event.body.id}"'),
        ('clear_when_absent = ["phone"]', f'transform = "{__name__}:transformed"'),
    ],
)
def test_an_erased_event_is_skipped_where_a_sync_looks_into_the_body_and_nothing_is_written(
    world: World, old: str, new: str
) -> None:
    outcome = world.deliver(ERASED, sync=changed(old, new))
    assert isinstance(outcome, Skipped)
    assert outcome.why == SKIPPED.why, "an absent phone would clear the counterpart's"
    assert {seen.method for seen in world.server.seen} <= {"GET"}
