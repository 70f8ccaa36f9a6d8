"""The vendor's own client, PyPI trivoreid 2.0.10, works against the demo identity service.

Its changes reach the commercial service by the real receiver and the real daemon, and `relay plan` says that both agree.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine

from inbox.loader.load import parse_config, read_config
from relay.demo.run import configuration
from relay.demo.scenario import sample_user
from relay.demo.services import CONTACT, TEAM, CommercialService, IdentityService, WebhookSender
from relay.demo.services import served as serving
from tests.helpers.daemon import relaying
from tests.helpers.processes import invoke
from tests.helpers.receiver import serve_receiver
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


@contextmanager
def installed(database_url: str, file: Path) -> Iterator[tuple[Any, IdentityService, CommercialService]]:
    """Everything but a relay: both demo services, a receiver, and the vendor's client."""
    with closing(WebhookSender(headers=HEADERS)) as webhooks:
        source, target = IdentityService(webhooks), CommercialService()
        with serving(source.app) as at_source, serving(target.app) as at_target:
            urls = {"identity_url": at_source, "commercial_url": at_target}
            text = configuration(database_url=database_url, users="file:users", token=TOKEN, **urls)
            file.write_text(text, encoding="utf-8")
            with serve_receiver(database_url, parse_config(text)) as port:
                webhooks.url = f"http://127.0.0.1:{port}/webhooks/trivore"
                yield connected(at_source), source, target


@pytest.mark.parametrize("database_url", ["sqlite", pytest.param("postgres", marks=pytest.mark.nightly)], indirect=True)
def test_a_user_and_a_group_of_the_vendors_client_are_kept_in_sync(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("INBOX_CONFIG", str(tmp_path / "inbox.toml"))
    with installed(database_url, tmp_path / "inbox.toml") as (client, identity, commercial):
        from trivoreid.models.groups import Group  # noqa: PLC0415  # as above
        from trivoreid.models.user import User  # noqa: PLC0415

        def received(number: int) -> None:
            until(lambda: not identity.webhooks.pending(), "all is received")
            assert count(engine, "inbox") == number

        def delivered(number: int) -> None:
            received(number)
            until(lambda: not open_states(engine), "all is delivered")

        def plan(route: str) -> tuple[int, list[dict[str, Any]]]:
            ended = invoke("relay", "plan", "--route", route, "--json")
            return ended.status, json.loads(ended.stdout)

        users, groups = client.user_service, client.group_service
        user = users.create(User(sample_user(0)))
        received(1)
        status, (found,) = plan(USERS)
        assert (status, found["entity_id"], found["change"]) == (1, user.id, "create")
        with relaying(engine, read_config()):
            group = groups.create(Group({"name": "Drivers", "nsCode": "demo"}))
            delivered(2)
            user.name.familyName = "Virtanen"
            user.mobiles = []
            users.update(user)
            group.name = "Pilots"
            groups.update(group)
            delivered(4)
            assert [plan(route) for route in (USERS, GROUPS)] == [(0, [])] * 2
            (contact,) = commercial.all(CONTACT)
            assert (contact["external_id"], contact["last_name"], contact["phone"]) == (user.id, "Virtanen", None)
            assert contact["email"] == user.emails[0].address
            assert [team["name"] for team in commercial.all(TEAM)] == ["Pilots"]
            users.delete(user.id)
            delivered(5)
        assert commercial.all(CONTACT) == []
