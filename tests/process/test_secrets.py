"""No secret is left anywhere that a person can look, whatever sources, destinations and mistakes in the file do.

The bodies of webhooks are the exception: they are kept as they came, so nothing is planted there.
"""

from __future__ import annotations

import json
import socket
from base64 import b64encode
from pathlib import Path
from urllib.parse import quote

import pytest
from sqlalchemy import Engine

from tests.helpers.metrics import exposition, metrics_at
from tests.helpers.planted import LAST, Echo, Planted, Reply, all_text, echoing
from tests.helpers.processes import GUNICORN, Site, site
from tests.helpers.receiver import post_json
from tests.helpers.tables import rows
from tests.helpers.waiting import until
from tests.helpers.webhooks import body, moment

pytestmark = pytest.mark.long

ENTITY = "a-visible-entity"
REASON = "a-visible-reason"
VISIBLE = (
    *(ENTITY, REASON, LAST, socket.gethostname(), "by-header", "to-hook", "strict", "more", "heartbeat"),
    *("invalid_event", "agree", "paused", "stopped node=", "POST /webhooks/by-header", "pasword"),
)
"""Values that aren't secret, of which the same search must find one in each place."""
WITHOUT_TEXT = {
    *("order_lock", "route_lock", "payload_lock", "write_probe", "alembic_version", "pruner", "pruning", "route_gate")
}
"""Tables without any word of an event, a call or a person."""

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
"""Destinations: the URL, and further lines."""
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
    """Return the answer of a token endpoint."""
    return json.dumps({"access_token": value, "token_type": "Bearer", "expires_in": 3600})


def replies(secret: Planted) -> dict[str, Reply]:
    """Map each path of the service to its answer."""
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
    """The configuration, with a secret in each place that takes one: bare, in a file, or in the environment."""
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
    """Webhooks that are taken, repeated and refused, with secrets in the headers and in the path."""
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
    """A drain, and then a relay until one of them has told that an alert was not taken; its metrics."""
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
    """Run each command of an operator; return its output."""
    found = {command: place.invoke(*command.split(), COLUMNS="4000") for command in COMMANDS}
    assert {command: ended.status for command, ended in found.items()} == dict.fromkeys(COMMANDS, 0)
    return {command: ended.stdout + ended.stderr for command, ended in found.items()}


def start_with_mistakes(place: Site, text: str, secret: Planted) -> None:
    """The file has mistakes, each beside a secret, of which both sides tell."""
    bad = json.dumps(secret.odd("mistaken"))
    place.configure(f'{text}[destinations.odd]\nkind = "forward"\nurl = {bad}\npasword = {bad}\nauth = {bad}\n')
    assert [place.relay().ends(), place.start_refused_receiver().ends()] == [2, 2]


TABLES = """
inbox inbox_payload duplicate_request rejected_request open_delivery lane delivery_log relay_node gate relay_command alert
delivery dead_letter backlog stuck throughput_minute event entity_timeline source_health destination_health
"""
"""Tables and views that have rows by then."""


def test_no_secret_is_left_in_the_database_in_a_log_in_the_metrics_or_in_what_commands_tell(
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
