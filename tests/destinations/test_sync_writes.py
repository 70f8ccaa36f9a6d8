"""Changing a counterpart: formats, versions that must match, and changes that are left out."""

from __future__ import annotations

import json

import msgspec
import pytest

from inbox.errors import ConfigError
from relay.delivery.outcome import Unchanged
from tests.destinations.syncing import FETCH, FIND, NONE, REMOVE, SECOND, SYNC, UPDATE, USER, World, changed
from tests.helpers.delivering import a_delivery, delivered, failed
from tests.helpers.scripted import ScriptedServer, answer

FIELDS = {"name": "Ada", "phone": None, "tags": ["a"], "a/b~c": 1}


def sent(server: ScriptedServer) -> tuple[str, object]:
    """The content type and the body of the last request."""
    last = server.seen[-1]
    return last.headers["content-type"], json.loads(last.body)


def formatted(form: str) -> str:
    return changed(
        'update = { path = "/contacts/{target.id}" }', f'update = {{ path = "/contacts/{{target.id}}", {form} }}'
    )


# --- formats


def test_a_merge_patch_takes_a_field_away_by_a_null(world: World) -> None:
    world.deliver()
    assert sent(world.server) == (
        "application/merge-patch+json",
        {"name": "Ada", "phone": None, "external_id": "u1"},
    )


# --- only if nobody else has changed it


def test_the_version_that_was_found_is_sent_along(world: World) -> None:
    sync = formatted('if_match = "target.version"')
    world.deliver(sync=sync, find=answer(200, {"items": [{"id": "c1", "external_id": "u1", "version": 7}]}))
    assert world.server.seen[-1].headers["if-match"] == "7"


def test_the_etag_of_what_was_found_is_a_version_too(world: World) -> None:
    sync = formatted('if_match = "etag"')
    world.deliver(sync=sync, find=answer(200, {"items": [{"id": "c1", "external_id": "u1"}]}, etag='"abc"'))
    assert world.server.seen[-1].headers["if-match"] == '"abc"'
    world.deliver(sync=sync)
    assert "if-match" not in world.server.seen[-1].headers, "there was none"


def test_when_somebody_else_was_faster_all_is_looked_at_again(world: World) -> None:
    outcome = failed(world.deliver(sync=formatted('if_match = "etag"'), update=answer(412)))
    assert outcome.error_class == "conflict", "tried again at once, from the fetch on"


def test_without_a_find_there_is_no_version(world: World) -> None:
    sync = formatted('if_match = "etag"').replace("{target.id}", "{event.entity_id}")
    sync = "\n".join(line for line in sync.splitlines() if "find =" not in line)
    with pytest.raises(ConfigError, match=r"update\.if_match: matches the version that find gives"):
        world.deliver(sync=sync)


# --- only if there is anything new


def test_fields_that_were_sent_last_are_not_sent_again_if_the_route_says_so(world: World) -> None:
    first = delivered(world.deliver(sync=f"skip_unchanged = true\n{SYNC}"))
    again = a_delivery(applied_hash=first.applied_hash)
    before = len(world.server.seen)
    outcome = world.deliver(again, sync=f"skip_unchanged = true\n{SYNC}")
    assert isinstance(outcome, Unchanged)
    assert [call.step for call in outcome.calls] == ["fetch", "find"]
    assert len(world.server.seen) == before + 2
    delivered(world.deliver(again))  # other routes send it all the same


def test_a_change_a_missing_counterpart_and_a_person_s_word_are_sent_all_the_same(world: World) -> None:
    sync = f"skip_unchanged = true\n{SYNC}"
    again = a_delivery(applied_hash=delivered(world.deliver(sync=sync)).applied_hash)
    changed_user = {"id": "u1", "name": "Grace"}
    delivered(world.deliver(again, sync=sync, fetch=answer(200, changed_user)))
    delivered(world.deliver(again, sync=sync, find=NONE))
    delivered(world.deliver(msgspec.structs.replace(again, run=1), sync=sync))


def test_a_value_that_a_body_of_its_own_sends_besides_the_fields_is_new_too(world: World) -> None:
    body = 'body = { contact = "{fields}", labels = "{entity.labels}" }'
    sync = f"skip_unchanged = true\n{formatted(body)}"
    tagged = answer(200, {**USER, "labels": ["a"]})
    again = a_delivery(applied_hash=delivered(world.deliver(sync=sync, fetch=tagged)).applied_hash)
    assert isinstance(world.deliver(again, sync=sync, fetch=tagged), Unchanged)
    delivered(world.deliver(again, sync=sync, fetch=answer(200, {**USER, "labels": ["a", "b"]})))


# --- gone


def test_a_counterpart_can_be_marked_as_gone_instead_of_being_deleted(world: World) -> None:
    body = 'body = { active = false, who = "{event.entity_id}" }'
    sync = f'gone = "deactivate"\ndeactivate = {{ path = "/contacts/{{target.id}}", {body} }}\n{SYNC}'
    outcome = delivered(world.deliver(SECOND, sync=sync, fetch=answer(404)))
    assert world.asked == [FETCH, FIND, UPDATE]
    assert outcome.did == "deactivated"
    assert sent(world.server) == ("application/json", {"active": False, "who": "u1"})
    assert REMOVE not in world.asked


@pytest.mark.parametrize(("active", "is_marked"), [("false", False), ("true", True), ("null", True)])
def test_a_counterpart_that_is_marked_as_gone_is_not_marked_again(
    world: World, active: str, *, is_marked: bool
) -> None:
    sync = (
        'gone = "deactivate"\ndeactivate = { path = "/contacts/{target.id}", body = { active = false }, '
        f'unless = "target.active == `false`" }}\n{SYNC}'
    )
    found = answer(200, {"items": [{"id": "c1", "external_id": "u1", "active": json.loads(active)}]})
    outcome = delivered(world.deliver(SECOND, sync=sync, fetch=answer(404), find=found))
    assert outcome.did == ("deactivated" if is_marked else "nothing_to_delete")
    assert (UPDATE in world.asked) == is_marked


def test_to_mark_it_the_route_has_to_say_how(world: World) -> None:
    with pytest.raises(ConfigError, match='deactivate: is missing, and gone = "deactivate" needs it'):
        world.deliver(sync=f'gone = "deactivate"\n{SYNC}')


# --- what was fetched is older than its event


def fresh(more: str = "") -> str:
    return changed(
        'path = "/user/{event.entity_id}" }', f'path = "/user/{{event.entity_id}}", tolerance = "1s"{more} }}'
    )


STALE = answer(200, {"id": "u1", "name": "Ada", "meta": {"lastModified": "2025-12-31T23:59:58.5Z"}})


def test_an_entity_that_is_older_than_its_event_is_fetched_again_later(world: World) -> None:
    outcome = failed(world.deliver(sync=fresh(), fetch=STALE))
    assert (outcome.error_class, world.asked) == ("stale", [FETCH])


def test_after_three_times_it_is_applied_all_the_same_and_marked(world: World) -> None:
    outcome = delivered(world.deliver(a_delivery(stale_before=3), sync=fresh(), fetch=STALE))
    assert world.asked == [FETCH, FIND, UPDATE]
    assert outcome.stale_suspected


@pytest.mark.parametrize(
    ("sync", "modified"),
    [
        (SYNC, "2020-01-01T00:00:00Z"),
        (fresh(), "2025-12-31T23:59:59Z"),
        (fresh(), "2026-01-01T00:00:00Z"),
        (fresh(), "2126-01-01T00:00:00Z"),
        (fresh(), "yesterday"),
        (fresh(', modified = "changed.at"'), "2020-01-01T00:00:00Z"),
    ],
)
def test_an_entity_that_is_fresh_enough_or_does_not_say_is_applied_at_once(
    world: World, sync: str, modified: str
) -> None:
    entity = {"id": "u1", "name": "Ada", "meta": {"lastModified": modified}}
    assert not delivered(world.deliver(sync=sync, fetch=answer(200, entity))).stale_suspected


def test_the_place_of_its_last_change_can_be_named(world: World) -> None:
    entity = {"id": "u1", "name": "Ada", "changed": {"at": "2020-01-01T00:00:00Z"}}
    outcome = world.deliver(sync=fresh(', modified = "changed.at"'), fetch=answer(200, entity))
    assert failed(outcome).error_class == "stale"
