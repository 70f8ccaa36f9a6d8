"""The first `inbox.toml` of an installation: a source, a destination and a route, with comments. Pure."""

from __future__ import annotations

from collections.abc import Mapping

from inbox.sources import PRESETS

_FILE = """\
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
url = "https://service.example.com"  # your service; use env:NAME if the URL contains a secret
# allow_private = true  # for a private address, such as 127.0.0.1
# allow_http = true     # for plain http
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


def starter(preset_name: str, database: str) -> tuple[str, Mapping[str, str]]:
    """Make a configuration for a preset and a database.

    Returns:
        Its text, and the environment variables of its secrets with their meanings.
    """
    preset, upper = PRESETS[preset_name], preset_name.upper().replace("-", "_")
    secrets = {f"{upper}_SECRET": preset.shown_at}
    if "{token}" in preset.starter:
        secrets[f"{upper}_URL_TOKEN"] = "a secret of your choice, at the end of the webhook's URL"
    given = preset.starter.replace("{variable}", f"{upper}_SECRET").replace("{token}", f"{upper}_URL_TOKEN")
    text = _FILE.format(
        database=DATABASES[database],
        title=preset.title,
        preset=preset_name,
        source="\n".join([*(f"# {variable}: {meaning}" for variable, meaning in secrets.items()), given]),
    )
    return text, {name: meaning for name, meaning in {**secrets, **_MEANINGS}.items() if f'"env:{name}"' in text}
