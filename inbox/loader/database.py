"""Resolves the database's URL: from the environment, a variable, a file or the configuration, with its password."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from inbox.config.model import DatabaseSettings
from inbox.config.types import DatabaseUrl, Secret
from inbox.errors import ConfigError

VARIABLE = "INBOX_DATABASE_URL"
"""Environment variable that overrides `[database]`."""
_IN_THE_FILE = "[database] url"
_SQLITE = re.compile(r"sqlite\b", re.IGNORECASE)


def resolved_database(settings: DatabaseSettings, environment: Mapping[str, str]) -> DatabaseSettings:
    """Return the settings with the URL itself, password included, instead of its place.

    `INBOX_DATABASE_URL` replaces the url, and no password of the file goes to its host.

    Raises:
        ConfigError: a variable or file is missing or empty, or there are two passwords. The text has a line for each.
    """
    if given := environment.get(VARIABLE):
        url = revealed_url(given, VARIABLE, environment)
        return DatabaseSettings(url=url)
    url = revealed_url(settings.url, _IN_THE_FILE, environment)
    if settings.password is None:
        return msgspec.structs.replace(settings, url=url)
    if _SQLITE.match(url):
        raise ConfigError("[database] password: a SQLite file has none; remove it")
    if _has_password(url):
        raise ConfigError("[database] password: the url has one already; remove one of both")
    password = settings.password.reveal(environment, at="[database] password")
    whole = f"{url}{'&' if '?' in url else '?'}password={quote(password, safe='')}"
    return msgspec.structs.replace(settings, url=DatabaseUrl(whole, url.origin, is_literal=url.is_literal))


def revealed_url(text: str, origin: str, environment: Mapping[str, str]) -> DatabaseUrl:
    """Read a URL from the place that it names, if it names one; errors call it `origin`."""
    try:
        secret = Secret.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if not secret.names_a_place:
        return DatabaseUrl(text, origin, is_literal=origin == _IN_THE_FILE)
    value = secret.reveal(environment, at=origin).strip()
    return DatabaseUrl(value, f"{origin}: {secret.reference}", is_literal=False)


def _has_password(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return bool(parts.password) or "password" in parse_qs(parts.query)
    except ValueError:  # the engine says what is wrong with it
        return False
