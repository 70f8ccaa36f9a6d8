"""An id that is a piece of a filter is searched for as an id: a real server with SCIM's filters deletes nobody for it.

The server and the filter are those of the demo's identity service: both take what a service would.
"""

from __future__ import annotations

from collections.abc import Iterator

import falcon
import falcon.asgi
import msgspec
import pytest
from falcon.asgi import Request, Response

from inbox.errors import ConfigError
from relay.delivery.outcome import Outcome
from relay.demo.services import App, answer, read_object, served
from tests.destinations.syncing import DELETE
from tests.helpers.delivering import LOCAL, config_text, deliver, delivered, failed
from tests.helpers.directory import InvalidFilterError, parse_filter

INJECTED = 'x" or userName eq "admin'
"""With the filter of an early documentation, `externalId eq "{event.entity_id}"`, this found and deleted the admin."""

_ROUTE = """
[routes.user-to-crm.sync]
fetch = { api = "identity", path = "/user/{event.entity_id}" }
find = { path = "/Users", params = { filter = FILTER }, pick = "Resources"MORE }
update = { path = "/Users/{target.id}" }
delete = { path = "/Users/{target.id}" }
missing = "skip"
map = { externalId = "event.entity_id", active = "entity.active" }
[apis.identity]
base_url = "URL/source"
"""
BY_FORM = "'externalId eq {event.entity_id:scim}'"
BY_TEXT = "'externalId eq \"{event.entity_id:text}\"'"
"""Nobody should write this, and nobody does but on purpose."""
VERIFY_OFF = ", verify = false"


class Directory:
    """Users behind SCIM's list and delete, and a source that knows none of them any more, or all as active."""

    def __init__(self) -> None:
        self.users = {
            "1": {"id": "1", "externalId": "u1", "userName": "aino"},
            "2": {"id": "2", "externalId": "boss", "userName": "admin"},
        }
        self.source_knows = False
        self.filters: list[str] = []
        self.app: App = falcon.asgi.App()
        self.app.add_route("/Users", self, suffix="list")
        self.app.add_route("/Users/{key}", self, suffix="user")
        self.app.add_route("/source/user/{key}", self, suffix="source")

    async def on_get_list(self, req: Request, resp: Response) -> None:
        self.filters.append(req.get_param("filter", required=True))
        try:
            passes = parse_filter(self.filters[-1])
        except InvalidFilterError as error:
            raise falcon.HTTPBadRequest(description=str(error)) from None
        found = [user for user in self.users.values() if passes(user)]
        resp.media = {"totalResults": len(found), "Resources": found}

    async def on_delete_user(self, _req: Request, resp: Response, key: str) -> None:
        del self.users[key]
        resp.status = falcon.HTTP_NO_CONTENT

    async def on_patch_user(self, req: Request, resp: Response, key: str) -> None:
        self.users[key] |= await read_object(req)
        answer(resp, {})

    async def on_get_source(self, _req: Request, resp: Response, key: str) -> None:
        if not self.source_knows:
            raise falcon.HTTPNotFound
        resp.media = {"id": key, "active": True}


@pytest.fixture
def site() -> Iterator[tuple[Directory, str]]:
    directory = Directory()
    with served(directory.app) as url:
        yield directory, url


def find_and_write(url: str, entity_id: str, query: str, more: str = "", action: str = "delete") -> Outcome:
    route = _ROUTE.replace("URL", url).replace("FILTER", query).replace("MORE", more) + LOCAL
    delivery = msgspec.structs.replace(DELETE, entity_id=entity_id, action=action)
    return deliver(config_text("sync", f'base_url = "{url}"\n{LOCAL}', route), delivery)


def test_the_form_alone_keeps_an_id_from_becoming_a_filter(site: tuple[Directory, str]) -> None:
    directory, url = site
    assert delivered(find_and_write(url, INJECTED, BY_FORM, VERIFY_OFF)).did == "nothing_to_delete"
    assert directory.filters == [r'externalId eq "x\" or userName eq \"admin"']
    assert set(directory.users) == {"1", "2"}


@pytest.mark.parametrize("action", ["update", "delete"])
def test_verify_alone_keeps_a_match_from_being_written_to_that_was_not_searched_for(
    site: tuple[Directory, str], action: str
) -> None:
    directory, url = site
    directory.source_knows = action == "update"
    before = {key: dict(user) for key, user in directory.users.items()}
    outcome = failed(find_and_write(url, INJECTED, BY_TEXT, action=action))
    assert outcome.error_class == "bad_answer"
    assert outcome.error == (
        "find: the match has 'boss' at externalId, and 'x\" or userName eq \"admin' was searched for: does the "
        "destination take what find asks? If it does, name the field that has it, as "
        'verify = { FIELD = "event.entity_id" }, or write verify = false'
    )
    assert directory.users == before


def test_with_neither_the_admin_is_lost(site: tuple[Directory, str]) -> None:
    """So that the two above are proven by what they do, and not by a server that takes no such filter."""
    directory, url = site
    delivered(find_and_write(url, INJECTED, BY_TEXT, VERIFY_OFF))
    assert set(directory.users) == {"1"}


def test_an_id_that_is_only_an_id_is_found_and_deleted(site: tuple[Directory, str]) -> None:
    directory, url = site
    assert delivered(find_and_write(url, "u1", BY_FORM)).did == "deleted"
    assert set(directory.users) == {"2"}


@pytest.mark.parametrize(
    ("query", "instead"),
    [
        ("'externalId eq \"{event.entity_id}\"'", "name its form: {event.entity_id:scim} without quotes"),
        ("\"externalId eq '{ event.entity_id }'\"", "name its form: {event.entity_id:odata} without quotes"),
        ("'externalId eq {event.entity_id}'", "name its form: {event.entity_id:scim} without quotes"),
        ("'''{join(' eq ', ['externalId', event.entity_id])}'''", "name its form"),
        ("'externalId eq {event.entity_id:sicm}'", "there is no form 'sicm'; did you mean 'scim'?"),
        ("'externalId eq \"{event.entity_id:scim}\"'", 'gets its quotes by its form; remove the " around it'),
    ],
)
def test_a_placeholder_in_a_filter_without_its_form_is_a_mistake_that_says_what_to_write(
    query: str, instead: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        find_and_write("http://127.0.0.1:9", "u1", query)
    assert "routes.user-to-crm.sync.find.params.filter: " in str(caught.value)
    assert instead in str(caught.value)
