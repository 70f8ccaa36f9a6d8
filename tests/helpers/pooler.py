"""A real PgBouncer before the Postgres of the tests."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from sqlalchemy import URL, make_url
from tests.helpers.machine import ROOM, postgres_user

from tests.docs.pages import the_block
from tests.helpers import machine
from tests.helpers.processes import free_port, listening

LIBRARIES = ("libevent-2.1-7t64", "libcares2")


@contextlib.contextmanager
def pooled(database_url: str, more: Mapping[str, str] | None = None) -> Iterator[str]:
    """A pooler as docs/how-to/deploy.md sets it, and `more`, as long as the block runs; gives the database's URL through it."""
    url, port = make_url(database_url), free_port()
    folder = Path(tempfile.mkdtemp(prefix="inbox-relay-pooler-", dir=ROOM))  # its user must be able to enter it
    user = postgres_user()  # it refuses to run as root, as Postgres does
    ours = {
        "listen_addr": "127.0.0.1",
        "listen_port": str(port),
        "auth_type": "any",
        "unix_socket_dir": "",
        **(more or {}),
    }
    settings = "".join(f"{name} = {value}\n" for name, value in ours.items())
    theirs = "inbox = host=db.example.com port=5432"
    page = the_block("docs/how-to/deploy.md", "ini")
    assert theirs in page
    text = page.replace(theirs, f"{url.database} = {_server(url)}") + settings
    (folder / "pgbouncer.ini").write_text(text, encoding="utf-8")
    folder.chmod(0o755)
    command = [machine.program("pgbouncer", *LIBRARIES), folder / "pgbouncer.ini"]
    try:
        with listening(command, port, log=folder / "log", environment=machine.environment("pgbouncer"), user=user):
            yield f"postgresql+psycopg://anybody@127.0.0.1:{port}/{url.database}"
    finally:
        shutil.rmtree(folder)


def _server(url: URL) -> str:
    """Return the address of the server, as PgBouncer writes it."""
    host = url.query.get("host") or url.host
    parts = {"host": host, "port": url.port, "dbname": url.database, "user": url.username, "password": url.password}
    return " ".join(f"{name}={value}" for name, value in parts.items() if value)
