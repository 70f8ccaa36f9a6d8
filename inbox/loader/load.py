"""Read `inbox.toml`, and report all mistakes at once, with their lines and the valid values."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, quote, urlsplit

import msgspec

from inbox.config.mistakes import LocatedMistake, Mistake, TomlText, build, mistakes
from inbox.config.model import Config, DatabaseSettings, Web
from inbox.config.values import DatabaseUrl, Secret
from inbox.errors import ConfigError
from inbox.loader.checks import check_links

VARIABLE = "INBOX_DATABASE_URL"
"""Environment variable that overrides `[database]`."""
_IN_THE_FILE, _OF_VIEWERS = "[database] url", "[web] viewer_url"
_SQLITE = re.compile(r"sqlite\b", re.IGNORECASE)


def resolve_database(settings: DatabaseSettings, environment: Mapping[str, str]) -> DatabaseSettings:
    """Return the settings with the resolved URL, including password and schema.

    `INBOX_DATABASE_URL` replaces the file's url and password, so that no password goes to another host. The file's
    schema stays: another schema would be another installation.

    Raises:
        ConfigError: a variable or file is missing or empty, there are two passwords, or a SQLite file has a password or
        a schema. The message has a line for each.
    """
    if given := environment.get(VARIABLE):
        return DatabaseSettings(url=_set_schema(reveal_url(given, VARIABLE, environment), settings.schema))
    url = _set_schema(reveal_url(settings.url, _IN_THE_FILE, environment), settings.schema)
    if settings.password is None:
        return msgspec.structs.replace(settings, url=url)
    if _SQLITE.match(url):
        raise ConfigError("[database] password: a SQLite file has none; remove it")
    _, given_password, in_query = _parts(url)
    if given_password or "password" in in_query:
        raise ConfigError("[database] password: the url has one already; remove one of the two")
    password = settings.password.reveal(environment, at="[database] password")
    return msgspec.structs.replace(settings, url=_add_to_query(url, "password", password))


def resolve_web(web: Web, database: DatabaseSettings, environment: Mapping[str, str]) -> Web:
    """Return `[web]` with the resolved URL for viewers; `database` is already resolved.

    Raises:
        ConfigError: the variable or file is missing or empty, or the URL leads to the same role or another database.
    """
    if web.viewer_url is None:
        return web
    url = reveal_url(web.viewer_url, _OF_VIEWERS, environment)
    if _SQLITE.match(url) or _SQLITE.match(database.url):
        raise ConfigError(f"{_OF_VIEWERS}: a SQLite file has no roles, so viewers need no URL of their own; remove it")
    url = _set_schema(url, database.schema)
    if url == database.url:
        raise ConfigError(f"{_OF_VIEWERS}: is the database's own url; give that of a role that can only read")
    if _parts(url)[0] != _parts(database.url)[0]:
        raise ConfigError(
            f"{_OF_VIEWERS}: leads to the database {_parts(url)[0]!r}, and the url to {_parts(database.url)[0]!r}"
        )
    return msgspec.structs.replace(web, viewer_url=url)


def _parts(url: str) -> tuple[str, str | None, frozenset[str]]:
    """Return the URL's database, password and query keys; nothing for a URL that the engine will reject."""
    try:
        parts = urlsplit(url)
        return parts.path.strip("/"), parts.password, frozenset(parse_qs(parts.query))
    except ValueError:
        return "", None, frozenset()


def _set_schema(url: DatabaseUrl, schema: str | None) -> DatabaseUrl:
    if schema is None:
        return url
    if _SQLITE.match(url):
        raise ConfigError("[database] schema: a SQLite file has no schemas; remove the key")
    return url if "schema" in _parts(url)[2] else _add_to_query(url, "schema", schema)


def _add_to_query(url: DatabaseUrl, key: str, value: str) -> DatabaseUrl:
    whole = f"{url}{'&' if '?' in url else '?'}{key}={quote(value, safe='')}"
    return DatabaseUrl(whole, url.origin, is_literal=url.is_literal)


def reveal_url(text: str, origin: str, environment: Mapping[str, str]) -> DatabaseUrl:
    """Return the URL in `text`, or the one that `text` refers to; errors call it `origin`."""
    try:
        secret = Secret.parse(text)
    except ValueError as error:
        raise ConfigError(f"{origin}: {error}") from None
    if not secret.names_a_place:
        return DatabaseUrl(text, origin, is_literal=origin in {_IN_THE_FILE, _OF_VIEWERS})
    value = secret.reveal(environment, at=origin).strip()
    return DatabaseUrl(value, f"{origin}: {secret.reference}", is_literal=False)


# --- the file


DEFAULT_FILE = "inbox.toml"
Made = TypeVar("Made")
_NAMED = ("sources", "apis", "destinations", "routes")
"""Sections of named tables. A mistake in one table leaves the others usable."""


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the active configuration: `INBOX_CONFIG`, or `inbox.toml` in the working directory."""
    return Path(environment.get("INBOX_CONFIG") or DEFAULT_FILE)


class ConfigFile(msgspec.Struct, frozen=True):
    """A configuration read from a file, with its mistakes."""

    source: TomlText
    sound: Config
    """All tables without mistakes. It may run only if `mistakes` is empty."""
    readable: Config
    """All readable tables, including those with mistakes."""
    mistakes: tuple[LocatedMistake, ...]

    @property
    def config(self) -> Config:
        """The whole configuration.

        Raises:
            ConfigError: it has mistakes. The message has a line for each.
        """
        _refuse(self.mistakes)
        return self.sound

    def make(self, make: Callable[[Config], Made]) -> Made:
        """Call `make` with the configuration, and return its result.

        Raises:
            ConfigError: the configuration has mistakes, or `make` finds some. The message has a line for each.
        """
        made: list[Made] = []
        _refuse((*self.mistakes, *self.further_mistakes(lambda config: made.append(make(config)))))
        return made[0]

    def further_mistakes(self, make: Callable[[Config], object]) -> list[LocatedMistake]:
        """List the mistakes that `make` finds in addition to those of the file."""
        found: list[LocatedMistake] = []
        known = {each.key for each in self.mistakes}
        for config in (self.sound, self.readable) if known else (self.sound,):
            try:
                make(config)
            except ConfigError as error:
                lines = (self.source.locate_line(line) for line in str(error).splitlines())
                found += [each for each in lines if config is self.sound or each.key not in known]
            except Exception:
                if config is self.sound:  # tables with mistakes may break anything
                    raise
        return found


def load_file(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> ConfigFile:
    """Read the configuration in `path`, or the active one, including its mistakes.

    `INBOX_DATABASE_URL` overrides its database url.

    Raises:
        ConfigError: the file is missing, or it is not TOML.
    """
    path = path or config_path(environment)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; write one with `inbox init`, or name another with INBOX_CONFIG=/path/to/{DEFAULT_FILE}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"can't read {path}: {error}") from None
    return load_text(text, str(path), environment)


def read_config(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration in `path`, or the active one. `INBOX_DATABASE_URL` overrides its database url.

    Raises:
        ConfigError: a missing file, invalid TOML, an unknown key, a wrong value, an unknown name, or an unresolved
        database url. The message has a line for each mistake.
    """
    return load_file(path, environment).config


def parse_config(text: str, where: str = DEFAULT_FILE, environment: Mapping[str, str] | None = None) -> Config:
    """Parse a configuration; `where` names the file in errors. Without an environment, references to secrets stay unresolved.

    Raises:
        ConfigError: as `read_config`.
    """
    return load_text(text, where, environment).config


def load_text(text: str, where: str = DEFAULT_FILE, environment: Mapping[str, str] | None = None) -> ConfigFile:
    """Parse a configuration, including its mistakes.

    Raises:
        ConfigError: it is not TOML.
    """
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    source = TomlText(where, text, tree)
    misshapen = [*mistakes(tree)]
    try:
        readable = build(_without(tree, misshapen))
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    names = {key: tables if isinstance(tables := tree.get(key), dict) else () for key in _NAMED}
    broken = [*check_links(readable, names)]
    found = [source.locate(each) for each in (*misshapen, *broken)]
    if environment is not None:
        try:
            readable = msgspec.structs.replace(readable, database=resolve_database(readable.database, environment))
            readable = msgspec.structs.replace(readable, web=resolve_web(readable.web, readable.database, environment))
        except ConfigError as error:
            found += [source.locate_line(line) for line in str(error).splitlines()]
    return ConfigFile(source, _sound_part(readable, broken), _sound_part(readable, ()), tuple(found))


def _refuse(found: Sequence[LocatedMistake]) -> None:
    if found:
        raise ConfigError("\n".join(dict.fromkeys(map(str, found))))


def _without(tree: Mapping[str, Any], misshapen: Sequence[Mistake]) -> dict[str, Any]:
    """Return the tree without the tables that have these mistakes."""
    kept = {key: dict(value) if key in _NAMED and isinstance(value, dict) else value for key, value in tree.items()}
    for each in misshapen:
        section, *inner = each.path
        if section in _NAMED and inner:
            kept.get(section, {}).pop(inner[0], None)
        else:
            kept.pop(section, None)
    return kept


def _sound_part(config: Config, broken: Sequence[Mistake]) -> Config:
    """Return the configuration without the tables in `broken` and without tables that refer to missing ones."""
    wrong = {each.path[:2] for each in broken}
    tables = {
        section: {name: table for name, table in getattr(config, section).items() if (section, name) not in wrong}
        for section in _NAMED
    }
    apis, destinations = tables["apis"], tables["destinations"]
    tables["routes"] = {
        name: route
        for name, route in tables["routes"].items()
        if route.destination in destinations and (route.api is None or route.api in apis)
    }
    tables["sources"] = {
        name: msgspec.structs.replace(source, sweeps=[each for each in source.sweeps if each.api in apis])
        for name, source in tables["sources"].items()
    }
    return msgspec.structs.replace(config, **tables)
