"""Commands that set up, try or move an installation: `inbox init`, `schema`, `migrate`, `roles`, `send` and `copy`."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer
from rich.text import Text

from inbox.observe.visible import visible
from relay.cli.options import TIME, AsJson, parse_entity, require_known
from relay.cli.output import FINDING, answer, bar, fail, put, put_json, say, show
from relay.words import format_count, format_duration

_MOST_SHOWN = 20


def init(
    *,
    source: Annotated[
        str | None, typer.Option(metavar="PRESET", help="Preset of the provider, listed in docs/reference/sources.md.")
    ] = None,
    database: Annotated[str, typer.Option(help="sqlite, a file on one host, or postgresql.")] = "sqlite",
    to: Annotated[str | None, typer.Option(metavar="URL", help="URL of your service, which gets the webhooks.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
) -> None:
    """Write inbox.toml, or the file that INBOX_CONFIG names, with a source, a destination and a route; print the next steps.

    The route forwards every webhook of the source unchanged to your service. docs/recipes has complete files for other
    tasks. The file refers to secrets but never contains them. From inbox.schema.json beside it, editors complete its keys.

    Examples:
      inbox init --source github --to https://service.example.com/hooks
      inbox init --source shopify --database postgresql
    """
    from inbox.loader.load import config_path
    from inbox.sources import PRESETS
    from relay.cli.starter import DATABASES, SCHEMA_FILE, read_json_schema, starter

    file = config_path()
    if source is None:
        fail(f"give --source, one of {', '.join(sorted(PRESETS))}")
    require_known("source", source, PRESETS)
    require_known("database", database, DATABASES)
    if to is not None and not to.startswith(("https://", "http://")):
        fail(f"--to must be an http or https URL, not {to!r}")
    text, variables = starter(source, database, to) if to else starter(source, database)
    try:
        with file.open("w" if force else "x", encoding="utf-8") as opened:
            opened.write(text)
        file.with_name(SCHEMA_FILE).write_text(read_json_schema(), encoding="utf-8")
    except FileExistsError:
        fail(f"{file} exists; --force replaces it")
    except OSError as error:
        fail(f"can't write {file}: {error.strerror}")
    answer(f"wrote {file}, and {SCHEMA_FILE} for editors")
    answer(f"{source} is stored in {database} and forwarded to {to}; run:" if to else _PUT_URL)
    put(*(Text(visible(f"  export {name}=…  # {meaning}")) for name, meaning in variables.items()))
    commands = ("inbox migrate", "inbox check", "inbox serve &", "relay run &")
    for command in (*commands, f"inbox send {source}") if PRESETS[source].sample else commands:
        answer(f"  {command}")
    answer(f"webhooks go to POST /webhooks/{source}")


_PUT_URL = "next, put the URL of your service into it, and run:"


def schema() -> None:
    """Print the JSON Schema of inbox.toml, from which editors complete, explain and check its keys.

    Save it beside inbox.toml, and name it in the first line there: #:schema ./inbox.schema.json. Tombi and Taplo read it.

    Examples:
      inbox schema > inbox.schema.json
    """
    from relay.cli.starter import read_json_schema

    sys.stdout.write(read_json_schema())


# --- the database's schema


def migrate(
    *,
    contract: Annotated[
        bool,
        typer.Option(
            "--contract",
            help="Also drop the objects that only older versions use. First stop all receivers and relays of those versions.",
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the pending migrations, and change nothing.")
    ] = False,
) -> None:
    """Migrate the database to this version's schema. Receivers and relays may keep running.

    Examples:
      inbox migrate --dry-run
      inbox migrate
      INBOX_DATABASE_URL=postgresql+psycopg://localhost/inbox inbox migrate
    """
    from inbox.db import engine, migrate
    from inbox.loader.load import read_config

    config = read_config()
    made = engine.connect(config.database.url, application="inbox-migrate")
    try:
        if dry_run:
            steps = [f"{step}{'  (with --contract)' if step.contracts else ''}" for step in migrate.plan(made)]
            for step in steps or ["the database is up to date"]:
                answer(step)
            return
        done = migrate.upgrade(made, say, contract=contract)
        behind = migrate.lacking_rights(made)
    finally:
        made.dispose()
    came = f"was brought from {done.before or 'empty'} to {done.after}"
    answer(f"the database {'is up to date' if done.before == done.after else came}")
    if done.remaining:
        answer(
            f"run `inbox migrate --contract` for {', '.join(step.revision for step in done.remaining)} once all receivers and"
            " relays of older versions have ended"
        )
    if behind:
        say(f"the roles lack rights on {', '.join(behind)}: run `inbox roles | psql`")


def roles(
    *,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Prefix of the role names, which all databases of a server share; default: the schema, or inbox in public."
        ),
    ] = None,
) -> None:
    """Print SQL that creates the Postgres roles receiver, relay, web, operator and two readers, with rights and timeouts.

    Run it as a superuser with `inbox roles | psql` after each `inbox migrate`, and after each new login role. Running it
    again is safe.

    Examples:
      inbox roles
      inbox roles --prefix orders
    """
    from inbox.db import engine, migrate
    from inbox.loader.load import read_config

    url = engine.parse_url(read_config().database.url)
    if url.get_backend_name() != "postgresql":
        fail("SQLite has no roles: the file's mode grants access")
    script = migrate.roles_script(str(url.query.get("schema", engine.DEFAULT_SCHEMA)), prefix)
    put(*(Text(visible(line)) for line in script.splitlines()))


# --- a test webhook


def send(
    source: Annotated[str, typer.Argument(help="Name of the source.")],
    *,
    entity: Annotated[str, typer.Option(help="Entity that changed, as TYPE/ID.")] = "USER/IDNUMBER1234",
    event: Annotated[str, typer.Option(help="Event type.")] = "UPDATE",
    at: Annotated[datetime | None, typer.Option(help="Time of the event in UTC; default: now.", **TIME)] = None,
    body: Annotated[
        Path | None, typer.Option(help="File with the body to send, instead of a sample.", dir_okay=False)
    ] = None,
    header: Annotated[
        list[str] | None, typer.Option(help='Header to send, such as "X-GitHub-Event: push"; repeatable.')
    ] = None,
    url: Annotated[str, typer.Option(help="URL of the receiver.")] = "http://127.0.0.1:8000",
) -> None:
    """Send a webhook as the source's provider does, signed with the source's secret, and show the response.

    Exits with 1 when the webhook is not accepted.

    Examples:
      inbox send trivore
      inbox send trivore --entity GROUP/g1 --event DELETE
      inbox send github --entity issue/1 --event issues.opened
      inbox send acme --body order.json --header "X-Acme-Event: order.updated"
    """
    from inbox.clock import SystemClock
    from inbox.loader.load import read_config
    from inbox.sources.base import Sample
    from relay.cli import provider

    entity_type, entity_id = parse_entity(entity)
    given = dict(_header(each) for each in header or [])
    moment = at or SystemClock().now()
    config = read_config()
    require_known("source", source, config.sources)
    of = config.sources[source]
    if body is not None:
        try:
            sample = Sample(body.read_bytes(), given)
        except OSError as error:
            fail(f"can't read {body}: {error.strerror}")
    else:
        made = provider.make_sample(of, (entity_type or "", entity_id or ""), event, moment)
        sample = Sample(made.body, {**made.headers, **given}, made.message_id)
    reply = provider.send(of, url, sample, moment)
    answer(f"{reply.status} {reply.data.decode('utf-8', 'replace')}")
    if reply.status not in {200, 202, 204}:
        raise typer.Exit(FINDING)


def _header(given: str) -> tuple[str, str]:
    name, colon, value = given.partition(":")
    if not colon or not name.strip():
        fail(f"--header must be NAME: VALUE, not {given!r}")
    return name.strip(), value.strip()


# --- the copy


def copy(
    *,
    to: Annotated[
        str,
        typer.Option(
            metavar="URL",
            help="URL of the other database, as in [database]: postgresql+psycopg://…, sqlite:///…, env:NAME or file:/path.",
        ),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Execute the plan instead of only showing it.")] = False,
    as_json: AsJson = False,
) -> None:
    """Move the installation to another, empty database. Shows the plan; --yes executes it.

    Stop receivers and relays first: nothing may write to the source meanwhile. Copies all tables, rows and sequences, then
    compares both databases. It runs in one transaction: after an interrupt or a failure the target is empty, and the same
    command starts over. The source does not change.

    Exits with 1 when a row can't be copied, or when interrupted.

    Examples:
      inbox copy --to postgresql+psycopg://inbox@localhost/inbox
      inbox copy --to env:NEW_DATABASE_URL --json
      inbox copy --to env:NEW_DATABASE_URL --yes
    """
    from inbox.db import copying, engine, migrate
    from inbox.errors import CopyFailed
    from inbox.loader.load import read_config, reveal_url

    config = read_config()
    urls = {"source": config.database.url, "target": reveal_url(to, "--to", os.environ)}
    named = {end: engine.format_url(engine.parse_url(url)) for end, url in urls.items()}
    if named["source"] == named["target"]:
        fail("--to is the database of the configuration itself: give another one")
    source, target = (engine.connect(url, application="inbox-copy") for url in urls.values())
    migrate.require_current(source)
    planned, running = copying.plan(source, target), copying.running_programs(source)
    document: dict[str, Any] = {**named}
    if not yes:
        document |= {"running": running, "tables": [{"table": name, "rows": planned[name]} for name in planned]}
        more = f"; first stop {_together(running)}" if running else ""
        every = format_count(sum(planned.values()), "row")
        _show_tables(
            document,
            f"{every} from {named['source']} to {named['target']}{more}; --yes copies them",
            as_json=as_json,
        )
        return
    if running:
        fail(f"the source is in use: stop {_together(running)}, then run it again")
    began = time.monotonic()
    try:
        with bar("copying") as shown:
            tables = copying.copy(
                source,
                target,
                lambda step, table, done: shown(done, doing=f"{step} {table}", total=planned.get(table)),
            )
    except KeyboardInterrupt:
        fail("interrupted, and the target is empty; run the same command again", FINDING)
    except CopyFailed as error:
        fail(f"stopped, and the target is empty: {error}", FINDING)
    rows, seconds = sum(each.rows for each in tables), time.monotonic() - began
    document |= {"seconds": round(seconds, 3), "rows": rows, "tables": msgspec.to_builtins(tables)}
    said = f"copied and compared {format_count(rows, 'row')} in {format_duration(seconds)}: both databases are equal"
    _show_tables(document, said, as_json=as_json)
    if not as_json:
        say(
            "next: put its URL into [database] url (or INBOX_DATABASE_URL), then start receivers and relays. Start nothing on the"
            " source again: webhooks stored there would not be in the copy"
        )


def _show_tables(document: Mapping[str, Any], said: str, *, as_json: bool) -> None:
    if as_json:
        put_json(document)
        return
    show(document["tables"], ("table", "rows"))
    answer(said)


def _together(running: Sequence[str]) -> str:
    return ", ".join(f"the {each}" for each in running[:_MOST_SHOWN])
