"""Sends one webhook as a source's provider would, signed with that source's own secret."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime

import msgspec
import requests

from inbox.config.mistakes import nearest
from inbox.config.model import Config
from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, NoAuth, Signature, Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.sources import PRESETS
from inbox.sources.base import Preset, Sample
from inbox.sources.signing import Message, sign, sorted_params

_TIMEOUT_SECONDS = 10
_JSON = "application/json"


class SendResult(msgspec.Struct, frozen=True):
    """The receiver's answer."""

    status: int
    body: str

    @property
    def accepted(self) -> bool:
        """True when the webhook is stored."""
        return self.status in {200, 202, 204}


def sample_of(config: Config, name: str, *, entity_type: str, entity_id: str, event_type: str, at: datetime) -> Sample:
    """Make a webhook about an entity, as the source's provider would write it.

    Raises:
        ConfigError: there is no such source, or its preset has none.
    """
    given = _source(config, name).preset
    preset = PRESETS[given]
    if preset.sample is None:
        raise ConfigError(f"there is no sample of preset {given!r}; give a body of your own with --body")
    return preset.sample(entity_type, entity_id, event_type, at)


def send(config: Config, name: str, url: str, sample: Sample, at: datetime) -> SendResult:
    """Send `sample` to the receiver at `url`, with what proves that it comes from the source.

    Raises:
        ConfigError: there is no such source, none of its secrets is valid at `at`, its sender alone can sign, or nobody
            listens at `url`.
    """
    source = _source(config, name)
    path, secret_headers = _shared_secret(source, at)
    headers = {"Content-Type": _JSON, **sample.headers}
    preset = PRESETS[source.preset]
    if preset.signer is not None and source.secrets is not None:
        sample, signed = preset.signer(sample, _valid(source.secrets, source, at), at), {}
    else:
        signed = _signed(source, preset, sample, headers, at)
    try:
        with requests.Session() as session:
            session.trust_env = (
                False  # a proxy of the environment would see the secret, as a redirect would take it elsewhere
            )
            reply = session.post(
                f"{url.rstrip('/')}/webhooks/{name}{path}",
                data=sample.body,
                headers={**headers, **secret_headers, **signed},
                timeout=_TIMEOUT_SECONDS,
                allow_redirects=False,
            )
    # the text of an exception repeats the path, and the source's token may stand in it
    except ValueError:
        raise ConfigError(f"{url} is no URL of a receiver; give --url such as http://127.0.0.1:8000") from None
    except requests.RequestException as error:
        raise ConfigError(
            f"nobody answers at {url} ({type(error).__name__}); start the receiver with `inbox serve`, or give --url"
        ) from None
    return SendResult(reply.status_code, reply.content.decode("utf-8", "replace"))


def _source(config: Config, name: str) -> Source:
    source = config.sources.get(name)
    if source is None:
        raise ConfigError(f"there is no [sources.{name}]; {nearest(name, config.sources)}")
    return source


def _shared_secret(source: Source, at: datetime) -> tuple[str, dict[str, str]]:
    """Return the end of the URL's path, and the headers that carry a shared secret."""
    match source.auth:
        case BasicAuth(user=user, secrets=secrets):
            credentials = base64.b64encode(f"{user}:{_valid(secrets, source, at)}".encode()).decode()
            return "", {"Authorization": f"Basic {credentials}"}
        case BearerAuth(secrets=secrets):
            return "", {"Authorization": f"Bearer {_valid(secrets, source, at)}"}
        case HeaderAuth(name=header, secrets=secrets):
            return "", {header: _valid(secrets, source, at)}
        case UrlTokenAuth(secrets=secrets):
            return f"/{_valid(secrets, source, at)}", {}
        case NoAuth() | None:
            return "", {}


def _signed(source: Source, preset: Preset, sample: Sample, headers: Mapping[str, str], at: datetime) -> dict[str, str]:
    if preset.prover is not None and getattr(source, preset.proves_by) is not None:
        raise ConfigError(f"[sources.{source.name}] has no shared secret to sign with: only its sender can sign")
    if source.secrets is None:
        return {}
    signature = source.signature or preset.signatures[0]
    message = Message(
        id=_message_id(signature, sample).encode(),
        url=(source.public_url or "").encode(),
        body=sample.body,
        sorted_params=sorted_params(headers["Content-Type"], sample.body),
    )
    return sign(signature, _valid(source.secrets, source, at), message, at)


def _message_id(signature: Signature, sample: Sample) -> str:
    """Return the id that the signature covers: the sample's, or one of its headers, or else one made of its body."""
    given = (value for name, value in sample.headers.items() if name.lower() == signature.id_header.lower())
    return sample.message_id or next(given, "") or f"sample-{hashlib.sha256(sample.body).hexdigest()[:32]}"


def _valid(secrets: list[Secret], source: Source, at: datetime) -> str:
    for secret in secrets:
        if secret.valid_at(at):
            return secret.reveal()
    raise ConfigError(f"[sources.{source.name}] none of its secrets is valid at {at.isoformat()}")
