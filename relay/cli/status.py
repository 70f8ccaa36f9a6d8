"""`relay status`: shows everything at one moment, once or again and again, and with --check runs a health check."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from relay.cli.options import AsJson, Wide, database_of, load_config
from relay.cli.terminal import FINDING, answer, as_document, as_line, console, exit_on_error, fail, put, put_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType
    from rich.text import Text

    from inbox.config.model import Config
    from relay.findings import Finding

_LOOK_AGAIN_SECONDS = 3.0
"""A finding has to last this long: the last relay may just have ended as the next one starts."""


def status(
    *,
    as_json: AsJson = False,
    wide: Wide = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")] = 2.0,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only check that a relay is alive and deliveries move: a service manager's health check."
        ),
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="With --check: the relay must be on this host.")] = False,
) -> None:
    """Show how every route does, what holds deliveries back, which relays run, and what to do next.

    Of deliveries that are ready, `retrying` are due later, after a failure. Counts end at 10,000 for each state: `10,000+`.
    Rates are of the last five minutes. With --json, it is one object with every
    field, such as all that each sweep found.

    With --check, only findings are listed, and the exit status is 1 when there are any: no relay has had a heartbeat for
    15 s, relays die soon after they start, a step of one fails, the database does not answer, a route makes no progress
    although a delivery has been due for a minute, every attempt of a route since its last success failed, a lane is blocked, no
    relay takes up a command, a command failed within the last hour, or relays run with different configurations. Deliveries
    that a pause, a circuit breaker or a rate limit holds back are no finding, nor is a backlog that shrinks.

    With --here too, the relay must be on this host, and what only a person can fix is left out: failing routes, blocked lanes,
    commands, configurations.

    Examples:
      relay status
      relay status --watch --every 5
      relay status --json
      relay status --check --here --json
    """
    if watch and check:
        fail("--watch shows the whole status: leave out --check")
    if here and not check:
        fail("--here is for --check: relay status --check --here")
    with exit_on_error():
        config = load_config()
        if watch:
            _watch(config, every, as_json=as_json, wide=wide)
        elif not check:
            _put(_look(config, as_json=as_json, wide=wide))
        elif found := _checked(config, here=here):
            for each in () if as_json else found:
                answer(each.sentence)
            if as_json:
                put_json(as_document(msgspec.to_builtins(found)))
            raise typer.Exit(FINDING)
        elif as_json:
            put_json("[]")


def _look(config: Config, *, as_json: bool, wide: bool, in_lines: bool = False) -> list[Text | str]:
    """Read everything, and return its lines, or its JSON, which `in_lines` is one line.

    Raises:
        DBAPIError: the database does not answer.
    """
    from relay.cli.status_view import lines_of, next_of
    from relay.delivery.policy import policies
    from relay.findings import checked, findings, state_of
    from relay.store.overview import read_overview

    database = database_of(config)
    try:
        seen = read_overview(database, policies(config))
        found = checked(database)
    finally:
        database.engine.dispose()
    every = findings(seen, found)
    if not as_json:
        out = console()
        return list(lines_of(seen, found, every, width=out.width if out.is_terminal and not wide else None))
    whole: dict[str, Any] = msgspec.to_builtins(seen)
    for route, each in zip(seen.routes, whole["routes"], strict=True):
        each["state"] = state_of(route, found)
    following = [{"text": each.sentence, "command": each.remedy} for each in next_of(every)]
    whole |= {"findings": msgspec.to_builtins(found), "next": following}
    return [(as_line if in_lines else as_document)(whole)]


def _put(lines: Iterable[Text | str]) -> None:
    for line in lines:
        if isinstance(line, str):
            put_json(line)
        else:
            put(line)


def _watch(config: Config, every: float, *, as_json: bool, wide: bool) -> None:
    """Show it until Ctrl-C: in place at a terminal, else one after the other. The database may go away and come back."""
    out = console()
    try:
        if as_json or not out.is_terminal:
            for lines in _looks(config, every, as_json=as_json, wide=wide):
                _put(lines)
            return
        from rich.console import Group
        from rich.live import Live

        with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
            for lines in _looks(config, every, as_json=False, wide=wide):
                shown: list[RenderableType] = [*lines]
                live.update(Group(*shown), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(config: Config, every: float, *, as_json: bool, wide: bool) -> Iterator[list[Text | str]]:
    from rich.text import Text
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import trouble_text
    from inbox.observe.visible import visible_line

    while True:
        try:
            lines = _look(config, as_json=as_json, wide=wide, in_lines=True)
        except DBAPIError as error:
            why = f"the database: {trouble_text(error)}"
            lines = [as_line({"error": why}) if as_json else Text(visible_line(why), "red")]
        yield lines
        time.sleep(every)


def _checked(config: Config, *, here: bool) -> list[Finding]:
    """Return the findings that last for `_LOOK_AGAIN_SECONDS`."""
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import trouble_text
    from relay.findings import Finding, checked

    host = socket.gethostname() if here else None
    try:
        database = database_of(config)
        found = checked(database, host=host)
        if found:
            time.sleep(_LOOK_AGAIN_SECONDS)
            again = {(each.kind, each.subject) for each in checked(database, host=host)}
            found = [each for each in found if (each.kind, each.subject) in again]
    except DBAPIError as error:
        found = [Finding("no_database", "critical", f"the database: {trouble_text(error)}")]
    return found
