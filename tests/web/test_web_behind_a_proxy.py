"""The page behind the proxies of docs/how-to/deploy.md: people sign in over TLS, and nobody says who he is by a header."""

from __future__ import annotations

import contextlib
import http.client
from collections.abc import Iterator, Mapping
from pathlib import Path
from urllib.parse import urlencode

import pytest

from tests.helpers.processes import Program, free_port, site
from tests.helpers.proxies import NO_CHANGES, PROXIES, Ports, connect_tls, proxy, receive
from tests.web.test_web_serve import PASSWORD, config_of, web

pytestmark = pytest.mark.long

HOST = "relay.example.com"
ONE_OPERATOR: Mapping[str, Mapping[str, str]] = {
    "nginx": {"allow 127.0.0.0/8": "allow 127.0.0.1"},
    "caddy": {"remote_ip private_ranges": "remote_ip 127.0.0.1"},
}
"""In place of the private networks, one address."""


@contextlib.contextmanager
def behind(
    name: str, folder: Path, database_url: str, more: str, changes: Mapping[str, str]
) -> Iterator[tuple[Program, int]]:
    """The page behind a proxy of this name, and the port of its TLS."""
    with site(folder, config_of(database_url, folder) + f'origin = "https://{HOST}"\n{more}') as place:
        program, url = web(place)
        ports = Ports(free_port(), free_port(), free_port(), int(url.rpartition(":")[2]))
        with proxy(name, folder, ports, changes):
            yield program, ports.tls
        assert program.stop() == 0


@contextlib.contextmanager
def asked(
    port: int, method: str, path: str, headers: dict[str, str], body: str | None = None, *, address: str = "127.0.0.1"
) -> Iterator[http.client.HTTPResponse]:
    """The answer to a browser at this address that asks for this host over TLS."""
    connection = http.client.HTTPConnection(HOST)
    with connect_tls(port, address, name=HOST) as connection.sock:
        connection.request(method, path, body, {"Host": HOST, **headers})
        with connection.getresponse() as answer:
            yield answer


@pytest.mark.parametrize("name", PROXIES)
def test_an_operator_signs_in_through_the_proxy_and_a_stranger_gets_nothing(
    name: str, sqlite_database_url: str, tmp_path: Path
) -> None:
    proxy = 'proxy = { networks = ["127.0.0.1"] }\n'
    with behind(name, tmp_path, sqlite_database_url, proxy, ONE_OPERATOR[name]) as (_, port):
        for path in ("/sign-in", "/health/live"):
            with asked(port, "GET", path, {}, address="127.0.0.2") as kept_out:
                assert (kept_out.status, path) == (403, path)
        form = urlencode({"name": "olga", "password": PASSWORD, "next": "/rejected"})
        sent = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://{HOST}"}
        with asked(port, "POST", "/sign-in", sent, form) as signed_in:
            assert (signed_in.status, signed_in.headers["Location"]) == (303, "/rejected")
            cookie = signed_in.headers["Set-Cookie"]
        assert cookie.startswith("__Host-")
        with asked(port, "GET", "/api/v1/rejected", {"X-Forwarded-User": "olga"}) as claimed:
            assert claimed.status == 401
        assert "Secure" in cookie
        with asked(port, "GET", "/rejected", {"Cookie": cookie.partition(";")[0]}) as shown:
            assert (shown.status, b"olga" in shown.read()) == (200, True)


_LINE = "            proxy_set_header X-Forwarded-For $remote_addr;\n"


@pytest.mark.parametrize(
    ("changes", "trusted", "address"),
    [
        (NO_CHANGES, "127.0.0.1", "127.0.0.3"),
        ({"X-Forwarded-For $remote_addr": "X-Forwarded-For $proxy_add_x_forwarded_for"}, "127.0.0.1", "127.0.0.3"),
        ({_LINE: ""}, "192.0.2.1", "127.0.0.1"),
    ],
    ids=["replaced", "appended", "neither, and not trusted"],
)
def test_an_address_that_a_browser_claims_is_never_believed(
    *,
    changes: Mapping[str, str],
    trusted: str,
    address: str,
    sqlite_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The way of gunicorn's setting: to the page, and not to uvicorn, which would replace the address itself."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with behind("nginx", tmp_path, sqlite_database_url, "", changes) as (program, port):
        with connect_tls(port, "127.0.0.3", name=HOST) as browser:
            form = urlencode({"name": "olga", "password": "wrong"})
            browser.sendall(
                f"POST /sign-in HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://{HOST}\r\nX-Forwarded-For: 203.0.113.9\r\n"
                f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n{form}".encode()
            )
            assert receive(browser).startswith(b"HTTP/1.1 401 ")
        program.writes(f"failed sign-in as olga from {address}\n")
