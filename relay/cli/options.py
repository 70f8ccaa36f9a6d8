"""Options that commands of both command lines share, their completion, and the way to the configuration and its database."""

from __future__ import annotations

import getpass
import os
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from inbox.clock import SystemClock
from inbox.events.timestamps import parse_time
from relay.cli.terminal import fail

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database


def names_of(table: str) -> Callable[[str], list[str]]:
    """Return a completion of the names in a table of the file, such as `routes`.

    Only the file's text is read: no secret, no function and no database is needed, so that completion always answers.
    """

    def complete(incomplete: str) -> list[str]:
        import tomllib

        from inbox.loader.load import config_path

        try:
            named = tomllib.loads(config_path().read_text(encoding="utf-8")).get(table)
        except (OSError, ValueError, RecursionError):
            return []
        names = named if isinstance(named, dict) else {}
        return sorted(name for name in names if name.startswith(incomplete) and name.isprintable())

    return complete


def login_name() -> str:
    """Return the user's name by the environment or else the system; `uid 12345` where neither knows one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python before 3.13, and since
        return f"uid {os.getuid()}"


MOST_NUMBER = 2**63 - 1
"""Largest number of a row. SQLite's driver has no answer to a larger one."""


def _time(given: str) -> datetime:
    try:
        return parse_time(given, SystemClock().now())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _number(given: str) -> int:
    if not given.isdecimal() or int(given) > MOST_NUMBER:
        raise typer.BadParameter(f"{given!r} is no number of a row")
    return int(given)


NUMBER: Any = {"parser": _number}
"""Of an option that takes the number of a row; its help shows no range."""


def time_option(*names: str, text: str) -> object:
    """Make a typer option that takes a time; its value is aware, in UTC."""
    return typer.Option(*names, parser=_time, metavar="TIME", help=text)


def option(kind: type, name: str, *, text: str, names: str = "", **more: Any) -> Any:  # noqa: ANN401  # an annotation
    """Make the annotation of an option that need not be given. With `names`, a table of the file completes its values."""
    if kind is bool:
        return Annotated[bool, typer.Option(name, help=text, **more)]
    more.setdefault("metavar", name.removeprefix("--").upper())
    completion = names_of(names) if names else None
    return Annotated[kind | None, typer.Option(name, help=text, autocompletion=completion, **more)]


AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text, with every column.")]
AsNdjson = Annotated[bool, typer.Option("--ndjson", help="JSON, one object a line, with every column.")]
Wide = Annotated[
    bool, typer.Option("--wide", help="Every column, whole and with absolute times, in lines of any length.")
]
Columns = Annotated[
    str | None, typer.Option("--columns", metavar="A,B,…", help="These columns; a wrong name lists the right ones.")
]
Since = Annotated[
    datetime | None,
    time_option("--since", text="Only at or after this time: 1h, 2d, 2026-01-31, or as listings print it."),
]
At = Annotated[
    datetime | None,
    time_option(
        "--at", text="As it was at this time, folded from the log; forms as for --since, and not in the future."
    ),
]
Reason = Annotated[str | None, typer.Option(metavar="TEXT", help="Why; it is kept in the log. Needed with --yes.")]
Yes = Annotated[bool, typer.Option("--yes", help="Do it; without it only the plan is shown.")]
ThisEntity = Annotated[str | None, typer.Option("--entity", metavar="TYPE/ID", help="This entity, as TYPE/ID.")]
Until = Annotated[datetime | None, time_option("--until", text="Only before this time; forms as for --since.")]
End = option(
    bool, "--end", text="End with the newest row instead of following; without --since, begin with the oldest."
)
Before = option(int, "--before", text="Only below this seq or id: the next page.", metavar="NUMBER", **NUMBER)
Limit = option(
    int,
    "--limit",
    text="At most so many rows; by default 50, and all with --ndjson.",
    metavar="ROWS",
    min=1,
    max=10_000,
)
OfSource = option(str, "--source", text="Only of this source.", names="sources")
OfRoute = option(str, "--route", text="Only of this route.", names="routes")
OfDestination = option(str, "--destination", text="Only of the routes to this destination.", names="destinations")
OfEntity = option(str, "--entity", text="Only about this entity: TYPE/ID, or a TYPE.", metavar="TYPE/ID")
OfEventType = option(str, "--event-type", text="Only events of this type, as the sender wrote it.", metavar="TYPE")
OfStatus = option(
    int, "--status", text="Only where the last call was answered with this HTTP status.", min=100, max=599
)
OfError = option(str, "--error", text="Only where the last error contains this text, in any case.", metavar="TEXT")
RejectedSource = option(str, "--source", text="Only of this source, as the URL named it.", names="sources")
RejectedCause = option(str, "--cause", text="Only of this cause, such as invalid_event.")
RejectedStatus = option(int, "--status", text="Only those that were answered with this HTTP status.", min=100, max=599)
RejectedError = option(str, "--error", text="Only where the reason contains this text, in any case.", metavar="TEXT")


def require_known(kind: str, given: str | None, known: Iterable[str]) -> None:
    """Exit with 2 unless a value, where one is given, is a known one; the error names the nearest."""
    from inbox.config.mistakes import nearest

    names = tuple(known)
    if given is not None and given not in names:
        fail(f"there is no {kind} {given!r}; {nearest(given, names)}")


def parse_entity(entity: str | None, *, may_be_a_type: bool = False) -> tuple[str | None, str | None]:
    """Return the type and the id that `--entity` names; the id is None for a type alone, where that is allowed."""
    if entity is None:
        return None, None
    entity_type, _, entity_id = entity.partition("/")
    if not may_be_a_type and not (entity_type and entity_id):
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return entity_type or None, entity_id or None


def load_config() -> Config:
    """Read inbox.toml, which loads the presets of all sources."""
    from inbox.loader.load import read_config

    return read_config()


def database_of(config: Config) -> Database:
    """Connect to the configuration's database, and require that its schema is current."""
    from inbox.db import engine, migrate
    from relay.store.database import Database

    made = engine.connect(config.database.url, application="inbox-relay-cli")
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """Read the configuration, and connect to its database."""
    config = load_config()
    return config, database_of(config)
