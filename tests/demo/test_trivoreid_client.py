"""The vendor's own client, PyPI trivoreid 2.0.10, works against the demo identity service."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from relay.demo.identity import create_app
from relay.demo.people import sample_user
from relay.demo.server import serve
from tests.demo.vendors_client import connected

START = datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)


@pytest.fixture
def vendors_client(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The vendor's own client, PyPI trivoreid, talking to the running service."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    seconds = itertools.count()
    service = create_app(now=lambda: START + timedelta(seconds=next(seconds)))
    with closing(service), serve(service.app) as server:
        yield connected(server.url)


def test_the_vendors_client_manages_users(vendors_client: Any) -> None:  # noqa: ANN401
    """Create, get, update, list by filter and delete through the client's own models."""
    from trivoreid.exceptions import TrivoreIDException  # noqa: PLC0415 - after the fixture has silenced the first import
    from trivoreid.models.user import User  # noqa: PLC0415
    from trivoreid.utils.criteria import Filter  # noqa: PLC0415

    users = vendors_client.user_service
    created = users.create(User(sample_user(0)))
    assert created.name.familyName == "Aalto"
    assert created.emails[0].verified is True
    found = users.get(created.id)
    assert found.serialize() == created.serialize()
    found.name.familyName = "Virtanen"
    updated = users.update(found)
    assert updated.name.familyName == "Virtanen"
    assert updated.meta.lastModified > created.meta.lastModified

    users.create(User(sample_user(1)))
    both = Filter().and_filters(
        Filter(Filter.EQUAL, "name.familyName", "Virtanen"),
        Filter(Filter.GREATER_OR_EQUAL_THAN, "meta.lastModified", updated.meta.lastModified),
    )
    page = users.get_all(both, start_index=0, count=500)
    assert [user.id for user in page.resources] == [created.id]
    assert (page.totalResults, page.startIndex, page.itemsPerPage) == (1, 0, 1)
    assert users.get_all(Filter(Filter.PRESENT, "username")).totalResults == 2
    assert users.get_all(Filter(Filter.EQUAL, "locked", False)).totalResults == 2

    users.delete(created.id)
    with pytest.raises(TrivoreIDException, match=f"status code 404, There is no user {created.id}"):
        users.get(created.id)


def test_the_vendors_client_manages_groups_and_reads_namespaces(vendors_client: Any) -> None:  # noqa: ANN401
    from trivoreid.models.groups import Group  # noqa: PLC0415

    groups = vendors_client.group_service
    created = groups.create(Group({"name": "Drivers", "nsCode": "demo"}))
    created.description = "They drive"
    assert groups.update(created).description == "They drive"
    assert groups.get(created.id).name == "Drivers"
    assert [group.id for group in groups.get_all().resources] == [created.id]
    groups.delete(created.id)
    assert groups.get_all().totalResults == 0
    assert [namespace.code for namespace in vendors_client.namespace_service.get_all().resources] == ["demo"]
    assert vendors_client.namespace_service.get("demo").code == "demo"
