"""The demo commercial service keeps contacts and teams by external id, fails as told, repeats an answer."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import pytest
import requests

from relay.demo.commercial import CommercialService, create_app
from relay.demo.records import CONTACT, TEAM, merge_patch
from relay.demo.server import serve

WAIT = 10.0
AINO = {"external_id": "u1", "email": "aino@example.com", "first_name": "Aino", "phone": "+447700900001"}


class Crm:
    """A client of the running service."""

    def __init__(self, url: str, session: requests.Session, service: CommercialService) -> None:
        self.url = url
        self.service = service
        self._session = session

    def call(self, method: str, path: str, **options: Any) -> requests.Response:  # noqa: ANN401 - requests' own
        return self._session.request(method, f"{self.url}{path}", timeout=WAIT, **options)


@contextmanager
def crm_of(service: CommercialService) -> Iterator[Crm]:
    with serve(service.app) as server, requests.Session() as session:
        session.trust_env = False
        session.headers["Authorization"] = "Bearer demo"
        yield Crm(server.url, session, service)


@pytest.fixture
def crm() -> Iterator[Crm]:
    with crm_of(create_app()) as running:
        yield running


def test_contacts_are_listed_page_by_page(crm: Crm) -> None:
    ids = [crm.call("POST", "/contacts", json={"external_id": f"u{n}"}).json()["id"] for n in range(3)]

    def listed(**params: int) -> list[str]:
        return [contact["id"] for contact in crm.call("GET", "/contacts", params=params).json()["items"]]

    assert listed() == listed(offset=0, limit=500) == ids
    assert listed(offset=1, limit=1) == [ids[1]]
    assert listed(offset=3, limit=500) == []
    assert crm.call("GET", "/contacts", params={"offset": -1}).status_code == 400


def test_a_contact_is_created_and_found_by_external_id(crm: Crm) -> None:
    """Every field is shown; one that was not given is null."""
    created = crm.call("POST", "/contacts", json=AINO)
    assert created.status_code == 201
    contact = created.json()
    assert contact == {"id": contact["id"], "last_name": None, **AINO}
    assert crm.call("GET", "/contacts", params={"externalId": "u1"}).json() == {"items": [contact]}
    assert crm.call("GET", "/contacts", params={"externalId": "u2"}).json() == {"items": []}
    assert crm.call("GET", "/contacts", params={"externalId": ""}).json() == {"items": []}
    assert crm.call("GET", "/contacts").json() == {"items": [contact]}
    assert crm.call("GET", f"/contacts/{contact['id']}").json() == contact


def test_an_external_id_exists_once(crm: Crm) -> None:
    crm.call("POST", "/contacts", json=AINO)
    other = crm.call("POST", "/contacts", json={"external_id": "u2"}).json()
    assert crm.call("POST", "/contacts", json=AINO).status_code == 409
    assert crm.call("PATCH", f"/contacts/{other['id']}", json={"external_id": "u1"}).status_code == 409
    assert crm.call("GET", f"/contacts/{other['id']}").json()["external_id"] == "u2"


@pytest.mark.parametrize("content_type", ["application/merge-patch+json", "application/json; charset=utf-8"])
def test_a_patch_changes_what_it_names_and_null_clears(crm: Crm, content_type: str) -> None:
    contact = crm.call("POST", "/contacts", json=AINO).json()
    patch = '{"email": "new@example.com", "phone": null}'
    patched = crm.call("PATCH", f"/contacts/{contact['id']}", data=patch, headers={"Content-Type": content_type})
    assert patched.status_code == 200
    assert patched.json() == {**contact, "email": "new@example.com", "phone": None}
    assert crm.call("GET", f"/contacts/{contact['id']}").json() == patched.json()


def test_a_changed_external_id_is_found_and_the_old_one_is_free(crm: Crm) -> None:
    contact = crm.call("POST", "/contacts", json=AINO).json()
    crm.call("PATCH", f"/contacts/{contact['id']}", json={"external_id": "u9"})
    assert crm.call("GET", "/contacts", params={"externalId": "u1"}).json() == {"items": []}
    assert crm.service.find(CONTACT, "u9") == {**contact, "external_id": "u9"}
    assert crm.call("POST", "/contacts", json=AINO).status_code == 201


def test_a_deleted_contact_is_gone_but_its_history_stays(crm: Crm) -> None:
    """The history tells each change with what was asked for and the Idempotency-Key of the call."""
    contact = crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k1"}).json()
    path = f"/contacts/{contact['id']}"
    crm.call("PATCH", path, json={"last_name": "Aalto"}, headers={"Idempotency-Key": "k2"})
    assert crm.call("DELETE", path).status_code == 204
    assert [crm.call(method, path, json={}).status_code for method in ("GET", "PATCH", "DELETE")] == [404] * 3
    assert crm.service.find(CONTACT, "u1") is None
    history = crm.service.history(CONTACT, "u1")
    assert [(applied.change, applied.body, applied.idempotency_key) for applied in history] == [
        ("create", AINO, "k1"),
        ("update", {"last_name": "Aalto"}, "k2"),
        ("delete", None, None),
    ]
    assert history[1].record == {**contact, "last_name": "Aalto"}


def test_teams_are_kept_the_same_way(crm: Crm) -> None:
    team = crm.call("POST", "/teams", json={"external_id": "g1", "name": "Drivers"}).json()
    assert set(team) == {"id", "external_id", "name"}
    assert crm.call("GET", "/teams", params={"externalId": "g1"}).json() == {"items": [team]}
    assert crm.call("PATCH", f"/teams/{team['id']}", json={"name": "Riders"}).json()["name"] == "Riders"
    assert crm.service.all(CONTACT) == []
    assert crm.service.all(TEAM) == [{**team, "name": "Riders"}]
    assert crm.call("GET", f"/contacts/{team['id']}").status_code == 404


def test_a_repeated_post_with_the_same_key_gets_the_first_answer(crm: Crm) -> None:
    first = crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k"})
    crm.call("PATCH", f"/contacts/{first.json()['id']}", json={"email": "new@example.com"})
    again = crm.call("POST", "/contacts", json=dict(reversed(AINO.items())), headers={"Idempotency-Key": "k"})
    assert (again.status_code, again.json()) == (201, first.json())
    assert again.headers["Idempotent-Replayed"] == "true"
    assert "Idempotent-Replayed" not in first.headers
    assert len(crm.service.all(CONTACT)) == 1
    other = crm.call("POST", "/contacts", json={"external_id": "u2"}, headers={"Idempotency-Key": "k"})
    assert other.status_code == 422
    conflict = crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k3"})
    crm.call("DELETE", f"/contacts/{first.json()['id']}")
    assert conflict.status_code == 409
    assert crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k3"}).status_code == 409


def test_many_posts_at_once_with_one_key_make_one_contact(crm: Crm) -> None:
    def post(_: int) -> tuple[int, Any]:
        with requests.Session() as session:
            session.trust_env = False
            headers = {"Authorization": "Bearer demo", "Idempotency-Key": "k"}
            response = session.post(f"{crm.url}/contacts", json=AINO, headers=headers, timeout=WAIT)
            return response.status_code, response.json()["id"]

    with ThreadPoolExecutor(16) as pool:
        answers = set(pool.map(post, range(32)))
    assert len(answers) == 1
    assert len(crm.service.history(CONTACT, "u1")) == 1


def test_an_outage_fails_every_call_and_changes_nothing(crm: Crm) -> None:
    """A failed call may be repeated with its key: it was never answered."""
    crm.service.outage = True
    failed = crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k"})
    assert failed.status_code == 503
    assert failed.headers["Retry-After"] == "0.2"
    assert "error" in failed.json()
    assert crm.service.all(CONTACT) == []
    crm.service.outage = False
    assert crm.call("POST", "/contacts", json=AINO, headers={"Idempotency-Key": "k"}).status_code == 201


def test_a_seeded_share_of_calls_fails_the_same_way_every_time() -> None:
    def statuses() -> list[int]:
        with crm_of(create_app(fail_share=0.3, rng=random.Random(1))) as crm:
            return [crm.call("GET", "/contacts").status_code for _ in range(100)]

    first = statuses()
    assert first == statuses()
    assert set(first) == {200, 503}
    assert 15 <= first.count(503) <= 45


def test_the_screen_is_told_every_call() -> None:
    calls: list[tuple[str, str, int, dict[str, Any] | None]] = []
    with crm_of(create_app(on_call=lambda *call: calls.append(call))) as crm:
        crm.call("GET", "/contacts", params={"externalId": "u1"})
        crm.call("POST", "/contacts", json=AINO)
        crm.call("POST", "/contacts", data="{")
        crm.service.outage = True
        crm.call("GET", "/teams")
        crm.service.outage = False
        crm.call("GET", "/nowhere", headers={"Authorization": "Bearer wrong"})
    assert calls == [
        ("GET", "/contacts?externalId=u1", 200, None),
        ("POST", "/contacts", 201, AINO),
        ("POST", "/contacts", 415, None),
        ("GET", "/teams", 503, None),
        ("GET", "/nowhere", 401, None),
    ]


def test_only_the_token_opens() -> None:
    with crm_of(create_app(token="other")) as crm:
        refused = crm.call("GET", "/contacts")
        assert refused.status_code == 401
        assert refused.headers["WWW-Authenticate"].startswith("Bearer")
        assert crm.call("GET", "/contacts", headers={"Authorization": "bearer other"}).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"[1]", 400),
        (b'"\\ud800"', 400),
        (b'{"email": ' + b"[" * 50_000, 400),
        (b'{"email": 5}', 422),
        (b'{"email": {"a": "b"}}', 422),
        (b'{"nickname": "Ainsku"}', 422),
        (b'{"id": "contact-9"}', 422),
        (b'{"external_id": ""}', 422),
    ],
)
def test_a_bad_body_is_refused_and_changes_nothing(crm: Crm, body: bytes, status: int) -> None:
    contact = crm.call("POST", "/contacts", json=AINO).json()
    headers = {"Content-Type": "application/json"}
    for method, path in (("POST", "/contacts"), ("PATCH", f"/contacts/{contact['id']}")):
        response = crm.call(method, path, data=body, headers=headers)
        assert response.status_code == status
        assert set(response.json()) == {"error"}
    assert crm.service.all(CONTACT) == [contact]


def test_unknown_places_methods_and_types_are_refused(crm: Crm) -> None:
    assert crm.call("GET", "/contacts/contact-1").status_code == 404
    assert crm.call("GET", "/orders").status_code == 404
    assert crm.call("PUT", "/contacts", json={}).status_code == 405
    assert crm.call("POST", "/contacts", data="a=b", headers={"Content-Type": "text/plain"}).status_code == 415
    assert crm.call("GET", "/contacts?externalId=a&externalId=b").status_code == 400


def test_merge_patch_follows_the_examples_of_its_rfc() -> None:
    """Cases from RFC 7396, appendix A."""
    cases: list[tuple[Any, Any, Any]] = [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({"e": None}, {"a": 1}, {"e": None, "a": 1}),
        ([1, 2], {"a": "b", "c": None}, {"a": "b"}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ]
    for target, patch, result in cases:
        assert merge_patch(target, patch) == result


def test_closing_leaves_no_thread_and_no_connection_behind() -> None:
    """A client that keeps its connection open does not hold up the end."""
    before = set(threading.enumerate())
    with requests.Session() as session:
        session.trust_env = False
        with serve(create_app().app) as server:
            session.get(f"{server.url}/contacts", headers={"Authorization": "Bearer demo"}, timeout=WAIT)
            server.close()
        with pytest.raises(requests.ConnectionError):
            session.get(f"{server.url}/contacts", timeout=WAIT)
    assert not [thread for thread in threading.enumerate() if thread not in before and thread.name == "demo-accept"]


def test_it_runs_alone_until_it_is_told_to_stop() -> None:
    imports = "from relay.demo.commercial import run_commercial"
    code = f"{imports}; run_commercial(0, 1.0, on_ready=lambda url: print(url, flush=True))"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        with requests.Session() as session:
            session.trust_env = False
            url = process.stdout.readline().strip()
            headers = {"Authorization": "Bearer demo"}
            assert session.get(f"{url}/contacts", headers=headers, timeout=WAIT).status_code == 503
            process.send_signal(signal.SIGTERM)
            assert process.wait(WAIT) == 0
        assert process.stderr.read() == ""
