"""Webhooks of the tests' one source, and configurations that receive and relay them."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pytest

from inbox.config.model import Config
from inbox.errors import ConfigError
from inbox.loader.load import parse_config

TOKEN = "a-token-that-must-not-be-kept"
PATH = "/webhooks/trivore"
HEADERS: Mapping[str, str] = {"X-Webhook-Token": TOKEN, "Content-Type": "application/json"}
ROUTE = "everything"

_CONFIG = """
[database]
url = {database}

[sources.trivore]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = [{token}] }}

[sources.unrouted]
preset = "trivore"
auth = {{ kind = "header", name = "X-Webhook-Token", secrets = [{token}] }}

[destinations.audit]
kind = "forward"
url = {downstream}
allow_private = true
allow_http = true
concurrency = {concurrency}

[routes.everything]
source = "trivore"
destination = "audit"
ordering = "strict"
retry = {{ schedule = {schedule} }}
"""


SYNC_CONFIG = """
[apis.identity]
base_url = "{url}/api"
allow_private = true
allow_http = true
[destinations.crm]
kind = "sync"
base_url = "{url}"
allow_private = true
allow_http = true
[routes.user-to-crm]
source = "trivore"
destination = "crm"
[routes.user-to-crm.sync]
fetch = {{ api = "identity", path = "/user/{{event.entity_id}}" }}
find = {{ path = "/contacts", params = {{ externalId = "{{event.entity_id}}" }}, pick = "items", verify = false }}
create = {{ path = "/contacts" }}
update = {{ path = "/contacts/{{target.id}}" }}
delete = {{ path = "/contacts/{{target.id}}" }}"""
"""A sync route without a `map`; `url` is that of both services."""


def config_text(
    database_url: str,
    downstream: str = "http://127.0.0.1:9/",
    *,
    schedule: tuple[str, ...] = ("5s", "30s"),
    concurrency: int = 8,
) -> str:
    """Return an inbox.toml with one source and a strict route to one forward destination."""
    return _CONFIG.format(
        database=json.dumps(database_url),
        token=json.dumps(TOKEN),
        downstream=json.dumps(downstream),
        schedule=json.dumps(list(schedule)),
        concurrency=concurrency,
    )


def a_config(database_url: str) -> Config:
    """Parse the configuration of `config_text`."""
    return parse_config(config_text(database_url))


def forwarding(routes: Mapping[str, tuple[str, str]], lines: Mapping[str, str]) -> Config:
    """Return a configuration of routes from source to destination; `lines` are added to the tables of these names."""
    tables = {
        **{f"sources.{source}": 'preset = "trivore"\nauth = { kind = "none" }' for source, _ in routes.values()},
        **{f"destinations.{end}": f'kind = "forward"\nurl = "{address_of(end)}"' for _, end in routes.values()},
        **{f"routes.{name}": f'source = "{ends[0]}"\ndestination = "{ends[1]}"' for name, ends in routes.items()},
    }
    return parse_config("".join(f"[{name}]\n{table}\n{lines.get(name, '')}\n" for name, table in tables.items()))


def address_of(destination: str) -> str:
    """Return the URL of a destination of `forwarding`."""
    return f"https://{destination}.example.com/hook"


def moment(milliseconds: int) -> str:
    """Return the time so many milliseconds after the start of 2026."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"2026-01-01T{hour:02d}:{minute:02d}:{second:02d}.{rest:03d}Z"


def payload(entity: str = "u1", timestamp: str = "2026-01-01T00:00:00Z", **other: object) -> dict[str, object]:
    """Return the members of a webhook in Trivore's classic form."""
    return {"id": entity, "entityType": "USER", "eventType": "UPDATE", "timestamp": timestamp, **other}


def body(entity: str = "u1", timestamp: str = "2026-01-01T00:00:00Z", **other: object) -> bytes:
    """Return the webhook's body in bytes."""
    return json.dumps(payload(entity, timestamp, **other)).encode()


def mistake(text: str) -> str:
    """Return the mistakes found in this inbox.toml."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)
