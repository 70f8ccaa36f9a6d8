from __future__ import annotations

import msgspec

from relay.delivery.outcome import Skipped
from tests.destinations.scripted import serving
from tests.destinations.syncing import DELETE, DELIVERY, World


def test_an_event_that_names_no_entity_is_skipped_without_a_call() -> None:
    with serving() as server:
        world = World(server)
        for delivery in (DELIVERY, DELETE):
            outcome = world.deliver(msgspec.structs.replace(delivery, entity_type=None, entity_id=None))
            assert outcome == Skipped((), "the event names no entity")
        assert world.asked == []
