"""Resolves the database's URL: from the environment, a variable, a file or the configuration, with password and schema."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from inbox.config.model import DatabaseSettings
from inbox.config.types import DatabaseUrl, Secret
from inbox.config.web import Web
from inbox.errors import ConfigError

VARIABLE = "INBOX_DATABASE_URL"
"""Environment variable that overrides `[database]`."""
_IN_THE_FILE, _OF_VIEWERS = "[database] url", "[web] viewer_url"
_SQLITE = re.compile(r"sqlite\b", re.IGNORECASE)


def resolved_database(settings: DatabaseSettings, environment: Mapping[str, str]) -> DatabaseSettings:
    """Return the settings with the URL itself, password and schema included, instead of its place.

    `INBOX_DATABASE_URL` replaces the url, and no password of the file goes to its host. The schema of the file stays: the
    tables of another one are another installation.

    Raises:
        ConfigError: a variable or file is missing or empty, or there are two passwords, or a SQLite file has a password or
            a schema. The text has a line for each.
    """
    if given := environment.get(VARIABLE):
        return DatabaseSettings(url=_in_schema(revealed_url(given, VARIABLE, environment), settings.schema))
    url = _in_schema(revealed_url(settings.url, _IN_THE_FILE, environment), settings.schema)
    if settings.password is None:
        return msgspec.structs.replace(settings, url=url)
    if _SQLITE.match(url):
        raise ConfigError("[database] password: a SQLite file has none; remove it")
    if _has_password(url):
        raise ConfigError("[database] password: the url has one already; remove one of both")
    password = settings.password.reveal(environment, at="[database] password")
    return msgspec.structs.replace(settings, url=_with(url, "password", password))


def resolved_web(web: Web, database: DatabaseSettings, environment: Mapping[str, str]) -> Web:
    """Return `[web]` with the URL of viewers itself instead of its place. `database` has its own URL already.

    Raises:
        ConfigError: its variable or file is missing or empty, or it gives viewers no other rights or another database.
    """
    if web.viewer_url is None:
        return web
    url = revealed_url(web.viewer_url, _OF_VIEWERS, environment)
    if _SQLITE.match(url) or _SQLITE.match(database.url):
        raise ConfigError(f"{_OF_VIEWERS}: a SQLite file has no roles, and viewers have no URL of their own; remove it")
    url = _in_schema(url, database.schema)
    if url == database.url:
        raise ConfigError(f"{_OF_VIEWERS}: is the database's own url; give that of a role that can only read")
    if _name(url) != _name(database.url):
        raise ConfigError(
            f"{_OF_VIEWERS}: leads to the database {_name(url)!r}, and the url to {_name(database.url)!r}"
        )
    return msgspec.structs.replace(web, viewer_url=url)


def _name(url: str) -> str | None:
    try:
        return urlsplit(url).path.strip("/")
    except ValueError:  # the engine says what is wrong with it
        return None


def _in_schema(url: DatabaseUrl, schema: str | None) -> DatabaseUrl:
    if schema is None:
        return url
    if _SQLITE.match(url):
        raise ConfigError(
            "[database] schema: a SQLite file has no schemas, its tables share it with nobody; remove the key"
        )
    return url if _names_schema(url) else _with(url, "schema", schema)


def _with(url: DatabaseUrl, key: str, value: str) -> DatabaseUrl:
    whole = f"{url}{'&' if '?' in url else '?'}{key}={quote(value, safe='')}"
    return DatabaseUrl(whole, url.origin, is_literal=url.is_literal)


def revealed_url(text: str, origin: str, environment: Mapping[str, str]) -> DatabaseUrl:
    """Read a URL from the place that it names, if it names one; errors call it `origin`."""
    try:
        secret = Secret.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if not secret.names_a_place:
        return DatabaseUrl(text, origin, is_literal=origin in {_IN_THE_FILE, _OF_VIEWERS})
    value = secret.reveal(environment, at=origin).strip()
    return DatabaseUrl(value, f"{origin}: {secret.reference}", is_literal=False)


def _names_schema(url: str) -> bool:
    try:
        return "schema" in parse_qs(urlsplit(url).query)
    except ValueError:  # as below
        return True


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:  # the engine says what is wrong with it
        return False
