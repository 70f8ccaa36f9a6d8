"""Options that commands of both command lines share, and the way to the configuration and its database.

Options that are conditions, of listings and of operations, come from `relay.operations.asks`: their types and help texts.
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
"""Largest number of a row. SQLite's driver has no answer to a larger one."""


_EXAMPLES = re.compile(r"^Examples?:$", re.MULTILINE)


class Commands(TyperGroup):
    """The commands of a command line: their help keeps the lines of examples, and errors that a user can mend are one line."""

    def __init__(self, **given: Any) -> None:  # noqa: ANN401  # typer's own, handed through
        super().__init__(**given)
        for command in (self, *self.commands.values()):
            if "\b" not in (command.help or ""):
                command.help = _EXAMPLES.sub("\b\n\\g<0>", command.help or "")  # click wraps all but what follows \\b

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
    """Take the options that stand before a command's name."""


def program(help_text: str) -> typer.Typer:
    """Make a command line without its commands."""
    made = typer.Typer(
        cls=Commands, help=help_text, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None
    )
    made.callback(help=help_text)(_options)
    return made


def run(app: typer.Typer) -> None:
    """Run a command line. The text of a bug's exception may hold values, so it is escaped as everything is."""
    try:
        app()
    except BrokenPipeError:
        # The reader has seen enough, as in `relay tail | head`. Python would complain again when it flushes at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except Exception:  # noqa: BLE001  # whatever it is, it ends the program, as it would without this
        sys.stderr.write(visible_text(traceback.format_exc().rstrip()) + "\n")
        sys.exit(1)


def login_name() -> str:
    """Return the user's name by the environment or else the system; `uid 12345` where neither knows one, as in a container."""
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # Python before 3.13, and since
        return f"uid {os.getuid()}"


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
TIME: Any = {"parser": _time, "metavar": "TIME"}
"""Of an option that takes a time; its value is aware, in UTC."""
_METAVARS = {"entity": "TYPE/ID", "event_type": "TYPE", "error": "TEXT"}


def option(kind: Any, name: str, text: str, **more: Any) -> Any:  # noqa: ANN401  # a type, and an annotation
    """Make the annotation of an option that need not be given."""
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
    """Make the options of some members of what operations ask for; an entity is one option."""
    plain, described = get_type_hints(asks), get_type_hints(asks, include_extras=True)
    made = {}
    for name in names:
        member = "entity_id" if name == "entity" else name
        kind = next(each for each in (*get_args(plain[member]), plain[member]) if each is not type(None))
        text = next(meta.description for meta in described[member].__metadata__ if meta.description)
        made[name] = option(kind, name, text)
    return made


def as_command(run: Callable[..., None], options: Mapping[str, Any]) -> Callable[..., None]:
    """Give a function that takes its options by name the ones that typer reads; an option that is not given is None or False."""
    parameters = [
        Parameter(name, Parameter.KEYWORD_ONLY, default=False if get_args(each)[0] is bool else None, annotation=each)
        for name, each in options.items()
    ]
    run.__annotations__ = dict(options)
    vars(run)["__signature__"] = Signature(parameters)
    return run


AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of text, with every column.")]
Since = Annotated[
    datetime | None,
    typer.Option("--since", help="Only at or after this time: 1h, 2d, 2026-01-31, or as listings print it.", **TIME),
]
Until = option(datetime, "until", "Only before this time; forms as for --since.")
Reason = option(str, "reason", "Why; it is kept in the log. Needed with --yes.", metavar="TEXT")
Yes = option(bool, "yes", "Do it; without it only the plan is shown.")


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


def database_of(config: Config) -> Database:
    """Connect to the configuration's database, and require that its schema is current."""
    from inbox.db import engine, migrate
    from relay.store.database import Database

    made = engine.connect(config.database.url, application="inbox-relay-cli")
    migrate.require_current(made)
    return Database(made)


def open_database() -> tuple[Config, Database]:
    """Read the configuration, which loads the presets of all sources, and connect to its database."""
    from inbox.loader.load import read_config

    config = read_config()
    return config, database_of(config)
