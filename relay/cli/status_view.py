"""`relay status` for people, as lines: sections with tables that fit the terminal. Pure."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

from rich.text import Text

from inbox.observe.visible import visible_line
from relay.cli.tables import TABLE, Column, layout
from relay.cli.terminal import Row
from relay.findings import Finding, is_well, state_of
from relay.store.overview import FiringAlert, Overview
from relay.store.route_states import RouteState
from relay.words import counted, lasting, relative

ROUTES = (
    Column("route"),
    Column("state", "state"),
    Column("open", "number"),
    Column("dead", "number"),
    Column("blocked", "number"),
    Column("retrying", "number"),
    Column("oldest_age_seconds", "duration", "oldest"),
    Column("rates", "text", "in/out/min"),
    Column("next_due_at", "time", "next due"),
    Column("failed_per_minute", "number", "failed/min"),
    Column("ready", "number"),
    Column("in_flight", "number", "in flight"),
    Column("waiting", "number"),
    Column("received", "number"),
)
ROUTES_WHOLE = (
    *(column for column in ROUTES if column.name != "rates"),
    Column("in_per_minute", "number"),
    Column("out_per_minute", "number"),
    Column("held_back_by"),
)
"""Columns for output whose lines have any length."""
GATES = (
    Column("gate", "entity"),
    Column("state", "state"),
    Column("since", "time"),
    Column("until", "time"),
    Column("by"),
    Column("why", last=True),
    Column("routes", on_request=True),
)
RELAYS = (
    Column("host"),
    Column("pid", "number"),
    Column("health", "state"),
    Column("heartbeat_at", "time", "heartbeat"),
    Column("in_flight", "number", "in flight"),
    Column("started_at", "time", "started"),
    Column("version"),
)
COMMANDS = (
    Column("id", "number"),
    Column("kind"),
    Column("state", "state"),
    Column("affected", "number"),
    Column("failed", "number"),
    Column("asked_at", "time", "asked"),
    Column("asked_by", "text", "by"),
    Column("answer", last=True),
)
SWEEPS = (
    Column("source"),
    Column("entity_type", "text", "type"),
    Column("state", "state"),
    Column("swept_at", "time", "swept"),
    Column("last_missed", "number", "missed"),
    Column("error", last=True),
)

_LEAST_WIDTH = 20
_MOST_ROWS = 20
"""A terminal gets no more rows of a section."""


def next_of(findings: Sequence[Finding]) -> list[Finding]:
    """Return the findings with a next thing to do, other than to look at the status."""
    return [each for each in findings if each.remedy not in {"", "relay status"}][:_MOST_ROWS]


def lines_of(
    seen: Overview, checked: Sequence[Finding], findings: Sequence[Finding], *, width: int | None
) -> Iterator[Text]:
    """Yield the lines of all sections. Without a width lines have any length, and times are absolute."""
    yield _headline(seen, checked, findings)
    yield from _prose("Findings", [_escaped(each.sentence) for each in checked], width, mark="!")
    routes, quiet = _shown_routes(seen)
    rows = [_route(route, checked, width) for route in routes]
    yield from _table("Routes", rows, ROUTES if width else ROUTES_WHOLE, seen, width)
    if quiet:
        yield Text(f"  and {counted(quiet, 'route')} with nothing open")
    yield from _table("Held back", list(_gates(seen)), GATES, seen, width)
    relays = [
        {**{name: getattr(each, name) for name in each.__struct_fields__}, "in_flight": each.in_flight or None}
        for each in seen.relays
    ]
    yield from _table("Relays", relays, RELAYS, seen, width)
    yield from _prose("Alerts", [_alert(alert, seen, width) for alert in seen.alerts], width)
    yield from _table("Commands", list(seen.commands), COMMANDS, seen, width)
    sweeps = [{**row, "state": "failed" if row["error"] else "ok"} for row in seen.sweeps]
    yield from _table("Sweeps", sweeps, SWEEPS, seen, width)
    yield from _prose("Retention", [_retention(seen)] if seen.retention else [], width)
    following = next_of(findings)
    if following:
        yield from _title("Next")
    for each in following:
        yield from _wrapped(_escaped(each.sentence), width)
        yield Text(f"    {_escaped(each.remedy)}", "cyan")


def _retention(seen: Overview) -> str:
    """Return which kinds are behind or have errors, or the ages that are in force."""
    behind = [f"{row['kind']} by {lasting(row['behind_seconds'])}" for row in seen.retention if row["behind_since"]]
    failed = [f"{row['kind']}: {row['error']}" for row in seen.retention if row["error"]]
    ages = [
        f"{row['kind']} until {row['pruned_until']:%Y-%m-%d}"
        for row in seen.retention
        if row["pruned_until"] is not None
    ]
    if behind or failed:
        return "; ".join(_escaped(each) for each in [*(f"behind with {each}" for each in behind), *failed])
    return f"pruned: {', '.join(ages)}"


def _headline(seen: Overview, checked: Sequence[Finding], findings: Sequence[Finding]) -> Text:
    """Sum it up. Well is what needs nobody, as on the page; `--check` is about findings alone."""
    running = sum(relay.health == "running" for relay in seen.relays)
    number = sum(route.open for route in seen.routes)
    more = " or more" if any(route.at_least for route in seen.routes) else ""
    well = running and is_well(findings)
    line = Text()
    line.append("well" if well else "not well", "bold green" if well else "bold red")
    line.append(f": {counted(running, 'relay')} running" if running else ": no relay running")
    line.append(f", {number:,}{more} open" if number else ", nothing open")
    if checked:
        line.append(f", {counted(len(checked), 'finding')}")
    return line


def _shown_routes(seen: Overview) -> tuple[list[RouteState], int]:
    """Return the routes to show, and how many more are quiet: of many routes, those with something open or moving."""
    if len(seen.routes) <= _MOST_ROWS:
        return [*seen.routes], 0
    shown = [route for route in seen.routes if route.open or route.in_per_minute or route.held_back_by]
    return shown, len(seen.routes) - len(shown)


def _route(route: RouteState, findings: Sequence[Finding], width: int | None) -> Row:
    """Return a row; for people without zeros, since a column without any value is left out."""
    row: dict[str, Any] = {name: getattr(route, name) for name in route.__struct_fields__}
    row |= {"state": state_of(route, findings), "held_back_by": list(route.held_back_by)}
    early = {*route.at_least, *(("open",) if route.at_least else ())}
    for name in (column.name for column in ROUTES_WHOLE if column.kind == "number"):
        more = "+" if name in early else ""
        row[name] = f"{row[name]}{more}" if width is None else f"{row[name]:,}{more}" if row[name] else None
    if route.in_per_minute or route.out_per_minute:
        row["rates"] = f"{route.in_per_minute:,.3g}/{route.out_per_minute:,.3g}"
    return row


def _gates(seen: Overview) -> Iterator[Row]:
    for gate in seen.gates:
        row = {name: getattr(gate, name) for name in gate.__struct_fields__}
        yield {**row, "gate": gate.title, "routes": list(gate.routes)}


def _alert(alert: FiringAlert, seen: Overview, width: int | None) -> str:
    since = relative(alert.since, seen.at) if width else alert.since.isoformat().replace("+00:00", "Z")
    return f"{since}: {_escaped(alert.text)}"


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[Column], seen: Overview, width: int | None
) -> Iterator[Text]:
    if not rows:
        return
    yield from _title(title)
    shown = rows if title == "Routes" or width is None else rows[:_MOST_ROWS]
    made = layout(
        shown,
        columns,
        TABLE,
        width=None if width is None else max(width - 2, _LEAST_WIDTH),
        now=seen.at,
    )
    for line in made.lines:
        yield Text("  ").append_text(line)
    if len(rows) > len(shown):
        yield Text(f"  and {len(rows) - len(shown):,} more")


def _prose(title: str, texts: Sequence[str], width: int | None, mark: str = "") -> Iterator[Text]:
    if texts:
        yield from _title(title)
        for text in texts if width is None else texts[:_MOST_ROWS]:
            yield from _wrapped(text, width, mark)
        if width is not None and len(texts) > _MOST_ROWS:
            yield Text(f"  and {len(texts) - _MOST_ROWS:,} more")


def _title(title: str) -> Iterator[Text]:
    yield Text()
    yield Text(title, "bold")


def _wrapped(text: str, width: int | None, mark: str = "") -> Iterator[Text]:
    """Yield an escaped text in lines that break between words, the first behind a mark."""
    first = f"  {mark} " if mark else "  "
    lines = (
        [f"{first}{text}"]
        if width is None
        else textwrap.wrap(text, max(width, _LEAST_WIDTH), initial_indent=first, subsequent_indent="    ")
    )
    for number, line in enumerate(lines):
        made = Text(line)
        if mark and number == 0:
            made.stylize("bold red", 0, len(first))
        yield made


def _escaped(text: str) -> str:
    return visible_line(text)
