"""The configurations of docs/reference/sync.md, delivered: what each asks of its services."""

from __future__ import annotations

import json

import pytest

from inbox.config.model import Config
from inbox.loader.load import parse_config
from relay import destinations
from relay.delivery.outcome import Delivered, Delivery
from tests.docs.pages import PAGES, blocks
from tests.helpers.delivering import LOCAL, a_delivery, as_delivered, context
from tests.helpers.scripted import ScriptedServer, answer, serving

GITHUB, SHOP = (
    block.text
    for block in blocks(PAGES["docs/reference/sync.md"])
    if block.info == "toml" and "pages" not in block.text
)


def of_this_machine(text: str, server: ScriptedServer) -> Config:
    """The configuration of the page, with this server in place of every service."""
    lines = [
        f'base_url = "{server.url}"\n{LOCAL}' if line.startswith("base_url") else line for line in text.splitlines()
    ]
    return parse_config("\n".join(lines))


def deliver(config: Config, delivery: Delivery) -> Delivered:
    (route,) = config.routes
    return as_delivered(destinations.build(config)[route](delivery, context()))


@pytest.fixture(autouse=True)
def secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GITHUB_SECRET", "GITHUB_TOKEN", "SHOP_SECRET", "SHOP_TOKEN"):
        monkeypatch.setenv(name, "a-secret-value")


def test_an_issue_of_github_is_fetched_below_its_repository_and_wrapped_for_the_tracker() -> None:
    issue = {"id": 70, "title": "Broken", "updated_at": "2026-01-01T00:00:00Z"}
    routes = {
        "GET /repos/acme/shop/issues/7": [answer(200, issue)],
        "GET /tickets?external_id=70": [answer(200, [])],
        "POST /tickets": [answer(201)],
    }
    body = json.dumps({"issue": {"id": 70, "number": 7}, "repository": {"full_name": "acme/shop"}}).encode()
    with serving(routes=routes) as server:
        delivery = a_delivery(route="issues", entity_type="issue", entity_id="70", body=body)
        outcome = deliver(of_this_machine(GITHUB, server), delivery)
        assert server.asked == list(routes)
        fetch, _, create = server.seen
        assert outcome.did == "created"
        assert (fetch.headers["accept"], fetch.headers["x-github-api-version"]) == (
            "application/vnd.github+json",
            "2022-11-28",
        )
        assert json.loads(create.body) == {"ticket": {"external_id": "70", "title": "Broken"}}


def test_a_customer_of_shopify_is_asked_for_and_written_by_graphql() -> None:
    customer = {"id": "gid://shopify/Customer/5", "email": "ada@example.com", "updatedAt": "2026-01-01T00:00:00Z"}
    found = {"data": {"contacts": [{"id": "c1", "externalId": "5"}]}}
    routes = {
        "POST /graphql.json": [answer(200, {"data": {"customer": customer}})],
        "POST /graphql": [answer(200, found), answer(200, {"data": {"update": {"errors": []}}})],
    }
    with serving(routes=routes) as server:
        outcome = deliver(of_this_machine(SHOP, server), a_delivery(route="customers", entity_id="5"))
        fetch, find, update = (json.loads(seen.body)["variables"] for seen in server.seen)
    assert outcome.did == "updated"
    assert (fetch, find) == ({"id": "gid://shopify/Customer/5"}, {"id": "5"})
    assert update == {"id": "c1", "input": {"external_id": "5", "email": "ada@example.com"}}
