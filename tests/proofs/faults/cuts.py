"""Commits that are cut at a program's own end of the connection, so that one side does not know the result.

A file named after an application is an order for its next commit that has something to commit. Its moments: `before`, the
commit never reaches the server; `after`, it is done, but the answer is lost; `terminate`, the backend is terminated at
about the same time.
"""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from psycopg.pq.abc import PGconn
from sqlalchemy import Connection

from inbox.db import intake
from inbox.events.event import Event

RECEIVER, RELAY = "inbox-receiver", "inbox-relay"
LEDGER = "cuts.jsonl"
_RACE = 0.003
"""Most seconds from a commit to the termination of its backend."""
_HAS_WRITTEN = "SELECT pg_current_xact_id_if_assigned() IS NOT NULL"


def order(folder: Path, application: str, moment: str) -> Path:
    """Order the cut of the next commit of this application, and return the file, which exists until it is cut."""
    place, written = folder / application, folder / f"{application}.new"
    written.write_text(moment, encoding="utf-8")
    return written.rename(place)


def read_ledger(folder: Path) -> list[dict[str, Any]]:
    """Return a line for each cut, with `application`, `moment`, `pid` of the program, and `committed` (None: unknown)."""
    return [json.loads(line) for line in (folder / LEDGER).read_text(encoding="utf-8").splitlines()]


def arm(folder: Path) -> None:
    """Let the receiver or relay that this process becomes follow the orders in a folder."""
    commit, append = psycopg.Connection.commit, intake.append

    def commit_or_cut(connection: psycopg.Connection[Any]) -> None:
        if connection.pgconn.pipeline_status:

            def commit_in_pipeline() -> None:
                with connection.pipeline():  # whose end waits for the result
                    commit(connection)

            _cut(folder, RELAY, connection.pgconn, commit_in_pipeline, lambda: connection.execute("SELECT 1"))
        elif (folder / RELAY).exists() and connection.execute(_HAS_WRITTEN).fetchone() == (True,):
            _cut(folder, RELAY, connection.pgconn, lambda: commit(connection), lambda: connection.execute("SELECT 1"))
        else:
            commit(connection)

    def append_or_cut(connection: Connection, events: Sequence[Event]) -> list[int | None]:
        driver: Any = connection.connection.driver_connection

        def ask() -> object:
            return connection.exec_driver_sql("SELECT 1")

        seqs: list[int | None] = _cut(folder, RECEIVER, driver.pgconn, lambda: append(connection, events), ask)
        return seqs

    psycopg.Connection.commit = commit_or_cut  # type: ignore[method-assign, assignment]
    intake.append = append_or_cut


def _cut(
    folder: Path, application: str, connection: PGconn, commit: Callable[[], Any], ask: Callable[[], object]
) -> Any:  # noqa: ANN401  # as `commit`
    """Commit, cut as ordered; `ask` raises the driver's error for a lost connection."""
    taken = folder / f"{application}.{os.getpid()}.{threading.get_ident()}"
    try:
        (folder / application).rename(taken)
    except FileNotFoundError:
        return commit()
    moment = taken.read_text(encoding="utf-8")
    done = commit() if moment == "after" else None  # an error is an answer: nothing is cut
    committed = {"before": False, "after": True}.get(moment)
    line = {"at": time.monotonic(), "application": application, "moment": moment, "pid": os.getpid()}
    with (folder / LEDGER).open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, "committed": committed}) + "\n")
    if moment == "terminate":
        threading.Timer(random.uniform(0, _RACE), os.kill, (connection.backend_pid, signal.SIGTERM)).start()
    else:
        _disconnect(connection)
    if moment != "after":
        return commit()
    ask()
    return done


def _disconnect(connection: PGconn) -> None:
    with socket.socket(fileno=os.dup(connection.socket)) as theirs:
        theirs.shutdown(socket.SHUT_RDWR)
