"""Cancel and unblock: a person ends deliveries, or lets a lane go on past its dead head."""

from __future__ import annotations

import msgspec

from inbox.events.event import Enrolment
from relay.operations.asks import Selection
from tests.helpers.commanding import carry_out
from tests.helpers.relaying import CONFIG, DONE, HOPELESS, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import differences


def cancel_all(steps: Steps, selection: Selection) -> int:
    return carry_out(steps.database, CONFIG, "cancel", selection, who="ann", why="a test account")


def unblock_all(steps: Steps, selection: Selection) -> int:
    return carry_out(steps.database, CONFIG, "unblock", selection, who="ann", why="mended by hand")


def test_what_is_cancelled_has_ended_and_the_next_of_its_lane_goes_on(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2), an_event(3, "u2"))
    assert cancel_all(steps, Selection(seq=1)) == 1
    assert steps.states() == [(2, "strict", "ready"), (3, "strict", "ready")]
    (fact,) = steps.rows("SELECT kind, relay_node, detail FROM delivery_log")
    assert fact == {"kind": "cancelled", "relay_node": None, "detail": {"who": "ann", "why": "a test account"}}
    assert differences(steps.database) == []


def test_a_lane_whose_head_and_next_are_cancelled_together_goes_on_with_what_is_left(steps: Steps) -> None:
    """As on a route with `lane = "route"`, of which one entity is cancelled."""
    of_the_route = (Enrolment("strict", "*"),)
    events = (an_event(1), an_event(2), an_event(3, "u2"))
    steps.arrive(*(msgspec.structs.replace(event, enrolments=of_the_route) for event in events))
    assert cancel_all(steps, Selection(entity_type="USER", entity_id="u1")) == 2
    assert steps.states() == [(3, "strict", "ready")]


def test_what_a_relay_works_on_is_left_as_it_is(steps: Steps) -> None:
    steps.arrive(an_event(1), an_event(2))
    working = steps.claim()
    assert cancel_all(steps, Selection(entity_type="USER", entity_id="u1")) == 1
    (recorded,) = steps.record([(working, DONE)])
    assert recorded.fact is not None
    assert steps.kinds() == [(2, "cancelled"), (1, "delivered")]


def test_a_blocked_lane_goes_on_past_its_head_which_stays_dead(steps: Steps) -> None:
    steps.arrive(an_event(1, routes=["blocking"]), an_event(2, routes=["blocking"]))
    steps.attempt(HOPELESS, "blocking")
    assert steps.states() == [(1, "blocking", "blocked"), (2, "blocking", "waiting")]
    assert unblock_all(steps, Selection(route="blocking")) == 1
    assert steps.states() == [(1, "blocking", "dead"), (2, "blocking", "ready")]
    assert unblock_all(steps, Selection(everything=True)) == 0
    assert differences(steps.database) == []
