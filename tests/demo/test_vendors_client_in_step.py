"""Changes by the vendor's own client reach the commercial service, and `relay plan` says that both are in step.

The client talks to the demo identity service, whose webhooks go through the real receiver and the real daemon.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.clock import SystemClock
from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay.demo import commercial, ground, identity
from relay.demo.people import sample_user
from relay.demo.records import CONTACT, TEAM
from relay.demo.server import serve
from relay.demo.stack import strictly_later
from tests.demo.vendors_client import connected
from tests.helpers.evidence import open_states
from tests.helpers.in_step import relaying
from tests.helpers.reading import count
from tests.helpers.receiver import served
from tests.helpers.waiting import until
from tests.helpers.webhooks import HEADERS, TOKEN

USERS, GROUPS = "users-to-contacts", "groups-to-teams"


@dataclass(frozen=True)
class Site:
    """Everything but a relay: both demo services, a receiver, and the vendor's client."""

    client: Any
    identity: identity.IdentityService
    commercial: commercial.CommercialService
    config: Config
    engine: Engine
    file: Path

    def all_received(self, number: int) -> None:
        """Wait until so many webhooks are stored."""
        assert self.identity.wait_until_sent(10)
        assert count(self.engine, "inbox") == number

    def all_delivered(self) -> None:
        """Wait until the relay has nothing to do."""
        until(lambda: not open_states(self.engine), "all is delivered", within=20)

    def plan(self, route: str) -> subprocess.CompletedProcess[str]:
        """`relay plan`."""
        return subprocess.run(
            [sys.executable, "-m", "relay", "plan", "--route", route, "--json"],
            env={**os.environ, "INBOX_CONFIG": str(self.file)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )

    def is_in_step(self, route: str) -> None:
        """`relay plan` finds nothing to change."""
        ended = self.plan(route)
        assert (ended.returncode, json.loads(ended.stdout), ended.stderr) == (0, [], "")


@pytest.fixture
def site(database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Site]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with ExitStack() as stack:
        source = stack.enter_context(
            closing(identity.create_app(webhook_headers=HEADERS, now=strictly_later(SystemClock())))
        )
        target = commercial.create_app()
        at_source = stack.enter_context(serve(source.app)).url
        text = ground.configuration(
            database_url=database_url,
            token=TOKEN,
            identity_url=at_source,
            commercial_url=stack.enter_context(serve(target.app)).url,
        )
        file = tmp_path / "inbox.toml"
        file.write_text(text, encoding="utf-8")
        config = parse_config(text)
        port = stack.enter_context(served(database_url, config))
        source.send_webhooks_to(f"http://127.0.0.1:{port}/webhooks/trivore")
        yield Site(connected(at_source), source, target, config, engine, file)


def test_a_user_that_the_vendors_client_creates_changes_and_deletes_is_kept_in_step(site: Site) -> None:
    from trivoreid.models.user import User  # noqa: PLC0415  # its first import, in the fixture, warns

    users = site.client.user_service
    user = users.create(User(sample_user(0)))
    site.all_received(1)
    ended = site.plan(USERS)
    assert ended.returncode == 1, ended.stderr
    assert [(found["entity_id"], found["change"]) for found in json.loads(ended.stdout)] == [(user.id, "create")]

    with relaying(site.engine, site.config):
        site.all_delivered()
        site.is_in_step(USERS)
        user.name.familyName = "Virtanen"
        user.mobiles = []
        users.update(user)
        site.all_received(2)
        site.all_delivered()
        site.is_in_step(USERS)
        contact = site.commercial.find(CONTACT, user.id)
        assert contact is not None
        assert (contact["last_name"], contact.get("phone")) == ("Virtanen", None)
        assert contact["email"] == user.emails[0].address

        users.delete(user.id)
        site.all_received(3)
        site.all_delivered()
        site.is_in_step(USERS)
        assert site.commercial.all(CONTACT) == []


def test_a_group_of_the_vendors_client_is_kept_in_step_too(site: Site) -> None:
    from trivoreid.models.groups import Group  # noqa: PLC0415  # as above

    groups = site.client.group_service
    group = groups.create(Group({"name": "Drivers", "nsCode": "demo"}))
    with relaying(site.engine, site.config):
        site.all_received(1)
        site.all_delivered()
        group.name = "Pilots"
        groups.update(group)
        site.all_received(2)
        site.all_delivered()
        site.is_in_step(GROUPS)
    assert [team["name"] for team in site.commercial.all(TEAM)] == ["Pilots"]
