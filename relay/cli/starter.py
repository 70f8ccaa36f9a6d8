"""The first `inbox.toml` of an installation: a source, a destination and a route, with comments. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from ipaddress import ip_address
from urllib.parse import urlsplit

from inbox.sources import PRESETS

SCHEMA_FILE = "inbox.schema.json"
_EXAMPLE_URL = "https://service.example.com"
_FILE = """\
#:schema ./inbox.schema.json
# The configuration of Inbox Relay, read by both programs. All keys: docs/reference/configuration.md
# Secrets are kept elsewhere: env:NAME reads an environment variable, file:/path a file.

[database]
{database}

# {title} sends to POST /webhooks/{preset}
[sources.{preset}]
preset = "{preset}"
{source}

# Gets each webhook's body unchanged, signed as Standard Webhooks. Other kinds: docs/recipes
[destinations.service]
kind = "forward"
url = {url}  # your service; use env:NAME if the URL contains a secret
{private}allow_private = true  # for a private address, such as 127.0.0.1
{http}allow_http = true  # for plain http
signing_secret = "env:SERVICE_SIGNING_SECRET"

# All events; limit them with when = {{ event_type = ["…"] }}
[routes.{preset}-to-service]
source = "{preset}"
destination = "service"
"""
DATABASES = {
    "sqlite": """\
url = "sqlite:///inbox.db"  # a file on this host""",
    "postgresql": """\
url = "postgresql+psycopg://inbox@localhost:5432/inbox"  # USER@HOST:PORT/NAME
password = "env:DATABASE_PASSWORD\"""",
}
_MEANINGS = {
    "DATABASE_PASSWORD": "the password of the Postgres user",
    "SERVICE_SIGNING_SECRET": "a secret of your choice, with which your service verifies the relay's signature",
}


def read_json_schema() -> str:
    """Return the JSON Schema of `inbox.toml`. `docs/generate.py` makes it from the classes of `inbox.config`."""
    return files("inbox.config").joinpath(SCHEMA_FILE).read_text(encoding="utf-8")


def starter(preset_name: str, database: str, destination_url: str = _EXAMPLE_URL) -> tuple[str, Mapping[str, str]]:
    """Make a configuration for a preset, a database and the URL of the service that gets the webhooks.

    Returns:
        Its text, and the environment variables of its secrets with their meanings.
    """
    preset, upper = PRESETS[preset_name], preset_name.upper().replace("-", "_")
    secrets = {f"{upper}_SECRET": preset.shown_at}
    if "{token}" in preset.starter:
        secrets[f"{upper}_URL_TOKEN"] = "a secret of your choice, at the end of the webhook's URL"
    given = preset.starter.replace("{variable}", f"{upper}_SECRET").replace("{token}", f"{upper}_URL_TOKEN")
    parts = urlsplit(destination_url)
    text = _FILE.format(
        database=DATABASES[database],
        title=preset.title,
        preset=preset_name,
        source="\n".join([*(f"# {variable}: {meaning}" for variable, meaning in secrets.items()), given]),
        url=json.dumps(destination_url, ensure_ascii=False),
        private="" if _is_private(parts.hostname or "") else "# ",
        http="" if parts.scheme == "http" else "# ",
    )
    return text, {name: meaning for name, meaning in {**secrets, **_MEANINGS}.items() if f'"env:{name}"' in text}


def _is_private(host: str) -> bool:
    try:
        return ip_address(host).is_private
    except ValueError:  # a name
        return host == "localhost"
