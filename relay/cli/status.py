"""`relay status`: lists the backlog and the running relays, and with --check runs a health check."""

from __future__ import annotations

import socket
import time
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from inbox.cli.options import AsJson, AsNdjson, Columns, Wide
from inbox.cli.tables import Column, format_of
from inbox.cli.tables import show as table
from inbox.cli.terminal import FINDING, exit_on_error, say, show
from relay.cli.options import database_of, load_config
from relay.cli.pause import described

if TYPE_CHECKING:
    from inbox.config.model import Config
    from inbox.db.reads import Row
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


def status(
    *,
    as_json: AsJson = False,
    check: Annotated[
        bool,
        typer.Option(
            "--check", help="Only check that a relay is alive and deliveries move: a service manager's health check."
        ),
    ] = False,
    here: Annotated[bool, typer.Option("--here", help="With --check: the relay must be on this host.")] = False,
    sweeps: Annotated[
        bool, typer.Option("--sweeps", help="Show instead when each sweep ran last, and its findings.")
    ] = False,
    wide: Wide = False,
    columns: Columns = None,
    as_ndjson: AsNdjson = False,
) -> None:
    """Show what is open on each route, and which relays run.

    With --check, only findings are listed, and the exit status is 1 when there are any: no relay has had a heartbeat for
    15 s, relays die soon after they start, a step of one fails, the database does not answer, a route makes no progress
    although a delivery has been due for a minute, a lane is blocked, or no relay takes up a command. Deliveries that a pause,
    a circuit breaker or a rate limit holds back are no finding, nor is a backlog that shrinks.

    With --here too, the relay must be on this host, and findings that only a person can fix are left out: blocked lanes,
    commands.

    Examples:
      relay status
      relay status --sweeps
      relay status --check
      relay status --check --here --json
    """
    from relay.store import reads

    with exit_on_error():
        config = load_config()
        if sweeps:
            swept = reads.sweeps(database_of(config))
            form = format_of(SWEEP_COLUMNS, as_json=as_json, as_ndjson=as_ndjson, wide=wide, names=columns)
            table(swept, SWEEP_COLUMNS, form, empty="no sweep has run yet")
            return
        if not check:
            _show(database_of(config), as_json=as_json)
            return
        found = _checked(config, here=here)
    if as_json:
        show(found, as_json=True, columns=(), empty="")
    else:
        for row in found:
            say(row["why"])
    if found:
        raise typer.Exit(FINDING)


def _show(database: Database, *, as_json: bool) -> None:
    from relay.store import gates, reads, stuck_check

    alive = _alive(database)
    backlog = reads.backlog(database)
    held_back = gates.held_back(database)
    swept = reads.sweeps(database)
    columns = ("route", "open", "received", "waiting", "ready", "in_flight", "blocked", "dead", "oldest_age_seconds")
    show(backlog, as_json=as_json, columns=columns, empty="nothing is open on any route")
    if as_json:
        return
    running = ", ".join(f"{node['host']} pid {node['pid']}" for node in alive)
    say(f"relays running: {len(alive)}" + (f" ({running})" if running else ": start one with `relay run`"))
    for trouble in (*stuck_check.relays_in_trouble(database), *stuck_check.waits_for_a_person(database)):
        say(f"trouble: {trouble.why}")
    for row in held_back:
        say(f"held back: {described(row)}")
    for row in swept:
        if row["error"]:
            say(f"not swept: {row['source']} {row['entity_type']}: {row['error']}")


def _alive(database: Database) -> list[Row]:
    from inbox.events.states import GONE_SECONDS
    from relay.store import reads

    return [node for node in reads.relay_nodes(database) if node["silent_seconds"] <= GONE_SECONDS]


def _checked(config: Config, *, here: bool) -> list[Row]:
    """Return the findings that last for `_LOOK_AGAIN_SECONDS`."""
    from sqlalchemy.exc import DBAPIError

    try:
        database = database_of(config)
        found = _findings(database, config, here=here)
        if found:
            time.sleep(_LOOK_AGAIN_SECONDS)
            again = _findings(database, config, here=here)
            found = [row for row in found if row in again]
    except DBAPIError as error:
        return [{"finding": "no_database", "route": None, "why": f"the database: {str(error.orig).strip()}"}]
    return found


def _findings(database: Database, config: Config, *, here: bool) -> list[Row]:
    from inbox.events.states import GONE_SECONDS
    from relay.delivery.policy import policies
    from relay.store import stuck_check

    found: list[Row] = []
    place = f" on {socket.gethostname()}" if here else ""
    if not any(not here or node["host"] == socket.gethostname() for node in _alive(database)):
        why = f"no relay{place} has sent a heartbeat for {GONE_SECONDS} s"
        found.append({"finding": "no_relay", "route": None, "why": why})
    first = stuck_check.unordered(database)
    if first is not None:
        found.append(
            {
                "finding": "unordered",
                "route": None,
                "why": f"event {first} has waited a minute for its place in its lane",
            }
        )
    for route in stuck_check.stuck_routes(database, policies(config)):
        why = f"route {route}: due for a minute, and nothing moves"
        found.append({"finding": "stuck", "route": route, "why": why})
    troubles = stuck_check.relays_in_trouble(database)
    if not here:  # another relay on this host would help none of these
        troubles += stuck_check.waits_for_a_person(database)
    return found + [msgspec.structs.asdict(trouble) for trouble in troubles]
