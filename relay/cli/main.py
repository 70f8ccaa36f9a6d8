"""`relay`: the daemon, and what an operator does about deliveries."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from typing import Annotated

import typer

from inbox.cli.options import AsJson, Since, utc
from inbox.cli.terminal import Commands, Lazy, exit_on_error, show
from inbox.cli.terminal import run as run_app
from inbox.logs import lines
from relay.cli.options import database_of
from relay.daemon import GRACE_SECONDS


class RelayCommands(Commands):
    """The commands of `relay`."""

    lazy = (
        Lazy("status", "relay.cli.status:status", "Show what is open on each route, and which relays run."),
        Lazy(
            "replay", "relay.cli.acts:replay", "Take dead or ended deliveries up again. Shows the plan; --yes does it."
        ),
        Lazy(
            "cancel", "relay.cli.acts:cancel", "End deliveries for good, open or dead. Shows the plan; --yes does it."
        ),
        Lazy(
            "unblock",
            "relay.cli.acts:unblock",
            "Let lanes go on past the dead head that blocks them; it stays dead. Shows the plan; --yes does it.",
        ),
        Lazy("pause", "relay.cli.pause:pause", "Hold back deliveries; without a choice, list what is held back."),
        Lazy(
            "resume",
            "relay.cli.pause:resume",
            "Let deliveries go on: end a pause, and close a circuit breaker, also that of a destination that was retired.",
        ),
        Lazy(
            "plan", "relay.cli.plan:plan", "Show what would be changed downstream, field by field; nothing is written."
        ),
        Lazy("sweep", "relay.cli.sweep:sweep", "Find changes that no webhook has told, and add an event for each."),
        Lazy(
            "verify",
            "relay.cli.verify:verify",
            "Compare the state of every delivery with what its facts say. Changes nothing; exits 1 on any difference.",
        ),
        Lazy(
            "rebuild",
            "relay.cli.verify:rebuild",
            "Mend what relay verify finds, from the log. Receivers and relays may run meanwhile.",
        ),
        Lazy(
            "demo", "relay.demo.cli:app", "Run the whole product with demo services, and watch webhooks become PATCHes."
        ),
    )


app = typer.Typer(
    cls=RelayCommands,
    help="Drain the inbox in order and call downstream, with retries, through outages. Reads the same inbox.toml as `inbox`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)


def main() -> None:
    """Entry point."""
    run_app(app)


@app.command()
def run(
    *,
    drain: Annotated[
        bool, typer.Option("--drain", help="End when nothing is received, due or in flight, instead of running on.")
    ] = False,
    processes: Annotated[
        int, typer.Option(min=1, max=256, help="Run so many relay processes, and replace one that dies.")
    ] = 1,
    grace: Annotated[
        float,
        typer.Option(min=0, help="Seconds that running calls may take to finish after a stop, before they are cut."),
    ] = GRACE_SECONDS,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log every delivery, not only trouble.")] = False,
    supervised: Annotated[bool, typer.Option("--supervised", hidden=True)] = False,
) -> None:
    """Run the relay until it is stopped.

    SIGTERM and Ctrl-C end it in order: running calls finish, the rest is given back; a second one cuts running calls.
    SIGHUP reads the configuration again.

    Examples:
      relay run
      relay run --drain --verbose
      relay run --processes 3 --grace 60
    """
    from inbox.db import guarantees
    from inbox.exposure import exposures
    from inbox.loader.load import config_path, read_config
    from inbox.telemetry.recorder import exporter_at
    from relay.daemon.alert_sender import client_of
    from relay.daemon.gauges import meters_of, publishing_gauges
    from relay.daemon.loop import Relay
    from relay.daemon.process import hear_parent, orders_of_signals, work
    from relay.daemon.supervisor import Supervisor
    from relay.destinations import build
    from relay.observe import Observer
    from relay.sweep.scheduler import scheduled

    _log_to_stderr(verbose=verbose, several=processes > 1 or supervised)
    observer, orders = Observer(), orders_of_signals()
    if supervised:
        hear_parent(orders, observer)
    with exit_on_error():
        config = read_config()
        deliverers, alerts = build(config), client_of(config)
        scheduled(config)  # a sweep that can't be run is said before anything starts
        database = database_of(config, "inbox-relay")
        guarantees.require(database.engine)
        if not supervised:
            observer.exposed(exposures(config_path(), config))
    with ExitStack() as leaving:
        exporter = None if supervised else exporter_at(config.metrics.relay)
        if exporter is not None:
            leaving.callback(exporter.stop)
            exporter.ensure()
        if processes > 1:
            database.engine.dispose()
            options = ["--grace", str(grace), *["--drain"] * drain, *["--verbose"] * verbose]
            parent = Supervisor(
                options, config, processes=processes, drain=drain, orders=orders, observer=observer, exporter=exporter
            )
            raise typer.Exit(parent.run())
        observer.meters, database.on_facts = meters_of(config), observer.appended
        leaving.callback(observer.meters.close)
        relay = Relay(database, config, deliverers, alerts=alerts, observer=observer, grace_seconds=grace)
        with publishing_gauges(database, config, observer, exporter):
            work(relay, config, orders, observer, drain=drain)


def _log_to_stderr(*, verbose: bool, several: bool) -> None:
    who = "%(process)d " if several else ""
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format=f"%(asctime)s {who}%(levelname)s %(message)s")
    lines.escape(logging.getLogger().handlers)
    logging.getLogger("relay.node").setLevel(logging.INFO)  # that it runs, and where
    logging.getLogger("alembic").setLevel(logging.WARNING)  # it only looks which revision the database has


@app.command()
def dead(
    *,
    route: Annotated[str | None, typer.Option(help="Only of this route.")] = None,
    cause: Annotated[str | None, typer.Option(help="Only of this cause, such as exhausted or mapping.")] = None,
    since: Since = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List deliveries that were given up, the newest death first.

    `inbox show SEQ` tells the whole history of one, `relay replay` takes them up again.

    Examples:
      relay dead --cause mapping
      relay dead --json
    """
    from inbox.loader.load import read_config
    from relay.store import reads

    with exit_on_error():
        rows = reads.dead_letters(
            database_of(read_config()),
            route=route,
            cause=cause,
            since=utc(since),
            limit=limit,
        )
    columns = (
        "seq",
        "route",
        "state",
        "entity_type",
        "entity_id",
        "event_type",
        "attempts",
        "died_at",
        "cause",
        "error",
    )
    show(rows, as_json=as_json, columns=columns, empty="no dead letters")
