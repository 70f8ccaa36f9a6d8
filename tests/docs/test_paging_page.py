"""The configurations of docs/reference/sync.md page through services that behave as those vendors document."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy import Engine

from inbox.loader.load import parse_config
from relay.destinations.base import without_lease
from relay.store.database import Database
from relay.store.sweeps import SweepFindings
from relay.store.work import Work
from relay.sweep.run import CompiledSweep
from tests.docs.pages import PAGES
from tests.helpers.databases import ON_SQLITE
from tests.helpers.directory import parse_filter
from tests.helpers.scripted import Act, answer
from tests.helpers.tables import rows
from tests.vendors import github_api, hubspot_api, shopify_api, stripe_api
from tests.vendors.github_api import GitHub
from tests.vendors.hubspot_api import HubSpot
from tests.vendors.service import Asked, VendorService
from tests.vendors.shopify_api import Shopify
from tests.vendors.stripe_api import Stripe

SIZE = 250
START = datetime(2026, 11, 2, 9, 0, 1, tzinfo=UTC)
"""Time of the first change of a vendor; each is a second after the one before."""
SINCE = START + timedelta(seconds=10)
CHANGED = range(10, SIZE)


def at(number: int) -> datetime:
    return START + timedelta(seconds=number)


def iso(number: int) -> str:
    return at(number).isoformat().replace("+00:00", "Z")


def github() -> GitHub:
    made = GitHub()
    for number in range(SIZE):
        made.issue("acme/shop", f"issue {number}", id=number)
    return made


def stripe() -> Stripe:
    made = Stripe()
    for number in range(SIZE):
        made.customer(f"cus_{number}", int(at(number).timestamp()))
    return made


def shopify() -> Shopify:
    made = Shopify()
    for number in range(SIZE):
        made.order("ada@example.com", "1.00", id=number)
    return made


def hubspot() -> HubSpot:
    made = HubSpot()
    for number in range(SIZE):
        made._create({"email": f"u{number}@example.com"})
    return made


class Vendor(VendorService):
    """A service that answers by a function."""

    def __init__(self, act: Callable[[Asked], Act]) -> None:
        self._act = act
        super().__init__()

    def respond(self, asked: Asked) -> Act:
        return self._act(asked)


def scim(asked: Asked) -> Act:
    """At most 100 a page, from 1; without results there is no list (RFC 7644 §3.4.2)."""
    assert asked.path == ("scim", "v2", "Users")
    criterion = asked.query.get("filter")
    passes = (lambda _: True) if criterion is None else parse_filter(criterion)
    of_all = SIZE if "lastModified" in (criterion or "") else SIZE - 1
    users = [{"id": str(n), "externalId": f"{n}", "meta": {"lastModified": iso(n)}} for n in range(of_all)]
    found = [user for user in users if passes(user)]
    begin = max(int(asked.query["startIndex"]), 1) - 1
    some = found[begin : begin + min(int(asked.query["count"]), 100)]
    return answer(200, {"totalResults": len(found), **({"Resources": some} if some else {})})


def graphql(asked: Asked) -> Act:
    assert (asked.method, asked.path) == ("POST", ("graphql",))
    assert "nodes { id updatedAt title }" in asked.body["query"]
    variables = asked.body["variables"]
    assert variables["since"] == iso(10)
    begin, first = int(variables.get("after", "c0")[1:]), variables["first"]
    assert "after" not in variables or begin
    nodes = [{"id": str(number), "updatedAt": iso(number), "title": "x"} for number in CHANGED[begin : begin + first]]
    info = {"endCursor": f"c{begin + first}", "hasNextPage": begin + first < len(CHANGED)}
    return answer(200, {"data": {"issues": {"nodes": nodes, "pageInfo": info}}})


VENDORS: dict[str, tuple[Callable[[], VendorService], str, Callable[[int], str]]] = {
    "GitHub": (github, github_api.TOKEN, str),
    "Stripe": (stripe, stripe_api.KEY, "cus_{}".format),
    "Shopify": (shopify, shopify_api.TOKEN, str),
    "HubSpot": (hubspot, hubspot_api.TOKEN, lambda number: str(501 + number)),
    "SCIM": (partial(Vendor, scim), "x", str),
    "GraphQL": (partial(Vendor, graphql), "x", str),
}
"""By heading: its service, its token, and the ids of its entities."""


def config_of(vendor: str, url: str) -> str:
    """The configuration under the vendor's heading, with its services at `url`."""
    page = PAGES["docs/reference/sync.md"]
    section = page[page.index(f"\n### {vendor}\n") :]
    text = section[section.index("```toml\n") + 8 : section.index("\n```\n")]
    here = re.sub(
        r'base_url = "https://[^/"]+([^"]*)"', rf'base_url = "{url}\1"\nallow_private = true\nallow_http = true', text
    )
    assert here != text
    return re.sub(r'"env:\w+"', f'"{VENDORS[vendor][1]}"', here)


def swept(config: str, engine: Engine, since: datetime) -> SweepFindings:
    parsed = parse_config(config)
    (source,) = parsed.sources
    *_, last = CompiledSweep(parsed, source, 0).run(Work(Database(engine), parsed, {}), without_lease(), since)
    return last


@ON_SQLITE
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_sweep_of_the_page_reads_all_changes_of_the_vendor_once(vendor: str, engine: Engine) -> None:
    made, _, name = VENDORS[vendor]
    with contextlib.closing(made()) as server:
        last = swept(config_of(vendor, server.url), engine, SINCE)
    assert (last.compared, last.added, last.left_out) == (len(CHANGED), len(CHANGED), 0)
    stored = rows(engine, "SELECT entity_id, body, occurred_at FROM inbox JOIN inbox_payload USING (seq)")
    assert sorted(row["entity_id"] for row in stored) == sorted(map(name, CHANGED))
    assert 3 <= len(server.seen) <= 5, "a hundred a page"
    if vendor == "GitHub":
        body = json.loads(stored[0]["body"])
        assert body["issue"]["updated_at"] == body["sweep"]["modified"]
        assert body["repository"] == {"full_name": "acme/shop"}


def test_every_vendor_of_the_page_is_paged_through() -> None:
    headings = re.findall("^### (.*)$", PAGES["docs/reference/sync.md"], re.MULTILINE)
    assert headings == [*VENDORS]
