"""Startup warnings about unsigned webhooks, and about files with secrets or webhooks that other users may read."""

from __future__ import annotations

import re
import shlex
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import msgspec

from inbox.config.model import Config, ForwardDestination
from inbox.config.values import Secret
from inbox.db.dialect import SQLITE
from inbox.db.engine import parse_url
from inbox.sources import PRESETS

_NAMES = frozenset({"user", "client_id"})
"""Keys typed as secrets whose values aren't confidential."""
_LIKE_A_TOKEN = re.compile(r"[\w-]{20,}")


def exposure_warnings(path: Path, config: Config) -> Iterator[str]:
    """Yield warnings about sources that accept unsigned requests, and about files that other users may read or change.

    Raises:
        ConfigError: the database's URL can't be read.
    """
    for name, source in config.sources.items():
        if source.unsigned:
            title = PRESETS[source.preset].title
            yield (
                f"[sources.{name}] unsigned: {title} signs its webhooks, and this source accepts unsigned ones;"
                ' write secrets = ["env:NAME"] instead'
            )
    held = [*literal_secrets(config)]
    if held and _is_open_to_others(path):
        more = f" and {len(held) - 1} more" if len(held) > 1 else ""
        yield (
            f"{path} holds secrets ({held[0]}{more}), and every user of this machine may read it: take that away with"
            f' `{_chmod_command(path)}`, or write "env:NAME" or "file:/path"'
        )
    elif _reaches_others(path, stat.S_IWOTH):
        yield f"every user of this machine may write to {path}: take that away with `{_chmod_command(path)}`"
    for secret in filter(None, (config.web.users, config.web.tokens)):
        kind, _, place = secret.reference.partition(":")
        if kind == "file" and _is_open_to_others(Path(place)):
            yield (
                f"{place} says who may use the operator's page, and every user of this machine may read it: take that away"
                f" with `{_chmod_command(place)}`"
            )
    url = parse_url(config.database.url)
    if url.get_backend_name() == SQLITE and _is_open_to_others(Path(url.database or "")):
        files = [f"{url.database}{suffix}" for suffix in ("", "-wal", "-shm")]
        yield (
            f"{url.database} holds webhooks, and every user of this machine may read it: stop both programs, then"
            f" `{_chmod_command(*files)}`"
        )


def _chmod_command(*paths: object) -> str:
    """Return the command that removes other users' access to these files."""
    return shlex.join(["chmod", "o=", *map(str, paths)])


def literal_secrets(config: Config) -> Iterator[str]:
    """Yield the keys of secrets that the file itself contains, then those of URLs with passwords.

    Raises:
        ConfigError: a URL can't be read.
    """
    for key, value in walk_values(config):
        name = key.rpartition(".")[2]
        if isinstance(value, Secret):
            is_literal = not value.names_a_place and name not in _NAMES
        else:
            is_literal = isinstance(value, str) and name == "proxy" and "@" in value
        if is_literal:
            yield key
    database = config.database.url if config.database.password is None else None
    for key, url in (("database.url", database), ("web.viewer_url", config.web.viewer_url)):
        if url is not None and url.is_literal and parse_url(url).password:
            yield key


def walk_values(value: object, key: str = "") -> Iterator[tuple[str, object]]:
    """Yield every nested value with its key, except destination URLs that clearly hold no secret."""
    yield key, value
    for name, inner in _walk_inside(value):
        yield from walk_values(inner, name if not key else f"{key}{name}" if name.startswith("[") else f"{key}.{name}")


def _walk_inside(value: object) -> Iterator[tuple[str, object]]:
    match value:
        case msgspec.Struct():
            is_plain_url = isinstance(value, ForwardDestination) and _is_plain(value.url)
            names = (name for name in value.__struct_fields__ if not (is_plain_url and name == "url"))
            yield from ((name, getattr(value, name)) for name in names)
        case dict():
            yield from ((str(name), inner) for name, inner in value.items())
        case list():
            yield from ((f"[{number}]", inner) for number, inner in enumerate(value))


def _is_plain(url: Secret) -> bool:
    return not url.names_a_place and not holds_a_token(url.reference)


def holds_a_token(url: str) -> bool:
    """Return whether a destination's URL may contain a token, or can't be parsed."""
    try:
        parts = urlsplit(url)
    except ValueError:
        return True
    return "@" in parts.netloc or bool(parts.query) or _LIKE_A_TOKEN.search(parts.path) is not None


def _is_open_to_others(path: Path) -> bool:
    return _reaches_others(path, stat.S_IROTH | stat.S_IWOTH)


def _reaches_others(path: Path, bits: int) -> bool:
    """Return whether other users, outside the file's group, can reach the file and have one of these permissions."""
    try:
        whole = path.resolve(strict=True)
        mode = whole.stat().st_mode
        reach = all(folder.stat().st_mode & stat.S_IXOTH for folder in whole.parents)
    except (OSError, ValueError, RuntimeError):  # a NUL in the name; a loop of links, before Python 3.13
        return False
    return reach and bool(mode & bits)
