"""`inbox`: serve the receiver, prepare its database, look into it, and send it a webhook."""

from __future__ import annotations

import os
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from sqlalchemy import Engine

from inbox.cli import send
from inbox.cli.rejected import readmit_command, rejected
from inbox.cli.terminal import FINDING, Commands, answer, fail, run, say, show, show_fields, told
from inbox.clock import SystemClock
from inbox.db import engine, migrate, reads
from inbox.exposure import exposure_warnings
from inbox.loader.load import config_path, read_config
from inbox.sources.base import Sample

app = typer.Typer(
    cls=Commands,
    help="Receive webhooks without ever losing one. Reads inbox.toml in this folder, or the file that INBOX_CONFIG names.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

AsJson = Annotated[bool, typer.Option("--json", help="JSON instead of a table, with every column.")]


def main() -> None:
    """Entry point."""
    run(app)


def _open() -> Engine:
    made = engine.connect(read_config().database.url, application="inbox-cli")
    migrate.require_current(made)
    return made


@app.command()
def serve(
    bind: Annotated[str, typer.Option(help="Address and port.")] = "127.0.0.1:8000",
    workers: Annotated[int | None, typer.Option(help="Processes; on SQLite one is best.")] = None,
) -> None:
    """Serve the receiver with gunicorn. SIGHUP reads the configuration again.

    Examples:
      inbox serve
      inbox serve --bind 0.0.0.0:8080 --workers 4
    """
    with told():
        read_config()
    arguments = [sys.executable, "-m", "gunicorn", "--config", "python:inbox.serve", "--bind", bind]
    if workers is not None:
        arguments += ["--workers", str(workers)]
    os.execv(sys.executable, arguments)  # noqa: S606  # gunicorn takes this process over, and its signals


@app.command("migrate")
def migrate_command(
    *,
    contract: Annotated[
        bool,
        typer.Option(
            help="Also take away what only older versions use. Stop every receiver and relay of theirs first."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Show what would be run, and change nothing.")] = False,
) -> None:
    """Bring the database to this version's schema, beside whatever runs; does nothing when it is there.

    Examples:
      inbox migrate --dry-run
      inbox migrate
      INBOX_DATABASE_URL=postgresql+psycopg://localhost/inbox inbox migrate
    """
    with told():
        config = read_config()
        made = engine.connect(config.database.url, application="inbox-migrate")
        if dry_run:
            for step in migrate.plan(made):
                answer(f"{step}{'  (with --contract)' if step.contracts else ''}")
            made.dispose()
            return
        done = migrate.upgrade(made, say, contract=contract)
        made.dispose()
        for exposure in exposure_warnings(config_path(), config):
            say(f"warning: {exposure}")
    came = (
        "is up to date" if done.before == done.after else f"was brought from {done.before or 'empty'} to {done.after}"
    )
    answer(f"the database {came}")
    if done.remaining:
        answer(
            f"{', '.join(step.revision for step in done.remaining)} to follow with `inbox migrate --contract`, when every receiver"
            " and relay of an older version has ended"
        )


@app.command("send")
def send_command(
    source: Annotated[str, typer.Argument(help="The name of a source.")],
    *,
    entity: Annotated[str, typer.Option(help="What changed, as TYPE/ID.")] = "USER/IDNUMBER1234",
    event: Annotated[str, typer.Option(help="What happened to it.")] = "UPDATE",
    at: Annotated[
        datetime | None, typer.Option(help="When; now unless given. UTC.", formats=["%Y-%m-%dT%H:%M:%S"])
    ] = None,
    body: Annotated[
        Path | None, typer.Option(help="A file with the body, instead of a made-up one.", dir_okay=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help='A header of the provider\'s, such as "X-GitHub-Event: push"; repeatable.')
    ] = None,
    url: Annotated[str, typer.Option(help="Where the receiver is.")] = "http://127.0.0.1:8000",
) -> None:
    """Send a webhook as the source's provider would, signed with the source's secret, and show the answer.

    Exits 1 when it is not accepted.

    Examples:
      inbox send trivore
      inbox send trivore --entity GROUP/g1 --event DELETE
      inbox send github --entity issue/1 --event issues.opened
      inbox send acme --body order.json --header "X-Acme-Event: order.updated"
    """
    entity_type, _, entity_id = entity.partition("/")
    if not entity_type or not entity_id:
        fail(f"--entity must be TYPE/ID, such as USER/IDNUMBER1234, not {entity!r}")
    given = dict(_header(each) for each in header or [])
    with told():
        moment = SystemClock().now() if at is None else at.replace(tzinfo=UTC)
        config = read_config()
        if body is not None:
            sample = Sample(_read(body), given)
        else:
            made = send.sample_of(
                config, source, entity_type=entity_type, entity_id=entity_id, event_type=event, at=moment
            )
            sample = Sample(made.body, {**made.headers, **given}, made.message_id)
        reply = send.send(config, source, url, sample, moment)
    answer(f"{reply.status} {reply.body}")
    if not reply.accepted:
        raise typer.Exit(FINDING)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        fail(f"can't read {path}: {error.strerror}")


def _header(given: str) -> tuple[str, str]:
    name, colon, value = given.partition(":")
    if not colon or not name.strip():
        fail(f"--header must be NAME: VALUE, not {given!r}")
    return name.strip(), value.strip()


@app.command("list")
def list_command(
    *,
    source: Annotated[str | None, typer.Option(help="Only of this source.")] = None,
    entity: Annotated[str | None, typer.Option(help="Only about this entity: TYPE/ID, or a TYPE.")] = None,
    state: Annotated[str | None, typer.Option(help="Only in this state, such as dead, ready or delivered.")] = None,
    since: Annotated[
        datetime | None, typer.Option(help="Only received since; UTC.", formats=["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"])
    ] = None,
    before: Annotated[int | None, typer.Option(help="Only below this seq: the next page.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="At most so many.")] = 50,
    as_json: AsJson = False,
) -> None:
    """List events, the newest first: one line for each route an event takes.

    Examples:
      inbox list --entity USER/IDNUMBER1234
      inbox list --state dead --json
    """
    entity_type, _, entity_id = (entity or "").partition("/")
    with told():
        rows = reads.events(
            _open(),
            source=source,
            entity_type=entity_type or None,
            entity_id=entity_id or None,
            state=state,
            since=None if since is None else since.replace(tzinfo=UTC),
            before=before,
            limit=limit,
        )
    columns = (
        "seq",
        "received_at",
        "source",
        "entity_type",
        "entity_id",
        "event_type",
        "route",
        "state",
        "attempts",
        "last_error",
    )
    show(rows, as_json=as_json, columns=columns, empty="no such event")


@app.command("show")
def show_command(seq: Annotated[int, typer.Argument(help="The event's number.")], *, as_json: AsJson = False) -> None:
    """Show one event: what came, where it stands on each route, and everything that happened to it.

    Exits 1 when there is none of that number.

    Examples:
      inbox show 42
      inbox show 42 --json
    """
    with told():
        row = reads.event(_open(), seq)
    if row is None:
        say(f"there is no event {seq}")
        raise typer.Exit(FINDING)
    if as_json:
        show_fields(row, as_json=True)
        return
    parts = {name: row.pop(name) for name in ("deliveries", "facts", "duplicates")}
    show_fields(row, as_json=False)
    for name, columns in (
        ("deliveries", ("route", "state", "attempts", "due_at", "lane", "last_error")),
        ("facts", ("at", "route", "kind", "attempt", "detail")),
        ("duplicates", ("received_at", "times", "last_received_at", "body", "handled_at", "error")),
    ):
        if parts[name]:
            answer("")
            answer(name, style="bold")
            show(parts[name], as_json=False, columns=columns, empty="")


app.command("rejected")(rejected)
app.command("readmit")(readmit_command)
