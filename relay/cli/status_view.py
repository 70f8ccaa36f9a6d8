"""`relay status` for people, as lines: sections with tables that fit the terminal. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from msgspec.structs import asdict
from rich.text import Text

from inbox.events.timestamps import rfc3339
from inbox.observe.visible import visible_line
from relay.cli.tables import TABLE, Column, Format, layout
from relay.cli.terminal import Row, wrapped
from relay.findings import Finding, is_well, state_of
from relay.store.overview import Overview
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
    Column("in_per_minute", "number", on_request=True),
    Column("out_per_minute", "number", on_request=True),
    Column("held_back_by", on_request=True),
)
"""`rates` are for a terminal alone, which has no room for both."""
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
    Column("last_added", "number", "added"),
    Column("last_compared", "number", "compared"),
    Column("compared_until", "time", "compared until"),
    Column("missed", "number", "missed in all"),
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
    yield from _prose("Findings", [each.sentence for each in checked], width, mark="! ")
    routes, quiet = _shown_routes(seen)
    yield from _table("Routes", [_route(route, checked, width) for route in routes], ROUTES, seen, width)
    if quiet:
        yield Text(f"  and {counted(quiet, 'route')} with nothing open")
    gates = [{**asdict(gate), "gate": gate.title, "routes": list(gate.routes)} for gate in seen.gates]
    yield from _table("Held back", gates, GATES, seen, width)
    relays = [{**asdict(each), "in_flight": each.in_flight or None} for each in seen.relays]
    yield from _table("Relays", relays, RELAYS, seen, width)
    alerts = [f"{relative(each.since, seen.at) if width else rfc3339(each.since)}: {each.text}" for each in seen.alerts]
    yield from _prose("Alerts", alerts, width)
    yield from _table("Commands", seen.commands, COMMANDS, seen, width)
    sweeps = [{**row, "state": "failed" if row["error"] else "ok"} for row in seen.sweeps]
    yield from _table("Sweeps", sweeps, SWEEPS, seen, width)
    yield from _prose("Retention", [_retention(seen)] if seen.retention else [], width)
    following = next_of(findings)
    if following:
        yield from _title("Next")
    for each in following:
        yield from _wrapped(each.sentence, width)
        yield Text(f"    {visible_line(each.remedy)}", "cyan")


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
        return "; ".join([*(f"behind with {each}" for each in behind), *failed])
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
    row = asdict(route) | {"state": state_of(route, findings), "held_back_by": list(route.held_back_by)}
    early = {*route.at_least, *(("open",) if route.at_least else ())}
    for name in (column.name for column in ROUTES if column.kind == "number"):
        more = "+" if name in early else ""
        row[name] = f"{row[name]}{more}" if width is None else f"{row[name]:,}{more}" if row[name] else None
    if route.in_per_minute or route.out_per_minute:
        row["rates"] = f"{route.in_per_minute:,.3g}/{route.out_per_minute:,.3g}"
    return row


def _table(
    title: str, rows: Sequence[Row], columns: Sequence[Column], seen: Overview, width: int | None
) -> Iterator[Text]:
    if not rows:
        return
    yield from _title(title)
    if width is None:
        made = layout(rows, [each for each in columns if each.name != "rates"], Format(wide=True), width=None)
    else:
        shown = rows if title == "Routes" else rows[:_MOST_ROWS]
        made = layout(shown, columns, TABLE, width=max(width - 2, _LEAST_WIDTH), now=seen.at)
    for line in made.lines:
        yield Text("  ").append_text(line)
    yield from () if title == "Routes" else _rest(rows, width)


def _prose(title: str, texts: Sequence[str], width: int | None, mark: str = "") -> Iterator[Text]:
    if texts:
        yield from _title(title)
        for text in texts if width is None else texts[:_MOST_ROWS]:
            yield from _wrapped(text, width, mark)
        yield from _rest(texts, width)


def _rest(every: Sequence[object], width: int | None) -> Iterator[Text]:
    if width is not None and len(every) > _MOST_ROWS:
        yield Text(f"  and {len(every) - _MOST_ROWS:,} more")


def _title(title: str) -> Iterator[Text]:
    yield Text()
    yield Text(title, "bold")


def _wrapped(text: str, width: int | None, mark: str = "") -> Iterator[Text]:
    """Yield a text in lines that break between words, the first behind a mark."""
    text, begin = visible_line(text), f"  {mark}"
    lines = [text] if width is None else wrapped(text, max(width - len(begin), _LEAST_WIDTH))
    for number, line in enumerate(lines):
        yield (
            Text.assemble((begin, "bold red" if mark else ""), line)
            if number == 0
            else Text(f"{' ' * len(begin)}{line}")
        )
