"""Proves that a request comes from its source, by a secret that only the two of them know.

Every secret of a source is tried and the result comes at the end, so that the time taken tells neither which secret was
close nor whether there is such a source. What a secret reveals is kept as a SHA-256 digest only: digests compare in
constant time whatever the secrets' lengths are, and there is nothing to be shown by mistake.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime

from inbox.config import BasicAuth, BearerAuth, HeaderAuth, InboundAuth, NoAuth, Secret, Source, UrlTokenAuth
from inbox.errors import ConfigError, NotAuthenticated
from inbox.event import RawRequest

Presented = Callable[[RawRequest], bytes]

REFUSAL = "unknown source, or the request does not prove to come from it; check the URL and the secret"
"""One text for all: the answer must not tell which."""


class Verifier:
    """Knows one source's secrets as they were when it was made."""

    __slots__ = ("_open", "_presented", "_secrets")

    def __init__(self, auth: InboundAuth, environment: Mapping[str, str] = os.environ) -> None:
        """Reveal the secrets of `auth`.

        Raises:
            ConfigError: a variable or file that a secret is kept in is not there, or is empty. The text has a line for
                each.
        """
        self._open = isinstance(auth, NoAuth)
        self._presented: Presented = _way_in(auth)
        self._secrets: tuple[tuple[Secret, bytes], ...] = ()
        if not isinstance(auth, NoAuth):
            prefix = f"{auth.user}:" if isinstance(auth, BasicAuth) else ""
            self._secrets = tuple(
                (secret, _digest(prefix + revealed))
                for secret, revealed in zip(auth.secrets, _revealed(auth.secrets, environment), strict=True)
            )

    def verify(self, raw: RawRequest, now: datetime) -> None:
        """Return if the request presents a secret that is valid at `now`, or if the source asks for none.

        Raises:
            NotAuthenticated: it does not. Nothing else is raised, whatever the headers hold.
        """
        presented = hashlib.sha256(self._presented(raw)).digest()
        proven = self._open
        for secret, digest in self._secrets:
            proven |= hmac.compare_digest(presented, digest) & secret.valid_at(now)
        if not proven:
            raise NotAuthenticated(REFUSAL)


class UnknownSource(Verifier):
    """Stands in for a source that does not exist: does the same work as for a bearer token, and always refuses."""

    __slots__ = ()

    def __init__(self) -> None:
        super().__init__(BearerAuth(secrets=[]))
        self._secrets = (
            (Secret("nobody's"), bytes(hashlib.sha256().digest_size)),
        )  # no text is known to hash to zeros


def verifier_of(source: Source, environment: Mapping[str, str] = os.environ) -> Verifier:
    """The verifier of a source.

    Raises:
        ConfigError: a secret can't be revealed. Each line of the text names the source.
    """
    try:
        return Verifier(source.auth, environment)
    except ConfigError as error:
        mistakes = str(error).splitlines()
        raise ConfigError("\n".join(f"[sources.{source.name}] auth: {mistake}" for mistake in mistakes)) from None


def _revealed(secrets: Sequence[Secret], environment: Mapping[str, str]) -> list[str]:
    revealed, mistakes = [], []
    for secret in secrets:
        try:
            revealed.append(secret.reveal(environment))
        except ConfigError as error:
            mistakes.append(str(error))
    if mistakes:
        raise ConfigError("\n".join(mistakes))
    return revealed


def _digest(secret: str) -> bytes:
    # A variable of the environment may hold bytes that are not UTF-8; Python shows them as lone surrogates.
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _way_in(auth: InboundAuth) -> Presented:
    """What the request presents where this kind of authentication has its secret; empty when there is nothing."""
    match auth:
        case BasicAuth():
            return _basic_credentials
        case BearerAuth():
            return lambda raw: _header_bytes(_credentials(raw, "bearer"))
        case HeaderAuth():
            name = auth.name.lower()
            return lambda raw: _header_bytes(raw.headers.get(name, ""))
        case UrlTokenAuth():
            return lambda raw: (raw.url_token or "").encode("utf-8", "surrogatepass")
        case NoAuth():
            return lambda _: b""


def _basic_credentials(raw: RawRequest) -> bytes:
    try:
        return base64.b64decode(_credentials(raw, "basic"), validate=True)
    except ValueError:  # not base64, or not even ASCII
        return b""


def _credentials(raw: RawRequest, scheme: str) -> str:
    given, _, credentials = raw.headers.get("authorization", "").partition(" ")
    return credentials.strip(" ") if given.lower() == scheme else ""


def _header_bytes(value: str) -> bytes:
    """The bytes of a header: servers hand them on as Latin-1, whatever they were (PEP 3333, ASGI in Falcon)."""
    try:
        return value.encode("latin-1")
    except UnicodeEncodeError:
        return value.encode("utf-8", "surrogatepass")
