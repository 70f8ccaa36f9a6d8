"""`relay web` as a process: it starts, stops with pages open, reloads, and turns away what is too large or too slow."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

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
from tests.helpers.receiver import ask
from tests.helpers.waiting import until
from tests.helpers.webhooks import config_text

PATIENCE = 90.0
"""Seconds that a program has to start in, on a machine that has other work."""
AT_ONCE = graceful_timeout - 1
"""Seconds; a worker with open answers would take longer."""
PASSWORD = "correct horse battery staple"
TOKEN = "irw_of-a-test"
WEB = '\n[web]\nusers = "file:{folder}/users"\ntokens = "file:{folder}/tokens"\n'


def config_of(database_url: str, folder: Path) -> str:
    """The text of a configuration whose page lets in two people with a password, and a token."""
    hashed = hash_password(PASSWORD, FAST)
    people = f"olga:operator:{hashed}\nben:viewer:{hashed}\n"
    for name, lines in {"users": people, "tokens": f"script:viewer:{hash_token(TOKEN)}\n"}.items():
        (folder / name).touch(mode=0o600)
        (folder / name).write_text(lines, encoding="utf-8")
    return config_text(database_url) + WEB.format(folder=folder)


def web(place: Site) -> tuple[Program, str]:
    """Start the page and wait until it serves; gives its address, too."""
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


def api(url: str, token: str = TOKEN) -> int:
    answer = requests.get(f"{url}/api/v1/rejected", headers={"Authorization": f"Bearer {token}"}, timeout=60)
    return answer.status_code


def signed_in(url: str, name: str = "olga", following: str = "/rejected") -> requests.Session:
    """A browser that has signed in."""
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
    """The running page. At its end, no browser that keeps its connection holds it up; its log is as configured."""
    program, url = web(place)
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
    with signed_in(url, following="/rejected?source=trivore") as browser:
        chosen = "&".join(f"deliveries={number:018}%2F{'route' * 13}-{number % 2}" for number in range(MOST_SEQS))
        assert browser.get(f"{url}/acts/replay?{chosen}", timeout=10).status_code == 200, "its URL is long"
    assert len(program.children()) == 1


def test_a_request_that_is_too_large_or_no_http_is_turned_away(served: tuple[Program, str]) -> None:
    _, url = served
    port = int(url.rpartition(":")[2])
    headers = {"Sec-Fetch-Site": "same-origin", "Content-Type": FORM_TYPE}
    for body in (b"name=" + b"x" * MOST_BYTES, iter([b"x" * 1000] * 100)):
        assert requests.post(f"{url}/sign-in", body, headers=headers, timeout=10).status_code == 413
    assert ask(port, b"HELO page\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    long = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"
    assert ask(port, long).startswith(b"HTTP/1.1 431 ")
    assert requests.get(f"{url}/rejected?source={'x' * 24 * 1024}", timeout=10).status_code == 414
    assert api(url) == 200


def test_connections_of_a_stranger_keep_nobody_out(served: tuple[Program, str]) -> None:
    """They send nothing, a part of a head, keep the connection of a request open, or owe their body."""
    _, url = served
    port = int(url.rpartition(":")[2])
    begun = b"GET /health/live HTTP/1.1\r\nHost: x\r\n"
    with contextlib.ExitStack() as stack:
        strangers = []
        for number in range(2 * CONNECTIONS):
            stranger = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=10))
            stranger.sendall((b"", begun, begun + b"\r\n")[number % 3])
            strangers.append(stranger)
        assert api(url) == 200
        for stranger in strangers[: CONNECTIONS // 2]:
            with contextlib.suppress(ConnectionResetError):  # it was closed before it had sent its part
                while stranger.recv(4096):
                    pass
        for _ in range(CONNECTIONS):
            stack.enter_context(owing_its_body(port))
        assert is_live(url.removeprefix("http://"))
        assert api(url) == 200


def owing_its_body(port: int) -> socket.socket:
    """Begin a request whose body the page waits for."""
    form = b"Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"
    begun = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n%bContent-Length: 9\r\nExpect: 100-continue\r\n\r\n" % form
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(begun)
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    return connection


def test_a_reload_brings_no_session_back_that_was_ended_and_ends_no_other(
    served: tuple[Program, str], place: Site
) -> None:
    """And what can't be used changes nothing."""
    program, url = served
    good = (place.folder / "inbox.toml").read_text(encoding="utf-8")
    ended, kept = signed_in(url), signed_in(url, "ben")
    cookies = dict(ended.cookies)
    ended.post(f"{url}/sign-out", timeout=10)
    ended.cookies.update(cookies)
    before = set(program.children())
    (place.folder / "tokens").write_text(f"script:viewer:{hash_token('irw_of-another')}\n", encoding="utf-8")
    program.send(signal.SIGHUP)
    program.writes("reloaded", within=PATIENCE)
    until(lambda: program.children() and not before & {*program.children()}, "another worker serves", within=PATIENCE)
    until(lambda: api(url, "irw_of-another") == 200, "the other token counts", within=PATIENCE)
    place.configure(good.replace("[web]", "[web]\ncolour = 1"))
    program.send(signal.SIGHUP)
    program.writes("reload refused: the old configuration stays")
    assert "colour" in program.output
    assert [api(url, token) for token in ("irw_of-another", TOKEN)] == [200, 401]
    place.configure(good)
    looks = [each.get(f"{url}/rejected", timeout=10).url.removeprefix(url) for each in (ended, kept)]
    assert looks == ["/sign-in?next=%2Frejected", "/rejected"]
    for browser in (ended, kept):
        browser.close()


def test_a_configuration_that_lets_nobody_in_is_refused_with_a_remedy(place: Site, tmp_path: Path) -> None:
    (tmp_path / "inbox.toml").write_text(
        (place.folder / "inbox.toml").read_text("utf-8").partition("\n[web]")[0], "utf-8"
    )
    program = place.start("refused", *RELAY, "web", "--bind", "127.0.0.1:0", INBOX_CONFIG=str(tmp_path / "inbox.toml"))
    assert program.ends(PATIENCE) == 2
    assert ("relay web passwd" in program.output, "Traceback" in program.output) == (True, False)


def test_a_database_that_is_down_at_the_start_stops_nobody(postgres_database_url: str, tmp_path: Path) -> None:
    with site(tmp_path, config_of(postgres_database_url, tmp_path)) as of_postgres:
        with databases.down(postgres_database_url):
            program, url = web(of_postgres)
            assert api(url) == 503
        signed_in(url).close()
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
def test_a_page_that_other_hosts_reach_without_tls_says_so(
    host: str, origin: str | None, is_open: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "gunicorn.error")
    monkeypatch.setattr(gunicorn_settings.page, "config", Config(web=Web(origin=origin)))
    with socket.create_server((host, 0)) as listener:
        gunicorn_settings.when_ready(SimpleNamespace(LISTENERS=[listener]))
    assert [record.levelname for record in caplog.records] == ["INFO", *(["WARNING"] if is_open else [])]


# --- files for everybody


def test_files_of_the_page_need_no_sign_in_and_stay_in_the_browser_until_they_change(page: Page) -> None:
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
