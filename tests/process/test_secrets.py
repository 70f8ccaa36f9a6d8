"""No secret reaches a table, a log, the metrics or the output of a command.

The bodies of webhooks are stored unchanged, so no secret is planted there.
"""

from __future__ import annotations

import json
import logging
import os
import re
import socket
import stat
import tempfile
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy import Engine, text

from inbox.db import engine as engines
from inbox.exposure import exposure_warnings
from inbox.loader.load import read_config
from inbox.observe.logs import AccessLogMask
from tests.helpers.machine import ROOM
from tests.helpers.metrics import exposition, metrics_at
from tests.helpers.planted import LAST, Echo, Planted, Reply, all_text, echoing, harm_of
from tests.helpers.processes import GUNICORN, Site, site
from tests.helpers.receiver import ask, post_json
from tests.helpers.tables import rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import body, config_text, moment

ENTITY = "a-visible-entity"
REASON = "a-visible-reason"
VISIBLE = (
    *(ENTITY, REASON, LAST, socket.gethostname(), "by-header", "to-hook", "strict", "more", "heartbeat"),
    *("invalid_event", "agree", "paused", "stopped node=", "POST /webhooks/by-header", "pasword"),
)
"""Values that are not secret, of which the same search must find one in each place."""
WITHOUT_TEXT = {
    *("order_lock", "route_lock", "payload_lock", "write_probe", "alembic_version", "pruner", "pruning", "route_gate")
}
"""Tables without text of an event, a call or an operator."""

LOCAL = "allow_private = true\nallow_http = true\n"
BEARER = 'auth = {{ kind = "bearer", token = {bearer} }}'
OAUTH = """auth.kind = "oauth2"
auth.token_url = "{url}/TOKEN"
auth.client_id = "me"
auth.client_secret = {client_secret}"""
FORWARDS = {
    "hook": ('"{url}/hook?api_key={query}&plain=1"', BEARER + "\nsigning_secret = {signing}"),
    "chat": ('"env:CHAT_URL"', 'auth = {{ kind = "header", name = "X-Api-Key", value = "env:HEADER_VALUE" }}'),
    "behind-proxy": (
        '"http://crm.example/proxied"',
        'auth = {{ kind = "basic", user = "me", password = {password} }}\nproxy = {proxy}',
    ),
    "strict": ('"{url}/unauthorized"', 'auth = {{ kind = "bearer", token = {refused_token} }}'),
    "broken": ('"{url}/broken?api_key={query}"', BEARER),
    "odd-token": ('"{url}/by-odd-token"', OAUTH.replace("TOKEN", "odd-token")),
    "good-token": ('"{url}/by-good-token"', OAUTH.replace("TOKEN", "good-token")),
    "fine": ('"{url}/fine?api_key={query}"', ""),
}
"""Maps destinations to their URL and further lines."""
SOURCES = {
    "by-header": '{{ kind = "header", name = "X-Webhook-Token", secrets = [{header}] }}',
    "by-url": '{{ kind = "url_token", secrets = ["file:{folder}/url-token"] }}',
    "by-password": '{{ kind = "basic", user = "me", secrets = ["env:SOURCE_PASSWORD"] }}',
}
CONFIG = "".join(
    [
        '[database]\nurl = {database}\n[alerts]\nurl = "env:ALERTS_URL"\n' + LOCAL,
        *(f'[sources.{name}]\npreset = "trivore"\nauth = {auth}\n' for name, auth in SOURCES.items()),
        '[apis.identity]\nbase_url = "{url}/api"\n' + LOCAL,
        'auth = {{ kind = "basic", user = "me", password = {api_password} }}\n',
        '[apis.well]\nbase_url = "{url}/well"\n' + LOCAL,
        '[destinations.crm]\nkind = "sync"\nbase_url = "{url}/crm"\n' + LOCAL,
        'auth = {{ kind = "bearer", token = {crm_token} }}\n',
        *(
            f'[destinations.{name}]\nkind = "forward"\nurl = {url}\n{LOCAL}{more}\n'
            f'[routes.to-{name}]\nsource = "by-header"\ndestination = "{name}"\nretry = {{{{ schedule = [] }}}}\n'
            for name, (url, more) in FORWARDS.items()
        ),
    ]
)
SYNC = """
[routes.{name}]
source = "by-header"
destination = "crm"
retry = {{ schedule = [] }}
[routes.{name}.sync]
gone = "skip"
missing = "skip"
fetch = {{ api = "{api}", path = "/user/{{event.entity_id}}" }}
find = {{ path = "/contacts", params = {{ externalId = "{{event.entity_id}}" }}, pick = "items", verify = false }}
update = {{ path = "/contacts/{{target.id}}" }}
map = {{ name = "entity.name" }}
"""


def token(value: str) -> str:
    """Return the response of a token endpoint."""
    return json.dumps({"access_token": value, "token_type": "Bearer", "expires_in": 3600})


def replies(secret: Planted) -> dict[str, Reply]:
    """Map each path of the service to its response."""
    password = secret.plain("password-by-key")
    return {
        "/hook": Reply(
            knows=(secret.odd("signing"), secret.odd("query")),
            password=password,
            retry_after=secret.odd("bearer"),
        ),
        "/services/": Reply(knows=(f"/services/{secret.plain('chat-path')}",), password=password),
        "/broken": Reply(knows=(secret.odd("bearer"), secret.odd("query")), password=password, broken_head=True),
        "/odd-token": Reply(200, body=token(secret.odd("odd-token") + "\r\n")),
        "/good-token": Reply(200, body=token(secret.plain("good-token"))),
        "/by-good-token": Reply(
            knows=(secret.plain("good-token"),), password=password, retry_after=secret.plain("good-token")
        ),
        "/proxied": Reply(knows=(secret.odd("proxy-password"),), password=password),
        "/api": Reply(knows=(secret.odd("api-password"),), password=password),
        "/well": Reply(200, body='{"name": "Ada"}'),
        "/crm": Reply(knows=(secret.odd("crm-token"),), password=password),
        "/unauthorized": Reply(401, password=password),
        "/fine": Reply(200, password=password),
        "/alerts/": Reply(knows=(secret.plain("alerts-path"),), password=password, broken_head=True),
    }


def config_of(secret: Planted, echo: Echo, folder: Path, database: str, environment: pytest.MonkeyPatch) -> str:
    """Make a configuration with a secret in each possible place: inline, in a file, or in the environment."""
    (folder / "url-token").write_text(secret.plain("url-token") + "\n")
    environment.setenv("SOURCE_PASSWORD", secret.odd("source-password"))
    environment.setenv("HEADER_VALUE", secret.odd("header-value") + "é")
    environment.setenv("CHAT_URL", f"{echo.url}/services/{secret.plain('chat-path')}?key={secret.plain('chat-key')}")
    environment.setenv("ALERTS_URL", f"{echo.url}/alerts/{secret.plain('alerts-path')}?t={secret.plain('alerts-key')}")
    bare = ("header", "api-password", "bearer", "signing", "password", "crm-token", "refused-token", "client-secret")
    proxy = f"http://me:{quote(secret.odd('proxy-password'), safe='')}@127.0.0.1:{echo.port}"
    filled = CONFIG.format(
        database=json.dumps(database),
        folder=folder,
        url=echo.url,
        query=quote(secret.odd("query"), safe=""),
        proxy=json.dumps(proxy),
        **{name.replace("-", "_"): json.dumps(secret.odd(name)) for name in bare},
    )
    return filled + SYNC.format(name="api-fails", api="identity") + SYNC.format(name="crm", api="well")


def post_all(secret: Planted, port: int) -> None:
    """Post accepted, repeated and refused webhooks with secrets in the headers and in the path."""
    right = {"X-Webhook-Token": secret.odd("header"), "Content-Type": "application/json"}
    more = {
        "Authorization": f"Bearer {secret.odd('stray-authorization')}",
        "Cookie": f"session={secret.plain('cookie')}",
        "Proxy-Authorization": f"Basic {secret.plain('stray-proxy')}",
        "X-Api-Key": secret.odd("stray-key"),
        "Webhook-Signature": f"v1,{secret.plain('signature')}",
    }
    wrong = {**right, "X-Webhook-Token": secret.odd("wrong-header")}
    basic = b64encode(f"me:{secret.odd('source-password')}".encode()).decode()
    header, url = "/webhooks/by-header", f"/webhooks/by-url/{secret.plain('url-token')}"
    sent = [
        (200, header, body(ENTITY, moment(0)), right | more),
        (200, header, body(ENTITY, moment(0)), right | more),
        (200, header, body(ENTITY, moment(0), more=1), right | more),
        (200, f"{header}?access_token={secret.plain('inbound-query')}", body("another", moment(1)), right),
        (200, url, body(ENTITY, moment(0)), {"Content-Type": "application/json"} | more),
        (422, url, b"{}", {"Content-Type": "application/json"} | more),
        (401, f"/webhooks/by-url/{secret.plain('wrong-url-token')}", body(ENTITY), right | more),
        (200, "/webhooks/by-password", body(ENTITY), right | more | {"Authorization": f"Basic {basic}"}),
        (415, header, b"text", right | more | {"Content-Type": "text/plain"}),
        (401, header, body(ENTITY), wrong | more),
        (401, "/webhooks/nobody", body(ENTITY), right | more),
    ]
    for expected, path, payload, headers in sent:
        assert post_json(port, path, payload, headers) == expected, path


def relay_all(place: Site, engine: Engine, metrics: int) -> str:
    """Drain, run a relay until one of them logs an alert that was not accepted, and return the relay's metrics."""
    drain = place.relay("--drain", "--verbose")
    assert drain.ends() == 0
    kinds = {row["kind"] for row in rows(engine, "SELECT kind FROM delivery_log")}
    assert {"delivered", "dead", "attempt_failed"} <= kinds
    relay = place.relay("--verbose")
    relay.writes("started node=")
    until(lambda: "not posted" in drain.output + relay.output, "an alert was not taken")
    served = until(lambda: exposition(metrics), "its metrics are served") or ""
    assert relay.stop() == 0
    return served


COMMANDS = (
    "inbox list",
    "inbox show 1 --json",
    "inbox show 1",
    "inbox tail --end --ndjson",
    "relay tail --end --ndjson",
    "inbox rejected",
    "relay dead",
    "relay status",
    f"relay pause --source by-url --reason {REASON} --yes",
    f"relay replay --cause exhausted --reason {REASON}",
    f"relay replay --route to-fine --backfill --reason {REASON} --json",
    f"relay cancel --seq 1 --reason {REASON}",
    "relay verify",
)


def ask_all(place: Site) -> dict[str, str]:
    """Run each command of an operator and return its output."""
    found = {command: place.invoke(*command.split(), COLUMNS="4000") for command in COMMANDS}
    assert {command: ended.status for command, ended in found.items()} == dict.fromkeys(COMMANDS, 0)
    return {command: ended.stdout + ended.stderr for command, ended in found.items()}


def start_with_mistakes(place: Site, text: str, secret: Planted) -> None:
    """Start both sides with mistakes in the file, each beside a secret."""
    bad = json.dumps(secret.odd("mistaken"))
    place.configure(f'{text}[destinations.odd]\nkind = "forward"\nurl = {bad}\npasword = {bad}\nauth = {bad}\n')
    assert [place.relay().ends(), place.start_refused_receiver().ends()] == [2, 2]


TABLES = """
inbox inbox_payload duplicate_request rejected_request open_delivery lane delivery_log relay_node gate relay_command alert
route_failure delivery dead_letter backlog stuck throughput_minute event entity_timeline source_health destination_health
"""
"""Tables and views that must have rows at the end."""


@pytest.mark.long
def test_no_secret_reaches_the_database_a_log_the_metrics_or_the_output_of_a_command(
    database_url: str, engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    secret = Planted()
    with echoing(replies(secret)) as echo:
        metrics, more = metrics_at("relay")
        text = config_of(secret, echo, tmp_path, database_url, monkeypatch) + more
        with site(tmp_path, text) as place:
            receiver, port = place.receiver(1, (*GUNICORN, "--access-logfile", "-"))
            post_all(secret, port)
            places = {"metrics": relay_all(place, engine, metrics), **ask_all(place)}
            assert receiver.stop() == 0
            start_with_mistakes(place, text, secret)
            tables = all_text(engine)
            places |= place.logs() | tables
    assert min(echo.calls.values()) > 0, echo.calls
    assert secret.leaks(places) == []
    assert set(TABLES.split()) <= tables.keys()
    blind = [name for name, found in places.items() if not any(word in found for word in VISIBLE)]
    assert set(blind) <= WITHOUT_TEXT


# --- Secrets stay out of other users' reach and out of the receiver's logs


SOURCE = '[sources.s]\npreset = "trivore"\nauth = {{ kind = "bearer", secrets = [{}] }}\n'
HOOK = '[destinations.d]\nkind = "forward"\nurl = "{}"\n'
API = '[apis.a]\nbase_url = "https://h"\nauth = { kind = "basic", user = "me", password = "env:X" }\n'
DATABASE = '[database]\nurl = "{}"\n'


@pytest.fixture
def shared() -> Iterator[Path]:
    """A folder that all users can read, unlike those of pytest."""
    with tempfile.TemporaryDirectory(dir=ROOM) as name:
        Path(name).chmod(0o755)
        yield Path(name)


@pytest.fixture(autouse=True)
def usual_umask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.parametrize("chosen", [None, 0o660])
@pytest.mark.parametrize("connect", [lambda url: engines.connect(url, application="t"), engines.connect_thread])
def test_a_database_file_and_its_wal_are_private_to_the_owner(
    connect: object, chosen: int | None, tmp_path: Path
) -> None:
    """A mode chosen before is kept and applies to the other files too."""
    if chosen is not None:
        (tmp_path / "inbox.db").touch()
        (tmp_path / "inbox.db").chmod(chosen)
    assert callable(connect)
    engine = connect(f"sqlite:///{tmp_path}/inbox.db")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE t (x)"))
        found = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.glob("*.db*")}
    engine.dispose()
    assert found == dict.fromkeys(("inbox.db", "inbox.db-wal", "inbox.db-shm"), chosen or 0o600)


def warnings(folder: Path, config: str, mode: int = 0o644, **environment: str) -> list[str]:
    path = folder / "inbox.toml"
    path.write_text(config, encoding="utf-8")
    path.chmod(mode)
    return list(exposure_warnings(path, read_config(path, environment)))


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (SOURCE.format('"s3cret"'), "sources.s.auth.secrets[0]"),
        (SOURCE.format('"env:X", { value = "s3cret" }'), "sources.s.auth.secrets[1]"),
        (DATABASE.format("postgresql://me:s3cret@h/x"), "database.url"),
        (HOOK.format("https://h/x") + 'proxy = "http://me:s3cret@proxy:1"\n', "destinations.d.proxy"),
        (HOOK.format("https://h/x?key=s3cret"), "destinations.d.url"),
        (HOOK.format("https://me:s3cret@h/x"), "destinations.d.url"),
        (HOOK.format("https://h/s3cretS3cretS3cretS3cret"), "destinations.d.url"),
        (HOOK.format("https://[s3cret"), "destinations.d.url"),
        ('[alerts]\nurl = "https://h/s3cret"\n', "alerts.url"),
    ],
)
def test_a_readable_configuration_with_secrets_is_a_warning(shared: Path, config: str, key: str) -> None:
    (said,) = warnings(shared, config)
    assert f"{shared}/inbox.toml holds secrets ({key})" in said
    assert f"`chmod o= {shared}/inbox.toml`" in said
    assert "s3cret" not in said.casefold()
    assert warnings(shared, config, mode=0o640) == []
    shared.chmod(0o700)
    assert warnings(shared, config) == []


def test_a_configuration_without_secrets_or_with_an_impossible_path_is_not_a_warning(shared: Path) -> None:
    (shared / "loop").symlink_to("loop")
    for config in (
        SOURCE.format('"env:X", "file:/x"'),
        HOOK.format("https://h/x"),
        API,
        *(
            DATABASE.format(url)
            for url in ("postgresql://me@h/x", f"sqlite:///{shared}/a\\u0000b", f"sqlite:///{shared}/loop")
        ),
    ):
        assert warnings(shared, config) == []
    assert warnings(shared, "", INBOX_DATABASE_URL="postgresql://me:s3cret@h/x") == [], "the secret is not in the file"


def test_both_sides_say_so_when_they_start(shared: Path) -> None:
    with site(shared, config_text(f"sqlite:///{shared}/inbox.db")) as place:
        (shared / "inbox.db").touch(0o644)
        assert place.invoke("inbox", "migrate").status == 0
        relay = place.relay("--drain")
        receiver, _ = place.receiver(1)
        assert (relay.ends(), receiver.stop()) == (0, 0)
        for told in (receiver.output, relay.output):
            assert told.count("inbox.toml holds secrets (sources.trivore.auth.secrets[0] and 1 more)") == 1
            assert told.count("inbox.db holds webhooks, and every user of this machine may read it") == 1


# --- The receiver's access log shows no part of a request that could be a token


TOKEN = "QzTokenZq"
PLACES = (
    "/{}",
    "/Webhooks/trivore/{}",
    "//webhooks/trivore/{}",
    "/webhooks//trivore/{}",
    "/webhooks/trivore/{}/",
    "/webhooks/trivore/{}/x",
    "/webhooks/trivore//{}",
    "/webhooks/{}",
    "/webhooks/{}/trivore",
    "/webhooks/trivore/%51zTokenZq/{}",
    "/webhook/trivore/{}",
    "/health/live/{}",
    "/health/live?token={}",
    "/webhooks/trivore?token={}",
    "/webhooks/trivore/x?token={}",
    "/webhooks/trivore;{}",
    "http://127.0.0.1/webhooks/x/y/{}",
)
"""Paths with the token in a wrong place, as in a mistyped URL."""
METHODS = ("GET", "POST", "PUT", "OPTIONS", "CONNECT", "BREW")
HOST_HEAD = "HTTP/1.1\r\nHost: 127.0.0.1\r\n"
END = f" {HOST_HEAD}Connection: close\r\nContent-Length: 0\r\n"
MALFORMED = (
    f"POST /webhooks/trivore/{TOKEN} HTTP/9.9\r\nHost: 127.0.0.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} \x01\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}#x {HOST_HEAD}\r\n",
    f"POST /webhooks/trivore/{TOKEN} HTTP/1.1\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN}{'x' * 20_000} {HOST_HEAD}\r\n",
    f"POST /webhooks/trivore {HOST_HEAD}X-Webhook-Token: {TOKEN}{'x' * 40_000}\r\n\r\n",
    f"POST /webhooks/trivore {HOST_HEAD}X-Webhook-Token : {TOKEN}\r\n\r\n",
    f"POST /webhooks/trivore?{TOKEN}\xff {HOST_HEAD}Content-Length: 0\r\n\r\n",
    f"POST /webhooks/trivore/{TOKEN} {HOST_HEAD}Content-Length: 9\r\n\r\n",
)
FORGED = "X-Forwarded-For: 1.2.3.4\x9b31m\t[2026] [INFO] all is well\r\n"


@pytest.fixture(scope="module")
def log(module_database_url: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The output of a receiver after these requests, which include every kind of refusal."""
    heads = (f"{method} {place.format(TOKEN)}{END}\r\n" for place in PLACES for method in METHODS)
    with site(tmp_path_factory.mktemp("logs"), config_text(module_database_url)) as place:
        receiver, port = place.receiver(1, (*GUNICORN, "--access-logfile", "-", "--log-level", "debug"))
        sent = (f"GET /health/live{END}{FORGED}\r\n", *heads, *MALFORMED)
        statuses = {ask(port, each.encode("latin-1"), half_close=True)[9:12] for each in sent}
        assert statuses >= {b"200", b"400", b"401", b"404", b"405", b"414", b"431"}
        assert receiver.stop() == 0
        return receiver.output


def test_no_log_of_the_receiver_shows_a_token(log: str) -> None:
    assert TOKEN.casefold() not in log.casefold()
    for seen in ('"POST /… HTTP/1.1" 404', '"POST /webhooks/… HTTP/1.1" 401', '"GET /webhooks/trivore HTTP/1.1" 405'):
        assert seen in log


def test_no_header_forges_or_colours_a_line_of_the_access_log(log: str) -> None:
    assert harm_of(log) == []
    assert r"1.2.3.4\x9b31m" in log


@given(
    st.lists(st.sampled_from(["", "webhooks", "Webhooks", "trivore", "health", "live", TOKEN, "..", "x"]), max_size=6)
)
def test_only_existing_paths_are_logged_and_without_their_token(parts: list[str]) -> None:
    args = ("127.0.0.1:1", "GET", "/" + "/".join(parts), "1.1", 404)
    record = logging.LogRecord("uvicorn.access", logging.INFO, "", 1, '%s - "%s %s HTTP/%s" %d', args, None)
    AccessLogMask(lambda: {"trivore"})(record)
    (path,) = re.findall(r'"GET (\S+) HTTP', record.getMessage())
    assert path in {"/…", "/webhooks/…", "/webhooks/trivore", "/webhooks/trivore/…", "/health/live"}
