"""The demo's changes: reproducible, of every kind, and each of them a webhook of its own."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from datetime import UTC, datetime, timedelta
from itertools import pairwise

import pytest

from relay.demo import once
from relay.demo.compare import mapped_fields
from relay.demo.entities import GROUP, USER
from relay.demo.identity import create_app
from relay.demo.scenario import Made, Scenario
from relay.demo.stack import strictly_later
from relay.demo.webhooks import rfc3339_milliseconds

Step = tuple[str, str, str, dict[str, object]]


def made(seed: int, number: int = once.CHANGES) -> list[Made]:
    with closing(create_app()) as service:
        scenario = Scenario(service, random.Random(seed), users=once.USERS, groups=once.GROUPS)
        return [scenario.step() for _ in range(number)]


def told(changes: list[Made]) -> list[Step]:
    """The changes without ids, which differ from run to run."""
    return [(change.action, change.entity_type.name, change.name, dict(change.fields)) for change in changes]


def test_the_same_seed_makes_the_same_changes() -> None:
    assert told(made(7)) == told(made(7))


def test_another_seed_makes_other_changes() -> None:
    assert told(made(7)) != told(made(8))


@pytest.mark.parametrize("seed", range(20))
def test_it_begins_with_so_many_users_and_groups_then_makes_changes_of_every_kind(seed: int) -> None:
    changes = made(seed)
    assert len(changes) >= 200
    begin, rest = changes[: once.USERS + once.GROUPS], changes[once.USERS + once.GROUPS :]
    assert Counter((change.action, change.entity_type) for change in begin) == {
        ("create", USER): once.USERS,
        ("create", GROUP): once.GROUPS,
    }
    kinds = {(change.action, change.entity_type) for change in rest}
    assert {("create", USER), ("update", USER), ("delete", USER), ("update", GROUP)} <= kinds


@pytest.mark.parametrize("seed", range(20))
def test_most_edits_change_a_field_that_the_other_side_has_and_some_do_not(seed: int) -> None:
    changes = [change for change in made(seed) if change.action != "delete"]
    seen = [change for change in changes if change.fields]
    assert len(changes) > len(seen) > 0.75 * len(changes)
    assert all(change.action == "update" for change in changes if not change.fields)


@pytest.mark.parametrize("seed", range(5))
def test_some_changes_are_told_by_no_webhook_and_the_other_side_has_a_field_for_each(seed: int) -> None:
    told: list[Mapping[str, str]] = []
    with closing(create_app("http://127.0.0.1:9", on_webhook=lambda message, _: told.append(message))) as service:
        scenario = Scenario(service, random.Random(seed), users=3, groups=1)
        for _ in range(4):
            scenario.step()
        pending = service.pending_webhooks()
        busy = {user["id"] for user in service.all(USER)[1:]}
        untold = scenario.change_untold(busy)
        free = service.all(USER)[0]["id"]
        deleted = scenario.delete_untold(busy | {untold[2].entity_id})
        assert service.pending_webhooks() == pending == 4
        unseen, late = scenario.edit_quietly(())
        assert service.pending_webhooks() == pending + 2
    assert (unseen.fields, list(late.fields)) == ({}, ["last_name"])
    assert unseen.entity_id != late.entity_id
    assert [(made.action, made.entity_type) for made in untold] == [
        ("update", USER),
        ("update", GROUP),
        ("create", USER),
    ]
    assert all(made.fields and not made.is_told for made in untold)
    assert (deleted.action, deleted.is_told) == ("delete", False)
    assert untold[0].entity_id == deleted.entity_id == free, "one of which nothing is under way"
    assert deleted.entity_id in scenario.deleted


def test_some_edits_take_the_phone_away() -> None:
    assert any(change.fields.get("phone", "") is None for change in made(1))


def test_it_knows_what_it_has_deleted_and_what_everybody_is_called() -> None:
    with closing(create_app()) as service:
        scenario = Scenario(service, random.Random(5), users=once.USERS, groups=once.GROUPS)
        changes = [scenario.step() for _ in range(once.CHANGES)]
        left = {entity["id"] for entity_type in (USER, GROUP) for entity in service.all(entity_type)}
        last = {change.entity_id: change.name for change in changes}
        phones = [mapped_fields(USER, user)["phone"] for user in service.all(USER)]
    assert scenario.deleted == {change.entity_id for change in changes if change.action == "delete"}
    assert scenario.deleted
    assert not scenario.deleted & left
    assert scenario.names == last
    assert None in phones


@pytest.mark.parametrize("seed", range(20))
def test_there_are_always_users_and_groups_left_to_change(seed: int) -> None:
    with closing(create_app()) as service:
        scenario = Scenario(service, random.Random(seed), users=4, groups=1)
        for _ in range(300):
            scenario.step()
            users, groups = len(service.all(USER)), len(service.all(GROUP))
            assert users <= 6
            assert groups <= 1
        assert users >= 2
        assert groups == 1


class StoppedClock:
    def now(self) -> datetime:
        return datetime(2026, 1, 1, 0, 0, 0, 999, tzinfo=UTC)


def test_no_two_changes_bear_the_same_millisecond_even_when_the_clock_stands_still() -> None:
    now = strictly_later(StoppedClock())
    moments = [now() for _ in range(100)]
    assert all(later - earlier == timedelta(milliseconds=1) for earlier, later in pairwise(moments))
    assert len({rfc3339_milliseconds(moment) for moment in moments}) == 100
