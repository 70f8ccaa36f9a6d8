"""`inbox migrate` brings the database to this version's schema; `inbox roles` prints the SQL of its roles."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from inbox.observe.visible import visible
from relay.cli.terminal import answer, exit_on_error, fail, put, say

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
) -> None:
    """Bring the database to this version's schema; do nothing when it is current. Receivers and relays may run meanwhile.

    Examples:
      inbox migrate --dry-run
      inbox migrate
      INBOX_DATABASE_URL=postgresql+psycopg://localhost/inbox inbox migrate
    """
    from inbox.db import engine, migrate
    from inbox.exposure import exposure_warnings
    from inbox.loader.load import config_path, read_config

    with exit_on_error():
        config = read_config()
        made = engine.connect(config.database.url, application="inbox-migrate")
        if dry_run:
            _preview(made)
            made.dispose()
            return
        done = migrate.upgrade(made, say, contract=contract)
        behind = migrate.lacking_rights(made)
        made.dispose()
        for exposure in exposure_warnings(config_path(), config):
            say(f"warning: {exposure}")
    _tell(done)
    if behind:
        say(f"the roles have no rights yet on {', '.join(behind)}: run `inbox roles | psql`")


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


def _preview(made: Engine) -> None:
    """Print the migrations that would be run."""
    from inbox.db import migrate

    steps = migrate.plan(made)
    for step in steps:
        answer(f"{step}{'  (with --contract)' if step.contracts else ''}")
    if not steps:
        answer("the database is up to date")


def roles_command(
    *,
    prefix: Annotated[
        str | None,
        typer.Option(
            help="Beginning of the names of roles, which a server's databases share. Unless given: the schema, or inbox in public."
        ),
    ] = None,
) -> None:
    """Print the SQL that makes the roles receiver, relay, web, operator and two readers on Postgres, with rights and timeouts.

    A superuser runs it by `inbox roles | psql`: after each `inbox migrate`, and after each new login role. It may run again at
    any time.

    Examples:
      inbox roles
      inbox roles --prefix orders
    """
    from inbox.db import engine, migrate
    from inbox.loader.load import read_config

    with exit_on_error():
        url = engine.parse_url(read_config().database.url)
        if url.get_backend_name() != "postgresql":
            fail("a SQLite file has no roles; its mode decides who may read and write it")
        script = migrate.roles_script(str(url.query.get("schema", engine.DEFAULT_SCHEMA)), prefix)
    for line in script.splitlines():
        put(Text(visible(line)))
