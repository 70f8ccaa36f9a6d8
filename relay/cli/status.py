"""`relay status`: shows the state of the relay once or repeatedly, and runs a health check with --check."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer
from msgspec.structs import asdict
from rich.text import Text

from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible_line
from relay.cli.options import AsJson, connect_database
from relay.cli.output import (
    FINDING,
    Row,
    answer,
    console,
    fail,
    fit_table,
    hang,
    put,
    put_json,
    table,
    terminal_width,
)
from relay.words import format_count, format_duration, format_relative

if TYPE_CHECKING:
    from inbox.config.model import Config
    from relay.findings import Finding
    from relay.store.overview import Overview
    from relay.store.route_states import RouteState

_LOOK_AGAIN_SECONDS = 3.0
"""Minimum duration of a finding: during a restart, one relay ends just before the next one starts."""
_MOST_ROWS = 20
"""Most rows of a section at a terminal."""
_LEAST_WIDTH = 20
_COUNTS = ("open", "dead", "blocked", "retrying", "ready", "in_flight", "waiting", "received")
_COLUMNS: Mapping[str, str] = {
    "Routes": "route state open dead blocked retrying oldest_age_seconds next_due_at in_per_minute out_per_minute"
    " failed_per_minute ready in_flight waiting received",
    "Held back": "gate state since until by why",
    "Relays": "host pid health heartbeat_at in_flight started_at version",
    "Commands": "id kind state affected failed asked_at asked_by answer",
    "Sweeps": "source entity_type state swept_at last_missed last_added last_compared compared_until missed error",
}


def status(
    *,
    as_json: AsJson = False,
    wide: Annotated[bool, typer.Option("--wide", help="Show every column untruncated, with absolute times.")] = False,
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Refresh the status until Ctrl-C.")] = False,
    every: Annotated[float, typer.Option(min=0.1, help="With --watch: seconds between refreshes.")] = 2.0,
    check: Annotated[
        bool,
        typer.Option(
            "--check",
            help="Only check that a relay is alive and deliveries make progress: a health check for service managers.",
        ),
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="With --check: require a relay on this host.")] = False,
) -> None:
    """Show the health of each route, the gates that hold deliveries back, the running relays, and the next steps.

    `retrying` deliveries are ready, but due later after a failure. Counts stop at 10,000 for each state: `10,000+`. Rates are
    averages of the last five minutes. --json prints one object with every field.

    With --check, lists only findings, and exits with 1 when there are any: no relay has had a heartbeat for 15 s, relays die
    soon after they start, a step of one fails, the database does not answer, a route makes no progress although a delivery
    has been due for a minute, the last attempt of a route failed, a lane is blocked, no relay takes up a command, a command
    failed within the last hour, or relays run with different configurations for a minute. A shrinking backlog is not a finding,
    and neither are deliveries held back by a pause, a circuit breaker or a rate limit. A failing route is a finding from its
    first failed attempt to its next success: a warning at first, critical after several failures in more than a minute.

    With --check --here, requires a relay on this host, and omits findings that only an operator can fix: failing routes,
    blocked lanes, commands, configurations.

    Examples:
      relay status
      relay status --watch --every 5
      relay status --json
      relay status --check --here --json
    """
    from inbox.loader.load import read_config

    if watch and (check or as_json):
        fail("--watch can't be combined with --check or --json")
    if here and not check:
        fail("--here needs --check: relay status --check --here")
    width = None if wide else terminal_width()
    config = read_config()
    if watch:
        _watch(config, every, width)
    elif not check:
        overview, checked, findings = _look(config)
        if as_json:
            put_json(_document(overview, checked, findings))
        else:
            put(*format_status(overview, checked, findings, width=width))
    else:
        found = _find_lasting(config, here=here)
        if as_json:
            put_json(found)
        else:
            for each in found:
                answer(each.sentence)
        if found:
            raise typer.Exit(FINDING)


def _look(config: Config) -> tuple[Overview, Sequence[Finding], Sequence[Finding]]:
    """Read the overview, the findings of the check, and all findings.

    Raises:
        DBAPIError: the database does not answer.
    """
    from relay.delivery.policy import policies
    from relay.findings import list_findings, read_stuck
    from relay.store.overview import read_overview

    database = connect_database(config)
    try:
        seen, found = read_overview(database, policies(config)), read_stuck(database)
    finally:
        database.engine.dispose()
    return seen, found, list_findings(seen, found)


def _document(seen: Overview, checked: Sequence[Finding], findings: Sequence[Finding]) -> dict[str, Any]:
    from relay.findings import get_route_state

    whole: dict[str, Any] = msgspec.to_builtins(seen)
    for route, each in zip(seen.routes, whole["routes"], strict=True):
        each["state"] = get_route_state(route, checked)
    following = [{"text": each.sentence, "command": each.remedy} for each in list_next(findings)]
    return {**whole, "findings": msgspec.to_builtins(checked), "next": following}


def _watch(config: Config, every: float, width: int | None) -> None:
    """Show the status until Ctrl-C, in place at a terminal. The database may go away and come back."""
    from rich.console import Group
    from rich.live import Live
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import trouble_text

    out = console()
    live = Live(console=out, auto_refresh=False) if out.is_terminal else None
    with contextlib.suppress(KeyboardInterrupt), live or contextlib.nullcontext():
        while True:
            try:
                lines = [*format_status(*_look(config), width=width)]
            except DBAPIError as error:
                lines = [Text(visible_line(f"the database: {trouble_text(error)}"), "red")]
            if live is None:
                put(*lines)
            else:
                live.update(Group(*lines), refresh=True)
            time.sleep(every)


def _find_lasting(config: Config, *, here: bool) -> list[Finding]:
    """Return the findings that last for `_LOOK_AGAIN_SECONDS`."""
    from sqlalchemy.exc import DBAPIError

    from inbox.db.dialect import trouble_text
    from relay.findings import Finding, read_stuck

    host = socket.gethostname() if here else None
    try:
        database = connect_database(config)
        found = read_stuck(database, host=host)
        if found:
            time.sleep(_LOOK_AGAIN_SECONDS)
            again = {(each.kind, each.subject) for each in read_stuck(database, host=host)}
            found = [each for each in found if (each.kind, each.subject) in again]
    except DBAPIError as error:
        found = [Finding("no_database", "critical", f"the database: {trouble_text(error)}")]
    return found


# --- output


def list_next(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with a remedy other than `relay status`."""
    return [each for each in findings if each.remedy not in {"", "relay status"}][:_MOST_ROWS]


def format_status(
    seen: Overview, checked: Sequence[Finding], findings: Sequence[Finding], *, width: int | None
) -> Iterator[Text]:
    """Yield the lines of all sections. Without a width, lines are not wrapped and times are absolute."""
    yield _headline(seen, checked, findings)
    routes = seen.routes
    if len(routes) > _MOST_ROWS:
        routes = tuple(each for each in routes if each.open or each.in_per_minute or each.held_back_by)
    quiet = len(seen.routes) - len(routes)
    yield from _section("Findings", [each.sentence for each in checked], seen, width)
    yield from _section("Routes", [_route(route, checked, width) for route in routes], seen, width)
    yield from [Text(f"  and {format_count(quiet, 'route')} with nothing open")] if quiet else ()
    yield from _section("Held back", [{**asdict(gate), "gate": gate.title} for gate in seen.gates], seen, width)
    yield from _section(
        "Relays", [{**asdict(each), "in_flight": each.in_flight or None} for each in seen.relays], seen, width
    )
    alerts = [
        f"{format_relative(each.since, seen.at) if width else rfc3339(each.since)}: {each.text}" for each in seen.alerts
    ]
    yield from _section("Alerts", alerts, seen, width)
    yield from _section("Commands", seen.commands, seen, width)
    sweeps = [{**row, "state": "failed" if row["error"] else "ok"} for row in seen.sweeps]
    yield from _section("Sweeps", sweeps, seen, width)
    yield from _section("Retention", [_retention(seen)] if seen.retention else [], seen, width)
    following = list_next(findings)
    yield from (Text(), Text("Next", "bold")) if following else ()
    for each in following:
        yield from hang("  ", visible_line(each.sentence), width)
        yield Text(f"    {visible_line(each.remedy)}", "cyan")


def _retention(seen: Overview) -> str:
    """Describe the kinds that are behind or have errors, or otherwise the progress of each kind."""
    behind = [
        f"behind with {row['kind']} by {format_duration(row['behind_seconds'])}"
        for row in seen.retention
        if row["behind_since"]
    ]
    failed = [f"{row['kind']}: {row['error']}" for row in seen.retention if row["error"]]
    ages = [f"{row['kind']} until {row['pruned_until']:%Y-%m-%d}" for row in seen.retention if row["pruned_until"]]
    return "; ".join(behind + failed) or f"pruned: {', '.join(ages)}"


def _headline(seen: Overview, checked: Sequence[Finding], findings: Sequence[Finding]) -> Text:
    """Summarize the status. Like the page, it is well when no finding needs an operator."""
    from relay.findings import is_well

    running = sum(relay.health == "running" for relay in seen.relays)
    number = sum(route.open for route in seen.routes)
    more = " or more" if any(route.at_least for route in seen.routes) else ""
    line = Text("well", "bold green") if running and is_well(findings) else Text("not well", "bold red")
    said = [
        f"{format_count(running, 'relay')} running" if running else "no relay running",
        f"{number:,}{more} open" if number else "nothing open",
        *([format_count(len(checked), "finding")] if checked else []),
    ]
    return Text.assemble(line, f": {', '.join(said)}")


def _route(route: RouteState, findings: Sequence[Finding], width: int | None) -> Row:
    """Return the row of a route. At a terminal, leave out zeros so that empty columns are omitted."""
    from relay.findings import get_route_state

    row = asdict(route) | {"state": get_route_state(route, findings)}
    early = {*route.at_least, *(("open",) if route.at_least else ())}
    for name in _COUNTS:
        more = "+" if name in early else ""
        row[name] = f"{row[name]}{more}" if width is None else f"{row[name]:,}{more}" if row[name] else None
    if width is not None:
        rates = ("in_per_minute", "out_per_minute", "failed_per_minute")
        row |= {name: f"{row[name]:,.3g}" if row[name] else None for name in rates}
    return row


def _section(title: str, rows: Sequence[Any], seen: Overview, width: int | None) -> Iterator[Text]:
    """Yield a heading, then a table or a list of texts; at a terminal, only the first rows."""
    if not rows:
        return
    yield from (Text(), Text(title, "bold"))
    shown = rows if width is None or title == "Routes" else rows[:_MOST_ROWS]
    if title in _COLUMNS:
        columns = _COLUMNS[title].split()
        room = None if width is None else max(width - 2, _LEAST_WIDTH)
        lines = table(shown, columns) if room is None else fit_table(shown, columns, room, seen.at)[0]
        yield from (Text("  ").append_text(line) for line in lines)
    else:
        mark = "! " if title == "Findings" else ""
        for text in shown:
            yield from hang(f"  {mark}", visible_line(text), width, label_style="bold red")
    if len(shown) < len(rows):
        yield Text(f"  and {len(rows) - len(shown):,} more")
