"""Checks a configuration as both sides would at their start, and asks the systems that it names.

The receiver never imports the relay, whose part is found by the entry point group `GROUP`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal

import msgspec
from sqlalchemy.exc import DBAPIError

from inbox.clock import SystemClock
from inbox.config.mistakes import LocatedMistake
from inbox.config.model import Config
from inbox.config.values import Secret
from inbox.db import engine, guarantees, migrate
from inbox.db.dialect import SQLITE, trouble_text
from inbox.errors import ConfigError, collect_config_errors
from inbox.examination import Examination
from inbox.exposure import exposure_warnings, literal_secrets, values_in
from inbox.loader.load import ConfigFile
from inbox.receiver.app import endpoints_of, require_known_proxies

GROUP = "inbox_relay.checks"
_MOST_AT_ONCE = 16

Level = Literal["mistake", "warning"]
"""With a mistake, one of both sides doesn't start."""


class ConfigFinding(msgspec.Struct, frozen=True):
    """A mistake or a warning, with its place."""

    level: Level
    file: str | None
    line: int | None
    key: str | None
    text: str

    @classmethod
    def of(cls, level: Level, located: LocatedMistake) -> ConfigFinding:
        """Make one of a located mistake."""
        return cls(level, located.file, located.line, located.key or None, located.text)

    @property
    def place(self) -> LocatedMistake:
        """The finding without its level."""
        return LocatedMistake(self.file, self.line, self.key or "", self.text)


class Reply(msgspec.Struct, frozen=True):
    """The reply of a system that was asked, or the reason why there is none."""

    key: str
    """The table of the system."""
    url: str
    """The part of its URL that is no secret."""
    reached: bool
    text: str
    milliseconds: float
    is_denied: bool = False
    """It answered 401 or 403."""


class Probe(msgspec.Struct, frozen=True):
    """A question to one system. It ends within the system's timeout, and changes nothing there."""

    key: str
    ask: Callable[[], Reply]


class Verdict(msgspec.Struct, frozen=True):
    """The result of comparing stored state with the log, as `relay verify` does."""

    events: int
    deliveries: int
    facts: int
    differences: int


class Side(msgspec.Struct, frozen=True):
    """The part of one program in a check."""

    name: str
    start: Callable[[Config], object]
    """Makes everything that the program makes of the configuration before it runs. Raises ConfigError."""
    unused: Callable[[Config], object] = lambda _: None
    """Makes what the program would not make at its start, as nothing uses it yet. Raises ConfigError."""
    probes: Callable[[Config], Sequence[Probe]] = lambda _: ()
    verify: Callable[[Config, Callable[[int], object]], Verdict] | None = None
    """Verifies the configuration's database, and reports each `seq` up to which it has done so."""
    examinations: Sequence[Examination] = ()
    """The program's part in `inbox doctor`."""


def _start_receiver(config: Config) -> None:
    parts: dict[str, Callable[[], object]] = {
        "endpoints": lambda: endpoints_of(config),
        "proxies": lambda: require_known_proxies(config, os.environ.get("FORWARDED_ALLOW_IPS", "").split(",")),
    }
    collect_config_errors(parts)


RECEIVER = Side("receiver", _start_receiver)


def sides() -> list[Side]:
    """Return the receiver, and what is installed beside it."""
    return [RECEIVER, *(point.load() for point in entry_points(group=GROUP))]


def findings(
    file: ConfigFile, path: Path, sides: Sequence[Side], environment: Mapping[str, str] = os.environ
) -> list[ConfigFinding]:
    """List the mistakes of the file and of each side's start, then the warnings; each once."""
    found = mistakes(file, sides)
    places = {each.place for each in found}
    warnings = [each for side in sides for each in file.further_mistakes(side.unused)]
    warnings += [file.source.locate_line(line) for line in _warnings(file, path, environment)]
    found += [ConfigFinding.of("warning", each) for each in warnings if each not in places]
    if len(sides) == 1:
        text = "the relay's part is not checked, as the package is not installed whole: install it again"
        found.append(ConfigFinding("warning", None, None, None, text))
    return [*dict.fromkeys(found)]


def mistakes(file: ConfigFile, sides: Sequence[Side]) -> list[ConfigFinding]:
    """List the mistakes of the file and of each side's start."""
    found = [*file.mistakes]
    for side in sides:
        found += file.further_mistakes(side.start)
    return [ConfigFinding.of("mistake", each) for each in dict.fromkeys(found)]


def _warnings(file: ConfigFile, path: Path, environment: Mapping[str, str]) -> Iterator[str]:
    values = dict(values_in(file.sound))
    for key in literal_secrets(file.sound):
        yield f"{key}: the secret stands in the file, for all who read it; {_place_for(values[key], environment)}"
    database, viewers = file.sound.database, file.sound.web.viewer_url
    if database.url.is_literal and database.password is None and _has_password(database.url):
        yield 'database.url: the password stands in the file; write password = "env:NAME" or "file:/path"'
    if viewers is not None and viewers.is_literal and _has_password(viewers):
        yield 'web.viewer_url: the password stands in the file; write "env:NAME" or "file:/path"'
    yield from _expired(file.sound)
    for key, value in values.items():
        if isinstance(value, Secret) and value.reference.startswith("env:"):
            yield from _odd_value(key, value.reference.removeprefix("env:"), environment)
    try:
        yield from exposure_warnings(path, file.sound)
    except ConfigError:  # of the database's url, which is a mistake already
        return


def _expired(config: Config) -> Iterator[str]:
    """Yield the sources whose secrets are all over, or not valid yet."""
    now = SystemClock().now()
    for name, source in config.sources.items():
        for key, secrets in (("secrets", source.secrets), ("auth.secrets", getattr(source.auth, "secrets", ()))):
            if secrets and not any(each.valid_at(now) for each in secrets):
                yield f"sources.{name}.{key}: none is valid now, so every webhook would get 401; add one"


def _place_for(value: object, environment: Mapping[str, str]) -> str:
    if isinstance(value, Secret) and value.reference in environment:
        return f'did you mean "env:{value.reference}", the variable?'
    return 'write "env:NAME" or "file:/path"'


def _odd_value(key: str, name: str, environment: Mapping[str, str]) -> Iterator[str]:
    """Yield a variable whose value has what its shell or its file should have taken away."""
    value = environment.get(name, "")
    if value != value.strip():
        yield f"{key}: the value of {name} begins or ends with white space, which is part of the secret"
    elif len(value) > 1 and value[0] == value[-1] and value[0] in "\"'":
        yield f"{key}: the value of {name} stands in quotes, which are part of the secret"
    elif value.startswith(("$", "env:", "file:")):
        yield f"{key}: the value of {name} looks like the name of a place, and nothing looks there"


def _has_password(url: str) -> bool:
    try:
        return "@" in url and bool(engine.parse_url(url).password)
    except ConfigError:
        return False


class DatabaseState(msgspec.Struct, frozen=True):
    """The database, as far as it was looked at."""

    url: str
    """Without its password."""
    origin: str
    """The key or variable that the URL comes from."""
    state: Literal["current", "not asked", "unusable"]


def database_of(file: ConfigFile, *, online: bool) -> tuple[DatabaseState, list[ConfigFinding]]:
    """Look at the schema and the settings of the database: of a SQLite file, or of any with `online`."""
    url = file.sound.database.url
    try:
        parsed = engine.parse_url(url)
        shown = engine.shown(parsed)
    except ConfigError as error:
        return DatabaseState("", url.origin, "unusable"), _located(file, error)
    is_file = parsed.get_backend_name() == SQLITE
    if not is_file and not online:
        return DatabaseState(shown, url.origin, "not asked"), []
    try:
        if is_file:
            _require_file(parsed.database or "")
        doubted = _examine(url)
    except ConfigError as error:
        return DatabaseState(shown, url.origin, "unusable"), _located(file, error)
    except DBAPIError as error:
        text = f"the database does not answer: {trouble_text(error)}"
        return DatabaseState(shown, url.origin, "unusable"), _located(file, ConfigError(f"{url.origin}: {text}"))
    return DatabaseState(shown, url.origin, "current"), [
        ConfigFinding("warning", None, None, None, each) for each in doubted
    ]


def _examine(url: str) -> list[str]:
    """Require a database that both sides would work with, and return its doubtful settings."""
    made = engine.connect(url, application="inbox-check")
    try:
        migrate.require_current(made)
        with made.connect() as connection:
            if found := guarantees.differences(connection):
                raise ConfigError("\n".join(found))
            return guarantees.doubts(connection)
    finally:
        made.dispose()


def _require_file(name: str) -> None:
    """Require that the file exists: to open it would make it."""
    if not name.startswith("file:") and Path(name).parent.is_dir() and not Path(name).exists():
        raise ConfigError(f"there is no database {name} yet: run `inbox migrate`")


def _located(file: ConfigFile, error: ConfigError) -> list[ConfigFinding]:
    return [ConfigFinding.of("mistake", file.source.locate_line(line)) for line in str(error).splitlines()]


def asked(probes: Sequence[Probe], done: Callable[[Reply], None]) -> list[Reply]:
    """Ask all systems, several at once, and return their replies in the order of the probes."""
    replies: dict[str, Reply] = {}
    with ThreadPoolExecutor(_MOST_AT_ONCE, "check") as pool:
        for future in as_completed([pool.submit(probe.ask) for probe in probes]):
            reply = future.result()
            replies[reply.key] = reply
            done(reply)
    return [replies[probe.key] for probe in probes]


def unreached(file: ConfigFile, replies: Iterable[Reply]) -> list[ConfigFinding]:
    """Return a warning for each system that was not reached: both sides start without it."""
    return [
        ConfigFinding.of("warning", file.source.locate_line(f"{reply.key}: {reply.url} was not reached: {reply.text}"))
        for reply in replies
        if not reply.reached
    ]
