"""An id with dots and slashes in it changes nothing but what it names, behind a stock nginx too, which resolves paths."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from relay.delivery.outcome import Delivered, Failed, Outcome
from tests.destinations.syncing import DELETE
from tests.helpers import machine
from tests.helpers.delivering import LOCAL, build, config_text, context, failure
from tests.helpers.processes import free_port, listening
from tests.helpers.scripted import ScriptedServer, answer, serving

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
    command = [str(machine.program("nginx")), "-c", f"{folder}/nginx.conf", "-e", "stderr", "-g", here]
    with listening(command, port, log=folder / "nginx.log", environment={}):
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("form", ["", ":path"])
def test_no_id_arrives_anywhere_else_behind_a_proxy_that_resolves_paths(
    form: str, proxied: str, backend: ScriptedServer
) -> None:
    text = _ROUTE.replace("URL", proxied).replace("event.entity_id}", f"event.entity_id{form}}}", 1) + LOCAL
    route = build(config_text("sync", f'base_url = "{proxied}"\n{LOCAL}', text))

    def delete(entity_id: str) -> Outcome:
        return route(msgspec.structs.replace(DELETE, entity_id=entity_id), context())

    def deleted() -> list[str]:
        return [seen.target for seen in backend.seen if seen.method == "DELETE"]

    before = len(deleted())
    assert failure(delete(ADMIN))[0] == "mapping"
    assert isinstance(delete("acme/my shop"), Delivered)
    assert deleted()[before:] == ["/v1/contacts/acme/my%20shop"]
    chance = random.Random("traversal")
    pieces = ["..", ".", "/", "\\", "%2e", "%2f", "%25", ";", "a", "admin", "?", "#", " ", "//", "\0", "\n"]
    ids = ["".join(chance.choices(pieces, k=chance.randint(1, 6))) for _ in range(300)]
    refused = [isinstance(delete(each), Failed) for each in ids]
    arrived = deleted()[before + 1 :]
    assert 30 < len(arrived) < 270, "some are refused, and some are not"
    assert refused.count(False) == len(arrived)
    assert [target for target in arrived if not re.fullmatch("/v1/contacts/.*[^/]", target)] == []
