"""The demo's two services: what their clients expect, and what they refuse."""

from __future__ import annotations

import itertools
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import requests

from relay.demo.scenario import sample_user
from relay.demo.services import (
    CONTACT,
    TEAM,
    App,
    CommercialService,
    IdentityService,
    WebhookSender,
    served,
)

START = datetime(2018, 9, 21, 6, 29, 5, 708_000, tzinfo=UTC)
WAIT = 60.0
API = "/api/rest/v1/"
AINO = {"external_id": "u1", "email": "aino@example.com", "first_name": "Aino", "phone": "+447700900001"}
BEARER = "Bearer demo"


def ticking() -> Callable[[], datetime]:
    """A clock that goes on by a second whenever it is read."""
    seconds = itertools.count()
    return lambda: START + timedelta(seconds=next(seconds))


class Client:
    """A client of a running service."""

    def __init__(self, url: str, session: requests.Session) -> None:
        self.url, self.session = url, session

    def call(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        return self.session.request(method, f"{self.url}{path}", timeout=WAIT, **options)

    def add(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        response = self.call("POST", path, json=body)
        assert response.status_code == 201, response.text
        made: dict[str, Any] = response.json()
        return made

    def ids(self, path: str, **params: Any) -> list[str]:  # noqa: ANN401 - requests' own
        response = self.call("GET", path, params=params)
        assert response.status_code == 200, response.text
        return [item["id"] for item in next(value for value in response.json().values() if isinstance(value, list))]


@contextmanager
def client_of(app: App, url: str = "/") -> Iterator[Client]:
    with served(app) as at, requests.Session() as session:
        session.trust_env = False
        yield Client(f"{at}{url}", session)


@contextmanager
def api_of(**options: Any) -> Iterator[Client]:  # noqa: ANN401  # of the service
    service = IdentityService(WebhookSender(), **options)
    try:
        with client_of(service.app, API) as client:
            client.session.auth = ("demo", "demo")
            yield client
    finally:
        service.webhooks.close()


@contextmanager
def crm_of(service: CommercialService) -> Iterator[Client]:
    with client_of(service.app) as client:
        client.session.headers["Authorization"] = BEARER
        yield client


@pytest.fixture
def api() -> Iterator[Client]:
    with api_of(now=ticking()) as client:
        yield client


@pytest.fixture
def service() -> CommercialService:
    return CommercialService()


@pytest.fixture
def crm(service: CommercialService) -> Iterator[Client]:
    with crm_of(service) as client:
        yield client


# --- identity


def test_a_user_is_created_replaced_and_deleted(api: Client) -> None:
    """Ids are 24 hex digits that sort by creation; a PUT keeps id and creation time; password, meta and id are ignored."""
    user = api.add("user", {**sample_user(0), "nickName": "Ainsku", "phone": None, "password": "secret"})
    assert re.fullmatch("[0-9a-f]{24}", user["id"])
    created, meta = user["meta"]["created"], user.pop("meta")
    assert user == {"id": user["id"], **sample_user(0), "nickName": "Ainsku"}
    assert meta["lastModified"] == created
    assert re.fullmatch(r"2018-09-21T06:29:\d\d\.708Z", created)
    assert api.call("GET", f"user/{user['id']}").json() == {**user, "meta": meta}

    body = {"id": "other", "username": "aino", "emails": [], "meta": {"created": "never"}}
    changed = api.call("PUT", f"user/{user['id']}", json=body).json()
    assert (changed["id"], changed["username"], changed["nsCode"]) == (user["id"], "aino", "demo")
    assert "nickName" not in changed
    assert changed["meta"]["created"] == created < changed["meta"]["lastModified"]

    response = api.call("DELETE", f"user/{user['id']}")
    assert (response.status_code, response.content) == (204, b"")
    missing = api.call("GET", f"user/{user['id']}")
    assert (missing.status_code, api.call("DELETE", f"user/{user['id']}").status_code) == (404, 404)
    assert missing.json()["description"] == f"There is no user {user['id']}."


def test_lists_come_in_pages_counted_from_zero_and_a_sweep_filters_them(api: Client) -> None:
    """`meta.lastModified ge` compares instants, whatever their spelling."""
    users = [api.add("user", sample_user(number)) for number in range(5)]
    ids = [user["id"] for user in users]
    assert ids == sorted(ids) == api.ids("user")
    page = api.call("GET", "user", params={"startIndex": 3, "count": 3}).json()
    assert [user["id"] for user in page.pop("resources")] == ids[3:]
    assert page == {"totalResults": 5, "startIndex": 3, "itemsPerPage": 2}
    assert api.ids("user", startIndex=5) == []
    api.call("PUT", f"user/{ids[0]}", json={"username": "aino"})
    since = users[4]["meta"]["lastModified"]
    for spelling in (since, since.replace("T06:", "T09:").replace("Z", "+03:00")):
        assert api.ids("user", filter=f'meta.lastModified ge "{spelling}"') == [ids[0], ids[4]]


# --- commercial


def test_a_contact_is_created_found_patched_and_deleted(crm: Client, service: CommercialService) -> None:
    """Every field is shown; one that was not given, or is patched to null, is null. A deleted external id is free again."""
    contact = crm.add("contacts", AINO)
    assert contact == {"id": "contact-1", "last_name": None, **AINO}
    assert crm.call("GET", "contacts/contact-1").json() == contact
    for content_type in ("application/merge-patch+json", "application/json; charset=utf-8"):
        patch = '{"email": "new@example.com", "phone": null}'
        patched = crm.call("PATCH", "contacts/contact-1", data=patch, headers={"Content-Type": content_type})
        assert (patched.status_code, patched.json()) == (200, contact | {"email": "new@example.com", "phone": None})
    crm.call("PATCH", "contacts/contact-1", json={"external_id": "u9"})
    assert crm.ids("contacts", externalId="u1") == crm.ids("contacts", externalId="u") == []
    assert crm.ids("contacts", externalId="u9") == ["contact-1"]
    assert crm.add("contacts", AINO)["id"] == "contact-2"
    assert crm.call("DELETE", "contacts/contact-1").status_code == 204
    paths = [crm.call(method, "contacts/contact-1", json={}) for method in ("GET", "PATCH", "DELETE")]
    assert [response.status_code for response in paths] == [404] * 3
    assert crm.add("teams", {"external_id": "g1", "name": "Drivers"}) == service.all(TEAM)[0]
    assert [each["id"] for each in service.all(CONTACT)] == ["contact-2"]


def test_a_share_of_calls_fails_and_changes_nothing() -> None:
    service = CommercialService(fail_share=0.3)
    with crm_of(service) as crm:
        answers = [crm.call("POST", "contacts", json={}) for _ in range(100)]
    assert {answer.headers.get("Retry-After") for answer in answers if not answer.ok} == {"0.2"}
    assert {answer.status_code for answer in answers} == {201, 503}
    assert len(service.all(CONTACT)) == len([answer for answer in answers if answer.ok])


# --- both


def test_only_the_right_credentials_open(api: Client, crm: Client) -> None:
    refused = api.call("GET", "user", auth=("demo", "wrong"))
    assert refused.status_code == 401
    assert refused.headers["WWW-Authenticate"].startswith("Basic ")
    assert crm.call("GET", "contacts", headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert crm.call("GET", "contacts", headers={"Authorization": "bearer demo"}).status_code == 200


@pytest.mark.parametrize(
    ("command", "number", "path", "authorization", "found"),
    [
        (("identity", "--users", "3"), signal.SIGTERM, f"{API}user", "Basic ZGVtbzpkZW1v", '"totalResults":3'),
        (("commercial", "--fail-share", "1"), signal.SIGINT, "/contacts", BEARER, "try again later"),
    ],
)
def test_each_runs_alone_until_it_is_told_to_stop(
    command: tuple[str, ...], number: signal.Signals, path: str, authorization: str, found: str
) -> None:
    arguments = [sys.executable, "-m", "relay", "demo", *command, "--port", "0"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        url = re.search(r"http://127\.0\.0\.1:\d+", process.stderr.readline())
        with requests.Session() as session:
            session.trust_env = False
            assert url is not None
            assert found in session.get(f"{url[0]}{path}", headers={"Authorization": authorization}, timeout=WAIT).text
            process.send_signal(number)
            assert process.wait(WAIT) == 0
        assert process.stderr.read() + process.stdout.read() == ""
