"""Idempotency keys: they stay for the event, the route and the run, and comes again for nothing else."""

from __future__ import annotations

import msgspec
import pytest

from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivery
from relay.destinations.python import event_of
from tests.destinations.handling import CONTEXT, DELIVERY
from tests.destinations.scripted import answer, serving
from tests.destinations.syncing import World

CONFIG = """
[sources.trivore]
preset = "trivore"
auth = { kind = "none" }
[destinations.there]
kind = "KIND"
url = "URL"
MORE
allow_private = true
allow_http = true
[routes.to-us]
source = "trivore"
destination = "there"
"""

AGAIN = msgspec.structs.replace(DELIVERY, attempt=9, lease_token=8)
SENT_AGAIN_AFTER_A_RESTORE = msgspec.structs.replace(
    DELIVERY, seq=8, received_at=DELIVERY.received_at.replace(year=2027)
)
ANOTHER_WITH_ITS_SEQ = msgspec.structs.replace(DELIVERY, dedup_key="k2")
REPLAYED = msgspec.structs.replace(DELIVERY, run=DELIVERY.run + 1)


def key_of_a_call(kind: str, delivery: Delivery) -> str:
    if kind == "python":
        return event_of(delivery).idempotency_key
    if kind == "sync":
        with serving(routes={}) as server:
            World(server).deliver(delivery)
            return next(seen for seen in server.seen if seen.method == "PATCH").headers["idempotency-key"]
    with serving(answer(204)) as server:
        more = 'text = "{event.event_type}"' if kind == "slack" else ""
        config = CONFIG.replace("KIND", kind).replace("URL", server.url).replace("MORE", more)
        target = destinations.build(parse_config(config))["to-us"]
        target.deliver(delivery, CONTEXT)
        target.close()
        return server.seen[0].headers["idempotency-key"]


@pytest.mark.parametrize("kind", ["forward", "slack", "python", "sync"])
def test_an_event_has_one_key_a_run_whatever_its_number_is_and_no_other_event_has_it(kind: str) -> None:
    key = key_of_a_call(kind, DELIVERY)
    assert key_of_a_call(kind, AGAIN) == key
    assert key_of_a_call(kind, SENT_AGAIN_AFTER_A_RESTORE) == key
    assert len({key, key_of_a_call(kind, ANOTHER_WITH_ITS_SEQ), key_of_a_call(kind, REPLAYED)}) == 3


def test_the_webhook_id_is_of_the_event_and_the_route_and_has_no_dot() -> None:
    assert AGAIN.webhook_id == SENT_AGAIN_AFTER_A_RESTORE.webhook_id == REPLAYED.webhook_id == DELIVERY.webhook_id
    others = [
        ANOTHER_WITH_ITS_SEQ,
        msgspec.structs.replace(DELIVERY, route="other"),
        msgspec.structs.replace(DELIVERY, source="other"),
        msgspec.structs.replace(DELIVERY, source="a", dedup_key="b|c", route="d"),
        msgspec.structs.replace(DELIVERY, source="a|b", dedup_key="c", route="d"),
    ]
    assert len({each.webhook_id for each in [DELIVERY, *others]}) == 1 + len(others)
    assert "." not in DELIVERY.webhook_id
