"""Reads `inbox.toml`; each mistake is reported with its line and the valid values."""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path

import msgspec

from inbox.config.mistakes import Mistake, build, mistakes
from inbox.config.model import Config, DatabaseSettings
from inbox.errors import ConfigError
from inbox.loader.cross_checks import broken_links

DEFAULT_FILE = "inbox.toml"

_HEADER = re.compile(r"\s*\[{1,2}(?P<keys>[^\[\]]+)\]{1,2}\s*(#.*)?")
_ASSIGNMENT = re.compile(r"""\s*(?P<keys>(?:[\w.\s-]|"[^"]*"|'[^']*')+?)\s*=""")


def config_path(environment: Mapping[str, str] = os.environ) -> Path:
    """Return the path of the active configuration: `INBOX_CONFIG`, or else `inbox.toml` in the working directory."""
    return Path(environment.get("INBOX_CONFIG") or DEFAULT_FILE)


def read_config(path: Path | None = None, environment: Mapping[str, str] = os.environ) -> Config:
    """Read the configuration in `path`, or the active one. `INBOX_DATABASE_URL` overrides its database url.

    Raises:
        ConfigError: no such file, not TOML, an unknown key, a wrong value, or an unknown name. The text has a line for
            each mistake.
    """
    path = path or config_path(environment)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(
            f"there is no {path}; write one, or name another with INBOX_CONFIG=/path/to/{DEFAULT_FILE}"
        ) from None
    except (OSError, ValueError) as error:  # ValueError: not UTF-8
        raise ConfigError(f"can't read {path}: {error}") from None
    return parse_config(text, str(path), environment.get("INBOX_DATABASE_URL") or None)


def parse_config(text: str, where: str = DEFAULT_FILE, database_url: str | None = None) -> Config:
    """Parse a configuration; `where` names the file in errors, `database_url` overrides the one in it.

    Raises:
        ConfigError: as `read_config`.
    """
    try:
        tree = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ConfigError(f"{where} is not TOML: {error}") from None
    _refuse(mistakes(tree), text, where)
    try:
        config = build(tree)
    except msgspec.ValidationError as error:
        raise ConfigError(f"{where}: {error}") from None
    _refuse(broken_links(config), text, where)
    if database_url:
        config = msgspec.structs.replace(config, database=DatabaseSettings(url=database_url))
    return config


def _refuse(found: Iterable[Mistake], text: str, where: str) -> None:
    lines = [f"{_place(text, where, mistake.path)}: {mistake.text}" for mistake in found]
    if lines:
        raise ConfigError("\n".join(lines))


def _place(text: str, where: str, path: tuple[str, ...]) -> str:
    """Locate a key, such as `inbox.toml:12: [sources.trivore] preset`, with the table as the file writes it."""
    line, table = _find(text, path)
    rest = _dotted(path[len(table) :])
    shown = " ".join(part for part in (f"[{_dotted(table)}]" if table else "", rest) if part)
    return f"{where}:{line}: {shown}" if line else f"{where}: {shown}"


def _find(text: str, path: tuple[str, ...]) -> tuple[int | None, tuple[str, ...]]:
    """Find the line, and its table, that leads farthest down `path`.

    A table header inside a multi-line string misleads this plain scan. A wrong line in an error is acceptable.
    """
    best: tuple[int, int | None, tuple[str, ...]] = (0, None, path[:-1])
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.splitlines(), start=1):
        if header := _HEADER.fullmatch(line):
            table = here = _keys(header["keys"])
        elif assignment := _ASSIGNMENT.match(line):
            here = table + _keys(assignment["keys"])
        else:
            continue
        if len(here) > best[0] and here == path[: len(here)]:
            best = (len(here), number, table)
    return best[1], best[2]


def _keys(dotted: str) -> tuple[str, ...]:
    """Split `a."b.c".d` into its parts, with the TOML parser itself."""
    try:
        tree = tomllib.loads(f"{dotted} = 0")
    except tomllib.TOMLDecodeError:
        return ()
    keys: list[str] = []
    inner: object = tree
    while isinstance(inner, dict):
        key, inner = next(iter(inner.items()))
        keys.append(key)
    return tuple(keys)


def _dotted(path: tuple[str, ...]) -> str:
    """Join a path as `auth.secrets[0]`; a key that is not bare is quoted, as in the file."""
    parts = (part if re.fullmatch(r"[\w-]+|\[\d+\]", part, re.ASCII) else repr(part) for part in path)
    return ".".join(parts).replace(".[", "[")
