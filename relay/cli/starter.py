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

# Gets the body of each webhook, byte for byte, signed as Standard Webhooks. Other kinds: docs/recipes
[destinations.service]
kind = "forward"
url = {url}
{permissions}signing_secret = "env:SERVICE_SIGNING_SECRET"

# All events; when = {{ event_type = ["…"] }} takes some of them
[routes.{preset}-to-service]
source = "{preset}"
destination = "service"
"""
DATABASES = {
    "sqlite": """\
url = "sqlite:///inbox.db"  # a file here: for one host""",
    "postgresql": """\
url = "postgresql+psycopg://inbox@localhost:5432/inbox"  # USER@HOST:PORT/NAME
password = "env:DATABASE_PASSWORD\"""",
}
_MEANINGS = {
    "DATABASE_PASSWORD": "the password of this user of Postgres",
    "SERVICE_URL": "the URL of the destination, which is a secret",
    "SERVICE_SIGNING_SECRET": "a text of your own, by which the destination knows the relay",
}


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


def starter(preset_name: str, url: str, database: str) -> Starter:
    """Make a configuration of a preset, a URL that gets its webhooks, and a database."""
    preset, upper = PRESETS[preset_name], preset_name.upper().replace("-", "_")
    secrets = {f"{upper}_SECRET": preset.shown_at}
    if "{token}" in preset.starter:
        secrets[f"{upper}_URL_TOKEN"] = "a text of your own, with which the URL ends"
    given = preset.starter.replace("{variable}", f"{upper}_SECRET").replace("{token}", f"{upper}_URL_TOKEN")
    text = _FILE.format(
        database=DATABASES[database],
        title=preset.title,
        preset=preset_name,
        source="\n".join([*(f"# {variable}: {meaning}" for variable, meaning in secrets.items()), given]),
        url='"env:SERVICE_URL"' if holds_a_token(url) else json.dumps(url),
        permissions=_permissions(urlsplit(url)),
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
