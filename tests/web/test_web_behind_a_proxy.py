"""The page behind the proxies of docs/how-to/deploy.md: people sign in over TLS, and live refresh is not kept back."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.helpers.processes import free_port, site
from tests.helpers.proxies import PROXIES, Ports, connected, proxy
from tests.helpers.webhooks import config_text
from tests.web.test_web_serve import PASSWORD, TOKEN, WEB, web, write_accounts

pytestmark = pytest.mark.long

HOST = "relay.example.com"


@contextlib.contextmanager
def asked(
    port: int, method: str, path: str, headers: dict[str, str], body: str | None = None
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a browser that asks for this host over TLS."""
    connection = http.client.HTTPConnection(HOST)
    with connected(port, name=HOST) as connection.sock:
        connection.request(method, path, body, {"Host": HOST, **headers})
        with connection.getresponse() as answer:
            yield answer


@pytest.mark.parametrize("name", PROXIES)
def test_a_person_signs_in_through_the_proxy_and_gets_events_at_once(
    name: str, sqlite_database_url: str, tmp_path: Path
) -> None:
    write_accounts(tmp_path)
    access = WEB.format(folder=tmp_path) + f'origin = "https://{HOST}"\n'
    with site(tmp_path, config_text(sqlite_database_url) + access) as place:
        program, url = web(place)
        ports = Ports(free_port(), free_port(), free_port(), int(url.rpartition(":")[2]))
        with proxy(name, tmp_path, ports):
            form = urlencode({"name": "olga", "password": PASSWORD, "next": "/rejected"})
            sent = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://{HOST}"}
            with asked(ports.tls, "POST", "/sign-in", sent, form) as signed_in:
                assert (signed_in.status, signed_in.headers["Location"]) == (303, "/rejected")
                cookie = signed_in.headers["Set-Cookie"]
            assert cookie.startswith("__Host-")
            assert "Secure" in cookie
            with asked(ports.tls, "GET", "/rejected", {"Cookie": cookie.partition(";")[0]}) as shown:
                assert (shown.status, b"olga" in shown.read()) == (200, True)
            with asked(ports.tls, "GET", "/live?url=/rejected", {"Authorization": f"Bearer {TOKEN}"}) as stream:
                assert stream.headers["Content-Type"] == "text/event-stream"
                assert stream.readline() == b"retry: 3000\n"
                while stream.readline() != b"event: main\n":
                    pass
        assert program.stop() == 0
