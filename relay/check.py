"""Checks a configuration as the receiver, the relay and the page do at startup, and calls the systems in it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, Literal

import msgspec
from cryptography import x509
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.config.mistakes import LocatedMistake
from inbox.config.model import Config, Destination, Route, SyncDestination
from inbox.config.values import Secret
from inbox.db import engine, guarantees, migrate
from inbox.db.dialect import SQLITE, trouble_text
from inbox.errors import ConfigError, collect_config_errors
from inbox.exposure import exposure_warnings, literal_secrets, walk_values
from inbox.loader.load import ConfigFile
from inbox.receiver.app import make_endpoints, require_known_proxies
from relay.accounts import check_files
from relay.daemon.generation import alert_client, prepare
from relay.destinations import KINDS
from relay.destinations.base import Clients, without_lease
from relay.http.client import HttpClient, Request
from relay.sweep.run import CompiledSweep

_MOST_AT_ONCE = 16
_LARGEST_FILE = 4_000_000
_QUESTION = Request("fetch", "OPTIONS", {"Accept": "*/*"})
"""A request with a safe method (RFC 9110 §9.2.1), as some webhook endpoints act on a GET. Any response shows that it arrived."""

Level = Literal["mistake", "warning"]
"""A mistake prevents one of the programs from starting."""


class ConfigFinding(LocatedMistake, frozen=True):
    """A mistake or a warning, with its place."""

    level: Level


def _locate(level: Level, found: Iterable[LocatedMistake]) -> list[ConfigFinding]:
    return [ConfigFinding(each.file, each.line, each.key, each.text, level) for each in dict.fromkeys(found)]


class Reply(msgspec.Struct, frozen=True):
    """The response of a system, or the reason why there is none."""

    key: str
    """The table of the system."""
    url: str
    """The system's URL without secret parts."""
    reached: bool
    text: str
    milliseconds: float
    is_denied: bool = False
    """True if the status is 401 or 403."""


# --- the start of each program


STARTS: Mapping[str, Callable[[Config], object]] = {
    "endpoints": make_endpoints,
    "proxies": lambda config: require_known_proxies(config, os.environ.get("FORWARDED_ALLOW_IPS", "").split(",")),
    "relay": prepare,
    "page": lambda config: check_files(config.web),
}
"""The parts that the receiver, the relay and the page make at startup. Each raises ConfigError with one line per mistake."""


def _make_unused(config: Config) -> None:
    """Make every api, destination and sweep, including unused and unscheduled ones. Raises ConfigError."""
    collect_config_errors(dict(_parts(config, Clients(config))))


def _parts(config: Config, clients: Clients) -> Iterator[tuple[str, Callable[[], Any]]]:
    yield from _endpoints(config, clients)
    for name, source in config.sources.items():
        for number, _ in enumerate(source.sweeps):
            yield f"sweep {name} {number}", partial(CompiledSweep, config, name, number)


def _endpoints(config: Config, clients: Clients) -> Iterator[tuple[str, Callable[[], Any]]]:
    for name in config.apis:
        yield f"apis.{name}", partial(clients.api, name)
    for name, destination in config.destinations.items():
        yield f"destinations.{name}", partial(_destination, destination, clients)


def _destination(destination: Destination, clients: Clients) -> None:
    if isinstance(destination, SyncDestination):
        clients.destination(destination, destination.base_url)
    else:
        KINDS[type(destination)](Route(source="", destination=destination.name), destination, clients)


# --- mistakes and warnings


def list_findings(file: ConfigFile, path: Path, environment: Mapping[str, str] = os.environ) -> list[ConfigFinding]:
    """List the distinct mistakes in the file and at the start of each program, then the warnings."""
    mistakes = [*file.mistakes, *(each for start in STARTS.values() for each in file.further_mistakes(start))]
    warnings = [*file.further_mistakes(_make_unused)]
    warnings += [file.source.locate_line(line) for line in _warnings(file, path, environment)]
    return _locate("mistake", mistakes) + _locate("warning", (each for each in warnings if each not in mistakes))


def _warnings(file: ConfigFile, path: Path, environment: Mapping[str, str]) -> Iterator[str]:
    values = dict(walk_values(file.sound))
    with suppress(ConfigError):  # an invalid URL is already a mistake
        for key in literal_secrets(file.sound):
            yield f"{key}: the file contains the secret; {_place_for(key, values[key], environment)}"
        yield from exposure_warnings(path, file.sound)
    yield from find_expired(file.sound)
    for key, value in values.items():
        if isinstance(value, Secret) and value.reference.startswith("env:"):
            yield from _odd_value(key, value.reference.removeprefix("env:"), environment)


def find_expired(config: Config, at: datetime | None = None) -> Iterator[str]:
    """Yield each source without a secret that is valid now or `at`, and each certificate file that has expired by then."""
    moment = at or SystemClock().now()
    when = f"at {at:%Y-%m-%d}" if at else "now"
    for name, source in config.sources.items():
        for key, secrets in (("secrets", source.secrets), ("auth.secrets", getattr(source.auth, "secrets", ()))):
            if secrets and not any(each.valid_at(moment) for each in secrets):
                yield f"sources.{name}.{key}: none is valid {when}, so every webhook would get 401; add one"
    files = {key: value for key, value in walk_values(config) if key.rpartition(".")[2] in {"ca_file", "cert_file"}}
    for key, value in files.items():
        ended = _certificate_ended(key, Path(str(value)), moment) if value else None
        if ended is not None:
            name = ended.subject.rfc4514_string()
            end = f"{ended.not_valid_after_utc:%Y-%m-%d %H:%M}Z"
            yield f"{key}: the certificate of {name} in {value} is valid until {end}; calls that need it fail then"


def _certificate_ended(key: str, path: Path, moment: datetime) -> x509.Certificate | None:
    """Return a file's certificate if it has expired: a client's first one, or the authority's that expires last."""
    try:
        found = [] if path.stat().st_size > _LARGEST_FILE else x509.load_pem_x509_certificates(path.read_bytes())
    except (OSError, ValueError):  # reported as a mistake where it is loaded
        return None
    if key.endswith("ca_file"):
        found.sort(key=lambda one: one.not_valid_after_utc, reverse=True)
    return found[0] if found and found[0].not_valid_after_utc <= moment else None


def _place_for(key: str, value: object, environment: Mapping[str, str]) -> str:
    if isinstance(value, Secret) and value.reference in environment:
        return f'did you mean "env:{value.reference}", the variable?'
    return f'write {"password = " if key == "database.url" else ""}"env:NAME" or "file:/path"'


def _odd_value(key: str, name: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a warning for a value with spaces, quotes or a prefix that a shell or file should have removed."""
    value = environment.get(name, "")
    if value != value.strip():
        yield f"{key}: the value of {name} begins or ends with white space, which is part of the secret"
    elif len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        yield f"{key}: the value of {name} is in quotes, which are part of the secret"
    elif value.startswith(("$", "env:", "file:")):
        yield f"{key}: the value of {name} looks like a reference, which is not resolved"


# --- the systems in the configuration


class DatabaseState(msgspec.Struct, frozen=True):
    """The state of the database."""

    url: str
    """The URL without its password."""
    origin: str
    """The key or variable that holds the URL."""
    state: Literal["current", "not asked", "unusable"]


def examine_database(file: ConfigFile, *, online: bool) -> tuple[DatabaseState, list[ConfigFinding]]:
    """Check the schema and settings of a SQLite file or, with `online`, of any database."""
    url = file.sound.database.url
    try:
        parsed = engine.parse_url(url)
        shown = engine.format_url(parsed)
    except ConfigError as error:
        return DatabaseState("", url.origin, "unusable"), _list_mistakes(file, error)
    is_file = parsed.get_backend_name() == SQLITE
    if not is_file and not online:
        return DatabaseState(shown, url.origin, "not asked"), []
    try:
        if is_file:
            _require_file(parsed.database or "")
        doubted = _examine(url)
    except ConfigError as error:
        return DatabaseState(shown, url.origin, "unusable"), _list_mistakes(file, error)
    except DBAPIError as error:
        text = f"the database does not answer: {trouble_text(error)}"
        return DatabaseState(shown, url.origin, "unusable"), _list_mistakes(file, ConfigError(f"{url.origin}: {text}"))
    return DatabaseState(shown, url.origin, "current"), [
        ConfigFinding(None, None, "", each, "warning") for each in doubted
    ]


def _examine(url: str) -> list[str]:
    """Require a database that both programs can use, and return its doubtful settings."""
    made = engine.connect(url, application="inbox-check")
    try:
        migrate.require_current(made)
        with made.connect() as connection:
            if found := guarantees.list_differences(connection):
                raise ConfigError("\n".join(found))
            return guarantees.list_doubts(connection)
    finally:
        made.dispose()


def _require_file(name: str) -> None:
    """Require that the file exists, since opening it would create it."""
    if not name.startswith("file:") and Path(name).parent.is_dir() and not Path(name).exists():
        raise ConfigError(f"there is no database {name} yet: run `inbox migrate`")


def _list_mistakes(file: ConfigFile, error: ConfigError) -> list[ConfigFinding]:
    return _locate("mistake", map(file.source.locate_line, str(error).splitlines()))


def make_probes(config: Config) -> dict[str, Callable[[], Reply]]:
    """Return a probe for each callable api and destination, and for the receiver of alerts.

    A probe ends within the system's timeout, and changes nothing in the system.
    """
    clients = Clients(config)
    for _, make in _endpoints(config, clients):
        try:
            make()
        except ConfigError:  # reported as a mistake
            continue
    callers = dict(clients.made)
    try:
        client = alert_client(config)
    except ConfigError:
        client = None
    if client is not None:
        callers["alerts"] = client
    return {key: partial(_ask, key, caller) for key, caller in callers.items()}


def _ask(key: str, caller: HttpClient) -> Reply:
    """Call one system. Any response of its own means that it was reached; a missing token does not."""
    call = caller.call(_QUESTION, without_lease()).call
    reached = call.status is not None and call.error is None
    text = call.error or f"answered {call.status}"
    is_denied = reached and call.status in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
    if is_denied:
        text += ", possibly because of wrong credentials"
    return Reply(key, call.url, reached, text, call.milliseconds, is_denied)


def run_probes(probes: Mapping[str, Callable[[], Reply]]) -> Iterator[Reply]:
    """Call all systems, several at a time, and yield their replies in the order of the probes."""
    with ThreadPoolExecutor(_MOST_AT_ONCE, "check") as pool:
        yield from pool.map(lambda ask: ask(), probes.values())


def list_unreached(file: ConfigFile, replies: Iterable[Reply]) -> list[ConfigFinding]:
    """Return a warning for each system that was not reached; it is not a mistake, as both programs start without it."""
    lines = (f"{each.key}: {each.url} was not reached: {each.text}" for each in replies if not each.reached)
    return _locate("warning", map(file.source.locate_line, lines))
