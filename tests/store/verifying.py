"""Findings of `verify` and `rebuild`, and a way to spoil a database."""

from __future__ import annotations

from sqlalchemy import Engine, text

from inbox.config.model import Config
from inbox.db.dialect import POSTGRES
from relay.store.audit import Difference, verify
from relay.store.database import Database
from relay.store.rebuild import rebuild
from tests.helpers.relaying import CONFIG

ROUTES = ("strict", "blocking", "latest")


def differences(database: Database, config: Config = CONFIG) -> list[Difference]:
    return [found for checked in verify(database, config) for found in checked.differences]


def findings(database: Database) -> list[tuple[str, int | None, str | None]]:
    return sorted((d.finding, d.seq, d.route) for d in differences(database))


def mend(database: Database, config: Config = CONFIG) -> list[Difference]:
    return [found for checked in rebuild(database, config, who="ann") for found in checked.differences]


KEPT = ("inbox", "inbox_payload", "delivery_log")


class Planter:
    """Changes what nobody may change, as a slip of a hand or a bad restore would."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, statement: str) -> None:
        with self._engine.begin() as connection:
            if self._engine.dialect.name == POSTGRES:
                connection.execute(text("SET LOCAL session_replication_role = replica"))  # no triggers
            else:
                for name in (*(f"{table}_refuses_delete" for table in KEPT), "delivery_log_refuses_update"):
                    connection.execute(text(f"DROP TRIGGER IF EXISTS {name}"))
            assert connection.execute(text(statement.replace(":", "\\:"))).rowcount >= 1, "it changes something"
