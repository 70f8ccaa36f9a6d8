"""A route's `lane` may be changed: what was delivered by the earlier setting is judged by that one."""

from __future__ import annotations

from itertools import product
from typing import Literal

import msgspec
import pytest

from inbox.config.model import Config
from inbox.db.reads import Row
from inbox.events.event import Enrolment, Event
from tests.helpers.relaying import CONFIG, DONE, Steps
from tests.helpers.storing import an_event
from tests.store.verifying import Planter, differences, mend

Kind = Literal["entity", "route", "event"]
KINDS: tuple[Kind, ...] = ("entity", "route", "event")
SHARED: tuple[Kind, ...] = ("entity", "route")

from_one_to_another = pytest.mark.parametrize(("then", "now"), list(product(KINDS, KINDS)))


def of_kind(kind: Kind, number: int, *, second: int | None = None) -> Event:
    """An event of u1 in the lane that the setting makes."""
    event = an_event(number, second=second)
    lane = {"entity": "USER|u1", "route": "*", "event": f"|{event.dedup_key}"}[kind]
    return msgspec.structs.replace(event, enrolments=(Enrolment("strict", lane),))


def with_lane(kind: Kind) -> Config:
    route = msgspec.structs.replace(CONFIG.routes["strict"], lane=kind)
    return msgspec.structs.replace(CONFIG, routes={**CONFIG.routes, "strict": route})


def delivered(steps: Steps, *events: Event) -> None:
    for event in events:
        steps.arrive(event)
        steps.attempt(DONE)


def remembered(steps: Steps) -> list[Row]:
    return steps.rows("SELECT * FROM lane ORDER BY route, lane")


@from_one_to_another
def test_what_was_delivered_by_an_earlier_setting_agrees_and_is_left_alone(steps: Steps, then: Kind, now: Kind) -> None:
    """With one delivered before the change and two since, the last of which is older than all."""
    delivered(steps, of_kind(then, 1, second=10))
    for more in ([], [of_kind(now, 2, second=11), of_kind(now, 3, second=9)]):
        delivered(steps, *more)
        before = remembered(steps)
        config = with_lane(now)
        assert differences(steps.database, config) == mend(steps.database, config) == []
        assert remembered(steps) == before


@pytest.mark.parametrize(("then", "now"), list(product(SHARED, KINDS)))
def test_a_lane_that_forgot_its_last_delivery_is_found_by_any_later_setting_and_mended_as_it_was(
    steps: Steps, plant: Planter, then: Kind, now: Kind
) -> None:
    delivered(steps, of_kind(then, 1, second=10), of_kind(now, 2, second=11))
    before = remembered(steps)
    plant(f"DELETE FROM lane WHERE seq = {2 if then == now else 1}")

    assert {one.finding for one in differences(steps.database, with_lane(now))} == {"last_delivered"}
    mend(steps.database, with_lane(now))

    assert remembered(steps) == before
    assert differences(steps.database, with_lane(now)) == []
