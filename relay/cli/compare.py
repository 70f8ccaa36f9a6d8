"""Commands that compare: `relay plan` and `relay sweep` with other systems, `relay verify` and `relay rebuild` with the log."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from inbox.errors import SweepFailed
from relay.cli.options import (
    AsJson,
    Reason,
    Since,
    Yes,
    login_name,
    open_database,
    parse_entity,
    require_known,
    require_reason,
)
from relay.cli.output import FINDING, answer, bar, fail, put_json, say, show
from relay.words import format_count

if TYPE_CHECKING:
    from datetime import datetime

    from inbox.config.model import Config
    from relay.destinations.preview import Preview
    from relay.store.audit import Checked
    from relay.store.database import Database
    from relay.store.sweeps import SweepFindings

_PAGE = 200


def plan(
    *,
    route: Annotated[
        str | None, typer.Option(help="Sync route to compare; with --config, limits the comparison to this route.")
    ] = None,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Configuration file to compare with the current one.")
    ] = None,
    events: Annotated[int, typer.Option(min=1, help="With --config: the number of newest events to compare.")] = 100,
    fetch: Annotated[
        bool,
        typer.Option(
            "--fetch", help="With --config: also fetch the entities of sync routes, and map them with both files."
        ),
    ] = False,
    entity: Annotated[str | None, typer.Option(metavar="TYPE/ID", help="Compare only this entity.")] = None,
    since: Since = None,
    as_json: AsJson = False,
) -> None:
    """Preview the changes a sync route would make downstream, or the effect of another configuration. Writes nothing.

    With --route, fetches every entity that the inbox knows for the route, or only the selected ones, from both sides, and
    maps them. On a route without fetch, the body of its newest event is the entity. The change `failed` marks an entity
    that could not be compared.

    With --config, compares that file with the current inbox.toml over the newest events: how each event is read, its routes
    and lanes, and the first request on each route. It makes no calls; with --fetch it makes only the calls that read.

    Exits with 0 when everything compared is in sync or unchanged; with 1 when something differs or could not be compared;
    and with 2 when the command or a configuration is wrong, or the database does not answer.

    Examples:
      relay plan --route user-to-crm
      relay plan --route user-to-crm --entity USER/IDNUMBER1234
      relay plan --config new.toml
      relay plan --config new.toml --route user-to-crm --fetch --events 10 --json
    """
    if config is not None and (entity or since):
        fail("--entity and --since need --route; with --config, --events N selects the newest N events")
    if fetch and config is None:
        fail("--fetch needs --config")
    if config is not None:
        _plan_config(config, route=route, events=events, fetch=fetch, as_json=as_json)
    elif route is None:
        fail("give --route, the sync route to compare, or --config, a configuration to compare with the current one")
    else:
        _plan_route(route, entity=entity, since=since, as_json=as_json)


def _finish(
    rows: Sequence[Any], columns: str, summary: str, *, as_json: bool, document: Sequence[Any] | None = None
) -> None:
    """Print the differences, in JSON `document` if given, and exit with FINDING if there are any."""
    if as_json:
        put_json(rows if document is None else document)
    else:
        show(rows, columns.split(), empty=summary)
        if rows:
            say(summary)
    if rows:
        raise typer.Exit(FINDING)


def _summarize(number: int, noun: str, differing: int, same: str) -> str:
    differ = f"{differing:,} differ{'s' if differing == 1 else ''}" if differing else same
    return f"{format_count(number, noun)} compared: {differ}"


def _plan_route(route: str, *, entity: str | None, since: datetime | None, as_json: bool) -> None:
    from relay.destinations import build
    from relay.destinations.base import without_lease
    from relay.destinations.preview import make_preview
    from relay.destinations.sync import Sync
    from relay.store import events

    entity_type, entity_id = parse_entity(entity)
    config, database = open_database()
    require_known("route", route, config.routes)
    sync = build(config)[route]
    if not isinstance(sync, Sync):
        fail(f"route {route} has no sync destination: there is nothing to compare")
    chosen = events.Chosen(config.routes[route], entity_type, entity_id, since)
    # one comparison for each concurrent call that the destination allows
    at_once = config.destinations[config.routes[route].destination].concurrency
    context, after, previews = without_lease(), events.FIRST, []
    with bar("comparing") as report, ThreadPoolExecutor(at_once) as pool:
        while page := events.read_entities(database, chosen, after, _PAGE):
            for each in pool.map(lambda delivery: make_preview(sync, delivery, context), page):
                report()
                previews.append(each)
            after = (str(page[-1].entity_type), str(page[-1].entity_id))
    found = [each for each in previews if each.change != "none"]
    failed = sum(each.change == "failed" for each in found)
    summary = _summarize(len(previews) - failed, "entity", len(found) - failed, "in sync")
    summary += f"; {format_count(failed, 'entity')} could not be compared" if failed else ""
    rows = [row for each in found for row in _rows(each)]
    columns = "entity change field before after why"
    _finish(rows, columns, summary, as_json=as_json, document=msgspec.to_builtins(found))


def _rows(found: Preview) -> list[dict[str, Any]]:
    about = {"entity_type": found.entity_type, "entity_id": found.entity_id, "change": found.change, "why": found.why}
    return [{**about, **msgspec.structs.asdict(field)} for field in found.fields] or [about]


def _plan_config(path: Path, *, route: str | None, events: int, fetch: bool, as_json: bool) -> None:
    """Compare the configuration in `path` with the current one."""
    from inbox.loader.load import load_file
    from relay.destinations.preview import Variant, compare
    from relay.store import events as stored

    found: dict[tuple[object, ...], dict[str, Any]] = {}
    number = differ = 0
    today, database = open_database()
    file = load_file(path)
    require_known("route", route, today.routes | file.sound.routes)
    old, new = (
        each.make(lambda config: Variant(config, only_route=route, fetches=fetch)) for each in (load_file(), file)
    )
    for event in stored.read_newest_events(database, events):
        number += 1
        differences = [*compare(old, new, event)]
        differ += bool(differences)
        for each in differences:
            key = each.source, each.route, each.part, repr(each.before), repr(each.after)
            row = {**msgspec.structs.asdict(each), "events": 0, "last_seq": each.seq}
            found.setdefault(key, row)["events"] += 1
    for name in () if fetch else sorted(today.routes.keys() & new.config.routes.keys()):
        if route in {None, name} and today.routes[name].sync != new.config.routes[name].sync:
            say(f"[routes.{name}.sync] differs: --fetch compares the resulting writes")
    summary = _summarize(number, "event", differ, "no difference")
    _finish([*found.values()], "route part events last_seq before after", summary, as_json=as_json)


# --- sweeps


def sweep(
    *,
    source: Annotated[str, typer.Option(help="Source to sweep, as its `sweeps` are configured.")],
    since: Since = None,
    reason: Reason = None,
    yes: Yes = False,
    as_json: AsJson = False,
) -> None:
    """Find changes that no webhook reported; --yes adds an event for each.

    Begins shortly before the end of the last sweep; the first sweep compares everything. Change listings don't include
    deletions: `relay plan` finds those. Exits with 1 when a change was missing.

    Examples:
      relay sweep --source trivore
      relay sweep --source trivore --since 2026-01-01 --reason "webhooks were off" --yes
    """
    from relay.store.operator.commands import note

    why = require_reason(reason) if yes else ""
    config, database = open_database()
    require_known("source", source, config.sources)
    tables = config.sources[source].sweeps
    if not tables:
        fail(f"source {source} has no sweeps: configure [[sources.{source}.sweeps]]")
    swept = [_swept(config, database, source, number, since, dry=not yes) for number in range(len(tables))]
    rows = [msgspec.structs.asdict(result) for result in swept]
    missed, left_out = (sum(row[name] for row in rows) for name in ("missed", "left_out"))
    found = f"{format_count(missed, 'change')} {'was' if missed == 1 else 'were'} missing"
    if yes:
        note(database, "sweep", {"source": source}, who=login_name(), why=why, answer=found)
    if as_json:
        put_json(rows)
    else:
        show(rows, ("source", "entity_type", "compared", "missed", "added", "since"))
        say(f"{found}; add --reason '…' --yes to add an event for each" if missed and not yes else found)
        if left_out:
            say(f"{format_count(left_out, 'event')} without the entity in the body: it exceeds max_body of {source}")
    if missed:
        raise typer.Exit(FINDING)


def _swept(
    config: Config, database: Database, source: str, number: int, begin: datetime | None, *, dry: bool
) -> SweepFindings:
    from relay.destinations.base import without_lease
    from relay.store import sweeps
    from relay.store.work import Work
    from relay.sweep.run import CompiledSweep

    sweeping = CompiledSweep(config, source, number)
    entity_type = sweeping.table.entity_type
    usual, before = sweeping.find_start(database)
    work = Work(database, config, {})
    try:
        with bar(f"comparing {entity_type}") as report:
            for swept in sweeping.run(work, without_lease(), begin or usual, dry=dry):
                report(swept.compared)
    except SweepFailed as error:
        if not dry:
            sweeps.record_interrupted(database, source, entity_type, swept.missed)
        fail(
            f"{source} {entity_type}: {error}; {swept.compared} compared, {swept.added} added; the next sweep begins again"
        )
    # Everything before the watermark has been compared, so a sweep that began after it must not move it.
    if not dry and (begin is None or (before is not None and begin <= before)):
        sweeps.finish(work, swept)
    return swept


# --- state and log

_MOST_DIFFERENCES = 1_000
"""Most differences shown: after the loss of a table, every row differs."""
_DIFFERENCE = "finding seq route lane facts_say stored"


def verify(*, as_json: AsJson = False) -> None:
    """Compare the state of every delivery with its facts. Changes nothing.

    Receivers and relays may keep running; it reads the events in batches. It checks that each fact can follow the previous
    one, that every event is open or ended on each of its routes, that attempts, replays and due times agree, and that every
    lane with waiting deliveries has a head. A lane is checked by the `lane` setting under which its events were delivered,
    not by the current one.

    Shows at most 1,000 differences. Exits with 0 when everything agrees, with 1 on any difference, and with 2 when the
    configuration is wrong, or the database does not answer.

    Examples:
      relay verify
      relay verify --json
    """
    _verify("`relay rebuild` repairs", as_json=as_json)


def _verify(remedy: str, *, as_json: bool) -> None:
    from relay.store.audit import verify as verify_all

    config, database = open_database()
    found, total, counts = _collect(database, verify_all(database, config), "verifying")
    if not found and not as_json:
        answer(f"agreed: {counts}")
        return
    them = "it" if total == 1 else "them"
    summary = f"{format_count(total, 'difference')} in {counts}; {remedy} {them}"
    _finish(found, _DIFFERENCE, summary, as_json=as_json)


def rebuild(*, reason: Reason = None, yes: Yes = False, as_json: AsJson = False) -> None:
    """Show the findings of `relay verify`; --yes repairs them from the log. Receivers and relays may keep running.

    Restores the rows of open deliveries, which are then delivered, removes the rows of ended ones, and gives each lane a
    head. A restored row joins the lane that its route assigns today. Facts never change: if one can't follow the previous
    one, it adds a fact `corrected`. It removes rows whose event is not in the inbox, and skips deliveries in flight and
    events that arrive meanwhile.

    With --yes it exits with 0 whether or not it repaired something; without, with 1 on any difference. It exits with 2 when
    the configuration is wrong, or the database does not answer.

    Examples:
      relay rebuild
      relay rebuild --reason "a table was emptied by hand" --yes
    """
    from relay.store.rebuild import rebuild as rebuild_all

    if not yes:
        _verify("add --reason '…' --yes to repair", as_json=as_json)
        return
    why = require_reason(reason)
    config, database = open_database()
    repaired, total, counts = _collect(database, rebuild_all(database, config, who=login_name(), why=why), "rebuilding")
    if as_json:
        put_json(repaired)
        return
    if repaired:
        show(repaired, _DIFFERENCE.split())
    done = f"repaired {format_count(total, 'difference')} in" if repaired else "nothing to repair:"
    answer(f"{done} {counts}")


def _collect(database: Database, chunks: Iterator[Checked], doing: str) -> tuple[list[dict[str, Any]], int, str]:
    """Process the chunks with a progress bar.

    Returns:
        The first differences, their total, and a sentence with the numbers of events, deliveries and facts checked.
    """
    from relay.store.audit import read_bounds

    differences: list[dict[str, Any]] = []
    total = events = deliveries = facts = 0
    low, high = read_bounds(database)
    with bar(doing, high - low + 1) as report:
        for chunk in chunks:
            events, deliveries, facts = events + chunk.events, deliveries + chunk.deliveries, facts + chunk.facts
            total += len(chunk.differences)
            differences += map(msgspec.structs.asdict, chunk.differences[: _MOST_DIFFERENCES - len(differences)])
            report(min(chunk.upto, high) - low + 1)
    counts = f"{format_count(events, 'event')}, {format_count(deliveries, 'delivery')}, {format_count(facts, 'fact')}"
    return differences, total, counts
