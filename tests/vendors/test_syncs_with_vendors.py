"""The relay syncs with the services that the vendors' own clients have proven, and the clients read what it wrote."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from scim2_client import BaseSyncSCIMClient
from scim2_models import ListResponse, PatchOp, User

from tests.helpers.processes import Ended, invoke
from tests.helpers.waiting import until
from tests.vendors import github_api, hubspot_api, scim_api, shopify_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.records import Records
from tests.vendors.scim_api import Scim
from tests.vendors.shopify_api import Shopify

OWN_TOKEN = "own-token"

pytestmark = pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)


class Relay:
    """The commands of a relay, with one configuration."""

    def __init__(self, folder: Path, database_url: str, text: str, services: Mapping[str, str]) -> None:
        self._file = folder / "inbox.toml"
        for name, url in services.items():
            text = text.replace(f'"https://{name}"', f'"{url}"\nallow_private = true\nallow_http = true')
        self._file.write_text(f"[database]\nurl = {json.dumps(database_url)}\n{text}", encoding="utf-8")

    def run(self, *arguments: str) -> Ended:
        """Run a command of `relay`."""
        return invoke("relay", *arguments, INBOX_CONFIG=str(self._file))

    def inbox(self, *arguments: str) -> Ended:
        """Run a command of `inbox`."""
        return invoke("inbox", *arguments, INBOX_CONFIG=str(self._file))

    def sweep(self, source: str) -> int:
        """Sweep a source, deliver what was found, and return how much that was."""
        ended = self.run("sweep", "--source", source, "--json")
        assert ended.status in {0, 1}, ended.stdout + ended.stderr
        (found,) = json.loads(ended.stdout)
        self.deliver()
        return int(found["added"])

    def deliver(self) -> None:
        """Deliver what is due."""
        ended = self.run("run", "--drain")
        assert ended.status == 0, ended.stdout + ended.stderr


RelayOf = Callable[[str, Mapping[str, str]], Relay]


@pytest.fixture
def relay_of(database_url: str, tmp_path: Path) -> RelayOf:
    """Make a relay of a configuration, whose `https://NAME` is the service of that name."""
    return partial(Relay, tmp_path, database_url)


GITHUB_TO_TRACKER = f"""
[sources.github]
preset = "github"
secrets = ["x"]
[[sources.github.sweeps]]
api = "github"
path = "/repos/acme/shop/issues"
params = {{ state = "all", since = "{{since}}", sort = "updated", direction = "asc", per_page = "{{count}}" }}
pages = {{ by = "link", count = 3 }}
items = "@"
modified = "updated_at"
entity_type = "issue"
overlap = "0s"
grace = "0s"
[sources.github.sweeps.event_body]
issue = "@"
[apis.github]
base_url = "https://github"
auth = {{ kind = "bearer", token = "{github_api.TOKEN}" }}
[destinations.tracker]
kind = "sync"
base_url = "https://tracker"
auth = {{ kind = "bearer", token = "{OWN_TOKEN}" }}
[routes.tickets]
source = "github"
destination = "tracker"
retry = {{ schedule = ["10ms"] }}
[routes.tickets.sync]
fetch = {{ api = "github", path = "/repos/acme/shop/issues/{{event.body.issue.number}}", modified = "updated_at" }}
find = {{ path = "/tickets", params = {{ external_id = "{{event.entity_id}}" }} }}
create = {{ path = "/tickets" }}
update = {{ path = "/tickets/{{target.id}}" }}
delete = {{ path = "/tickets/{{target.id}}" }}
map = {{ external_id = "event.entity_id", title = "entity.title", state = "entity.state" }}
"""


def test_each_page_of_githubs_issues_is_swept_and_the_next_sweep_asks_for_changes_alone(
    relay_of: RelayOf,
    github: GitHub,
    github_client: Any,  # noqa: ANN401  # untyped
) -> None:
    for number in range(7):
        github.issue("acme/shop", f"Issue {number + 1}")
    with closing(Records("tickets", OWN_TOKEN)) as tracker:
        services = {"github": github.url, "tracker": tracker.url}
        relay = relay_of(GITHUB_TO_TRACKER, services)
        assert relay.sweep("github") == 7
        assert [each for each in github.asked if "/issues?" in each] == [
            f"GET {path}?state=all&since=1970-01-01T00%3A00%3A00Z&sort=updated&direction=asc&per_page=3{page}"
            for path, page in (
                ("/repos/acme/shop/issues", ""),
                ("/repositories/1296269/issues", "&page=2"),
                ("/repositories/1296269/issues", "&page=3"),
            )
        ]
        github.clock.set_right()
        github_client.rest.issues.update("acme", "shop", 4, state="closed", title="Solved")
        assert relay.sweep("github") == 1
        assert max((ticket["title"], ticket["state"]) for ticket in tracker.all.values()) == ("Solved", "closed")
        assert len(tracker.all) == 7
        assert relay.run("plan", "--route", "tickets").status == 0


def test_all_issues_arrive_when_githubs_rate_limit_is_reached_in_the_middle_and_no_attempt_is_lost(
    relay_of: RelayOf, github: GitHub
) -> None:
    for number in range(5):
        github.issue("acme/shop", f"Issue {number + 1}")
    github.limit(4, seconds=600)  # two pages of the sweep, and two of five fetches
    with closing(Records("tickets", OWN_TOKEN)) as tracker:
        relay = relay_of(GITHUB_TO_TRACKER, {"github": github.url, "tracker": tracker.url})
        assert relay.sweep("github") == 5
        assert len(tracker.all) == 2
        held = len(github.asked)
        relay.deliver()
        (gate,) = json.loads(relay.run("pause", "--json").stdout)
        assert gate["name"] == "github"
        # The last of the fetches under way holds it: the one that was answered, or one that was too much.
        assert re.fullmatch("fetch answered (200|403): X-RateLimit-Remaining is 0", gate["hold_reason"])
        assert len(github.asked) == held, "nothing is asked before the time that GitHub gave"
        github.limit(5000, seconds=600)
        assert relay.run("resume", "--api", "github", "--reason", "GitHub allows it", "--yes").status == 0

        def have_arrived() -> bool:
            relay.deliver()
            return len(tracker.all) == 5

        until(have_arrived, "all issues have arrived", within=20)
    listed = json.loads(relay.inbox("list", "--json").stdout)
    assert [(each["state"], each["attempts"]) for each in listed] == [("delivered", 1)] * 5


SCIM_TO_HUBSPOT_AND_GITHUB = f"""
[sources.idp]
preset = "custom"
auth = {{ kind = "none" }}
event = {{ entity_type = "'User'", entity_id = "body.id", type = "'x'", actions = {{ x = "update" }} }}
[[sources.idp.sweeps]]
api = "idp"
path = "/Users"
pages = {{ by = "start", first = 1, total = "totalResults", count = 2 }}
items = "Resources"
entity_type = "User"
overlap = "0s"
grace = "0s"
[apis.idp]
base_url = "https://scim"
auth = {{ kind = "bearer", token = "{scim_api.TOKEN}" }}
[destinations.hubspot]
kind = "sync"
base_url = "https://hubspot"
auth = {{ kind = "bearer", token = "{hubspot_api.TOKEN}" }}
[destinations.github]
kind = "sync"
base_url = "https://github"
auth = {{ kind = "bearer", token = "{github_api.TOKEN}" }}
[routes.contacts]
source = "idp"
destination = "hubspot"
[routes.contacts.sync]
fetch = {{ api = "idp", path = "/Users/{{event.entity_id}}" }}
create = {{ path = "/crm/v3/objects/contacts", body = {{ properties = "{{fields}}" }} }}
update = {{ path = "/crm/v3/objects/contacts/{{target.id}}", body = {{ properties = "{{fields}}" }} }}
gone = "skip"
map = {{ email = "entity.userName", lastname = "entity.name.familyName" }}
[routes.contacts.sync.find]
method = "POST"
path = "/crm/v3/objects/contacts/search"
body.filterGroups = [{{ filters = [{{ propertyName = "email", operator = "EQ", value = "{{entity.userName}}" }}] }}]
body.properties = ["email", "lastname"]
pick = "results"
verify = {{ "properties.email" = "entity.userName" }}
ignore_case = true
[routes.issues]
source = "idp"
destination = "github"
[routes.issues.sync]
fetch = {{ api = "idp", path = "/Users/{{event.entity_id}}" }}
create = {{ path = "/repos/acme/people/issues" }}
update = {{ path = "/repos/acme/people/issues/{{target.number}}", format = "json" }}
gone = "skip"
map = {{ title = "entity.userName", labels = "[join('', ['user-', event.entity_id])]" }}
[routes.issues.sync.find]
path = "/repos/acme/people/issues"
params = {{ labels = "user-{{event.entity_id:text}}", state = "all" }}
pick = "@"
verify = {{ "labels[].name" = "join('', ['user-', event.entity_id])" }}
"""


def test_users_of_scim_become_contacts_of_hubspot_and_issues_of_github(  # noqa: PLR0917  # three services with clients
    relay_of: RelayOf,
    scim: Scim,
    scim_client: BaseSyncSCIMClient,
    hubspot: HubSpot,
    hubspot_client: Any,  # noqa: ANN401  # untyped
    github: GitHub,
    github_client: Any,  # noqa: ANN401  # untyped
) -> None:
    github.issue("acme/people", "Something else")
    for name in ("ada", "bob", "eve"):
        user = {"userName": f"{name}@example.com", "name": {"familyName": name.title()}}
        scim_client.create(User[Any].model_validate(user))
    services = {"scim": scim.url, "hubspot": hubspot.url, "github": github.url}
    relay = relay_of(SCIM_TO_HUBSPOT_AND_GITHUB, services)
    assert relay.sweep("idp") == 3
    assert contacts_of(hubspot_client) == {"ada@example.com": "Ada", "bob@example.com": "Bob", "eve@example.com": "Eve"}
    assert issues_of(github_client) == ["Something else", "ada@example.com", "bob@example.com", "eve@example.com"]

    bob = user_named(scim_client, "bob@example.com")
    rename(scim_client, bob.id, "Builder")
    assert relay.sweep("idp") == 1
    assert contacts_of(hubspot_client)["bob@example.com"] == "Builder"
    assert len(issues_of(github_client)) == 4, "the issue was found by its label, and changed"
    assert relay.run("plan", "--route", "contacts").status == 0, "the plan compares what lies under properties"
    rename(scim_client, bob.id, "Bauer")
    planned = json.loads(relay.run("plan", "--route", "contacts", "--json").stdout)
    assert [each["fields"] for each in planned] == [[{"field": "lastname", "before": "Builder", "after": "Bauer"}]]


HUBSPOT_TO_SCIM = f"""
[sources.hubspot]
preset = "custom"
auth = {{ kind = "none" }}
event = {{ entity_type = "'contact'", entity_id = "body.id", type = "'x'", actions = {{ x = "update" }} }}
[[sources.hubspot.sweeps]]
api = "hubspot"
method = "POST"
path = "/crm/v3/objects/contacts/search"
pages = {{ by = "cursor", next = "paging.next.after", count = 2 }}
items = "results"
modified = "updatedAt"
entity_type = "contact"
overlap = "0s"
grace = "0s"
params = {{}}
[sources.hubspot.sweeps.body]
limit = "{{count}}"
after = "{{next}}"
filterGroups = [
  {{ filters = [{{ propertyName = "lastmodifieddate", operator = "GTE", value = "{{since:epoch-ms}}" }}] }},
]
[apis.hubspot]
base_url = "https://hubspot"
auth = {{ kind = "bearer", token = "{hubspot_api.TOKEN}" }}
[destinations.app]
kind = "sync"
base_url = "https://scim"
auth = {{ kind = "bearer", token = "{scim_api.TOKEN}" }}
[routes.accounts]
source = "hubspot"
destination = "app"
[routes.accounts.sync]
gone = "deactivate"
[routes.accounts.sync.fetch]
api = "hubspot"
path = "/crm/v3/objects/contacts/{{event.entity_id}}"
modified = "updatedAt"
[routes.accounts.sync.find]
path = "/Users"
params = {{ filter = "externalId eq {{event.entity_id:scim}}" }}
pick = "Resources"
[routes.accounts.sync.create]
path = "/Users"
[routes.accounts.sync.update]
path = "/Users/{{target.id}}"
[routes.accounts.sync.update.body]
schemas = ["urn:ietf:params:scim:api:messages:2.0:PatchOp"]
Operations = [{{ op = "replace", value = "{{fields}}" }}]
[routes.accounts.sync.deactivate]
path = "/Users/{{target.id}}"
[routes.accounts.sync.deactivate.body]
schemas = ["urn:ietf:params:scim:api:messages:2.0:PatchOp"]
Operations = [{{ op = "replace", path = "active", value = false }}]
[routes.accounts.sync.map]
schemas = {{ value = ["urn:ietf:params:scim:schemas:core:2.0:User"] }}
externalId = "event.entity_id"
userName = "entity.properties.email"
name = "{{familyName: entity.properties.lastname}}"
"""


def test_contacts_of_hubspot_become_users_of_scim(
    relay_of: RelayOf,
    hubspot: HubSpot,
    hubspot_client: Any,  # noqa: ANN401  # untyped
    scim: Scim,
    scim_client: BaseSyncSCIMClient,
) -> None:
    from hubspot.crm import contacts  # noqa: PLC0415  # as in clients.py

    basic = contacts.BasicApi(hubspot_client)
    made = [
        basic.create(
            contacts.SimplePublicObjectInputForCreate(properties={"email": f"{name}@example.com"}, associations=[])
        )
        for name in ("ada", "bob", "eve")
    ]
    relay = relay_of(HUBSPOT_TO_SCIM, {"hubspot": hubspot.url, "scim": scim.url})
    assert relay.sweep("hubspot") == 3
    assert user_named(scim_client, "eve@example.com").external_id == made[2].id

    hubspot.clock.set_right()
    basic.update(made[2].id, contacts.SimplePublicObjectInput(properties={"lastname": "Online"}))
    assert relay.sweep("hubspot") == 1
    assert user_named(scim_client, "eve@example.com").name.family_name == "Online"
    assert sum(each.startswith("PATCH /v2/Users/") for each in scim.asked) == 1


SHOPIFY_TO_ERP = f"""
[sources.shopify]
preset = "shopify"
secrets = ["x"]
[[sources.shopify.sweeps]]
api = "shopify"
path = "/admin/api/{shopify_api.VERSION}/orders.json"
params = {{ status = "any", updated_at_min = "{{since}}", order = "updated_at asc", limit = "{{count}}" }}
pages = {{ by = "link", count = 2 }}
items = "orders"
modified = "updated_at"
entity_type = "orders"
event_body = {{ gid = "admin_graphql_api_id" }}
[apis.shopify]
base_url = "https://shopify"
auth = {{ kind = "header", name = "X-Shopify-Access-Token", value = "{shopify_api.TOKEN}" }}
[destinations.shopify]
kind = "sync"
outcomes = {{ rejected = "dead" }}
base_url = "https://shopify"
auth = {{ kind = "header", name = "X-Shopify-Access-Token", value = "{shopify_api.TOKEN}" }}
[routes.notes]
source = "shopify"
destination = "shopify"
retry = {{ schedule = ["10ms"] }}
[routes.notes.sync]
gone = "skip"
missing = "skip"
map = {{ note = "entity.displayFinancialStatus" }}
[routes.notes.sync.fetch]
api = "shopify"
path = "/admin/api/{shopify_api.VERSION}/graphql.json"
graphql = "query($id: ID!) {{ order(id: $id) {{ id displayFinancialStatus updatedAt }} }}"
body = {{ variables = {{ id = "{{event.body.gid}}" }} }}
pick = "data.order"
errors = "errors[].message"
throttled = "errors[?extensions.code == 'THROTTLED']"
modified = "updatedAt"
[routes.notes.sync.update]
method = "PUT"
path = "/admin/api/{shopify_api.VERSION}/orders/{{event.entity_id}}.json"
body = {{ order = "{{fields}}" }}
"""


def test_orders_of_shopify_are_asked_for_by_graphql_and_changed_by_rest(
    relay_of: RelayOf,
    shopify: Shopify,
    shopify_client: Any,  # noqa: ANN401  # untyped
) -> None:
    orders = [shopify.order(f"c{number}@example.com", "1.00") for number in range(5)]
    shopify.throttled = 1
    relay = relay_of(SHOPIFY_TO_ERP, {"shopify": shopify.url})
    assert relay.sweep("shopify") == 5
    assert sum("page_info" in each for each in shopify.asked) == 2
    assert [shopify_client.Order.find(order["id"]).note for order in orders] == ["PAID"] * 5
    assert sum("graphql" in each for each in shopify.asked) == 6, "the throttled one was asked for again"


def contacts_of(client: Any) -> dict[str, str]:  # noqa: ANN401  # untyped
    """The last names of all contacts by email, as HubSpot's client reads them."""
    from hubspot.crm import contacts  # noqa: PLC0415  # as in clients.py

    page = contacts.BasicApi(client).get_page(limit=100, properties=["email", "lastname"])
    return {contact.properties["email"]: contact.properties["lastname"] for contact in page.results}


def issues_of(client: Any) -> list[str]:  # noqa: ANN401  # untyped
    """The titles of all issues of acme/people, as GitHub's client reads them."""
    return sorted(issue.title for issue in client.rest.issues.list_for_repo("acme", "people").parsed_data)


def rename(client: BaseSyncSCIMClient, number: str, family_name: str) -> None:
    """Give a user another last name, by the SCIM client."""
    operations = [{"op": "replace", "path": "name.familyName", "value": family_name}]
    client.modify(User, number, PatchOp[User[Any]].model_validate({"Operations": operations}))


def user_named(client: BaseSyncSCIMClient, name: str) -> Any:  # noqa: ANN401  # its type is made at runtime
    """The user of this name, as the SCIM client reads it."""
    found = client.query(User, query_parameters={"filter": f'userName eq "{name}"'})
    assert isinstance(found, ListResponse)
    users = found.resources or []
    assert len(users) == 1
    return users[0]
