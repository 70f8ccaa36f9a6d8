"""The configurations of docs/reference/sync.md page through services that behave as those vendors document."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

import pytest
from sqlalchemy import Engine

from inbox.errors import SweepFailed
from inbox.loader.load import parse_config
from relay.destinations.base import without_lease
from relay.store.database import Database
from relay.store.sweeps import SweepFindings
from relay.store.work import Work
from relay.sweep.run import CompiledSweep
from tests.docs.pages import PAGES
from tests.helpers.kinds import ON_SQLITE
from tests.helpers.reading import rows
from tests.helpers.scim_filter import parse_filter
from tests.helpers.scripted import Act, ScriptedServer, Seen, answer

SIZE = 250
START = datetime(2026, 1, 1, tzinfo=UTC)
SINCE = START + timedelta(seconds=10)
Asked = dict[str, str]
Body = dict[str, Any]


def at(number: int) -> datetime:
    return START + timedelta(seconds=number)


def iso(number: int) -> str:
    return at(number).isoformat().replace("+00:00", "Z")


CHANGED = [number for number in range(SIZE) if at(number) >= SINCE]
NEWEST_FIRST = CHANGED[::-1]


class Vendor(ScriptedServer):
    """A service that answers by a function over the request, its query and its JSON."""

    def __init__(self, act: Callable[[Vendor, Seen, Asked, Any], Act]) -> None:
        super().__init__()
        self._act = act

    def act_for(self, seen: Seen) -> Act:
        super().act_for(seen)
        query = {name: values[-1] for name, values in parse_qs(urlsplit(seen.target).query).items()}
        return self._act(self, seen, query, json.loads(seen.body) if seen.body else None)


def linked(server: Vendor, path: str, params: Asked, page: object) -> Act:
    return answer(
        200, page, link=f'<{server.url}{path}?{urlencode(params)}>; rel="next", <{server.url}{path}>; rel="last"'
    )


def github(server: Vendor, seen: Seen, asked: Asked, _: object) -> Act:
    """At most 100 a page, and links by the number of the repository."""
    assert seen.headers["authorization"] == "Bearer a-secret"
    path, per_page, page = urlsplit(seen.target).path, min(int(asked["per_page"]), 100), int(asked.get("page", 1))
    assert path in {"/repos/acme/shop/issues", "/repositories/7/issues"}
    assert (asked["since"], asked["state"], asked["direction"]) == (iso(10), "all", "desc")
    listed = [{"id": number, "updated_at": iso(number)} for number in NEWEST_FIRST]
    some = listed[(page - 1) * per_page : page * per_page]
    if page * per_page >= len(listed):
        return answer(200, some, link=f'<{server.url}/repositories/7/issues?page=1>; rel="first"')
    return linked(server, "/repositories/7/issues", {**asked, "page": str(page + 1)}, some)


def stripe(_: Vendor, seen: Seen, asked: Asked, __: object) -> Act:
    """At most 100 a page, newest first, behind the event with the id `starting_after`."""
    assert urlsplit(seen.target).path == "/v1/events"
    assert asked["created[gte]"] == str(int(SINCE.timestamp()))
    if int(asked["limit"]) > 100 or (cursor := asked.get("starting_after")) == "":
        return answer(400, {"error": {}})
    events = [
        {
            "id": f"evt_{n}",
            "type": "customer.updated",
            "created": int(at(n).timestamp()),
            "data": {"object": {"id": f"cus_{n}"}},
        }
        for n in NEWEST_FIRST
    ]
    begin = 0 if cursor is None else [event["id"] for event in events].index(cursor) + 1
    some = events[begin : begin + int(asked["limit"])]
    return answer(200, {"object": "list", "data": some, "has_more": begin + len(some) < len(events)})


def shopify(server: Vendor, seen: Seen, asked: Asked, _: object) -> Act:
    """A `page_info` takes no other parameter beside it but `limit`."""
    assert seen.headers["x-shopify-access-token"] == "a-secret"
    path = urlsplit(seen.target).path
    assert path == "/admin/api/2025-07/orders.json"
    if "page_info" in asked and {*asked} != {"page_info", "limit"}:
        return answer(400, {"errors": {"page_info": "Invalid value."}})
    if "page_info" not in asked:
        assert (asked["updated_at_min"], asked["status"]) == (iso(10), "any")
    begin, limit = int(asked.get("page_info", "p0")[1:]), int(asked["limit"])
    some = {"orders": [{"id": number, "updated_at": iso(number)} for number in CHANGED[begin : begin + limit]]}
    if begin + limit >= len(CHANGED):
        return answer(200, some)
    return linked(server, path, {"limit": str(limit), "page_info": f"p{begin + limit}"}, some)


def hubspot(_: Vendor, seen: Seen, __: Asked, body: Body) -> Act:
    """At most 200 a page; `after` is a text, and no null."""
    assert (seen.method, urlsplit(seen.target).path) == ("POST", "/crm/v3/objects/contacts/search")
    (condition,) = body["filterGroups"][0]["filters"]
    assert condition["value"] == str(int(SINCE.timestamp() * 1000))
    assert isinstance(body.get("after", ""), str)
    assert body["limit"] <= 200
    begin = int(body.get("after", 0))
    some = [{"id": str(number), "updatedAt": iso(number)} for number in CHANGED[begin : begin + body["limit"]]]
    following = (
        {"paging": {"next": {"after": str(begin + body["limit"])}}} if begin + body["limit"] < len(CHANGED) else {}
    )
    return answer(200, {"total": len(CHANGED), "results": some, **following})


COUNTERPARTS = [f"{number}" for number in range(SIZE - 1)]
"""Of all but one."""


def scim(_: Vendor, seen: Seen, asked: Asked, __: object) -> Act:
    """At most 100 a page, from 1; without results there is no list (RFC 7644 §3.4.2)."""
    assert urlsplit(seen.target).path == "/scim/v2/Users"
    criterion = asked.get("filter")
    passes = (lambda _: True) if criterion is None else parse_filter(criterion)
    users = [
        {"id": str(n), "externalId": f"{n}", "meta": {"lastModified": iso(n)}}
        for n in range(SIZE if "lastModified" in (criterion or "") else SIZE - 1)
    ]
    found = [user for user in users if passes(user)]
    begin = max(int(asked["startIndex"]), 1) - 1
    some = found[begin : begin + min(int(asked["count"]), 100)]
    return answer(200, {"totalResults": len(found), **({"Resources": some} if some else {})})


def graphql(_: Vendor, seen: Seen, __: Asked, body: Body) -> Act:
    assert (seen.method, urlsplit(seen.target).path) == ("POST", "/graphql")
    assert "nodes { id updatedAt title }" in body["query"]
    variables = body["variables"]
    assert variables["since"] == iso(10)
    begin, first = int(variables.get("after", "c0")[1:]), variables["first"]
    assert "after" not in variables or begin
    nodes = [{"id": str(number), "updatedAt": iso(number), "title": "x"} for number in CHANGED[begin : begin + first]]
    info = {"endCursor": f"c{begin + first}", "hasNextPage": begin + first < len(CHANGED)}
    return answer(200, {"data": {"issues": {"nodes": nodes, "pageInfo": info}}})


VENDORS: dict[str, tuple[Callable[[Vendor, Seen, Asked, Any], Act], str]] = {
    "GitHub": (github, "{}"),
    "Stripe": (stripe, "cus_{}"),
    "Shopify": (shopify, "{}"),
    "HubSpot": (hubspot, "{}"),
    "SCIM": (scim, "{}"),
    "GraphQL": (graphql, "{}"),
}


def config_of(vendor: str, url: str) -> str:
    """The configuration under the vendor's heading, with its services at `url`."""
    page = PAGES["docs/reference/sync.md"]
    section = page[page.index(f"\n### {vendor}\n") :]
    text = section[section.index("```toml\n") + 8 : section.index("\n```\n")]
    here = re.sub(
        r'base_url = "https://[^/"]+([^"]*)"', rf'base_url = "{url}\1"\nallow_private = true\nallow_http = true', text
    )
    assert here != text
    return re.sub(r'"env:\w+"', '"a-secret"', here)


def swept(config: str, engine: Engine, since: datetime) -> SweepFindings:
    parsed = parse_config(config)
    (source,) = parsed.sources
    *_, last = CompiledSweep(parsed, source, 0).run(Work(Database(engine), parsed, {}), without_lease(), since)
    return last


@ON_SQLITE
@pytest.mark.parametrize("vendor", VENDORS)
def test_the_sweep_of_the_page_reads_all_changes_of_the_vendor_once(vendor: str, engine: Engine) -> None:
    act, entity = VENDORS[vendor]
    with contextlib.closing(Vendor(act)) as server:
        last = swept(config_of(vendor, server.url), engine, SINCE)
    assert (last.compared, last.added, last.left_out) == (len(CHANGED), len(CHANGED), 0)
    stored = rows(engine, "SELECT entity_id, body, occurred_at FROM inbox JOIN inbox_payload USING (seq)")
    assert sorted(row["entity_id"] for row in stored) == sorted(entity.format(number) for number in CHANGED)
    assert 3 <= len(server.seen) <= 5, "a hundred a page"
    if vendor == "GitHub":
        body = json.loads(stored[0]["body"])
        assert (body["issue"]["updated_at"], body["repository"]) == (
            body["sweep"]["modified"],
            {"full_name": "acme/shop"},
        )


@ON_SQLITE
def test_without_changes_scim_has_no_list_and_the_sweep_finds_nothing(engine: Engine) -> None:
    with contextlib.closing(Vendor(scim)) as server:
        assert swept(config_of("SCIM", server.url), engine, at(SIZE)).compared == 0
    assert len(server.seen) == 1


@ON_SQLITE
def test_an_error_of_graphql_is_no_empty_page(engine: Engine) -> None:
    with contextlib.closing(
        ScriptedServer(answer(200, {"data": None, "errors": [{"message": "no such field"}]}))
    ) as server:
        with pytest.raises(SweepFailed, match=r"answered 200 with errors: .*no such field"):
            swept(config_of("GraphQL", server.url), engine, SINCE)
        assert len(server.seen) == 1


def test_every_vendor_of_the_page_is_paged_through() -> None:
    headings = re.findall("^### (.*)$", PAGES["docs/reference/sync.md"], re.MULTILINE)
    assert headings == [*VENDORS]
