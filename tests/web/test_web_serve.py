"""`relay web` as a process: it starts, stops with pages open, reloads, and turns away what is too large or too slow."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from inbox.events.states import MOST_SEQS
from inbox.observe.logs import KEYS
from relay.accounts import hash_password, hash_token
from relay.web.app import CONNECTIONS
from relay.web.gunicorn_settings import graceful_timeout
from relay.web.query import FORM_TYPE, MOST_BYTES
from relay.web.render import STATIC, STATIC_FOLDER
from tests.helpers import databases
from tests.helpers.databases import ON_BOTH, ON_POSTGRES, ON_SQLITE
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


def write_accounts(folder: Path, *, token: str = TOKEN) -> None:
    hashed = hash_password(PASSWORD, FAST)
    for name, line in {"users": f"olga:operator:{hashed}", "tokens": f"script:viewer:{hash_token(token)}"}.items():
        path = folder / name
        path.touch(mode=0o600)
        path.write_text(line + "\n", encoding="utf-8")


@pytest.fixture
def place(database_url: str, tmp_path: Path) -> Iterator[Site]:
    """A site whose page lets in `olga` with a password, and a token."""
    write_accounts(tmp_path)
    with site(tmp_path, config_text(database_url) + WEB.format(folder=tmp_path)) as made:
        yield made


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


def complaints(program: Program) -> list[str]:
    return [line for line in program.output.splitlines() if re.search("error|traceback|warning", line, re.IGNORECASE)]


@ON_BOTH
def test_a_person_signs_in_and_sees_a_page(place: Site) -> None:
    program, url = web(place)
    with requests.Session() as browser:
        first = browser.get(f"{url}/rejected?source=trivore", headers={"Accept": "text/html"}, timeout=10)
        assert first.url.startswith(f"{url}/sign-in?next=")
        form = {"name": "olga", "password": PASSWORD, "next": "/rejected?source=trivore"}
        headers = {"Sec-Fetch-Site": "same-origin"}
        shown = browser.post(f"{url}/sign-in", form, headers=headers, timeout=10)
        assert (shown.status_code, shown.url) == (200, f"{url}/rejected?source=trivore")
        assert "Rejected requests" in shown.text
        assert "olga" in shown.text
        chosen = "&".join(f"deliveries={number:018}%2F{'route' * 13}-{number % 2}" for number in range(MOST_SEQS))
        planned = browser.get(f"{url}/acts/replay?{chosen}", headers={"Accept": "text/html"}, timeout=10)
        assert (planned.status_code, "nothing to replay" in planned.text) == (200, True), planned.text[:500]
    assert len(program.children()) == 1
    assert program.stop() == 0
    assert complaints(program) == []


def test_a_stop_waits_for_no_browser_that_keeps_its_connection(place: Site) -> None:
    program, url = web(place)
    with requests.Session() as browser:
        assert browser.get(f"{url}/health/live", timeout=10).status_code == 200
        assert program.stop(within=AT_ONCE) == 0
    assert complaints(program) == []


def test_a_reload_replaces_the_worker_and_what_cannot_be_used_changes_nothing(place: Site) -> None:
    """And every line of the log, from the first to the last, has the form of the configuration."""
    good = (place.folder / "inbox.toml").read_text(encoding="utf-8") + '[logs]\nformat = "json"\n'
    place.configure(good)
    program, url = web(place)
    before = program.children()
    write_accounts(place.folder, token="irw_of-another")
    program.send(signal.SIGHUP)
    program.writes("reloaded", within=PATIENCE)
    until(
        lambda: program.children() and not set(before) & set(program.children()),
        "another worker serves",
        within=PATIENCE,
    )
    until(lambda: api(url, "irw_of-another") == 200, "the other token counts", within=PATIENCE)
    place.configure(good.replace("[web]", "[web]\ncolour = 1"))
    program.send(signal.SIGHUP)
    program.writes("reload refused: the old configuration stays")
    assert "colour" in program.output
    until(lambda: api(url, "irw_of-another") == 200, "it serves as before")
    assert program.stop() == 0
    lines = [json.loads(line) for line in program.output.splitlines()]
    assert all(
        set(line) <= set(KEYS) and {"time", "level", "logger", "process", "message"} <= set(line) for line in lines
    )
    assert {line.get("event") for line in lines} == {None, "started", "reloaded", "reload_refused"}
    assert {line["level"] for line in lines if line.get("event") == "reload_refused"} == {"ERROR"}
    assert len({line["process"] for line in lines}) > 2, "the master and its workers"


def test_a_configuration_that_lets_nobody_in_is_refused_with_a_remedy(place: Site) -> None:
    place.configure((place.folder / "inbox.toml").read_text(encoding="utf-8").partition("\n[web]")[0])
    program = place.start("web", *RELAY, "web", "--bind", "127.0.0.1:0")
    assert program.ends(PATIENCE) == 2
    assert "relay web passwd" in program.output
    assert "Traceback" not in program.output


@ON_POSTGRES
def test_a_database_that_is_down_at_the_start_stops_nobody(place: Site, database_url: str) -> None:
    with databases.down(database_url):
        program, url = web(place)
        assert api(url) == 503
    assert api(url) == 200
    assert program.stop() == 0


@ON_SQLITE
def test_a_reload_brings_no_session_back_that_was_ended_and_ends_no_other(place: Site) -> None:
    program, url = web(place)
    own = {"Sec-Fetch-Site": "same-origin"}

    def signed_in(name: str) -> dict[str, str]:
        form = {"name": name, "password": PASSWORD, "next": "/rejected"}
        answer = requests.post(f"{url}/sign-in", form, headers=own, timeout=10, allow_redirects=False)
        return dict(answer.cookies)

    def may_look(cookies: dict[str, str]) -> bool:
        answer = requests.get(f"{url}/rejected", cookies=cookies, timeout=10, allow_redirects=False)
        return answer.status_code == 200

    with (place.folder / "users").open("a", encoding="utf-8") as users:
        users.write(f"ben:viewer:{hash_password(PASSWORD, FAST)}\n")
    ended, kept = signed_in("olga"), signed_in("ben")
    assert (may_look(ended), may_look(kept)) == (True, True)
    requests.post(f"{url}/sign-out", headers=own, cookies=ended, timeout=10, allow_redirects=False)
    before = program.children()
    program.send(signal.SIGHUP)
    until(lambda: not set(before) & set(program.children()), "another worker serves", within=PATIENCE)
    until(lambda: is_live(url.removeprefix("http://")), "it answers", within=PATIENCE)
    assert (may_look(ended), may_look(kept)) == (False, True)
    assert program.stop() == 0


@ON_SQLITE
def test_a_page_that_other_hosts_reach_without_tls_says_so(place: Site) -> None:
    port = free_port()
    program = place.start("web", *RELAY, "web", "--bind", f"0.0.0.0:{port}")
    program.writes("is open to other hosts without TLS", within=PATIENCE)
    assert program.stop() == 0
    behind = (
        (place.folder / "inbox.toml")
        .read_text(encoding="utf-8")
        .replace("[web]", '[web]\norigin = "https://x.example"')
    )
    place.configure(behind)
    program = place.start("web2", *RELAY, "web", "--bind", f"0.0.0.0:{port}")
    program.writes("the operator's page is at", within=PATIENCE)
    assert program.stop() == 0
    assert "without TLS" not in program.output


@ON_SQLITE
def test_a_request_that_is_too_large_or_no_http_is_turned_away(place: Site) -> None:
    program, url = web(place)
    port = int(url.rpartition(":")[2])
    headers = {"Sec-Fetch-Site": "same-origin"}
    big = {"name": "x" * MOST_BYTES, "password": ""}
    assert requests.post(f"{url}/sign-in", big, headers=headers, timeout=10).status_code == 413
    parts = iter([b"x" * 1000] * 100)
    headers["Content-Type"] = FORM_TYPE
    assert requests.post(f"{url}/sign-in", parts, headers=headers, timeout=10).status_code == 413
    assert ask(port, b"HELO page\r\n\r\n").startswith(b"HTTP/1.1 400 ")
    long = b"GET / HTTP/1.1\r\nHost: x\r\nX-Long: " + b"x" * 100_000 + b"\r\n\r\n"
    assert ask(port, long).startswith(b"HTTP/1.1 431 ")
    assert requests.get(f"{url}/rejected?source={'x' * 24 * 1024}", timeout=10).status_code == 414
    assert api(url) == 200
    assert program.stop() == 0


@ON_SQLITE
def test_connections_of_a_stranger_keep_nobody_out(place: Site) -> None:
    """They send nothing, a part of a head, keep the connection of a request open, or owe their body."""
    program, url = web(place)
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
    assert program.stop() == 0


def owing_its_body(port: int) -> socket.socket:
    """Begin a request whose body the page waits for."""
    form = b"Content-Type: application/x-www-form-urlencoded\r\nSec-Fetch-Site: same-origin\r\n"
    begun = b"POST /sign-in HTTP/1.1\r\nHost: 127.0.0.1\r\n%bContent-Length: 9\r\nExpect: 100-continue\r\n\r\n" % form
    connection = socket.create_connection(("127.0.0.1", port), timeout=10)
    connection.sendall(begun)
    assert connection.recv(100).startswith(b"HTTP/1.1 100 ")
    return connection


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


@pytest.mark.parametrize("path", ["/static/", "/static/none.css", "/static/../app.py", "/static/..%2Fapp.py"])
def test_no_other_file_is_served(page: Page, path: str) -> None:
    assert page.get(path, actor=None).status_code in {401, 404}
