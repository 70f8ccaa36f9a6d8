"""The vendor's own client, PyPI trivoreid 2.0.10, works against the demo identity service.

Its changes reach the commercial service by the real receiver and the real daemon, and `relay plan` says that both agree.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.demo.run import configuration
from relay.demo.scenario import sample_user
from relay.demo.services import CONTACT, TEAM, CommercialService, IdentityService, WebhookSender
from relay.demo.services import served as serving
from tests.helpers.daemon import relaying
from tests.helpers.processes import Ended, invoke
from tests.helpers.receiver import served
from tests.helpers.tables import count, open_states
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, TOKEN

USERS, GROUPS = "users-to-contacts", "groups-to-teams"


def connected(url: str) -> Any:  # noqa: ANN401  # the package has no types
    """A client of the service at `url`. It heeds proxies: set NO_PROXY before."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # trivoreid 2.0.10 compares numbers with `is`
        from trivoreid.client import TrivoreID  # noqa: PLC0415 - the warnings come with the first import
    return TrivoreID(path="/nowhere", server=url, client_id="demo", client_secret="demo")


@dataclass(frozen=True)
class Site:
    """Everything but a relay: both demo services, a receiver, and the vendor's client."""

    client: Any
    identity: IdentityService
    commercial: CommercialService
    config: Config
    engine: Engine
    file: Path

    def all_received(self, number: int) -> None:
        """Wait until so many webhooks are stored."""
        until(lambda: not self.identity.webhooks.pending(), "all is received")
        assert count(self.engine, "inbox") == number

    def all_delivered(self, number: int) -> None:
        """Wait until so many are stored, and the relay has nothing to do."""
        self.all_received(number)
        until(lambda: not open_states(self.engine), "all is delivered")

    def plan(self, route: str) -> Ended:
        """`relay plan`."""
        return invoke("relay", "plan", "--route", route, "--json", INBOX_CONFIG=str(self.file))


@pytest.fixture
def site(database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:
        source = IdentityService(stack.enter_context(closing(WebhookSender(headers=HEADERS))))
        target = CommercialService()
        at_source, at_target = (stack.enter_context(serving(service.app)) for service in (source, target))
        text = configuration(
            database_url=database_url, users="file:users", token=TOKEN, identity_url=at_source, commercial_url=at_target
        )
        file = tmp_path / "inbox.toml"
        file.write_text(text, encoding="utf-8")
        config = parse_config(text)
        port = stack.enter_context(served(database_url, config))
        source.webhooks.url = f"http://127.0.0.1:{port}/webhooks/trivore"
        yield Site(connected(at_source), source, target, config, engine, file)


@pytest.mark.parametrize("database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.nightly)], indirect=True)
def test_a_user_and_a_group_of_the_vendors_client_are_kept_in_sync(site: Site) -> None:
    from trivoreid.models.groups import Group  # noqa: PLC0415  # as above
    from trivoreid.models.user import User  # noqa: PLC0415

    users, groups = site.client.user_service, site.client.group_service
    user = users.create(User(sample_user(0)))
    site.all_received(1)
    ended = site.plan(USERS)
    assert ended.status == 1, ended.stderr
    assert [(found["entity_id"], found["change"]) for found in json.loads(ended.stdout)] == [(user.id, "create")]

    with relaying(site.engine, site.config):
        group = groups.create(Group({"name": "Drivers", "nsCode": "demo"}))
        site.all_delivered(2)
        user.name.familyName = "Virtanen"
        user.mobiles = []
        users.update(user)
        group.name = "Pilots"
        groups.update(group)
        site.all_delivered(4)
        assert [site.plan(route)[:2] for route in (USERS, GROUPS)] == [(0, "[]\n")] * 2
        (contact,) = site.commercial.all(CONTACT)
        assert (contact["external_id"], contact["last_name"], contact["phone"]) == (user.id, "Virtanen", None)
        assert contact["email"] == user.emails[0].address
        assert [team["name"] for team in site.commercial.all(TEAM)] == ["Pilots"]

        users.delete(user.id)
        site.all_delivered(5)
    assert site.commercial.all(CONTACT) == []
