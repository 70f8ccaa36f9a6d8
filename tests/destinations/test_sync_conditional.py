"""Conditional fetches: an entity that is as it was applied last is neither sent again nor looked up."""

from __future__ import annotations

from datetime import timedelta

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inbox.errors import ConfigError
from relay.delivery.outcome import Delivered, Delivery, Unchanged
from relay.sync.compiled_route import usable_etag
from tests.destinations.syncing import DELETE, FETCH, FIND, UPDATE, USER, World, changed
from tests.helpers.delivering import NOW, a_delivery, delivered, failure
from tests.helpers.scripted import answer

CONDITIONAL = changed('path = "/user/{event.entity_id}" }', 'path = "/user/{event.entity_id}", conditional = true }')
TAGGED = answer(200, USER, etag='"v1"')
SAME = answer(304, b"", etag='"v1"')


def applied(world: World, sync: str = CONDITIONAL) -> Delivered:
    return delivered(world.deliver(sync=sync, fetch=TAGGED))


def next_one(before: Delivered, **more: object) -> Delivery:
    """The next event of the entity, with what its claim knows of the one before."""
    return a_delivery(
        applied_etag=before.etag, etag_config=before.etag_config, applied_modified=before.last_modified, **more
    )


def condition(world: World) -> str | None:
    """The condition of the last fetch."""
    return [seen.headers.get("if-none-match") for seen in world.server.seen if f"{seen.method} {seen.target}" == FETCH][
        -1
    ]


def test_an_entity_that_was_not_modified_ends_unchanged_after_a_single_call(world: World) -> None:
    first = applied(world)
    assert (condition(world), first.etag) == (None, '"v1"')
    outcome = world.deliver(next_one(first), sync=CONDITIONAL, fetch=SAME)
    assert isinstance(outcome, Unchanged)
    assert condition(world) == '"v1"'
    assert world.asked == [FETCH, FIND, UPDATE, FETCH]


def test_an_entity_that_was_modified_is_applied_with_its_new_etag(world: World) -> None:
    later = world.deliver(next_one(applied(world)), sync=CONDITIONAL, fetch=answer(200, USER, etag='W/"v2"'))
    assert delivered(later).etag == 'W/"v2"'


@pytest.mark.parametrize("more", [{"run": 1}, {"action": "delete", "event_type": "DELETE"}])
def test_a_replay_and_a_deletion_fetch_the_whole_entity(world: World, more: dict[str, object]) -> None:
    first = applied(world)
    world.deliver(next_one(first, **more), sync=CONDITIONAL, fetch=answer(200, USER))
    assert condition(world) is None


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('name = "entity.name"', 'nick = "entity.name"'),
        ('clear_when_absent = ["phone"]', "skip_unchanged = true"),
        ('update = { path = "/contacts/{target.id}" }', 'update = { path = "/contacts/{target.id}", format = "json" }'),
    ],
)
def test_a_changed_map_is_not_hidden_by_an_unchanged_entity(world: World, old: str, new: str) -> None:
    first = applied(world)
    assert old in CONDITIONAL
    world.deliver(next_one(first), sync=CONDITIONAL.replace(old, new), fetch=TAGGED)
    assert condition(world) is None


def test_an_etag_of_another_url_proves_nothing(world: World) -> None:
    """The path has a value of the event's body, as after a repository was renamed; both resources count their versions."""
    sync = CONDITIONAL.replace("/user/{event.entity_id}", "/user/{event.body.id}")
    other = "GET /api/user/u2"
    world.server.routes[other] = [TAGGED]
    first = delivered(world.deliver(a_delivery(body=b'{"id": "u1"}'), sync=sync, fetch=TAGGED))
    delivered(world.deliver(next_one(first, body=b'{"id": "u2"}'), sync=sync))
    (asked,) = [seen for seen in world.server.seen if f"{seen.method} {seen.target}" == other]
    assert asked.headers.get("if-none-match") is None
    world.deliver(next_one(first, body=b'{"id": "u1"}'), sync=sync, fetch=SAME)
    assert condition(world) == '"v1"'


def test_a_route_without_it_neither_keeps_an_etag_nor_sends_one(world: World) -> None:
    plain = CONDITIONAL.replace(", conditional = true", "")
    first = applied(world, plain)
    assert (first.etag, first.etag_config) == (None, None)
    world.deliver(next_one(applied(world)), sync=plain)
    assert condition(world) is None


def test_an_answer_not_modified_that_nobody_asked_for_is_no_success(world: World) -> None:
    assert failure(world.deliver(sync=CONDITIONAL, fetch=SAME))[0] == "redirect"


def test_a_replica_that_still_has_the_state_of_before_is_asked_again_and_then_believed(world: World) -> None:
    sync = CONDITIONAL.replace("conditional = true", 'conditional = true, tolerance = "1s"')
    first = delivered(world.deliver(sync=sync, fetch=TAGGED, delivery=a_delivery(stale_before=9)))
    assert first.etag is None, "a state that is perhaps old is no state to compare with"
    at = NOW - timedelta(seconds=1)
    fresh = delivered(world.deliver(a_delivery(occurred_at=at), sync=sync, fetch=TAGGED))
    later = next_one(fresh, occurred_at=NOW + timedelta(seconds=9))
    assert failure(world.deliver(later, sync=sync, fetch=SAME))[0] == "stale"
    last = msgspec.structs.replace(later, stale_before=3)
    assert isinstance(world.deliver(last, sync=sync, fetch=SAME), Unchanged)


def test_what_was_deleted_has_no_etag(world: World) -> None:
    outcome = world.deliver(DELETE, sync=CONDITIONAL, fetch=answer(404, b"", etag='"v1"'))
    assert (delivered(outcome).did, delivered(outcome).etag) == ("deleted", None)


@pytest.mark.parametrize("etag", ["v1", '"a b"', '"' + "x" * 300 + '"', '"v1', "*", '"v1", "v2"', '"ä"', "", 'w/"v1"'])
def test_a_text_that_is_no_etag_is_not_kept(world: World, etag: str) -> None:
    assert delivered(world.deliver(sync=CONDITIONAL, fetch=answer(200, USER, etag=etag))).etag is None


@given(st.text() | st.from_regex(r'(W/)?"[^"]*"', fullmatch=True))
def test_what_is_kept_of_the_network_is_short_and_can_be_stored_and_sent(value: str) -> None:
    kept = usable_etag(value)
    assert kept in {None, value}
    assert kept is None or (len(kept) <= 260 and kept.isascii() and kept.isprintable() and " " not in kept)


@pytest.mark.parametrize(
    ("sync", "why"),
    [
        (CONDITIONAL.replace("conditional", 'method = "POST", conditional'), "needs a GET"),
        (CONDITIONAL.replace("conditional", 'graphql = "{ a }", conditional'), "needs a GET"),
        (
            CONDITIONAL.replace('"entity.phone"', '"event.body.phone"'),
            r"would leave out event\.body, which the map sends",
        ),
        (
            CONDITIONAL.replace('"entity.phone"', '{ from = "event . occurred_at" }'),
            r"would leave out event\.occurred_at",
        ),
        (CONDITIONAL.replace('"entity.phone"', "'event.\"body\".phone'"), r"would leave out event\.body"),
        (CONDITIONAL.replace('"entity.phone"', '"event | body.phone"'), r"would leave out event, which the map sends"),
        (
            CONDITIONAL.replace(
                'target.id}" }\n    delete',
                'target.id}", body = { c = "{fields}", by = ["{event.body.sender}"] } }\n    delete',
            ),
            r"would leave out event\.body, which the update sends",
        ),
        (
            CONDITIONAL.replace(
                'target.id}" }\n    delete', 'target.id}", headers = { X-By = "{event.seq}" } }\n    delete'
            ),
            r"would leave out event\.seq, which the update sends",
        ),
    ],
)
def test_a_condition_that_would_hide_something_is_a_mistake(world: World, sync: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        world.config(sync)


def test_a_name_that_is_only_spelled_like_the_event_is_no_mistake(world: World) -> None:
    world.config(CONDITIONAL.replace('"entity.phone"', "\"entity.event.body || 'event.body' || {event: entity.x}\""))
