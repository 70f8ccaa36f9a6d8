"""Webhooks as the tests' one source sends them, and the configuration that receives and relays them, with its mistakes."""

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
"""A route whose sync has no `map` yet; `url` stands for both services."""


def config_text(
    database_url: str,
    downstream: str = "http://127.0.0.1:9/",
    *,
    schedule: tuple[str, ...] = ("5s", "30s"),
    concurrency: int = 8,
) -> str:
    """An inbox.toml with one source that is routed to one forward destination, strictly in order."""
    return _CONFIG.format(
        database=json.dumps(database_url),
        token=json.dumps(TOKEN),
        downstream=json.dumps(downstream),
        schedule=json.dumps(list(schedule)),
        concurrency=concurrency,
    )


def a_config(database_url: str) -> Config:
    """The same, read."""
    return parse_config(config_text(database_url))


def forwarding(routes: Mapping[str, tuple[str, str]], lines: Mapping[str, str]) -> Config:
    """A configuration of routes, each from its source to its destination; `lines` are further ones of the tables of these names."""
    tables = {
        **{f"sources.{source}": 'preset = "trivore"\nauth = { kind = "none" }' for source, _ in routes.values()},
        **{f"destinations.{end}": f'kind = "forward"\nurl = "{address_of(end)}"' for _, end in routes.values()},
        **{f"routes.{name}": f'source = "{ends[0]}"\ndestination = "{ends[1]}"' for name, ends in routes.items()},
    }
    return parse_config("".join(f"[{name}]\n{table}\n{lines.get(name, '')}\n" for name, table in tables.items()))


def address_of(destination: str) -> str:
    """The URL of a destination there."""
    return f"https://{destination}.example.com/hook"


def moment(milliseconds: int) -> str:
    """A time of an event, so many milliseconds after the start of 2026."""
    seconds, rest = divmod(milliseconds, 1000)
    minutes, second = divmod(seconds, 60)
    hour, minute = divmod(minutes, 60)
    return f"2026-01-01T{hour:02d}:{minute:02d}:{second:02d}.{rest:03d}Z"


def payload(entity: str = "u1", timestamp: str = "2026-01-01T00:00:00Z", **other: object) -> dict[str, object]:
    """The members of a webhook in Trivore's classic form."""
    return {"id": entity, "entityType": "USER", "eventType": "UPDATE", "timestamp": timestamp, **other}


def body(entity: str = "u1", timestamp: str = "2026-01-01T00:00:00Z", **other: object) -> bytes:
    """Its bytes."""
    return json.dumps(payload(entity, timestamp, **other)).encode()


def mistake(text: str) -> str:
    """Give the mistakes that the reader finds in this inbox.toml."""
    with pytest.raises(ConfigError) as caught:
        parse_config(text)
    return str(caught.value)
