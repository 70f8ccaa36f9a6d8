"""Sends one webhook as a source would, with that source's own secret: to try a configuration out."""

from __future__ import annotations

import base64
import http.client
import json
import urllib.error
import urllib.request
from datetime import datetime

import msgspec

from inbox.config import BasicAuth, BearerAuth, Config, HeaderAuth, NoAuth, Secret, Source, UrlTokenAuth
from inbox.config_shape import nearest
from inbox.errors import ConfigError

ACCEPTED = 200
_TIMEOUT_SECONDS = 10


class Answer(msgspec.Struct, frozen=True):
    """What the receiver said."""

    status: int
    body: str


def send(
    config: Config, name: str, url: str, *, entity_type: str, entity_id: str, event_type: str, at: datetime
) -> Answer:
    """Send `{"id", "entityType", "eventType", "timestamp"}` to the receiver at `url`.

    Raises:
        ConfigError: there is no such source, none of its secrets is valid at `at`, or nobody listens at `url`.
    """
    source = config.sources.get(name)
    if source is None:
        raise ConfigError(f"there is no [sources.{name}]; {nearest(name, config.sources)}")
    path, headers = _proof(source, at)
    payload = {
        "id": entity_id,
        "entityType": entity_type,
        "eventType": event_type,
        "timestamp": at.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
    }
    request = urllib.request.Request(  # noqa: S310  # the operator names the URL
        f"{url.rstrip('/')}/webhooks/{name}{path}",
        data=json.dumps(payload).encode(),
        headers={"Content-Type": "application/json", **headers},
        method="POST",
    )
    try:
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310  # likewise
            return Answer(answer.status, answer.read().decode())
    except urllib.error.HTTPError as error:
        with error:
            return Answer(error.code, error.read().decode("utf-8", "replace"))
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise ConfigError(
            f"nobody answers at {url} ({error}); start the receiver with `inbox serve`, or give --url"
        ) from None


def _proof(source: Source, at: datetime) -> tuple[str, dict[str, str]]:
    """What goes behind the path, and the headers."""
    match source.auth:
        case NoAuth():
            return "", {}
        case BasicAuth(user=user, secrets=secrets):
            credentials = base64.b64encode(f"{user}:{_valid(secrets, source, at)}".encode()).decode()
            return "", {"Authorization": f"Basic {credentials}"}
        case BearerAuth(secrets=secrets):
            return "", {"Authorization": f"Bearer {_valid(secrets, source, at)}"}
        case HeaderAuth(name=header, secrets=secrets):
            return "", {header: _valid(secrets, source, at)}
        case UrlTokenAuth(secrets=secrets):
            return f"/{_valid(secrets, source, at)}", {}


def _valid(secrets: list[Secret], source: Source, at: datetime) -> str:
    for secret in secrets:
        if secret.valid_at(at):
            return secret.reveal()
    raise ConfigError(f"[sources.{source.name}] none of its secrets is valid at {at.isoformat()}")
