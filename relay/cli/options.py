"""Options shared by both command lines, and access to the configuration and its database.

The conditions of listings and operations take their types and help texts from `relay.operations.asks`.
"""

from __future__ import annotations

import getpass
import os
import platform
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from importlib.metadata import version as version_of
from inspect import Parameter, Signature
from typing import TYPE_CHECKING, Annotated, Any, get_args, get_type_hints

import msgspec
import typer
from typer.core import TyperGroup

from inbox.clock import SystemClock
from inbox.events.timestamps import parse_time
from inbox.observe.visible import visible_text
from relay.cli.output import answer, exit_on_error, fail

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.store.database import Database

MOST_NUMBER = 2**63 - 1
"""Largest number of a row. SQLite's driver fails on a larger one."""


_EXAMPLES = re.compile(r"^Examples?:$", re.MULTILINE)


class Commands(TyperGroup):
    """A group of commands whose help keeps the lines of examples, and whose user errors are one line."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  # typer's own, handed through
        super().__init__(**given)
        for command in (self, *self.commands.values()):
            if "\b" not in (command.help or ""):
                command.help = _EXAMPLES.sub(
                    "\b\n\\g<0>", command.help or ""
                )  # click leaves the lines after \\b unwrapped

    def invoke(self, ctx: Any) -> Any:  # noqa: ANN401  # likewise
        """Run the command."""
        with exit_on_error():
            return super().invoke(ctx)


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted and not context.resilient_parsing:
        answer(f"inbox-relay {version_of('inbox-relay')} on Python {platform.python_version()}")
        raise typer.Exit


def _options(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version, and exit.")
    ] = False,
) -> None:
    """Handle the options before a command's name."""


def program(help_text: str) -> typer.Typer:
    """Make a command line without commands."""
    made = typer.Typer(
        cls=Commands, help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    made.callback(help=help_text)(_options)
    return made


def run(app: typer.Typer) -> None:
    """Run a command line. Escape the traceback of a bug, since it may contain values of events."""
    try:
        app()
    except BrokenPipeError:
        # The reader has closed the pipe, as in `relay tail | head`. Python would fail again when it flushes at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception:  # noqa: BLE001  # the program ends, as it would without this handler
        sys.stderr.write(visible_text(traceback.format_exc().rstrip()) + "\n")
        sys.exit(1)


def login_name() -> str:
    """Return the user's name from the environment or the system; `uid 12345` if neither has one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # KeyError before Python 3.13
        return f"uid {os.getuid()}"


def _time(given: str) -> datetime:
    try:
        return parse_time(given, SystemClock().now())
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _number(given: str) -> int:
    if not given.isdecimal() or int(given) > MOST_NUMBER:
        raise typer.BadParameter(f"{given!r} is not a number of a row")
    return int(given)


NUMBER: Any = {"parser": _number}
"""Arguments of an option that takes the number of a row; its help shows no range."""
TIME: Any = {"parser": _time, "metavar": "TIME"}
"""Arguments of an option that takes a time; its value is an aware time in UTC."""
_METAVARS = {"entity": "TYPE/ID", "event_type": "TYPE", "error": "TEXT", "sender_id": "ID", "body": "TEXT"}


def option(kind: Any, name: str, text: str, **more: Any) -> Any:  # noqa: ANN401  # a type, and an annotation
    """Make the annotation of an optional option."""
    flag = f"--{name.replace('_', '-')}"
    if kind is bool:
        return Annotated[bool, typer.Option(flag, help=text)]
    if kind is datetime:
        more |= TIME
    elif kind is int:
        more |= {"min": 100, "max": 599} if name == "status" else {} if "min" in more else NUMBER
    more.setdefault("metavar", _METAVARS.get(name, name.upper()))
    return Annotated[kind | None, typer.Option(flag, help=text, **more)]


def conditions(asks: type[msgspec.Struct], *names: str) -> dict[str, Any]:
    """Make the options for some members of a selection; type and id of an entity are one option."""
    plain, described = get_type_hints(asks), get_type_hints(asks, include_extras=True)
    made = {}
    for name in names:
        member = "entity_id" if name == "entity" else name
        kind = next(each for each in (*get_args(plain[member]), plain[member]) if each is not type(None))
        text = next(meta.description for meta in described[member].__metadata__ if meta.description)
        made[name] = option(kind, name, text)
    return made


def as_command(run: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Give a function with keyword arguments the signature that typer reads; absent options become None or False."""
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False if get_args(each)[0] is bool else None, annotation=each)
        for name, each in options.items()
    ]
    run.__annotations__ = dict(options)
    vars(run)["__signature__"] = Signature(parameters)
    return run


AsJson = Annotated[bool, typer.Option("--json", help="Print JSON with every column.")]
Since = Annotated[
    datetime | None,
    typer.Option("--since", help="Only at or after this time, in UTC: 1h30m, 14:00, yesterday, 2026-01-31.", **TIME),
]
Until = option(datetime, "until", "Only before this time; formats as for --since.")
Reason = option(str, "reason", "Reason, kept in the log; required with --yes.", metavar="TEXT")
Yes = option(bool, "yes", "Execute the plan instead of only showing it.")


def require_reason(reason: str | None, asked: msgspec.Struct | None = None) -> str:
    """Return the reason of an act; exit with 2 if it is missing, too long, or names the entity that the act erases."""
    from relay.store.operator.plan import find_reason_mistake

    mistake = find_reason_mistake(asked, reason)
    if mistake is not None or reason is None:
        fail(f"--reason: {mistake}")
    return reason


def require_known(kind: str, given: str | None, known: Iterable[str]) -> None:
    """Exit with 2 if the given value is unknown; the error suggests the nearest known value."""
    from inbox.config.mistakes import nearest

    names = tuple(known)
    if given is not None and given not in names:
        fail(f"there is no {kind} {given!r}; {nearest(given, names)}")


def parse_entity(entity: str | None, *, may_be_a_type: bool = False) -> tuple[str | None, str | None]:
    """Split the value of `--entity` into type and id. A type alone, if allowed, has the id None."""
    if entity is None:
        return None, None
    entity_type, _, entity_id = entity.partition("/")
    if not may_be_a_type and not (entity_type and entity_id):
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    return entity_type or None, entity_id or None


def connect_database(config: Config) -> Database:
    """Connect to the configured database, and require a current schema."""
    from inbox.db import engine, migrate
    from relay.store.database import Database

    made = engine.connect(config.database.url, application="inbox-relay-cli")
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """Read the configuration and connect to its database."""
    from inbox.loader.load import read_config

    config = read_config()
    return config, connect_database(config)
