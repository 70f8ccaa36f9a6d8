"""The demo's changes are of every kind."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from relay.demo.run import CHANGES
from relay.demo.scenario import Scenario, sample_edit, sample_group, sample_user
from relay.demo.services import GROUP, USER, IdentityService, WebhookSender


@pytest.fixture
def identity() -> Iterator[IdentityService]:
    service = IdentityService(WebhookSender("http://127.0.0.1:9"))
    yield service
    service.webhooks.close()


@pytest.mark.parametrize("seed", range(5))
def test_it_makes_changes_of_every_kind_and_there_are_always_users_left(identity: IdentityService, seed: int) -> None:
    scenario = Scenario(identity, random.Random(seed))
    changes = [scenario.step() for _ in range(5 * CHANGES)]
    assert {(change.action, change.entity_type) for change in changes} == {
        *(("create", USER), ("update", USER), ("delete", USER), ("create", GROUP), ("update", GROUP))
    }
    assert 6 <= len(identity.all(USER)) <= 7
    reported = identity.webhooks.pending()
    assert reported == len(changes)
    unreported = [scenario.edit(USER, report=False), scenario.edit(GROUP, report=False), scenario.delete(report=False)]
    assert [change.is_reported for change in unreported] == [False] * 3
    assert all(change.fields for change in unreported[:2]), "the other side has a field for it"
    assert identity.webhooks.pending() == reported


def test_every_sample_is_another_and_every_edit_changes_something() -> None:
    users = [sample_user(number) for number in range(2000)]
    assert len({user["username"] for user in users}) == len({user["emails"][0]["address"] for user in users}) == 2000
    rng = random.Random(3)
    assert all(sample_edit(user, rng, seen_there=True) != user for user in users)
    assert len({sample_group(number)["name"] for number in range(40)}) == 40
