"""Sends a webhook as a source's provider does, signed with the source's secret."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime

import urllib3
from urllib3.exceptions import HTTPError

from inbox.config.sources import BasicAuth, BearerAuth, HeaderAuth, NoAuth, Signature, Source, UrlTokenAuth
from inbox.config.values import Secret
from inbox.errors import ConfigError
from inbox.sources import PRESETS
from inbox.sources.base import Preset, Sample
from inbox.sources.signing import Message, sign, sort_params

_TIMEOUT_SECONDS = 10
_JSON = "application/json"


def make_sample(source: Source, entity: tuple[str, str], event_type: str, at: datetime) -> Sample:
    """Make a webhook about an entity, given by type and id, in the format of the source's provider.

    Raises:
        ConfigError: the preset has no sample.
    """
    preset = PRESETS[source.preset]
    if preset.sample is None:
        raise ConfigError(f"there is no sample of preset {source.preset!r}; give a body of your own with --body")
    return preset.sample(*entity, event_type, at)


def send(source: Source, url: str, sample: Sample, at: datetime) -> urllib3.BaseHTTPResponse:
    """Send `sample` to the receiver at `url`, with the source's credentials.

    Raises:
        ConfigError: no secret is valid at `at`, only the provider can sign, or the request can't be sent to `url`.
    """
    path, secret_headers = _place_secret(source, at)
    headers = urllib3.HTTPHeaderDict({"Content-Type": _JSON})
    headers.update(sample.headers)
    preset = PRESETS[source.preset]
    if preset.signer is not None and source.secrets is not None:
        sample, signed = preset.signer(sample, _valid(source.secrets, source, at), at), {}
    else:
        signed = _sign(source, preset, sample, headers, at)
    headers.update({**secret_headers, **signed})
    if not url.startswith(("http://", "https://")):
        raise ConfigError(f"{url} is not a URL of a receiver; give --url such as http://127.0.0.1:8000")
    try:
        # urllib3 alone ignores proxies of the environment, and follows no redirect: either would receive the secret
        return urllib3.request(
            "POST",
            f"{url.rstrip('/')}/webhooks/{source.name}{path}",
            body=sample.body,
            headers=headers,
            timeout=_TIMEOUT_SECONDS,
            redirect=False,
            retries=False,
        )
    # the text of an exception may repeat the path or a header, and with it the source's secret
    except ValueError as error:  # also raised for an invalid URL
        raise ConfigError(
            f"the request can't be sent ({type(error).__name__}): --url must be a URL, and headers and the secret one line of"
            " Latin-1 text"
        ) from None
    except HTTPError as error:
        raise ConfigError(
            f"no answer from {url} ({type(error).__name__}); start the receiver with `inbox serve`, or give --url"
        ) from None


def _place_secret(source: Source, at: datetime) -> tuple[str, dict[str, str]]:
    """Return the suffix of the URL's path, and the headers with a shared secret."""
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


def _sign(source: Source, preset: Preset, sample: Sample, headers: Mapping[str, str], at: datetime) -> dict[str, str]:
    if preset.prover is not None and getattr(source, preset.proves_by) is not None:
        raise ConfigError(f"[sources.{source.name}] has no shared secret to sign with: only its provider can sign")
    if source.secrets is None:
        return {}
    signature = source.signature or preset.signatures[0]
    message = Message(
        id=_message_id(signature, sample).encode(),
        url=(source.public_url or "").encode(),
        body=sample.body,
        sorted_params=sort_params(headers["Content-Type"], sample.body),
    )
    return sign(signature, _valid(source.secrets, source, at), message, at)


def _message_id(signature: Signature, sample: Sample) -> str:
    """Return the id that the signature covers: the sample's, its id header, or a hash of its body."""
    given = (value for name, value in sample.headers.items() if name.lower() == signature.id_header.lower())
    return sample.message_id or next(given, "") or f"sample-{hashlib.sha256(sample.body).hexdigest()[:32]}"


def _valid(secrets: list[Secret], source: Source, at: datetime) -> str:
    for secret in secrets:
        if secret.valid_at(at):
            return secret.reveal()
    raise ConfigError(f"[sources.{source.name}] none of its secrets is valid at {at.isoformat()}")
