"""`relay status`: shows everything at one moment, once or again and again, and with --check runs a health check."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from relay.cli.options import AsJson, AsNdjson, Columns, Wide, database_of, load_config
from relay.cli.tables import Column, Format, format_of, show
from relay.cli.terminal import FINDING, answer, as_document, as_line, console, exit_on_error, fail, put, put_json

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from rich.console import RenderableType
    from rich.text import Text

    from inbox.config.model import Config
    from relay.findings import Finding
    from relay.store.database import Database

SWEEP_COLUMNS = (
    Column("source"),
    Column("entity_type", heading="type"),
    Column("swept_at", "time", "swept"),
    Column("error", last=True),
    Column("last_missed", "number", "missed"),
    Column("last_added", "number", "added"),
    Column("last_compared", "number", "compared"),
    Column("compared_until", "time", "compared until"),
    Column("missed", "number", "missed in all"),
    Column("lease_until", "time", on_request=True),
    Column("relay_node", on_request=True),
)
_LOOK_AGAIN_SECONDS = 3.0
"""A finding has to last this long: the last relay may just have ended as the next one starts."""


Watch = Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")]
Every = Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between two looks.")]
Check = Annotated[
    bool,
    typer.Option(
        "--check", help="Only check that a relay is alive and deliveries move: a service manager's health check."
    ),
]
Here = Annotated[bool, typer.Option("--here", help="With --check: the relay must be on this host.")]
Sweeps = Annotated[bool, typer.Option("--sweeps", help="Show instead when each sweep ran last, and its findings.")]


def status(
    *,
    as_json: AsJson = False,
    wide: Wide = False,
    watch: Watch = False,
    every: Every = 2.0,
    check: Check = False,
    here: Here = False,
    sweeps: Sweeps = False,
    columns: Columns = None,
    as_ndjson: AsNdjson = False,
) -> None:
    """Show how every route does, what holds deliveries back, which relays run, and what to do next.

    Of deliveries that are ready, `retrying` are due later, after a failure. Counts end at 10,000 for each state: `10,000+`.
    Rates are of the last five minutes. With --json, it is one object with every field.

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
      relay status --sweeps
      relay status --check --here --json
    """
    if mistake := _contradiction(
        watch=watch, check=check, here=here, sweeps=sweeps, listing=bool(columns or as_ndjson)
    ):
        fail(mistake)
    found: list[Finding] = []
    with exit_on_error():
        config = load_config()
        if sweeps:
            form = format_of(SWEEP_COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
            _show_sweeps(config, form)
        elif watch:
            _watch(_Look(config), every, as_json=as_json, wide=wide)
        elif check:
            found = _checked(config, here=here)
        else:
            _put(_Look(config).output(as_json=as_json, wide=wide))
    if check:
        _show_findings(found, as_json=as_json)


def _show_sweeps(config: Config, form: Format) -> None:
    from relay.store import reads

    show(reads.sweeps(database_of(config)), SWEEP_COLUMNS, form, empty="no sweep has run yet")


def _show_findings(found: list[Finding], *, as_json: bool) -> None:
    if as_json:
        put_json(as_document(msgspec.to_builtins(found)))
    for finding in () if as_json else found:
        answer(finding.sentence)
    if found:
        raise typer.Exit(FINDING)


def _contradiction(*, watch: bool, check: bool, here: bool, sweeps: bool, listing: bool) -> str | None:
    if watch and (check or sweeps):
        return "--watch shows the whole status: leave out --check and --sweeps"
    if check and sweeps:
        return "--check and --sweeps exclude each other: choose one"
    if here and not check:
        return "--here is for --check: relay status --check --here"
    if listing and not sweeps:
        return "--columns and --ndjson are for --sweeps; the whole status has --json"
    return None


class _Look:
    """Looks at the database, again and again; a connection that broke is replaced."""

    def __init__(self, config: Config) -> None:
        from relay.delivery.policy import policies

        self._config = config
        self._policies = policies(config)
        self._database: Database | None = None

    def output(self, *, as_json: bool, wide: bool, in_lines: bool = False) -> list[Text | str]:
        """Read everything, and return its lines, or its JSON, which `in_lines` is one line.

        Raises:
            DBAPIError: the database does not answer.
        """
        from relay.cli.status_view import lines_of, next_of
        from relay.findings import checked, findings, state_of
        from relay.store.overview import read_overview

        if self._database is None:
            self._database = database_of(self._config)
        try:
            seen = read_overview(self._database, self._policies)
            found = checked(self._database)
        except Exception:
            self._database.engine.dispose()
            raise
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


def _watch(look: _Look, every: float, *, as_json: bool, wide: bool) -> None:
    """Show it until Ctrl-C: in place at a terminal, else one after the other. The database may go away and come back."""
    out = console()
    try:
        if as_json or not out.is_terminal:
            for lines in _looks(look, every, as_json=as_json, wide=wide):
                _put(lines)
            return
        from rich.console import Group
        from rich.live import Live

        with Live(console=out, auto_refresh=False, vertical_overflow="crop") as live:
            for lines in _looks(look, every, as_json=False, wide=wide):
                shown: list[RenderableType] = [*lines]
                live.update(Group(*shown), refresh=True)
    except KeyboardInterrupt:
        return


def _looks(look: _Look, every: float, *, as_json: bool, wide: bool) -> Iterator[list[Text | str]]:
    from rich.text import Text
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import trouble_text
    from inbox.observe.visible import visible_line

    while True:
        try:
            lines = look.output(as_json=as_json, wide=wide, in_lines=True)
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
