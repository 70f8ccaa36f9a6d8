"""The first `inbox.toml` of somebody: a source, a destination and a route between them, with comments. Pure."""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Mapping
from urllib.parse import SplitResult, urlsplit

import msgspec

from inbox.exposure import holds_a_token
from inbox.sources import PRESETS
from inbox.sources.signing import PUBLIC

DEFAULT_URL = "https://service.example.com"
_CONTROL = re.compile(r"[\x00-\x20\x7f-\x9f]")


class Starter(msgspec.Struct, frozen=True):
    """A new configuration."""

    text: str
    variables: Mapping[str, str]
    """The environment variables that it takes secrets from, and their meanings."""
    can_send: bool
    """True when `inbox send` can make and sign a webhook of the source."""


_FILE = """\
# The configuration of Inbox Relay, which both programs read. Every key: docs/reference/configuration.md
# Secrets stand elsewhere: env:NAME is an environment variable, file:/path a file.

[database]
{database}

# {title} sends to POST /webhooks/{preset}
[sources.{preset}]
preset = "{preset}"
{source}

{destination}
# All events; when = {{ event_type = ["…"] }} takes some of them
[routes.{preset}-to-{name}]
source = "{preset}"
destination = "{name}"
{more}"""
DATABASES = {
    "sqlite": """\
url = "sqlite:///inbox.db"  # a file here: for one host""",
    "postgresql": """\
url = "postgresql+psycopg://inbox@localhost:5432/inbox"  # USER@HOST:PORT/NAME
password = "env:DATABASE_PASSWORD\"""",
}
DESTINATIONS = {
    "forward": (
        "service",
        """\
# Gets the body of each webhook, byte for byte, signed as Standard Webhooks
[destinations.service]
kind = "forward"
url = {url}
{permissions}signing_secret = "env:SERVICE_SIGNING_SECRET"
""",
    ),
    "sync": (
        "service",
        """\
# The service that the webhooks are about: the relay fetches the present state of each entity
[apis.origin]
base_url = "https://api.example.com"
auth = {{ kind = "bearer", token = "env:API_TOKEN" }}

# The system that is kept in sync with it
[destinations.service]
kind = "sync"
base_url = {base_url}
auth = {{ kind = "bearer", token = "env:SERVICE_TOKEN" }}
{permissions}""",
    ),
    "slack": (
        "chat",
        """\
# Gets a message for each event
[destinations.chat]
kind = "slack"
url = "env:SLACK_WEBHOOK_URL"
text = "{{event.source}}: {{event.event_type}} {{event.entity_type || ''}} {{event.entity_id || ''}}"
""",
    ),
    "python": (
        "handler",
        """\
# Calls on_event in handlers.py, beside this file: docs/how-to/write-a-handler.md
[destinations.handler]
kind = "python"
function = "handlers:on_event"
""",
    ),
}
"""For each kind of work the name of its destination, and the lines of that."""
_STEPS = """
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
_MEANINGS = {
    "DATABASE_PASSWORD": "the password of this user of Postgres",
    "SERVICE_URL": "the URL of the destination, which is a secret",
    "SERVICE_SIGNING_SECRET": "a text of your own, by which the destination knows the relay",
    "API_TOKEN": "a token for the service that the webhooks are about",
    "SERVICE_TOKEN": "a token for the destination",
    "SLACK_WEBHOOK_URL": "the URL of the incoming webhook, from the app's Incoming Webhooks",
}
HANDLERS = '''"""Handles the events of inbox.toml. The relay imports this file when it starts."""

from relay.handler import Event, Skip


def on_event(event: Event) -> None:
    """Handle one event. It is delivered when this returns, and tried again after any other error."""
    if event.entity_id is None:
        raise Skip("no entity")  # Retry and GiveUp: docs/how-to/write-a-handler.md
    print(event.event_type, event.entity_type, event.entity_id)
'''


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


def starter(preset_name: str, kind: str, url: str, database: str) -> Starter:
    """Make a configuration of a preset, a kind of destination with its URL, and a database."""
    preset, upper = PRESETS[preset_name], preset_name.upper().replace("-", "_")
    secrets = {f"{upper}_SECRET": preset.shown_at}
    if "{token}" in preset.starter:
        secrets[f"{upper}_URL_TOKEN"] = "a text of your own, with which the URL ends"
    given = preset.starter.replace("{variable}", f"{upper}_SECRET").replace("{token}", f"{upper}_URL_TOKEN")
    parts = urlsplit(url)
    name, destination = DESTINATIONS[kind]
    text = _FILE.format(
        database=DATABASES[database],
        title=preset.title,
        preset=preset_name,
        source="\n".join([*(f"# {variable}: {meaning}" for variable, meaning in secrets.items()), given]),
        destination=destination.format(
            url='"env:SERVICE_URL"' if holds_a_token(url) else json.dumps(url),
            base_url=json.dumps(SplitResult(parts.scheme, parts.netloc, parts.path.rstrip("/"), "", "").geturl()),
            permissions=_permissions(parts),
        ),
        name=name,
        more=_STEPS.replace("ROUTE", f"{preset_name}-to-{name}") if kind == "sync" else "",
    )
    return Starter(
        text,
        {name: meaning for name, meaning in {**secrets, **_MEANINGS}.items() if f'"env:{name}"' in text},
        can_send=preset.sample is not None
        and (preset.prover is None or preset.signer is not None)
        and not any(signature.algorithm in PUBLIC for signature in preset.signatures[:1]),
    )


def _permissions(parts: SplitResult) -> str:
    """Return the keys without which calls to this URL are refused."""
    private = "allow_private = true  # calls to private addresses are refused otherwise\n"
    plain = "allow_http = true  # and so is plain http\n"
    return f"{private if _is_private(parts.hostname or '') else ''}{plain if parts.scheme == 'http' else ''}"


def _is_private(host: str) -> bool:
    try:
        return not ipaddress.ip_address(host).is_global
    except ValueError:
        return "." not in host or host.endswith((".localhost", ".local", ".internal", ".home.arpa"))
