"""Sources that have rows in every table, made once and copied for each test, and empty targets of both kinds."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Engine, make_url, select

from inbox.db.columns import TextList
from inbox.db.engine import reading
from inbox.db.schema import metadata
from relay.store import claim, sequence
from relay.store.database import Database
from tests.helpers import relaying
from tests.helpers.databases import PostgresServer, migrate_database, open_engine
from tests.helpers.relaying import work_of
from tests.helpers.storing import START, Intake, a_rejected, an_event
from tests.helpers.traffic import events

_numbers = count(1)


class Databases:
    """Makes databases of the kinds `sqlite` and `postgres`, which `stack` drops at its end."""

    def __init__(self, server: PostgresServer, folder: Path, stack: contextlib.ExitStack) -> None:
        self._server, self._folder, self._stack = server, folder, stack

    def new(self, kind: str, template: str | None = None) -> str:
        """Make a database, without tables or like the template; gives its URL."""
        if kind == "sqlite":
            path = self._folder / f"copy{next(_numbers)}.db"
            if template is not None:
                shutil.copy(make_url(template).database or "", path)
            return f"sqlite:///{path}"
        like = None if template is None else make_url(template).database
        # Of the receiver that has filled it, one that gave up waiting on a busy machine may be left.
        self._server.run(f"SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = '{like}'")
        return self._stack.enter_context(self._server.database(like))

    def open(self, url: str) -> Engine:
        """Open a database until the end of the test."""
        return self._stack.enter_context(open_engine(url))


@pytest.fixture(scope="session")
def templates(
    postgres_server: PostgresServer,
    postgres_template: str,
    sqlite_template: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[dict[str, str]]:
    """URLs: of a source of each kind, made when a test first asks for it, and of an empty, migrated database of each."""

    class Made(dict[str, str]):
        def __missing__(self, kind: str) -> str:
            self[kind] = url = migrate_database(made.new(kind))
            with open_engine(url) as engine:
                install(engine, url)
            return url

    empty = {"empty sqlite": f"sqlite:///{sqlite_template}", "empty postgres": f"postgresql:///{postgres_template}"}
    with contextlib.ExitStack() as stack:
        made = Databases(postgres_server, tmp_path_factory.mktemp("templates"), stack)
        yield Made(empty)


@pytest.fixture
def databases(postgres_server: PostgresServer, tmp_path: Path) -> Iterator[Databases]:
    with contextlib.ExitStack() as stack:
        yield Databases(postgres_server, tmp_path, stack)


def url_of(engine: Engine) -> str:
    return engine.url.render_as_string(hide_password=False)


# --- An installation with rows in every table, and every row of a database in a form that both databases share


AT = datetime(2026, 3, 4, 5, 6, 7, 891234, tzinfo=UTC)
NUMBERS = (
    '{"whole": 12345678901234567890123, "exact": 0.1, "power": 1e22, "small": 1.0, "text": "ä\\u2028\\"", "none": null}'
)


def install(engine: Engine, url: str) -> None:
    """Store events through the product, leave deliveries of every state open, and add a row to each other table."""
    relaying.give_up(engine, url, events(3))
    relaying.fail_once(engine, url, [("x1", "2026-01-02T00:00:00Z"), ("x1", "2026-01-02T00:00:01Z")])
    intake = Intake(url)
    intake.append(*(an_event(n, f"u{n % 2}", routes=("strict", "blocking")) for n in range(1, 9)))
    intake.append(an_event(50, "u9", routes=()))
    intake.repeat(an_event(1, "u1"), an_event(1, "u1"))
    intake.reject(a_rejected(headers={"a": "b"}, body=b"\x00\xff"))
    database = Database(engine)
    sequence.sequence(work_of(database))
    claim.claim(work_of(database), [claim.FreeCapacity(["strict"], 1)])
    with engine.begin() as connection:
        for name, row in OTHERS.items():
            connection.execute(metadata.tables[name].insert(), row)


NODE = {"id": "r1", "host": "h", "pid": 7, "version": "0", "started_at": START, "heartbeat_at": START}
COMMAND = {"kind": "replay", "selection": {"route": "everything", "everything": True}, "reason": "ä", "asked_by": "kim"}
FIGURE = {"kind": "route", "name": "strict", "outcome": "delivered", "minute": AT.replace(second=0, microsecond=0)}
WATERMARK = {"source": "trivore", "entity_type": "USER", "compared_until": AT, "relay_node": "r1"}
LANE = {"route": "everything", "lane": "USER|ä|*", "occurred_at": AT, "seq": 1}
OTHERS: dict[str, dict[str, Any]] = {
    "route_lock": {"route": "elsewhere"},
    "route_failure": {"route": "x", "kind": "api", "name": "crm", "began_at": AT, "failures": 2, "seq": 1},
    "lane": {**LANE, "fetch_began_at": AT, "applied_hash": b"\0" * 32},
    "relay_node": {**NODE, "failing": {"claim": "no"}},
    "gate": {"kind": "route", "name": "strict", "breaker": "open", "breaker_until": AT, "held_until": AT},
    "relay_command": {**COMMAND, "asked_at": AT, "state": "running", "progress_seq": 3},
    "alert": {"at": AT, "kind": "delivery_dead", "subject": "x", "firing": True, "detail": json.loads(NUMBERS)},
    "pruning": {"kind": "attempts", "position": 5, "pruned_until": AT, "rows": 2**40, "ran_at": AT},
    "edited_body": {"seq": 1, "body": b"\x00\xff"},
    "payload_reveal": {"at": AT, "seq": 2**40, "who": "kim", "reason": "ä"},
    "throughput_minute": {**FIGURE, "count": 3, "bytes": 2**40},
    "sweep_watermark": {**WATERMARK, "swept_at": AT + timedelta(seconds=1)},
}


def everything(engine: Engine) -> dict[str, list[tuple[Any, ...]]]:
    """Every column of every row of every table, sorted."""
    found = {}
    with engine.connect() as connection, reading(connection).begin():
        for table in metadata.tables.values():
            rows = [
                tuple(_plain(column.type, value) for column, value in zip(table.columns, row, strict=True))
                for row in connection.execute(select(table))
            ]
            keys = [list(table.columns).index(column) for column in table.primary_key]
            found[table.name] = sorted(rows, key=lambda row: repr([row[at] for at in keys]))
    return found


def _plain(kind: object, value: Any) -> Any:  # noqa: ANN401  # any value of a row
    if kind is TextList:
        return tuple(value)
    return bytes(value) if isinstance(value, memoryview) else value
