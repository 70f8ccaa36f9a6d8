"""The first `inbox.toml` of somebody: a source, a destination and a route between them, with comments. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Iterator, Sequence
from typing import Literal
from urllib.parse import SplitResult, urlsplit

import msgspec

from inbox.exposure import holds_a_token
from inbox.sources import PRESETS
from inbox.sources.signing import PUBLIC

Kind = Literal["forward", "sync", "slack", "python"]
Database = Literal["sqlite", "postgresql"]
DATABASES: dict[Database, str] = {"sqlite": "a file, for one host", "postgresql": "a server of yours"}
MEANINGS: dict[Kind, str] = {
    "forward": "sends the original webhook on to a URL",
    "sync": "fetches the changed entity from its source, and creates or updates it elsewhere",
    "slack": "posts a message for each event",
    "python": "calls a function of yours",
}
DEFAULT_URL = "https://service.example.com"
HANDLERS = "handlers.py"
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")


class Variable(msgspec.Struct, frozen=True):
    """An environment variable that the configuration takes a secret from."""

    name: str
    meaning: str


class Starter(msgspec.Struct, frozen=True):
    """A new configuration."""

    text: str
    source: str
    variables: tuple[Variable, ...]
    handlers: str | None = None
    """The text of `handlers.py`, which the configuration names."""
    can_send: bool = True
    """True when `inbox send` can make and sign a webhook of the source."""


def url_problem(url: str) -> str | None:
    """Return why the destination's URL can't be used; None when it can. The text doesn't repeat it: it may be a secret."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and not _CONTROL.search(url)
        parts.port  # noqa: B018  # raises when it is not a number
    except ValueError:
        usable = False
    if not usable:
        return "must begin with https:// or http://, and name a host"
    return "must not hold a user or password; add an auth to the written file" if "@" in parts.netloc else None


def starter(preset_name: str, kind: Kind, url: str, database: Database) -> Starter:
    """Make a configuration of a preset, a kind of destination with its URL, and a database."""
    preset = PRESETS[preset_name]
    variables = [Variable(f"{_upper(preset_name)}_SECRET", preset.shown_at)]
    if "{token}" in preset.starter:
        variables.append(Variable(f"{_upper(preset_name)}_URL_TOKEN", "a text of your own, with which the URL ends"))
    source = [*_source(preset_name, variables)]
    destination = [*_DESTINATIONS[kind](preset_name, url, variables)]
    database_lines = [*_database(database, variables)]
    text = "\n".join([*_HEAD, *database_lines, "", *source, "", *destination, ""])
    return Starter(
        text,
        preset_name,
        tuple(variables),
        _HANDLERS if kind == "python" else None,
        can_send=preset.sample is not None
        and (preset.prover is None or preset.signer is not None)
        and not any(signature.algorithm in PUBLIC for signature in preset.signatures[:1]),
    )


_HEAD = (
    "# The configuration of Inbox Relay, which both programs read. Every key: docs/reference/configuration.md",
    "# Secrets stand elsewhere: env:NAME is an environment variable, file:/path a file.",
    "",
)
_HANDLERS = '''"""Handles the events of inbox.toml. The relay imports this file when it starts."""

from relay.handler import Event, Skip


def on_event(event: Event) -> None:
    """Handle one event. It is delivered when this returns, and tried again after any other error."""
    if event.entity_id is None:
        raise Skip("no entity")  # Retry and GiveUp: docs/how-to/write-a-handler.md
    print(event.event_type, event.entity_type, event.entity_id)
'''


def _database(database: Database, variables: list[Variable]) -> Iterator[str]:
    yield "[database]"
    if database == "sqlite":
        yield 'url = "sqlite:///inbox.db"  # a file here: for one host'
        return
    variables.append(Variable("DATABASE_PASSWORD", "the password of this user of Postgres"))
    yield 'url = "postgresql+psycopg://inbox@localhost:5432/inbox"  # USER@HOST:PORT/NAME'
    yield 'password = "env:DATABASE_PASSWORD"'


def _source(name: str, variables: Sequence[Variable]) -> Iterator[str]:
    preset = PRESETS[name]
    yield f"# {preset.title} sends to POST /webhooks/{name}"
    yield f"[sources.{name}]"
    yield f'preset = "{name}"'
    yield from (f"# {each.name}: {each.meaning}" for each in variables)
    names = {"{variable}": variables[0].name, "{token}": variables[-1].name}
    yield from re.sub(r"{variable}|{token}", lambda found: names[found[0]], preset.starter).splitlines()


def _forward(preset: str, url: str, variables: list[Variable]) -> Iterator[str]:
    yield "# Gets the body of each webhook, byte for byte, signed as Standard Webhooks"
    yield "[destinations.service]"
    yield 'kind = "forward"'
    if holds_a_token(url):
        variables.append(Variable("SERVICE_URL", "the URL of the destination, which is a secret"))
        yield 'url = "env:SERVICE_URL"'
    else:
        yield f"url = {json.dumps(url)}"
    yield from _permissions(url)
    variables.append(Variable("SERVICE_SIGNING_SECRET", "a text of your own, by which the destination knows the relay"))
    yield 'signing_secret = "env:SERVICE_SIGNING_SECRET"'
    yield ""
    yield from _route(preset, "service")


def _slack(preset: str, _url: str, variables: list[Variable]) -> Iterator[str]:
    variables.append(Variable("SLACK_WEBHOOK_URL", "the URL of the incoming webhook, from the app's Incoming Webhooks"))
    yield "# Gets a message for each event"
    yield "[destinations.chat]"
    yield 'kind = "slack"'
    yield 'url = "env:SLACK_WEBHOOK_URL"'
    yield "text = \"{event.source}: {event.event_type} {event.entity_type || ''} {event.entity_id || ''}\""
    yield ""
    yield from _route(preset, "chat")


def _python(preset: str, _url: str, _variables: list[Variable]) -> Iterator[str]:
    yield f"# Calls on_event in {HANDLERS}, beside this file: docs/how-to/write-a-handler.md"
    yield "[destinations.handler]"
    yield 'kind = "python"'
    yield 'function = "handlers:on_event"'
    yield ""
    yield from _route(preset, "handler")


def _sync(preset: str, url: str, variables: list[Variable]) -> Iterator[str]:
    variables.append(Variable("API_TOKEN", "a token for the service that the webhooks are about"))
    variables.append(Variable("SERVICE_TOKEN", "a token for the destination"))
    parts = urlsplit(url)
    base = SplitResult(parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "").geturl()
    yield "# The service that the webhooks are about: the relay fetches the present state of each entity"
    yield "[apis.origin]"
    yield 'base_url = "https://api.example.com"'
    yield 'auth = { kind = "bearer", token = "env:API_TOKEN" }'
    yield ""
    yield "# The system that is kept in sync with it"
    yield "[destinations.service]"
    yield 'kind = "sync"'
    yield f"base_url = {json.dumps(base)}"
    yield 'auth = { kind = "bearer", token = "env:SERVICE_TOKEN" }'
    yield from _permissions(url)
    yield ""
    yield from _route(preset, "service")
    yield from _SYNC.replace("ROUTE", _route_name(preset, "service")).splitlines()


_SYNC = """
# The steps, with the paths of both services: docs/how-to/add-a-sync.md
[routes.ROUTE.sync]
fetch = { api = "origin", path = "/items/{event.entity_id}" }
create = { path = "/items" }
update = { path = "/items/{target.id}" }
delete = { path = "/items/{target.id}" }

[routes.ROUTE.sync.find]  # finds the counterpart
path = "/items"
params = { external_id = "{event.entity_id}" }
pick = "items"

[routes.ROUTE.sync.map]  # field of the counterpart = JMESPath
external_id = "event.entity_id"
name = "entity.name"
"""
_DESTINATIONS = {"forward": _forward, "slack": _slack, "python": _python, "sync": _sync}


def _route(preset: str, destination: str) -> Iterator[str]:
    yield '# All events; when = { event_type = ["…"] } takes some of them'
    yield f"[routes.{_route_name(preset, destination)}]"
    yield f'source = "{preset}"'
    yield f'destination = "{destination}"'


def _route_name(preset: str, destination: str) -> str:
    return f"{preset}-to-{destination}"


def _permissions(url: str) -> Iterator[str]:
    """Yield the keys without which calls to this URL are refused."""
    parts = urlsplit(url)
    if _is_private(parts.hostname or ""):
        yield "allow_private = true  # calls to private addresses are refused otherwise"
    if parts.scheme == "http":
        yield "allow_http = true  # and so is plain http"


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".home.arpa"))


def _upper(name: str) -> str:
    return name.upper().replace("-", "_")
