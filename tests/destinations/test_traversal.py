"""An id with dots and slashes in it changes nothing but what it names, behind a stock nginx too, which resolves paths."""

from __future__ import annotations

import os
import random
import re
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from relay.delivery.outcome import Failed, Outcome
from relay.destinations import Deliverer
from tests.destinations.syncing import DELETE
from tests.helpers import machine
from tests.helpers.delivering import LOCAL, build, config_text, context, failure
from tests.helpers.processes import free_port
from tests.helpers.scripted import ScriptedServer, answer, serving
from tests.helpers.waiting import until

_NGINX = """
worker_processes 1;
events { worker_connections 64; }
http {
  access_log off;
  upstream b { server 127.0.0.1:BACKEND; }
  server { listen 127.0.0.1:PORT; location / { proxy_pass http://b/; } }
}
"""
_ROUTE = """
[routes.user-to-crm.sync]
fetch = { api = "identity", path = "/gone" }
delete = { path = "/v1/contacts/{event.entity_id}" }
create = { path = "/v1/contacts" }
map = { external_id = "event.entity_id" }
[apis.identity]
base_url = "URL/source"
"""
ADMIN = "a/../../../admin"
"""`DELETE /v1/contacts/a%2F..%2F..%2F..%2Fadmin` arrived as `DELETE /admin`."""


def listens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=1).close()
    except OSError:
        return False
    return True


@pytest.fixture(scope="module")
def backend() -> Iterator[ScriptedServer]:
    with serving(answer(204), routes={"GET /source/gone": [answer(410)]}) as server:
        yield server


@pytest.fixture(scope="module")
def proxied(backend: ScriptedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a stock nginx before the backend."""
    folder: Path = tmp_path_factory.mktemp("nginx")
    port = free_port()
    places = "".join(
        f"{kind}_temp_path {folder}/{kind};" for kind in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    text = _NGINX.replace("BACKEND", str(backend.port)).replace("PORT", str(port))
    (folder / "nginx.conf").write_text(text.replace("http {", f"http {{ {places}"), encoding="utf-8")
    here = f"daemon off; pid {folder}/nginx.pid;" + (" user root;" if os.geteuid() == 0 else "")
    command = [str(machine.program("nginx")), "-c", f"{folder}/nginx.conf", "-e", f"{folder}/error.log", "-g", here]
    program = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    try:
        until(lambda: program.poll() is not None or listens(port), "nginx listens")
        yield f"http://127.0.0.1:{port}"
    finally:
        program.terminate()
        program.wait(10)


@pytest.fixture(scope="module")
def route(proxied: str) -> Deliverer:
    return made_of(_ROUTE, proxied)


@pytest.fixture(scope="module")
def route_by_segments(proxied: str) -> Deliverer:
    return made_of(_ROUTE.replace("{event.entity_id}", "{event.entity_id:path}"), proxied)


def made_of(route: str, proxied: str) -> Deliverer:
    return build(config_text("sync", f'base_url = "{proxied}"\n{LOCAL}', route.replace("URL", proxied) + LOCAL))


def delete(route: Deliverer, entity_id: str) -> Outcome:
    return route(msgspec.structs.replace(DELETE, entity_id=entity_id), context())


def deleted(backend: ScriptedServer) -> list[str]:
    return [seen.target for seen in backend.seen if seen.method == "DELETE"]


def test_an_id_that_climbs_out_of_its_path_deletes_nothing(route: Deliverer, backend: ScriptedServer) -> None:
    before = len(backend.seen)
    error = (
        "routes.user-to-crm.sync.delete.path: '/v1/contacts/a%2F..%2F..%2F..%2Fadmin' has a segment . or .., "
        "so that it could lead to another resource"
    )
    assert failure(delete(route, ADMIN)) == ("mapping", error)
    assert [seen.target for seen in backend.seen[before:]] == ["/source/gone"]


def test_an_id_with_a_slash_that_climbs_nowhere_gets_through(route: Deliverer, backend: ScriptedServer) -> None:
    delete(route, "a/b")
    assert deleted(backend)[-1] == "/v1/contacts/a/b"


def test_a_name_with_slashes_gets_through_segment_by_segment(
    route_by_segments: Deliverer, backend: ScriptedServer
) -> None:
    delete(route_by_segments, "acme/my shop")
    assert deleted(backend)[-1] == "/v1/contacts/acme/my%20shop"


@pytest.mark.parametrize("form", ["route", "route_by_segments"])
def test_no_id_arrives_anywhere_else_behind_a_proxy_that_resolves_paths(
    form: str, request: pytest.FixtureRequest, backend: ScriptedServer
) -> None:
    route: Deliverer = request.getfixturevalue(form)
    chance = random.Random("traversal")
    pieces = ["..", ".", "/", "\\", "%2e", "%2f", "%25", ";", "a", "admin", "?", "#", " ", "//", "\0", "\n"]
    ids = ["".join(chance.choices(pieces, k=chance.randint(1, 6))) for _ in range(300)]
    before = len(deleted(backend))
    refused = [isinstance(delete(route, each), Failed) for each in ids]
    arrived = deleted(backend)[before:]
    assert 30 < len(arrived) < 270, "some are refused, and some are not"
    assert refused.count(False) == len(arrived)
    assert [target for target in arrived if not re.fullmatch("/v1/contacts/.*[^/]", target)] == []
