"""`relay web` as a process: its start, stop and reload, its limits, and the page behind the proxies of the docs."""

from __future__ import annotations

import contextlib
import http.client
import json
import shutil
import signal
import socket
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import urlencode

import pytest
import requests

from inbox.config.model import Config, Web
from inbox.events.states import MOST_SEQS
from inbox.observe.logs import KEYS
from relay.accounts import hash_password, hash_token
from relay.web import gunicorn_settings
from relay.web.app import CONNECTIONS
from relay.web.gunicorn_settings import graceful_timeout
from relay.web.query import FORM_TYPE, MOST_BYTES
from relay.web.render import STATIC, STATIC_FOLDER
from tests.helpers import databases
from tests.helpers.page import FAST, Page
from tests.helpers.processes import RELAY, Program, Site, free_port, site
from tests.helpers.proxies import NO_CHANGES, PROXIES, Ports, connect_tls, proxy, receive
from tests.helpers.receiver import ask
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

PATIENCE = 90.0
"""Seconds in which a program has to start on a busy machine."""
AT_ONCE = graceful_timeout - 1
"""Seconds; a worker with unfinished responses would take longer."""
PASSWORD = "correct horse battery staple"
TOKEN = "irw_of-a-test"
WEB = '\n[web]\nusers = "file:{folder}/users"\ntokens = "file:{folder}/tokens"\n'


def config_of(database_url: str, folder: Path) -> str:
    """Return a configuration whose page admits two people with a password, and a token."""
    hashed = hash_password(PASSWORD, FAST)
    people = f"olga:operator:{hashed}\nben:viewer:{hashed}\n"
    for name, lines in {"users": people, "tokens": f"script:viewer:{hash_token(TOKEN)}\n"}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(lines, encoding="utf-8")
    return config_text(database_url) + WEB.format(folder=folder)


def start_page(place: Site) -> tuple[Program, str]:
    """Start the page, wait until it serves, and return it with its URL."""
    address = f"127.0.0.1:{free_port()}"
    program = place.start("web", *RELAY, "web", "--bind", address)
    program.writes(f"the operator's page is at http://{address}", within=PATIENCE)
    until(lambda: not program.runs or is_live(address), "the page answers", within=PATIENCE)
    return program, f"http://{address}"


def is_live(address: str) -> bool:
    try:
        return bool(requests.get(f"http://{address}/health/live", timeout=5).json() == {"status": "live"})
    except requests.RequestException:
        return False


def call_api(url: str, token: str = TOKEN) -> int:
    answer = requests.get(f"{url}/api/v1/rejected", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    return answer.status_code


def sign_in(url: str, name: str = "olga", following: str = "/rejected") -> requests.Session:
    """Return a browser that has signed in."""
    browser = requests.Session()
    browser.headers.update({"Accept": "text/html", "Sec-Fetch-Site": "same-origin"})
    form = {"name": name, "password": PASSWORD, "next": following}
    answer = browser.post(f"{url}/sign-in", form, timeout=60)
    assert (answer.status_code, answer.url) == (200, f"{url}{following}")
    assert name in answer.text
    return browser


@pytest.fixture(scope="module")
def place(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A site that the tests of this module share."""
    folder = tmp_path_factory.mktemp("page")
    url = f"sqlite:///{shutil.copy(sqlite_template, folder / 'inbox.db')}"
    with site(folder, config_of(url, folder) + '[logs]\nformat = "json"\n') as made:
        yield made


@pytest.fixture(scope="module")
def served(place: Site) -> Iterator[tuple[Program, str]]:
    """The running page and its URL. It must stop despite an open connection, and log as configured."""
    program, url = start_page(place)
    yield program, url
    with requests.Session() as browser:
        assert browser.get(f"{url}/health/live", timeout=10).status_code == 200
        assert program.stop(within=AT_ONCE) == 0
    lines = [json.loads(line) for line in program.output.splitlines()]
    assert all({"time", "level", "logger", "process", "message"} <= set(line) <= set(KEYS) for line in lines)
    assert len({line["process"] for line in lines}) > 1, "the master and its workers"
    assert {line["level"] for line in lines if line.get("event") != "reload_refused"} <= {"INFO", "WARNING"}


def test_a_person_signs_in_and_sees_a_page(served: tuple[Program, str]) -> None:
    program, url = served
    first = requests.get(f"{url}/rejected?source=trivore", headers={"Accept": "text/html"}, timeout=10)
    assert first.url.startswith(f"{url}/sign-in?next=")
    with sign_in(url, following="/rejected?source=trivore") as browser:
        chosen = "&".join(f"deliveries={number:018}%2F{'route' * 13}-{number % 2}" for number in range(MOST_SEQS))
        assert browser.get(f"{url}/acts/replay?{chosen}", timeout=10).status_code == 200, "a long URL"
    assert len(program.children()) == 1


def test_too_large_and_malformed_requests_are_refused(served: tuple[Program, str]) -> None:
    _, url = served
    port = int(url.rpartition(":")[2])
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": FORM_TYPE}
    for body in (b"name=" + b"x" * MOST_BYTES, iter([b"x" * 1000] * 100)):
        assert requests.post(f"{url}/sign-in", body, headers=headers, timeout=10).status_code == 413
    assert ask(port, b"HELO page\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    long = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"
    assert ask(port, long).startswith(b"HTTP/1.1 431 ")
    assert requests.get(f"{url}/rejected?source={'x' * 24 * 1024}", timeout=10).status_code == 414
    assert call_api(url) == 200


def test_idle_and_slow_connections_do_not_block_others(served: tuple[Program, str]) -> None:
    """They send nothing or a part of a head, keep a connection open after a request, or owe their body."""
    _, url = served
    port = int(url.rpartition(":")[2])
    begun = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
    with contextlib.ExitStack() as stack:
        strangers = []
        for number in range(2 * CONNECTIONS):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            stranger.sendall((b"", begun, begun + b"\r\n")[number % 3])
            strangers.append(stranger)
        assert call_api(url) == 200
        for stranger in strangers[: CONNECTIONS // 2]:
            with contextlib.suppress(ConnectionResetError):  # closed before it sent its part
                while stranger.recv(4096):
                    pass
        for _ in range(CONNECTIONS):
            stack.enter_context(begin_request(port))
        assert is_live(url.removeprefix("http://"))
        assert call_api(url) == 200


def begin_request(port: int) -> socket.socket:
    """Begin a request whose body never comes."""
    form = b"Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"
    begun = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n%bContent-Length: 9\r\nExpect: 100-continue\r\n\r\n" % form
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(begun)
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    return connection


def test_a_reload_keeps_sessions_as_they_are_and_ignores_an_unusable_configuration(
    served: tuple[Program, str], place: Site
) -> None:
    program, url = served
    good = (place.folder / "inbox.toml").read_text(encoding="utf-8")
    ended, kept = sign_in(url), sign_in(url, "ben")
    cookies = dict(ended.cookies)
    ended.post(f"{url}/sign-out", timeout=10)
    ended.cookies.update(cookies)
    before = set(program.children())
    (place.folder / "tokens").write_text(f"script:viewer:{hash_token('irw_of-another')}\n", encoding="utf-8")
    program.send(signal.SIGHUP)
    program.writes("reloaded", within=PATIENCE)
    until(lambda: program.children() and not before & {*program.children()}, "another worker serves", within=PATIENCE)
    until(lambda: call_api(url, "irw_of-another") == 200, "the other token counts", within=PATIENCE)
    place.configure(good.replace("[web]", "[web]\ncolour = 1"))
    program.send(signal.SIGHUP)
    program.writes("reload refused: the old configuration stays")
    assert "colour" in program.output
    assert [call_api(url, token) for token in ("irw_of-another", TOKEN)] == [200, 401]
    place.configure(good)
    looks = [each.get(f"{url}/rejected", timeout=10).url.removeprefix(url) for each in (ended, kept)]
    assert looks == ["/sign-in?next=%2Frejected", "/rejected"]
    for browser in (ended, kept):
        browser.close()


def test_a_configuration_without_users_is_refused_with_the_fix(place: Site, tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text(
        (place.folder / "inbox.toml").read_text("utf-8").partition("\n[web]")[0], "utf-8"
    )
    program = place.start("refused", *RELAY, "web", "--bind", "127.0.0.1:0", INBOX_CONFIG=str(tmp_path / "inbox.toml"))
    assert program.ends(PATIENCE) == 2
    assert ("relay web passwd" in program.output, "Traceback" in program.output) == (True, False)


def test_the_page_starts_while_the_database_is_down(postgres_database_url: str, tmp_path: Path) -> None:
    with site(tmp_path, config_of(postgres_database_url, tmp_path)) as of_postgres:
        with databases.down(postgres_database_url):
            program, url = start_page(of_postgres)
            assert call_api(url) == 503
        sign_in(url).close()
        assert program.stop() == 0


@pytest.mark.parametrize(
    ("host", "origin", "is_open"),
    [
        ("127.0.0.1", None, False),
        ("", None, True),
        ("", "http://x.example", True),
        ("", "https://x.example", False),
    ],
)
def test_a_page_without_tls_on_a_public_address_logs_a_warning(
    host: str, origin: str | None, is_open: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gunicorn.error")
    monkeypatch.setattr(gunicorn_settings.page, "config", Config(web=Web(origin=origin)))
    with socket.create_server((host, 0)) as listener:
        gunicorn_settings.when_ready(SimpleNamespace(LISTENERS=[listener]))
    assert [record.levelname for record in caplog.records] == ["INFO", *(["WARNING"] if is_open else [])]


# --- public files


def test_static_files_need_no_sign_in_and_are_cached_until_they_change(page: Page) -> None:
    for name in ("style.css", "page.js", "icon.svg"):
        answer = page.get(STATIC[name], actor=None)
        assert answer.content == (STATIC_FOLDER / name).read_bytes()
        assert "immutable" in answer.headers["Cache-Control"]
        assert page.get(f"/static/{name}?v=older", actor=None).headers["Cache-Control"] == "no-cache"
        again = page.get(f"/static/{name}", actor=None, headers={"If-None-Match": answer.headers["ETag"]})
        assert (again.status_code, again.content) == (304, b"")
        assert STATIC[name] in page.get("/rejected").text
    for path in ("/static/", "/static/none.css", "/static/../app.py", "/static/..%2Fapp.py"):
        assert page.get(path, actor=None).status_code in {401, 404}


# --- The page behind the proxies of docs/how-to/deploy.md


HOST = "relay.example.com"
ONE_OPERATOR: Mapping[str, Mapping[str, str]] = {
    "nginx": {"allow 127.0.0.0/8": "allow 127.0.0.1"},
    "caddy": {"remote_ip private_ranges": "remote_ip 127.0.0.1"},
}
"""Changes that admit one address instead of the private networks."""


@contextlib.contextmanager
def serve_behind(
    name: str, folder: Path, database_url: str, more: str, changes: Mapping[str, str]
) -> Iterator[tuple[Program, int]]:
    """Serve the page behind a proxy; yield the program and the proxy's TLS port."""
    with site(folder, config_of(database_url, folder) + f'origin = "https://{HOST}"\n{more}') as place:
        program, url = start_page(place)
        ports = Ports(free_port(), free_port(), free_port(), int(url.rpartition(":")[2]))
        with proxy(name, folder, ports, changes):
            yield program, ports.tls
        assert program.stop() == 0


@contextlib.contextmanager
def request(
    port: int, method: str, path: str, headers: dict[str, str], body: str | None = None, *, address: str = "127.0.0.1"
) -> Iterator[http.client.HTTPResponse]:
    """Send a request to `HOST` over TLS from this address and yield the response."""
    connection = http.client.HTTPConnection(HOST)
    with connect_tls(port, address, name=HOST) as connection.sock:
        connection.request(method, path, body, {"Host": HOST, **headers})
        with connection.getresponse() as answer:
            yield answer


@pytest.mark.long
@pytest.mark.parametrize("name", PROXIES)
def test_an_operator_signs_in_through_the_proxy_and_other_addresses_get_403(
    name: str, sqlite_database_url: str, tmp_path: Path
) -> None:
    proxy = 'proxy = { networks = ["127.0.0.1"] }\n'
    with serve_behind(name, tmp_path, sqlite_database_url, proxy, ONE_OPERATOR[name]) as (_, port):
        for path in ("/sign-in", "/health/live"):
            with request(port, "GET", path, {}, address="127.0.0.2") as kept_out:
                assert (kept_out.status, path) == (403, path)
        form = urlencode({"name": "olga", "password": PASSWORD, "next": "/rejected"})
        sent = {"Content-Type": "application/x-www-form-urlencoded", "Origin": f"https://{HOST}"}
        with request(port, "POST", "/sign-in", sent, form) as signed_in:
            assert (signed_in.status, signed_in.headers["Location"]) == (303, "/rejected")
            cookie = signed_in.headers["Set-Cookie"]
        assert cookie.startswith("__Host-")
        with request(port, "GET", "/api/v1/rejected", {"X-Forwarded-User": "olga"}) as claimed:
            assert claimed.status == 401
        assert "Secure" in cookie
        with request(port, "GET", "/rejected", {"Cookie": cookie.partition(";")[0]}) as shown:
            assert (shown.status, b"olga" in shown.read()) == (200, True)


_LINE = "            proxy_set_header X-Forwarded-For $remote_addr;\n"


@pytest.mark.long
@pytest.mark.parametrize(
    ("changes", "trusted", "address"),
    [
        (NO_CHANGES, "127.0.0.1", "127.0.0.3"),
        ({"X-Forwarded-For $remote_addr": "X-Forwarded-For $proxy_add_x_forwarded_for"}, "127.0.0.1", "127.0.0.3"),
        ({_LINE: ""}, "192.0.2.1", "127.0.0.1"),
    ],
    ids=["replaced", "appended", "neither, and not trusted"],
)
def test_a_claimed_address_is_never_believed(
    *,
    changes: Mapping[str, str],
    trusted: str,
    address: str,
    sqlite_database_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The page reads FORWARDED_ALLOW_IPS itself; uvicorn, which would replace the address, must not."""
    monkeypatch.setenv("FORWARDED_ALLOW_IPS", trusted)
    with serve_behind("nginx", tmp_path, sqlite_database_url, "", changes) as (program, port):
        with connect_tls(port, "127.0.0.3", name=HOST) as browser:
            form = urlencode({"name": "olga", "password": "wrong"})
            browser.sendall(
                f"POST /sign-in HTTP/1.1\r\nHost: {HOST}\r\nOrigin: https://{HOST}\r\nX-Forwarded-For: 203.0.113.9\r\n"
                f"Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {len(form)}\r\n\r\n{form}".encode()
            )
            assert receive(browser).startswith(b"HTTP/1.1 401 ")
        program.writes(f"failed sign-in as olga from {address}\n")
