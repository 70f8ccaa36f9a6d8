"""`inbox migrate`: brings the database to this version's schema, and gives roles their rights."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from inbox.cli.terminal import answer, exit_on_error, fail, put, say
from inbox.logs.visible import visible

if TYPE_CHECKING:
    from sqlalchemy import Engine

    from inbox.db.migrate import MigrationResult


def migrate_command(
    *,
    contract: Annotated[
        bool,
        typer.Option(
            help="Also take away what only older versions use. Stop every receiver and relay of theirs first."
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Show what would be run, and change nothing.")] = False,
    grant: Annotated[
        bool,
        typer.Option(
            help="Then make the roles owner, receiver, relay, web, operator, reader and reader_without_payloads in Postgres, give"
            " each its rights and timeouts, and PUBLIC none."
        ),
    ] = False,
    sql: Annotated[
        bool, typer.Option("--sql", help="With --grant: print its statements for psql, and change nothing.")
    ] = False,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Beginning of the names of roles, which a server's databases share. Unless given: the schema, or inbox in public."
        ),
    ] = None,
) -> None:
    """Bring the database to this version's schema; do nothing when it is current. Receivers and relays may run meanwhile.

    Examples:
      inbox migrate --dry-run
      inbox migrate
      inbox migrate --grant
      inbox migrate --grant --sql --prefix orders
      INBOX_DATABASE_URL=postgresql+psycopg://localhost/inbox inbox migrate
    """
    from inbox.db import engine, grants, migrate
    from inbox.exposure import exposure_warnings
    from inbox.loader.load import config_path, read_config

    if (sql or prefix) and not grant:
        fail("--sql and --prefix belong to --grant")
    with exit_on_error():
        config = read_config()
        made = engine.connect(config.database.url, application="inbox-migrate")
        if dry_run or sql:
            _preview(made, grant=sql, prefix=prefix)
            made.dispose()
            return
        done = migrate.upgrade(made, say, contract=contract)
        ran = grants.grant(made, prefix) if grant else []
        behind = [] if grant else grants.lacking(made, prefix)
        made.dispose()
        for exposure in exposure_warnings(config_path(), config):
            say(f"warning: {exposure}")
    _tell(done)
    if grant:
        answer(f"each role has its rights and timeouts: {len(ran)} statements")
    if behind:
        say(f"the roles have no rights yet on {', '.join(behind)}: run `inbox migrate --grant`")


def _tell(done: MigrationResult) -> None:
    """Print what was migrated, and which migrations wait."""
    came = (
        "is up to date" if done.before == done.after else f"was brought from {done.before or 'empty'} to {done.after}"
    )
    answer(f"the database {came}")
    if done.remaining:
        answer(
            f"{', '.join(step.revision for step in done.remaining)} to follow with `inbox migrate --contract`, when every receiver"
            " and relay of an older version has ended"
        )


def _preview(made: Engine, *, grant: bool, prefix: str | None) -> None:
    """Print what would be run: the migrations, or with `grant` the statements for the roles."""
    from rich.text import Text

    from inbox.db import grants, migrate

    if grant:
        migrate.require_current(made)
        for line in grants.script(made, prefix).splitlines():
            put(Text(visible(line)))
        return
    steps = migrate.plan(made)
    for step in steps:
        answer(f"{step}{'  (with --contract)' if step.contracts else ''}")
    if not steps:
        answer("the database is up to date")
