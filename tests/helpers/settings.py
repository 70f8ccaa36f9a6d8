"""Settings of a Postgres database as somebody may have made them, and as both sides have to have them all the same."""

from __future__ import annotations

import contextlib

from sqlalchemy import Connection, make_url, text
from tests.helpers.databases import connect_postgres

from inbox.db.engine import PINNED

HOSTILE = {
    "default_transaction_isolation": "repeatable read",
    "synchronous_commit": "off",
    "lock_timeout": "0",
    "idle_in_transaction_session_timeout": "0",
    "timezone": "Europe/Helsinki",
}
"""Another value for each that is pinned."""


def set_otherwise(database_url: str) -> None:
    """As the database's owner: give everything that is pinned another value."""
    name = make_url(database_url).database
    with contextlib.closing(connect_postgres(database_url)) as owner:
        for setting, value in HOSTILE.items():
            owner.execute(f"ALTER DATABASE \"{name}\" SET {setting} = '{value}'".encode())


def pinned(connection: Connection, *more: str) -> dict[str, str]:
    """The values that a transaction on this connection has, of what is pinned and of `more`; its isolation as its default."""
    names = {
        name: "transaction_isolation" if name == "default_transaction_isolation" else name for name in [*PINNED, *more]
    }
    columns = ", ".join(f"current_setting('{name}') AS {setting}" for setting, name in names.items())
    return dict(connection.execute(text(f"SELECT {columns}")).mappings().one())
