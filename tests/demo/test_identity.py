"""The demo identity service behaves as clients of the Trivore Management API expect."""

from __future__ import annotations

import itertools
import random
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from relay.demo.entities import REPLICA_BEHIND, USER
from relay.demo.identity import IdentityService, create_app
from relay.demo.people import sample_edit, sample_group, sample_user
from relay.demo.server import serve

START = datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)
WAIT = 10.0


def ticking() -> Callable[[], datetime]:
    """A clock that goes on by a second whenever it is read."""
    seconds = itertools.count()
    return lambda: START + timedelta(seconds=next(seconds))


class Api:
    """A client of the running service."""

    def __init__(self, url: str, session: requests.Session) -> None:
        self.url = url
        self._session = session

    def call(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        return self._session.request(method, f"{self.url}/api/rest/v1/{path}", timeout=WAIT, **options)

    def add(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.call("POST", path, json=body)
        assert response.status_code == 201, response.text
        document: dict[str, Any] = response.json()
        return document

    def ids(self, path: str, **params: Any) -> list[str]:  # noqa: ANN401 - requests' own
        response = self.call("GET", path, params=params)
        assert response.status_code == 200, response.text
        return [document["id"] for document in response.json()["resources"]]


@contextmanager
def api_of(service: IdentityService) -> Iterator[Api]:
    with closing(service), serve(service.app) as server, requests.Session() as session:
        session.trust_env = False
        session.auth = ("demo", "demo")
        yield Api(server.url, session)


@pytest.fixture
def api() -> Iterator[Api]:
    with api_of(create_app(now=ticking())) as running:
        yield running


def test_of_a_slow_update_whoever_reads_first_gets_the_older_document_unless_it_is_long_ago() -> None:
    moment = START
    with api_of(create_app(now=lambda: moment, is_slow=lambda: True)) as api:
        user = api.add("user", sample_user(0))
        api.call("PUT", f"user/{user['id']}", json={**user, "name": {"givenName": "Anna"}})

        def read() -> str:
            name: str = api.call("GET", f"user/{user['id']}").json()["name"]["givenName"]
            return name

        assert [each["name"]["givenName"] for each in api.call("GET", "user").json()["resources"]] == ["Anna"]
        assert [read(), read()] == ["Aino", "Anna"]
        api.call("PUT", f"user/{user['id']}", json={**user, "name": {"givenName": "Asta"}})
        moment += REPLICA_BEHIND
        assert read() == "Asta"


def test_a_created_user_has_the_documented_form(api: Api) -> None:
    """The id is 24 hex digits, times have milliseconds, and the location leads back to the document."""
    user = api.add("user", sample_user(0))
    assert re.fullmatch("[0-9a-f]{24}", user["id"])
    assert user["username"] == "aino.aalto.0"
    assert user["nsCode"] == "demo"
    assert user["name"] == {"givenName": "Aino", "familyName": "Aalto"}
    assert user["emails"] == [{"address": "aino.aalto.0@example.com", "verified": True}]
    assert user["mobiles"] == [{"number": "+447700900000", "verified": False}]
    assert user["memberOf"] == []
    assert user["meta"]["created"] == user["meta"]["lastModified"]
    assert re.fullmatch(r"2018-09-21T06:29:\d\d\.708Z", user["meta"]["created"])
    assert user["meta"]["location"] == f"{api.url}/api/rest/v1/user/{user['id']}"
    assert api.call("GET", f"user/{user['id']}").json() == user


def test_ids_sort_by_creation(api: Api) -> None:
    ids = [api.add("user", sample_user(number))["id"] for number in range(5)]
    assert ids == sorted(ids) == api.ids("user")


def test_put_replaces_the_whole_document_but_keeps_id_namespace_and_creation(api: Api) -> None:
    """A field that is left out is gone afterwards; meta and id in the body are ignored."""
    user = api.add("user", {**sample_user(0), "nickName": "Ainsku"})
    body = {"id": "other", "username": "aino", "emails": ["a@example.com"], "meta": {"created": "never"}}
    changed = api.call("PUT", f"user/{user['id']}", json=body).json()
    assert changed["id"] == user["id"]
    assert changed["nsCode"] == "demo"
    assert "nickName" not in changed
    assert changed["emails"] == [{"address": "a@example.com", "verified": False}]
    assert changed["meta"]["created"] == user["meta"]["created"]
    assert changed["meta"]["lastModified"] > user["meta"]["lastModified"]


def test_a_deleted_user_is_gone(api: Api) -> None:
    user = api.add("user", sample_user(0))
    response = api.call("DELETE", f"user/{user['id']}")
    assert (response.status_code, response.content) == (204, b"")
    missing = api.call("GET", f"user/{user['id']}")
    assert missing.status_code == 404
    assert missing.json() == {"errorMessage": f"There is no user {user['id']}.", "statusCode": 404}
    assert api.call("DELETE", f"user/{user['id']}").status_code == 404
    assert api.add("user", sample_user(0))["id"] != user["id"]


def test_a_password_is_never_shown(api: Api) -> None:
    assert "secret" not in api.call("POST", "user", json={**sample_user(0), "password": "secret"}).text


def test_a_user_without_a_name_gets_eight_digits(api: Api) -> None:
    assert re.fullmatch("[0-9]{8}", api.add("user", {})["username"])


def test_a_username_belongs_to_one_user(api: Api) -> None:
    api.add("user", {"username": "aino"})
    other = api.add("user", {"username": "eeva"})
    assert api.call("POST", "user", json={"username": "aino"}).status_code == 409
    assert api.call("PUT", f"user/{other['id']}", json={"username": "aino"}).status_code == 409
    assert api.call("PUT", f"user/{other['id']}", json={"username": "eeva2"}).status_code == 200
    assert api.call("POST", "user", json={"username": "eeva"}).status_code == 201


def test_membership_may_name_a_group_and_ends_with_it(api: Api) -> None:
    """Clients may write a group's name in memberOf; the document shows its id."""
    group = api.add("group", sample_group(0))
    user = api.add("user", {**sample_user(0), "memberOf": [group["name"]]})
    assert user["memberOf"] == [group["id"]]
    assert api.call("DELETE", f"group/{group['id']}").status_code == 204
    left = api.call("GET", f"user/{user['id']}").json()
    assert left["memberOf"] == []
    assert left["meta"]["lastModified"] > user["meta"]["lastModified"]
    assert api.call("POST", "user", json={"memberOf": ["nobody"]}).status_code == 400


def test_lists_come_in_pages_counted_from_zero(api: Api) -> None:
    ids = [api.add("user", sample_user(number))["id"] for number in range(5)]
    page = api.call("GET", "user", params={"startIndex": 3, "count": 3}).json()
    assert [user["id"] for user in page.pop("resources")] == ids[3:]
    assert page == {"totalResults": 5, "startIndex": 3, "itemsPerPage": 2}
    assert api.ids("user", startIndex=5) == []


@pytest.mark.parametrize(
    "params",
    [{"count": 501}, {"count": 0}, {"count": "many"}, {"startIndex": -1}, {"filter": "id"}, {"filter": "(" * 9000}],
)
def test_a_list_that_cannot_be_given_is_refused(api: Api, params: dict[str, Any]) -> None:
    response = api.call("GET", "user", params=params)
    assert response.status_code == 400
    assert response.json()["statusCode"] == 400


def test_a_sweep_finds_what_changed_since(api: Api) -> None:
    """`meta.lastModified ge` compares instants, whatever their spelling."""
    users = [api.add("user", sample_user(number)) for number in range(3)]
    api.call("PUT", f"user/{users[0]['id']}", json={"username": "aino"})
    since = users[2]["meta"]["lastModified"]
    assert api.ids("user", filter=f'meta.lastModified ge "{since}"') == [users[0]["id"], users[2]["id"]]
    elsewhere = since.replace("T06:", "T09:").replace("Z", "+03:00")
    assert api.ids("user", filter=f'meta.lastModified gt "{elsewhere}"') == [users[0]["id"]]


def test_the_namespace_is_listed_and_found_by_code(api: Api) -> None:
    page = api.call("GET", "namespace", params={"all": True}).json()
    assert [namespace["code"] for namespace in page["resources"]] == ["demo"]
    assert api.call("GET", "namespace/demo").json() == page["resources"][0]
    assert api.call("GET", "namespace/other").status_code == 404
    assert api.call("POST", "namespace", json={}).status_code == 405


def test_only_the_client_is_let_in(api: Api) -> None:
    response = api.call("GET", "user", auth=("demo", "wrong"))
    assert response.status_code == 401
    assert response.json() == {"errorMessage": "Authentication failed.", "statusCode": 401}
    assert response.headers["WWW-Authenticate"].startswith("Basic ")


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b'{"username": "\xff"}',
        b'{"username": NaN}',
        b'{"x": ' + b"[" * 50_000,
        b'{"x": ' + b"[" * 50 + b"]" * 50 + b"}",
        b'{"x": ' + b"9" * 5000 + b"}",
        b'{"username": 5}',
        b'{"name": "Aino"}',
        b'{"emails": "a@example.com"}',
        b'{"emails": [{}]}',
        b'{"emails": [{"address": "a@example.com", "verified": "yes"}]}',
        b'{"memberOf": [1]}',
        b'{"nsCode": "elsewhere"}',
    ],
)
def test_a_bad_body_is_refused_with_400(api: Api, body: bytes) -> None:
    response = api.call("POST", "user", data=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400
    assert response.json()["statusCode"] == 400
    assert api.ids("user") == []


def test_one_connection_carries_many_calls(api: Api) -> None:
    """The relay keeps its connections open, also over answers that refuse."""
    host, port = api.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port)), timeout=WAIT) as connection, connection.makefile("rb") as lines:
        for _ in range(3):
            connection.sendall(b"POST /api/rest/v1/user HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
            assert lines.readline() == b"HTTP/1.1 401 Unauthorized\r\n"
            length = 0
            while (line := lines.readline()) != b"\r\n":
                name, _, value = line.partition(b":")
                length = int(value) if name.lower() == b"content-length" else length
            assert length > 0
            lines.read(length)


def test_a_document_that_was_handed_out_is_a_copy() -> None:
    with closing(create_app()) as service:
        user = service.create(USER, sample_user(0))
        user["name"]["givenName"] = "Changed"
        assert service.get(USER, user["id"])["name"]["givenName"] == "Aino"


def test_every_sample_user_is_another_and_every_edit_changes_something() -> None:
    users = [sample_user(number) for number in range(2000)]
    assert len({user["username"] for user in users}) == len({user["emails"][0]["address"] for user in users}) == 2000
    rng = random.Random(3)
    assert all(sample_edit(user, rng) != user for user in users)
    assert len({sample_group(number)["name"] for number in range(40)}) == 40


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_runs_alone_until_it_is_told_to_stop(number: signal.Signals) -> None:
    imports = "from relay.demo.identity import run_identity"
    code = f"{imports}; run_identity(0, users=3, on_ready=lambda url: print(url, flush=True))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with requests.Session() as session:
            session.trust_env = False
            url = process.stdout.readline().strip()
            page = session.get(f"{url}/api/rest/v1/user", auth=("demo", "demo"), timeout=WAIT).json()
            process.send_signal(number)
            assert process.wait(WAIT) == 0
        assert page["totalResults"] == 3
        assert process.stderr.read() == ""
